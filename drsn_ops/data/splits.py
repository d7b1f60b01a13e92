"""Gives whole recordings to a training or a test split, and cuts them into windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..arguments import InputError, require_seed
from .windows import Array, Cutting, Seen


class Windows(NamedTuple):
    """Windows, (N, 1, points) of float32, and for each, (N,) of int64, its class and the index of its recording."""

    x: Tensor
    labels: Tensor
    recording: Tensor


class Source(NamedTuple):
    """The file of a recording, and the name of its class."""

    path: Path
    label: str


# Reads a file: its values, (points,), and the number of the published record that they are, if any.
Reader = Callable[[Path], tuple[npt.NDArray[Any], int | None]]


def split(
    folder: Path,
    sources: list[Source],
    classes: tuple[str, ...],
    read: Reader,
    cutting: Cutting,
    test_share: float,
    seed: int,
) -> tuple[Windows, Windows]:
    """Read every recording and cut it into windows. Returns the training and the test split.

    Raises:
        ValueError: a bad ``test_share`` or ``seed``.
        InputError: a class with one recording, a file that cannot be used, a recording that is there twice.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share: got {test_share!r}, expected a number between 0 and 1")
    require_seed(seed)
    tested = set(choose(folder, sources, classes, test_share, seed))
    cut: list[tuple[Array, int]] = []
    records: dict[int, Path] = {}
    seen = Seen()
    for path, label in sources:
        values, record = read(path)
        if record is not None and records.setdefault(record, path) != path:
            raise InputError(
                f"{path}: holds record {record}, as does {records[record]}; expected each recording once"
            )
        windows = cutting.windows(path, values)
        copied = seen.add(windows)
        if copied is not None:
            raise InputError(
                f"{path}: holds the values of {sources[copied].path}; expected each recording once"
            )
        cut.append((windows, classes.index(label)))
    train, test = (
        join([(*cut[i], i) for i in range(len(sources)) if (i in tested) == wanted])
        for wanted in (False, True)
    )
    return train, test


def choose(
    folder: Path, sources: list[Source], classes: tuple[str, ...], share: float, seed: int
) -> Iterator[int]:
    """The indices of the recordings to test on: a share of each class's, independent of the other classes."""
    for label, name in enumerate(classes):
        members = [i for i, source in enumerate(sources) if source.label == name]
        if len(members) < 2:
            raise InputError(
                f"{folder}: class {name!r} has one recording, expected one to train on and one to test"
            )
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        yield from np.random.default_rng((seed, label)).permutation(members)[:count].tolist()


def join(recordings: list[tuple[Array, int, int]]) -> Windows:
    """One split from the windows, the class and the index of each of its recordings."""
    counts = torch.tensor([len(windows) for windows, _, _ in recordings], device="cpu")
    labels, indices = (torch.tensor([entry[i] for entry in recordings], device="cpu") for i in (1, 2))
    return Windows(
        torch.from_numpy(np.concatenate([windows for windows, _, _ in recordings])[:, None]),
        labels.repeat_interleave(counts),
        indices.repeat_interleave(counts),
    )
