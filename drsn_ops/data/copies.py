"""Finds recordings that are there twice."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .windows import NEGLIGIBLE, Array


class Traits(NamedTuple):
    """What copies have in common, to rounding: three values of the first window."""

    peak: float
    trough: float
    first: float


class Seen:
    """The recordings read so far, sorted by the maximum of their first window."""

    def __init__(self) -> None:
        self.recordings: list[Array] = []
        self.traits: list[Traits] = []
        self.peaks: list[tuple[float, int]] = []

    def add(self, windows: Array) -> Iterator[int]:
        """Add a recording, (windows, channels, points). Yields the indices of earlier copies of it.

        Copies are recordings that a network cannot tell apart: over the windows that both have, they differ by at most
        `NEGLIGIBLE` of the range, as they do where one was rounded, printed or shortened.
        """
        first = windows[0]
        traits = Traits(float(first.max()), float(first.min()), float(first.flat[0]))
        tolerance = NEGLIGIBLE * (float(windows.max()) - float(windows.min()))
        near = slice(
            bisect_left(self.peaks, (traits.peak - tolerance, 0)),
            bisect_right(self.peaks, (traits.peak + tolerance, math.inf)),
        )
        candidates = [i for _, i in self.peaks[near]]
        insort(self.peaks, (traits.peak, len(self.recordings)))
        self.recordings.append(windows)
        self.traits.append(traits)
        return (i for i in candidates if self.is_copy(windows, traits, i, tolerance))

    def is_copy(self, windows: Array, traits: Traits, i: int, tolerance: float) -> bool:
        """Whether recording ``i`` has the same values."""
        theirs = self.recordings[i]
        if windows.shape[1:] != theirs.shape[1:]:
            return False
        # three numbers tell most recordings apart, at a hundredth of the cost
        if any(abs(a - b) > tolerance for a, b in zip(traits, self.traits[i], strict=True)):
            return False
        pairs = zip(windows, theirs, strict=False)
        return all(np.abs(a.astype(np.float64) - b).max() <= tolerance for a, b in pairs)
