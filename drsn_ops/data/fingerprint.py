"""What tells data from others, so that what was begun on some does not go on with others."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..arguments import InputError

CHUNK = 1000


def fingerprint(splits: Iterable[Sequence[Tensor]]) -> list[float]:
    """Of each split's values and labels: the labels' checksum, and the means of the positive parts and of the squares.

    Neither is a difference that rounding, which is another on each machine, could be all of.
    """
    found: list[float] = []
    for values, labels in splits:
        total = torch.zeros(2, dtype=torch.float64)
        for part in values.split(CHUNK):
            part = part.double()
            total += torch.stack([part.relu().sum(), part.square().sum()])
        found += [float(zlib.crc32(labels.numpy().tobytes())), *(total / values.numel()).tolist()]
    return found


def source_of(data: str, folder: str | None) -> str:
    """The data as a message calls them."""
    return f"{data} in {folder}" if folder else data


def require_same_data(
    path: Path, begun: tuple[Sequence[float], str], now: tuple[Sequence[float], str]
) -> None:
    """Raise InputError unless both have one fingerprint, to the rounding in which machines differ.

    Args:
        path: what is resumed.
        begun, now: the fingerprint, and what `source_of` calls the data.
    """
    (before, source), (after, other) = begun, now
    if len(before) != len(after) or not all(map(partial(math.isclose, rel_tol=1e-6), before, after)):
        raise InputError(f"{path}: begun with other data than {other} holds now; these were {source}")
