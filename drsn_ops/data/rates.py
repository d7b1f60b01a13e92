"""Brings recordings to one sampling rate."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arguments import InputError, require_packages
from .signals import Signal

TOLERANCE = 1e-3  # rates that differ by less are one
LARGEST = 1000  # numerator or denominator of a ratio: filters of up to 20,001 points


def common_rate(
    paths: Sequence[Path], signals: Sequence[Signal], wanted: float | None, resample: bool
) -> float | None:
    """The rate in Hz to bring these signals to: ``wanted``, or the lowest that one says, or None if none says one.

    Raises:
        InputError: rates differ, and ``resample`` was not asked for. Those of CWRU's records, which are known by their
            numbers, may be above the others.
    """
    said = [
        (path, signal.rate) for path, signal in zip(paths, signals, strict=True) if signal.rate is not None
    ]
    if wanted is not None or not said:
        return wanted
    lowest, rate = min(said, key=lambda pair: pair[1])
    if not resample:
        for path, signal in zip(paths, signals, strict=True):
            if signal.rate is not None and signal.record is None and not is_one(signal.rate, rate):
                raise InputError(
                    f"{path}: is sampled at {signal.rate:g} Hz, {lowest} at {rate:g}; "
                    "--resample brings all to the lowest"
                )
    return rate


def brought_to(path: Path, signal: Signal, rate: float | None, resample: bool) -> npt.NDArray[Any]:
    """The values of a signal at ``rate``. A signal that says no rate has it.

    Raises:
        InputError: the signal says another one, and ``resample`` was not asked for, or says one where ``rate`` is None,
            unknown. A CWRU record of a higher rate is resampled unasked.
    """
    if signal.rate is None or (rate is not None and is_one(signal.rate, rate)):
        return signal.values
    if rate is None:
        raise InputError(
            f"{path}: is sampled at {signal.rate:g} Hz, but the recordings that were trained on said no rate; "
            "expected a model of train --sampling-rate"
        )
    if not (resample or (signal.record is not None and signal.rate > rate)):
        raise InputError(
            f"{path}: is sampled at {signal.rate:g} Hz, not at {rate:g}; --resample brings it there"
        )
    ratio = Fraction(rate / signal.rate).limit_denominator(LARGEST)
    if not 1 <= ratio.numerator <= LARGEST:
        raise InputError(f"{path}: is sampled at {signal.rate:g} Hz, too far from {rate:g} to be resampled")
    return resampled(signal.values, ratio)


def is_one(rate: float, other: float) -> bool:
    """Whether two rates are the same, to `TOLERANCE`."""
    return abs(rate - other) <= TOLERANCE * min(rate, other)


def resampled(values: npt.NDArray[Any], ratio: Fraction) -> npt.NDArray[np.float64]:
    """Values of (..., points, channels), ``ratio`` times as many, by a polyphase filter.

    It reaches -6 dB at half the lower rate. Beyond the ends it sees the mean: zeros would be a step for a signal with
    an offset, and ring.
    """
    require_packages("resampling", "files", "scipy")
    from scipy.signal import resample_poly

    wide = values.astype(np.float64)
    # one by one: along an axis of a larger array the mean is summed in another order
    channels = np.moveaxis(wide, -2, -1).reshape(-1, wide.shape[-2])
    found = np.stack(
        [resample_poly(channel, ratio.numerator, ratio.denominator, padtype="mean") for channel in channels]
    )
    return np.moveaxis(found.reshape(*wide.shape[:-2], wide.shape[-1], -1), -1, -2)
