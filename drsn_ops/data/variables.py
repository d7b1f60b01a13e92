"""Chooses a variable of a file that holds several: MATLAB's files, .npz and HDF5."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..arguments import InputError
from .channels import LISTED, Found, stacked
from .time_columns import TIME, is_even, rate_of, seconds_of

# The names of a number that is the sampling rate in Hz, without case and underlines.
RATES = {
    *("fs", "sr", "fsamp", "samplerate", "samplingrate", "samplefreq", "samplingfreq"),
    *("samplefrequency", "samplingfrequency"),
}
# An array is long beside another one that is this many times as long as it.
MUCH_LONGER = 10


class Leaf(NamedTuple):
    """A variable: its value, and the sampling rate in Hz that the file gives for it by itself."""

    value: Any
    rate: float | None = None


# By dotted name.
Leaves = dict[str, Leaf]


def leaves_of(variables: Mapping[str, Any]) -> Leaves:
    """All variables by name, those within structs by dotted names, those within arrays of them by a number from 0.

    Structs with a field ``Name`` and a field ``Data``, as in the files of Paderborn University, are variables of that
    name. Their rate is that of the times of the same ``Raster``.
    """
    leaves: Leaves = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for field, inner in value.items():
                add(f"{name}.{field}" if name else str(field), inner)
        elif isinstance(value, list) and value and all(map(is_channel, value)):
            return
        elif isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype == object):
            for i, inner in enumerate(value):
                add(f"{name}.{i}", inner)
        else:
            leaves[name] = Leaf(value)

    add("", {name: value for name, value in variables.items() if not name.startswith("__")})
    for value in variables.values():
        if isinstance(value, Mapping):
            leaves |= measured(value)
    return leaves


def is_channel(value: Any) -> bool:
    """Whether a struct is a channel with a name and data of its own."""
    return isinstance(value, Mapping) and isinstance(value.get("Name"), str) and "Data" in value


def measured(struct: Mapping[str, Any]) -> Leaves:
    """The channels within a struct by their own names, but for the field X, whose times give the others their rate."""
    channels = [
        channel
        for field, value in struct.items()
        for channel in (value if isinstance(value, list) and field != "X" else ())
        if is_channel(channel)
    ]
    names = [channel["Name"] for channel in channels]
    times = struct.get("X", [])
    times = [time for time in (times if isinstance(times, list) else [times]) if is_channel(time)]
    return {
        channel["Name"]: Leaf(channel["Data"], rate_of_raster(channel, times))
        for channel in channels
        if names.count(channel["Name"]) == 1
    }


def rate_of_raster(channel: Mapping[str, Any], times: Sequence[Mapping[str, Any]]) -> float | None:
    """The rate of a channel by the times of its raster, or by the only ones of its length."""
    same = [
        time
        for time in times
        if is_vector(time["Data"]) and np.size(time["Data"]) == np.size(channel["Data"])
    ]
    own = [time for time in same if channel.get("Raster") in (time.get("Raster"), time["Name"])] or same
    vectors = [time["Data"].astype(np.float64) for time in own]
    rates = {rate_of(vector, 1.0) for vector in vectors if is_even(vector)}
    return rates.pop() if len(rates) == 1 else None


def find_variable(path: Path, leaves: Leaves, patterns: Sequence[str], channels: Sequence[str]) -> Found:
    """The variable that is wanted, and its sampling rate where the file says it.

    Args:
        patterns: names, or patterns of `fnmatch`; the first that the file has is read. Without them it is the only
            long array of numbers, or the vectors that ``channels`` names, side by side. A vector of times of the same
            length is none of them and gives the rate.

    The rate is that of a number beside the variable, in the same struct or outside it, of a name such as ``fs``, ``sr``
    or ``sampling_rate``.

    Raises:
        InputError: there is no such variable, or several.
    """
    numbers = {name: leaf for name, leaf in leaves.items() if is_numeric(leaf.value) and leaf.value.size > 1}
    times = {name for name, leaf in numbers.items() if is_time(name, leaf.value)}
    vectors = {name for name, leaf in numbers.items() if is_vector(leaf.value)}
    if not patterns and channels and vectors.issuperset(channels):
        values = [numbers[name].value for name in channels]
        return Found(
            stacked(path, values, channels), tuple(channels), rate=rate_in(leaves, channels[0], times)
        )
    if patterns:
        name = named(path, leaves, numbers.keys() - times, patterns)
    else:
        name = only(path, leaves, numbers.keys() - times)
    value = leaves[name].value
    if not isinstance(value, np.ndarray):
        raise InputError(
            f"{path}: its variable {name!r} (--variable) is {described(value)}, expected numbers"
        )
    return Found(value, rate=rate_in(leaves, name, times), source=name)


def named(path: Path, leaves: Leaves, candidates: Iterable[str], patterns: Sequence[str]) -> str:
    """The name of the variable that the first pattern finds which finds any."""
    for pattern in patterns:
        if pattern in leaves:
            return pattern
        found = [name for name in leaves if fnmatchcase(name, pattern)]
        inside = [name for name in leaves if name.startswith(f"{pattern}.")]
        if found:
            long = [name for name in found if name in candidates]
            if len(long) != 1:
                raise InputError(
                    f"{path}: {pattern!r} (--variable) fits {', '.join(long or found)}; expected one"
                )
            return long[0]
        if inside:
            return only(path, {name: leaves[name] for name in inside}, set(inside) & set(candidates))
    wanted = " or ".join(map(repr, patterns))
    raise InputError(f"{path}: has no variable {wanted} (--variable), but {contents(leaves)}")


def only(path: Path, leaves: Leaves, candidates: Iterable[str]) -> str:
    """The name of the only long array."""
    sizes = {name: max(leaves[name].value.shape) for name in candidates}
    long = [name for name, size in sizes.items() if MUCH_LONGER * size >= max(sizes.values())]
    if len(long) != 1:
        raise InputError(f"{path}: holds {contents(leaves)}; expected --variable with the one to read")
    return long[0]


def rate_in(leaves: Leaves, name: str, times: Iterable[str]) -> float | None:
    """The sampling rate of a variable: its own, or one said by a number or by times beside it or further out."""
    leaf = leaves[name]
    if leaf.rate is not None:
        return leaf.rate
    place = name
    while place:
        place = place.rpartition(".")[0]
        beside = [other for other in leaves if other.rpartition(".")[0] == place]
        said = {
            float(np.ravel(leaves[other].value)[0])
            for other in beside
            if re.sub("[_ ]", "", other.rpartition(".")[2]).casefold() in RATES
            and is_number(leaves[other].value)
        }
        if not said:
            vectors = [other for other in beside if other in times]
            same = [other for other in vectors if leaves[other].value.size == max(leaf.value.shape)]
            rates = [rate_of(leaves[other].value.astype(np.float64), scale_of(other)) for other in same]
            said = {rate for rate in rates if rate is not None}
        if said:
            return said.pop() if len(said) == 1 else None
    return None


def scale_of(name: str) -> float | None:
    """The seconds of a variable's unit of time, where its name says the unit."""
    match = TIME.fullmatch(name.rpartition(".")[2])
    return seconds_of(match["unit"]) if match else None


