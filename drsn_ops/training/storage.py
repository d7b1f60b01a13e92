"""Reads the files of tensors that the commands leave, each of a format, without running code that they may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..arguments import InputError


class Kind(NamedTuple):
    """A kind of file: its noun, its usual name, the command that leaves it, and the format that this version writes."""

    noun: str
    usual: str
    origin: str
    format: str

    @property
    def family(self) -> str:
        """The format without its number."""
        return self.format.split()[0]


CHECKPOINT = Kind("checkpoint", "checkpoint.pt", "train", "drsn_ops.train 2")
MODEL = Kind("model", "model.pt", "train on recordings", "drsn_ops.model 1")


def read_saved(path: Path, kind: Kind) -> dict[str, Any]:
    """The values of a file of this kind.

    Raises:
        InputError: there is no such file, it is damaged, or of another kind or version.
    """
    try:
        with path.open("rb") as file:
            values: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: a folder, expected a {kind.noun}, as {path / kind.usual}") from error
    except PermissionError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    # a damaged archive can raise nearly anything
    except Exception as error:
        raise InputError(f"{path}: damaged, or not a {kind.noun} ({type(error).__name__})") from error
    found = values.get("format") if isinstance(values, dict) else None
    family = found.split()[0] if isinstance(found, str) and found.strip() else None
    for other in (CHECKPOINT, MODEL):
        if family == other.family != kind.family:
            raise InputError(
                f"{path}: a {other.noun}, expected a {kind.noun}, as the {kind.usual} that {kind.origin} leaves"
            )
    if family != kind.family:
        raise InputError(f"{path}: not a {kind.noun} of this program")
    if found != kind.format:
        raise InputError(f"{path}: a {kind.noun} of {found}, not of this version's {kind.format}")
    return values
