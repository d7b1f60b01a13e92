"""Cuts recordings into windows of float32, and finds recordings that are there twice."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from ..arguments import InputError, require_choice, require_positive

# The share of a recording's range that does not count: float32 may lose as much, and copies may differ by as much.
NEGLIGIBLE = 1e-3

Array = npt.NDArray[np.float32]
Normalise = Literal["none", "mean"]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Cutting:
    """How recordings are cut: windows of ``points`` at every ``step``; with ``"mean"``, each window less its mean.

    Raises:
        ValueError: a bad argument.
    """

    points: int
    step: int | None
    normalise: Normalise

    def __post_init__(self) -> None:
        require_positive("points", self.points)
        if self.step is not None:
            require_positive("step", self.step)
        require_choice("normalise", self.normalise, get_args(Normalise))

    def windows(self, path: Path, values: npt.NDArray[Any]) -> Array:
        """The windows of a recording, (windows, points). The remainder at its end is dropped."""
        wide = values.astype(np.float64)
        require_finite(path, wide)
        if len(wide) < self.points:
            raise InputError(
                f"{path}: has {len(wide)} points, expected at least the {self.points} of a window"
            )
        if self.normalise == "none":
            return self.views(narrowed(path, wide))
        windows = self.views(wide)
        return narrowed(path, windows - windows.mean(-1, keepdims=True))

    def views(self, values: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """The windows as views of the values."""
        return np.lib.stride_tricks.sliding_window_view(values, self.points)[:: self.step or self.points]


def narrowed(path: Path, values: npt.NDArray[np.float64]) -> Array:
    """The values in float32; raises InputError where that is not finite, or loses the differences between them."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    # a finite number of float64 may be inf in float32
    require_finite(path, narrow)
    if 0 < NEGLIGIBLE * extent(values) < np.abs(narrow - values).max():
        raise InputError(
            f"{path}: holds values from {values.min():.9g} to {values.max():.9g}, whose differences float32 loses; "
            "expected them less their mean (normalise: mean) or scaled"
        )
    return narrow


def extent(values: npt.NDArray[Any]) -> float:
    """The largest value less the smallest."""
    return float(values.max()) - float(values.min())


def require_real(path: Path, values: npt.NDArray[Any]) -> None:
    """Raise InputError unless the values are real numbers."""
    if values.dtype.kind not in "fiu":
        raise InputError(f"{path}: holds {values.dtype}, expected real numbers")


def require_finite(path: Path, values: npt.NDArray[Any]) -> None:
    """Raise InputError where a value is NaN or infinite."""
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds values that are not finite in float32")


class Seen:
    """The recordings read so far, sorted by the maximum of their first window, which copies have in common."""

    def __init__(self) -> None:
        self.recordings: list[Array] = []
        self.peaks: list[tuple[float, int]] = []

    def add(self, windows: Array) -> int | None:
        """Add a recording. Returns the index of an earlier copy of it, if there is one.

        Copies are recordings that a network cannot tell apart: over the windows that both have, they differ by at most
        `NEGLIGIBLE` of the range, as they do where one was rounded, printed or shortened.
        """
        peak, tolerance = float(windows[0].max()), NEGLIGIBLE * extent(windows)
        near = slice(
            bisect_left(self.peaks, (peak - tolerance, 0)),
            bisect_right(self.peaks, (peak + tolerance, math.inf)),
        )
        for _, i in self.peaks[near]:
            pairs = zip(windows, self.recordings[i], strict=False)
            if all(np.abs(ours.astype(float) - theirs).max() <= tolerance for ours, theirs in pairs):
                return i
        insort(self.peaks, (peak, len(self.recordings)))
        self.recordings.append(windows)
        return None
