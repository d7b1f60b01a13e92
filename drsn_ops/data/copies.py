"""Finds recordings that are there twice."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

import numpy as np

from .windows import NEGLIGIBLE, Array


class Seen:
    """The recordings read so far, sorted by the maximum of their first window, which copies have in common."""

    def __init__(self) -> None:
        self.recordings: list[Array] = []
        self.peaks: list[tuple[float, int]] = []
        # these tell most recordings apart, at a hundredth of the cost of a comparison
        self.troughs: list[float] = []
        self.firsts: list[float] = []

    def add(self, windows: Array) -> Iterator[int]:
        """Add a recording, (windows, channels, points). Yields the indices of earlier copies of it.

        Copies are recordings that a network cannot tell apart: over the windows that both have, no channel differs by
        more than `NEGLIGIBLE` of its range there, as where one was rounded, printed or shortened.
        """
        peak, trough, first = float(windows[0].max()), float(windows[0].min()), float(windows[0, 0, 0])
        tolerance = NEGLIGIBLE * (float(windows.max()) - float(windows.min()))
        near = slice(
            bisect_left(self.peaks, (peak - tolerance, 0)),
            bisect_right(self.peaks, (peak + tolerance, math.inf)),
        )
        candidates = [
            i
            for _, i in self.peaks[near]
            if abs(first - self.firsts[i]) <= tolerance and abs(trough - self.troughs[i]) <= tolerance
        ]
        insort(self.peaks, (peak, len(self.recordings)))
        self.recordings.append(windows)
        self.troughs.append(trough)
        self.firsts.append(first)
        return (i for i in candidates if is_copy(windows, self.recordings[i], tolerance))


def is_copy(ours: Array, theirs: Array, tolerance: float) -> bool:
    """Whether they are copies. ``tolerance`` is no less than that of the windows that both have, and sorts most out."""
    if ours.shape[1:] != theirs.shape[1:]:
        return False
    differ = np.zeros(ours.shape[1])
    for a, b in zip(ours, theirs, strict=False):
        differ = np.maximum(differ, np.abs(a.astype(np.float64) - b).max(-1))
        if differ.max() > tolerance:
            return False
    shared = min(len(ours), len(theirs))
    ranges = [np.ptp(windows[:shared].astype(np.float64), axis=(0, 2)) for windows in (ours, theirs)]
    return bool((differ <= NEGLIGIBLE * np.minimum(*ranges)).all())
