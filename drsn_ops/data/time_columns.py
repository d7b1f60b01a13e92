"""Finds the columns that are times or indices, and the sampling rate that times say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arguments import InputError

SECONDS = {
    **dict.fromkeys(("s", "sec", "secs", "sek", "second", "seconds", "sekunden"), 1.0),
    **dict.fromkeys(("ms", "msec", "millis", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("us", "µs", "μs", "usec", "micros", "microsecond", "microseconds"), 1e-6),
    **dict.fromkeys(("ns", "nsec", "nanosecond", "nanoseconds"), 1e-9),
}
# "Time (s)", "time_ms", "Zeit [µs]", "timestamp", "X_Value", "Time - Plot 0"
TIME = re.compile(
    r"(?:relative|elapsed)?[ _]?(?:time ?stamp|time|zeit|temps|tiempo|tempo|x[ _]value|(?P<weak>t))"
    r"(?: - .*)?[ _]*[\[(/]?[ ]*(?P<unit>[a-zµμ]*)[ ]*[\])]?",
    re.IGNORECASE,
)
INDEX = re.compile(
    r"|#|n|i|id|no\.?|nr\.?|row|line|index|unnamed: 0|points?|samples?|sample[ _]number", re.IGNORECASE
)
# Counted from 1970, a time is larger than this many of its units of 1 ms, 1 us and 1 ns.
EPOCHS = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3))
# Fewer points in a line may be chance where no name says that they are times.
FEWEST = 10
# A step of as many mean steps is a gap in the recording.
LEAP = 3
# Times whose rounding leaves the rate open by more than this share say none.
DOUBT = 3e-4


def seconds_of(unit: str) -> float | None:
    """The seconds of a unit, such as ``ms`` or ``[ms]``."""
    return SECONDS.get(unit.strip(" []()").lower())


def find_times(
    path: Path, values: npt.NDArray[Any], names: Sequence[str], units: Sequence[str]
) -> tuple[list[int], float | None]:
    """The columns of (points, channels) that are times or indices, and the sampling rate in Hz that they say.

    A column is one of times if its name says so, such as ``time``, ``t``, ``Time (ms)``, ``Zeit [s]`` or
    ``timestamp``, or if it is the first of several without names and rises by equal steps. The unit is that of its
    name or of the line of units, else the second. Whole numbers without a name, and the consecutive ones of a column
    such as ``index``, count the points and say no rate, nor do times that are too coarse to. The only column is always
    a signal.

    Raises:
        InputError: named times go back, stand still or leap, or two columns of times say different rates.
    """
    count = values.shape[1]
    times: list[int] = []
    rates: list[float] = []
    for i in range(count if names else min(count, 1)):
        if count == 1:
            break
        column = values[:, i].astype(np.float64)
        name = names[i].strip() if names else ""
        match = TIME.fullmatch(name) if name else None
        unit = match["unit"] if match else name
        if match and unit and seconds_of(unit) is None:
            continue
        scale = seconds_of(unit) or (seconds_of(units[i]) if units else None)
        if match and not match["weak"]:
            require_steps(path, name, column)
        elif i == 0 and INDEX.fullmatch(name) and is_even(column) and is_whole(column):
            times.append(i)
            continue
        elif not is_even(column) or not (match or scale or (i == 0 and not names)):
            continue
        times.append(i)
        rate = rate_of(column, scale)
        if rate is not None:
            rates.append(rate)
    if rates and max(rates) > 1.001 * min(rates):
        raise InputError(f"{path}: its times say {min(rates):g} Hz and {max(rates):g} Hz")
    return times, rates[0] if rates else None


def rate_of(column: npt.NDArray[np.float64], scale: float | None = None) -> float | None:
    """The rate that times in units of ``scale`` seconds say; None for an index without a unit, or where they are too
    coarse to tell it.
    """
    if scale is None:
        scale = next((unit for least, unit in EPOCHS if column[0] > least), None)
    if scale is None:
        if is_whole(column):
            return None
        scale = 1.0
    # the line that fits best: of times that are printed, the last digit is rounded
    count = len(column)
    place = np.arange(count) - (count - 1) / 2
    step = float(place @ (column - column[0])) / float(place @ place)
    off = column - column[0] - step * place
    doubt = float(off.std()) / step * (12 / count**3) ** 0.5
    if doubt > DOUBT:
        return None
    rate = 1 / (step * scale)
    return float(round(rate)) if abs(rate - round(rate)) < max(1e-6, 3 * doubt) * rate else rate


def is_whole(column: npt.NDArray[np.float64]) -> bool:
    """Whether all of it is integers."""
    return bool((column == np.round(column)).all())


@np.errstate(over="ignore", invalid="ignore")
def is_even(column: npt.NDArray[np.float64]) -> bool:
    """Whether it rises by equal steps, up to the rounding of printed numbers."""
    if len(column) < FEWEST or not np.isfinite(column).all() or (np.diff(column) < 0).any():
        return False
    step = (column[-1] - column[0]) / (len(column) - 1)
    line = column[0] + step * np.arange(len(column))
    return bool(step > 0 and np.abs(column - line).max() <= step)


@np.errstate(over="ignore", invalid="ignore")
def require_steps(path: Path, name: str, column: npt.NDArray[np.float64]) -> None:
    """Raise InputError where times go back or leave a gap."""
    steps = np.diff(column)
    # also finite ones may be too far apart for float64
    if not (np.isfinite(steps).all() and np.isfinite(np.ptp(column))):
        raise InputError(f"{path}: its times {name!r} are not all finite numbers")
    mean = (column[-1] - column[0]) / max(len(steps), 1)
    # stamps that stand still between two of their smallest steps are coarse
    coarse = 2 * steps.min(where=steps > 0, initial=np.inf) if (steps == 0).any() else 0.0
    for bad, trouble in ((steps < 0, "go back"), (steps > max(LEAP * mean, coarse), "leap")):
        if bad.any():
            at = int(np.argmax(bad))
            raise InputError(
                f"{path}: its times {name!r} {trouble} from {column[at]:.9g} to {column[at + 1]:.9g} at point "
                f"{at + 1}; expected equal steps"
            )
    if not mean > 0:
        raise InputError(f"{path}: its times {name!r} stand still, expected equal steps")