def is_time(name: str, value: npt.NDArray[Any]) -> bool:
    """Whether a variable is a vector of times, by its name and its values."""
    if TIME.fullmatch(name.rpartition(".")[2]) is None or not is_vector(value):
        return False
    return is_even(np.ravel(value).astype(np.float64))


def is_numeric(value: Any) -> bool:
    """Whether it is an array of real numbers."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiu"


def is_vector(value: Any) -> bool:
    """Whether it is an array of real numbers with one axis."""
    return is_numeric(value) and value.ndim == 1


def is_number(value: Any) -> bool:
    """Whether it is one positive number."""
    one = np.asarray(value)
    return one.size == 1 and one.dtype.kind in "fiu" and bool(np.isfinite(one).all() and (one > 0).all())


def described(value: Any) -> str:
    """A variable's kind for a message."""
    if isinstance(value, np.ndarray) and value.size > 1:
        kind = "" if is_numeric(value) else f"{value.dtype} "
        return f"{kind}{' x '.join(map(str, value.shape))}"
    return "text" if isinstance(value, str) else "one number" if is_number(value) else type(value).__name__


def contents(leaves: Leaves) -> str:
    """What there is, for a message: the largest first."""
    names = sorted(leaves, key=lambda name: -np.size(leaves[name].value))
    entries = [f"{name!r} ({described(leaves[name].value)})" for name in names[:LISTED]]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(entries)}{more}" if entries else "nothing"
