"""From what a file holds to its channels: which side counts the points, which column is the time, which are read."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..arguments import InputError
from .time_columns import find_times

LAYOUTS = ("auto", "points-first", "channels-first", "windows")
# More channels than these are not expected: a side that is longer may count windows.
MOST_CHANNELS = 64
# How many times as long as its other side an array's points are, where nobody says which side they are.
CLEARLY_LONGER = 10
LISTED = 12  # names in a message


class Signal(NamedTuple):
    """A recording.

    Attributes:
        values: (points, channels), or with the layout ``"windows"`` (windows, points, channels). Real numbers, of the
            type in the file.
        channels: the names of these channels; a channel without a name has its number from 0, times not counted.
        rate: points a second, where the file says it.
        record: the published number of a recording of Case Western Reserve University.
    """

    values: npt.NDArray[Any]
    channels: tuple[str, ...]
    rate: float | None
    record: int | None


class Found(NamedTuple):
    """What a file holds, as it lies there.

    Attributes:
        values: an array of any number of axes.
        names, units: of its columns, where the file has them.
        rate: points a second, where the file says it other than by a column of times. Such a column is believed first
            if it has a name.
        record: as of `Signal`.
        source: the variable's name, in files that hold several.
        points_first: whether the format itself says that the values are (points, channels).
    """

    values: npt.NDArray[Any]
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    rate: float | None = None
    record: int | None = None
    source: str = ""
    points_first: bool = False


def signal_of(path: Path, found: Found, channels: Sequence[str], layout: str) -> Signal:
    """The channels of what a file holds.

    An axis of points is told from one of channels as `arranged` says. A column of times or of indices, as
    `find_times` knows them, is no channel unless it is named.

    Raises:
        InputError: the values are no real numbers, lie in no layout that can be told, or have several channels of
            which none is chosen, or not the one that is.
    """
    if found.values.dtype.kind not in "fiu":
        raise InputError(f"{path}: holds {found.values.dtype}, expected real numbers")
    # names are those of columns
    named = bool(found.names) and layout in ("auto", "points-first")
    known = named or found.points_first
    values = arranged(path, found.values, layout, known=known)
    names = found.names if named else ()
    times: list[int] = []
    rate = None
    if values.ndim == 2:
        times, rate = find_times(path, values, names, found.units if named else ())
    # only the first column may be a time without a name
    names = names or (*["time"] * len(times), *map(str, range(values.shape[-1] - len(times))))
    chosen = choose(path, names, channels, times=times, named=named, known=known)
    # a column without a name may be something else that rises evenly
    said = rate is None or (found.rate is not None and not named)
    return Signal(
        values if chosen == list(range(values.shape[-1])) else values[..., chosen],
        tuple(names[i] for i in chosen),
        found.rate if said else rate,
        found.record,
    )


def arranged(path: Path, values: npt.NDArray[Any], layout: str, *, known: bool) -> npt.NDArray[Any]:
    """An array with its points before its channels: (points, channels), or (windows, points, channels).

    ``"auto"`` takes what is ``known`` to have its points first, such as columns with names, as it is. Otherwise an axis
    of length 1 is left out, and of two axes the longer one counts the points if it is at least ten times as long as the
    other and the other at most 64; else nobody can tell, and it is refused. ``"windows"`` takes (windows, points), and
    of three axes the last two by the same rule. The other two layouts are taken at their word.
    """
    if values.size < 2:
        raise InputError(f"{path}: holds {'one number' if values.size else 'no numbers'}, expected a signal")
    if layout == "auto" and not known:
        values = values.squeeze()
    if values.ndim == 1:
        return values[None, :, None] if layout == "windows" else values[:, None]
    if layout == "windows":
        if values.ndim == 2:
            return values[..., None]
        if values.ndim == 3:
            return values if points_first(path, values.shape, values.shape[1:]) else values.swapaxes(1, 2)
    elif values.ndim == 2:
        first = layout == "points-first" or (
            layout == "auto" and (known or points_first(path, values.shape, values.shape))
        )
        return values if first else values.T
    windows = "--layout windows for (windows, points, channels)" if values.ndim == 3 else "at most three axes"
    raise InputError(f"{path}: has shape {values.shape}, expected (points, channels), or {windows}")


def points_first(path: Path, shape: tuple[int, ...], sides: tuple[int, ...]) -> bool:
    """Whether the first of two sides counts the points; raises InputError where that cannot be told."""
    short, long = sorted(sides)
    if short > MOST_CHANNELS or long < CLEARLY_LONGER * short:
        raise InputError(
            f"{path}: has shape {shape}, and which side counts the points cannot be told; expected --layout "
            "points-first, channels-first or windows (a window in each row)"
        )
    return sides[0] == long


def choose(
    path: Path,
    names: Sequence[str],
    channels: Sequence[str],
    *,
    times: Sequence[int] = (),
    named: bool = True,
    known: bool = True,
    default: str | None = None,
) -> list[int]:
    """The indices of the channels that are wanted by name or, where no name is the same, by number.

    Numbers are from 0, of the channels that are no times: what was trained on values alone reads these beside times.
    Without ``channels`` it is the only one that is no time, or the one of the name ``default``. The only one of a file
    without names goes by any name.
    """
    others = [i for i in range(len(names)) if i not in times]
    if len(channels) == len(others) == 1 and not (named or channels[0].isdecimal() or channels[0] in names):
        return others
    if not channels:
        if default in names:
            return [names.index(default)]
        if len(others) != 1:
            hint = "" if known else ", or --layout windows where each is a window"
            raise InputError(
                f"{path}: holds {listed(names, times, named)}; expected --channels{examples(names, others)}{hint}"
            )
        return others
    found = []
    for wanted in channels:
        same = [i for i, name in enumerate(names) if name == wanted]
        same = same or [i for i, name in enumerate(names) if name.casefold() == wanted.casefold()]
        if not same and wanted.isdecimal():
            same = others[int(wanted) :][:1]
        if len(same) != 1:
            trouble = "several channels" if same else "no channel"
            raise InputError(
                f"{path}: has {trouble} {wanted!r} (--channels), but {listed(names, times, named)}"
            )
        found += same
    if len(set(found)) < len(found):
        raise InputError(f"{path}: --channels {','.join(channels)} has a channel twice")
    return found


def examples(names: Sequence[str], others: Sequence[int]) -> str:
    """What may follow --channels, for a message."""
    # the flag's names are separated by commas
    first = [str(i) if "," in names[at] else shlex.quote(names[at]) for i, at in enumerate(others[:2])]
    return f", such as --channels {first[0]} or --channels {','.join(first)}" if first else ""


def listed(names: Sequence[str], times: Sequence[int], named: bool) -> str:
    """The channels for a message."""
    if not named:
        time = " beside the time" if times else ""
        count = len(names) - len(times)
        return f"{count} channel{'s' * (count > 1)}{time}, 0{f' to {count - 1}' * (count > 1)}"
    entries = [f"{name!r}{' (the time)' * (i in times)}" for i, name in enumerate(names)]
    more = f" and {len(entries) - LISTED} more" if len(entries) > LISTED else ""
    return f"the channels {', '.join(entries[:LISTED])}{more}"


def stacked(path: Path, columns: Sequence[npt.NDArray[Any]], names: Sequence[str]) -> npt.NDArray[Any]:
    """Vectors beside each other, (points, channels)."""
    if len({column.shape for column in columns}) > 1:
        lengths = ", ".join(f"{name!r} {column.shape}" for name, column in zip(names, columns, strict=True))
        raise InputError(f"{path}: its channels differ in length: {lengths}")
    return np.stack(list(columns), axis=-1)
