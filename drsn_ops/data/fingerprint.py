"""Fingerprints of data: a run that was begun on some data does not go on with others."""

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
    """For each split of values and labels: the labels' checksum, the mean of relu(values) and that of their squares.

    Both are sums of terms that are not negative: nothing cancels, so that rounding, which differs between machines,
    changes them by a small relative error only.
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
    """How messages name the data."""
    return f"{data} in {folder}" if folder else data


def require_same_data(
    path: Path, begun: tuple[Sequence[float], str], now: tuple[Sequence[float], str]
) -> None:
    """Raise InputError unless both have the same fingerprint, up to rounding.

    Args:
        path: what is resumed.
        begun, now: the fingerprint, and what `source_of` calls the data.
    """
    (before, source), (after, other) = begun, now
    if len(before) != len(after) or not all(map(partial(math.isclose, rel_tol=1e-6), before, after)):
        raise InputError(f"{path}: begun with other data than {other} holds now; these were {source}")
