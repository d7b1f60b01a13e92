"""Cuts recordings into windows of float32: normalised, padded where they are short, and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ..arguments import InputError, require_choice, require_positive

# The share of a recording's range that does not count: float32 may lose as much, and copies may differ by as much.
NEGLIGIBLE = 1e-3
# Squares of smaller numbers, and of larger ones than its inverse, come near the limits of float64.
LEAST_REACH = 1e-100

Array = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Normalise = Literal["none", "mean", "standard"]


@dataclass(frozen=True)
class Cutting:
    """How recordings are cut.

    Args:
        points: of a window.
        step: points from one window to the next; None for windows side by side.
        normalise: of each channel of each window w, in float64: ``"none"`` takes w, ``"mean"`` w less its mean,
            ``"standard"`` ``(w - mean) / std``, and zeros for a window that is constant.
        pad: a recording shorter than a window is one window, filled up on both sides with its mean, which is 0 after
            ``"mean"`` and ``"standard"``. These are of the recording's own points.

    Raises:
        ValueError: a bad argument.
    """

    points: int
    step: int | None
    normalise: Normalise
    pad: bool = False

    def __post_init__(self) -> None:
        require_positive("points", self.points)
        if self.step is not None:
            require_positive("step", self.step)
        require_choice("normalise", self.normalise, get_args(Normalise))

    def windows(self, path: Path, values: npt.NDArray[Any]) -> Array:
        """The windows of a recording, (windows, channels, points). The remainder at its end is dropped.

        Args:
            path: what messages name.
            values: (points,) or (points, channels); or (pieces, points, channels), each of which is cut by itself.

        Raises:
            InputError: fewer points than a window has, a value that is not finite in float32, or differences that
                float32, or of whole numbers float64, loses.
        """
        pieces = widened(path, pieces_of(values))
        length = pieces.shape[1]
        if length < self.points and not self.pad:
            raise InputError(f"{path}: has {length} points, a window {self.points}; --pad fills it up")
        if length < self.points:
            return filled(self.normalised(path, np.moveaxis(pieces, 1, 2)), self.points)
        if self.normalise == "none":
            return self.views(narrowed(path, np.moveaxis(pieces, 1, 2)))
        return self.normalised(path, self.views(np.moveaxis(pieces, 1, 2)))

    def starts(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The first point of each of these windows; pieces lie one after another."""
        count, length, _ = pieces_of(values).shape
        within = np.arange(0, max(length - self.points, 0) + 1, self.step or self.points, dtype=np.int64)
        begin = length * np.arange(count, dtype=np.int64)[:, None]
        starts: npt.NDArray[np.int64] = (begin + within).ravel()
        return starts

    def views(self, pieces: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The windows of (pieces, channels, points), of one piece as views."""
        windows = np.lib.stride_tricks.sliding_window_view(pieces, self.points, axis=2, writeable=True)
        windows = np.moveaxis(windows[:, :, :: self.step or self.points], 1, 2)
        return windows.reshape(-1, *windows.shape[2:])

    def normalised(self, path: Path, windows: Wide) -> Array:
        """Windows of (windows, channels, points) in float32."""
        if self.normalise == "none":
            return narrowed(path, windows)
        if self.normalise == "standard":
            windows = within_reach(windows)
        with np.errstate(over="ignore", invalid="ignore"):
            centred = windows - windows.mean(-1, keepdims=True)
        if self.normalise == "mean":
            return narrowed(path, centred)
        # by its extremes: the mean of equal numbers is rounded, so that what is left of them may not be 0
        constant = windows.max(-1, keepdims=True) == windows.min(-1, keepdims=True)
        scale = np.where(constant, np.inf, centred.std(-1, keepdims=True))
        return narrowed(path, np.divide(centred, scale, out=centred))


def pieces_of(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A recording as (pieces, points, channels)."""
    if values.ndim == 1:
        values = values[:, None]
    return values[None] if values.ndim == 2 else values


def filled(windows: Array, points: int) -> Array:
    """Windows of (windows, channels, fewer points), filled up on both sides with the mean of each channel."""
    before = (points - windows.shape[-1]) // 2
    whole = np.empty((*windows.shape[:-1], points), np.float32)
    whole[...] = windows.mean(-1, keepdims=True, dtype=np.float64)
    whole[..., before : before + windows.shape[-1]] = windows
    return whole


def widened(path: Path, pieces: npt.NDArray[Any]) -> Wide:
    """(pieces, points, channels) in float64; raises InputError where a value is not finite or differences are lost."""
    with np.errstate(over="ignore"):
        wide: Wide = pieces.astype(np.float64)
    bad = ~np.isfinite(wide)
    if bad.any():
        place = np.argwhere(bad)[0].tolist()
        channel = f" of channel {place[2]}" if wide.shape[2] > 1 else ""
        piece = f" of window {place[0]}" if len(wide) > 1 else ""
        raise InputError(
            f"{path}: holds values that are not finite, {int(bad.sum())} of them, the first at point {place[1]}"
            f"{channel}{piece}, counted from 0; fill gaps in, or cut the file there"
        )
    if pieces.dtype.kind in "iu" and np.abs(wide).max() > 2**53:
        least = pieces.min((0, 1))
        # differences modulo 2 ** 64 are right even where those of int64 overflow
        exact = (pieces.astype(np.uint64) - least.astype(np.uint64)).astype(np.float64)
        lost = np.abs(exact - (wide - least.astype(np.float64)))
        if (lost.max((0, 1)) > NEGLIGIBLE * exact.max((0, 1))).any():
            raise InputError(
                f"{path}: holds whole numbers from {least.min()} to {pieces.max()}, whose differences float64 loses; "
                "expected them less their offset"
            )
    return wide


def within_reach(windows: Wide) -> Wide:
    """Windows of which no square overflows or vanishes: each channel of a window by a power of 2, where one would."""
    largest = np.maximum(windows.max(-1, keepdims=True), -windows.min(-1, keepdims=True))
    if ((largest < LEAST_REACH) & (largest > 0)).any() or (largest > 1 / LEAST_REACH).any():
        windows = np.ldexp(windows, -np.frexp(largest)[1])
    return windows


def narrowed(path: Path, values: Wide) -> Array:
    """(N, channels, points) in float32; raises InputError where that is not finite or loses a channel's differences."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    # a finite number of float64 may be inf in float32
    if not np.isfinite(narrow).all():
        raise InputError(
            f"{path}: holds values up to {np.abs(values).max():.3g}, too large for float32; --normalise standard "
            "takes them"
        )
    least, most = values.min((0, 2)), values.max((0, 2))
    lost = np.abs(narrow - values).max((0, 2))
    bad = (lost > 0) & (lost > NEGLIGIBLE * (most - least)) & (most > least)
    if bad.any():
        channel = int(bad.argmax())
        small = most[channel] - least[channel] < np.finfo(np.float32).tiny / NEGLIGIBLE
        remedy = "standard scales them" if small else "mean takes each window less its mean"
        raise InputError(
            f"{path}: holds values from {least[channel]:.9g} to {most[channel]:.9g}, whose differences float32 loses; "
            f"--normalise {remedy}"
        )
    return narrow


def require_real(path: Path, values: npt.NDArray[Any]) -> None:
    """Raise InputError unless the values are real numbers."""
    if values.dtype.kind not in "fiu":
        raise InputError(f"{path}: holds {values.dtype}, expected real numbers")
