"""Means, spreads and paired gains of results over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from .settings import PLAIN, Result


def of(network: str, results: Iterable[Result]) -> list[Result]:
    """The results of this network."""
    return [result for result in results if result.network == network]


def over_seeds(results: Iterable[Result], quantity: str) -> list[float]:
    """For each seed, in order, the mean of a quantity over its results."""
    by_seed: dict[int, list[float]] = {}
    for result in results:
        by_seed.setdefault(result.seed, []).append(getattr(result, quantity))
    return [fmean(values) for _, values in sorted(by_seed.items())]


def gains(network: str, results: Sequence[Result]) -> list[float]:
    """For each seed, the network's test accuracy minus that of ResNet, which has the same noise and split."""
    ours, theirs = (over_seeds(of(name, results), "test_accuracy") for name in (network, PLAIN))
    return [own - plain for own, plain in zip(ours, theirs, strict=True)]


def gaining(networks: Sequence[str]) -> list[str]:
    """The networks that are compared with ResNet: all others, where it is one of them."""
    return [name for name in networks if name != PLAIN] if PLAIN in networks else []


def least_to_greatest(values: Iterable[Any]) -> str:
    """The least and the greatest of whole numbers or words, or the one that all are."""
    ordered = sorted({*values})
    return " to ".join(map(str, dict.fromkeys((ordered[0], ordered[-1]))))


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample (n - 1), None for one value."""
    return stdev(values) if len(values) > 1 else None


def percent(values: Sequence[float]) -> str:
    """Mean and spread in percent."""
    deviation = spread(values)
    return f"{100 * fmean(values):.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def half_width(values: Sequence[float], level: float = 0.95) -> float | None:
    """Half of the width of `interval`."""
    from scipy.stats import t

    deviation = spread(values)
    if deviation is None:
        return None
    return float(t.ppf((1 + level) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean, of values that are independent and normal; None for one value."""
    half = half_width(values, level)
    return None if half is None else (fmean(values) - half, fmean(values) + half)


def points(values: Sequence[float]) -> str:
    """The mean of differences in points of a percent, with its sign, and the interval of the mean."""
    ends = interval(values)
    mean = signed(fmean(values))
    return mean if ends is None else f"{mean} [{', '.join(map(signed, ends))}]"


def signed(share: float) -> str:
    """A difference of shares in points of a percent."""
    return f"{round(100 * share, 2) + 0.0:+.2f}"  # + 0.0 turns -0 into 0
