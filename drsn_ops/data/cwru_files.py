"""Knows the recordings of bearings of Case Western Reserve University (CWRU) by their numbers and names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..arguments import InputError
from .channels import Signal, choose, stacked
from .variables import Leaves

# The numbers of the published files at 12 kHz with a fault of the drive end's bearing, and of the baseline, as in the
# tables of the Bearing Data Center. Fault diameters in inches. Each four count the loads of the motor up.
CWRU_NUMBERS: dict[str, Sequence[int]] = {
    "normal": range(97, 101),
    "inner race 0.007": range(105, 109),
    "inner race 0.014": range(169, 173),
    "inner race 0.021": range(209, 213),
    "inner race 0.028": range(3001, 3005),
    "ball 0.007": range(118, 122),
    "ball 0.014": range(185, 189),
    "ball 0.021": range(222, 226),
    "ball 0.028": range(3005, 3009),
    # at 6, 3 and 12 o'clock; there is no 157
    "outer race 0.007": (*range(130, 134), *range(144, 148), 156, 158, 159, 160),
    "outer race 0.014": range(197, 201),
    "outer race 0.021": (*range(234, 238), *range(246, 250), *range(258, 262)),
}
CWRU_LOADS = (0, 1, 2, 3)  # horsepower
HOURS = (3, 6, 12)  # where a fault of the outer race is
CWRU_PARTS = {"IR": "inner race", "B": "ball", "OR": "outer race"}
# The numbers in the variables' names of these files. In nearly all other files it is the file's own number.
CWRU_VARIABLES = dict(zip(range(3001, 3009), (*range(56, 60), *range(48, 52)), strict=True))
# The records at 48 kHz: the baseline, and the published table of that rate with faults of the drive end's bearing.
CWRU_48_KHZ = frozenset(
    number
    for first, last in (
        *((97, 100), (109, 112), (122, 125), (135, 138), (148, 151), (161, 164), (173, 177)),
        *((189, 192), (201, 204), (213, 217), (226, 229), (238, 241), (250, 253), (262, 265)),
    )
    for number in range(first, last + 1)
)
# The records at 12 kHz with a fault of the fan end's bearing.
CWRU_FAN_END = frozenset((*range(270, 303), 305, 306, 307, *range(309, 314), *range(315, 319)))
CWRU_VARIABLE = re.compile(r"X(\d+)_(DE|FE|BA)_time")
# What copies have before, between and after the published names.
FILLERS = {"12k", "12khz", "drive", "end", "de", "time", "bearing", "fault", "data", "baseline"}


class Named(NamedTuple):
    """What a file's name says: the class, the record's number, its load, and which other table it is of, in words."""

    label: str | None
    number: int | None
    load: int | None
    other: str


def cwru_class(path: Path) -> str:
    """The class of a file by its published number or name: a key of `CWRU_NUMBERS`.

    Copies have names such as ``105.mat``, ``IR007_0.mat``, ``12k_Drive_End_B014_1_186.mat``, ``OR014@6_0_197.mat``,
    ``105_0.mat`` or ``normal_1_98.mat``, in capitals or not.

    Raises:
        InputError: it is of the table of 48 kHz or of the fan end, or has another number or name.
    """
    label, number, _, other = parsed(path)
    expected = "not the number or name of a CWRU baseline or 12 kHz drive-end record"
    if other:
        raise InputError(
            f"{path}: {expected}, but one {other}; move it away, or sort the files into one folder a class"
        )
    if number is not None:
        known = class_of(number)
        if known is not None and label in (None, known):
            return known
        if known is not None:
            raise InputError(f"{path}: its name says {label}, but number {number} is {known}")
    elif label in CWRU_NUMBERS:
        return label
    raise InputError(f"{path}: {expected}, such as 105 or IR007_0; expected one, or one folder a class")


def cwru_number(path: Path) -> int | None:
    """The record's number where the file's name says it; the baseline at loads 0 to 3 is 97 to 100."""
    return parsed(path).number


def cwru_load(path: Path) -> int:
    """The load of the motor by a file's published number or name, one of `CWRU_LOADS`.

    Raises:
        InputError: its number and the rest of its name say different loads, or it says none, as ``B014.mat``.
    """
    _, number, load, _ = parsed(path)
    known = load if number is None else load_of(number)
    if known is None:
        raise InputError(
            f"{path}: its name says no load of the motor; expected a number or a name such as 105 or IR007_0"
        )
    if load not in (None, known):
        raise InputError(f"{path}: its name says load {load}, but number {number} is of load {known}")
    return known


def class_of(number: int) -> str | None:
    """The class of a record, None where it is none of `CWRU_NUMBERS`."""
    return next((name for name, numbers in CWRU_NUMBERS.items() if number in numbers), None)


def load_of(number: int) -> int | None:
    """The load of a record, None where it is none of `CWRU_NUMBERS`."""
    label = class_of(number)
    return None if label is None else CWRU_NUMBERS[label].index(number) % len(CWRU_LOADS)


def load_among(small: Sequence[int], outer: bool) -> int | None:
    """The load in a name's small numbers, where it is one without doubt: of the outer race, the hour goes before it."""
    if len(small) == 1 and not (outer and small[0] in HOURS):
        return small[0] if small[0] in CWRU_LOADS else None
    return small[1] if outer and len(small) == 2 and small[0] in HOURS and small[1] in CWRU_LOADS else None


def at_loads(loads: Sequence[int]) -> str:
    """The loads that recordings were chosen by, in words; nothing where they were not."""
    held = sorted({*loads})
    return f" at load{'s' * (len(held) > 1)} {', '.join(map(str, held))}" if held else ""


def parsed(path: Path) -> Named:
    """What a file's name says."""
    label, number, other, rest = None, None, "", []
    small: list[int] = []
    for word in re.split(r"[\s_@-]+", path.stem.lower()):
        if match := re.fullmatch(r"(ir|b|or)(\d{3})", word):
            label = f"{CWRU_PARTS[match[1].upper()]} 0.{match[2]}"
        elif word == "normal":
            label = "normal"
        elif word in ("48k", "48khz"):
            other = "at 48 kHz"
        elif word in ("fan", "fe"):
            other = "of the fan end's bearing"
        # a load, or an hour
        elif word in ("0", "1", "2", "3", "6", "12") and len(small) < 2:
            small.append(int(word))
        elif word.isdecimal() and number is None:
            number = int(word)
        elif word not in FILLERS:
            rest.append(word)
    if rest:
        return Named(None, None, None, "")
    if number in CWRU_FAN_END:
        other = f"of the fan end's bearing, {number}"
    elif number in CWRU_48_KHZ and number not in CWRU_NUMBERS["normal"]:
        other = f"at 48 kHz, {number}"
    if label == "normal" and number is None and len(small) == 1 and small[0] < 4:
        number = CWRU_NUMBERS["normal"][small[0]]
    known = label or (number and class_of(number)) or ""
    # the baseline has no other table
    return Named(
        label, number, load_among(small, known.startswith("outer")), "" if label == "normal" else other
    )


def require_record(path: Path, record: int | None) -> None:
    """Raise InputError unless the file, whose name tells its class, holds a record of that name."""
    label, (_, number, load, _) = cwru_class(path), parsed(path)
    numbers = [number] if number else [n for n in CWRU_NUMBERS[label] if load in (None, load_of(n))]
    if record not in numbers:
        named = f"record {number}" if number else label + at_loads([] if load is None else [load])
        rate = " of 48 kHz" if record in CWRU_48_KHZ else ""
        held = "no record of CWRU" if record is None else f"record {record}{rate}"
        raise InputError(f"{path}: named after {named}, but holds {held}")


def cwru_record(variable: str) -> int:
    """The published number of the record in a variable such as ``X105_DE_time``."""
    number = int(variable[1:].partition("_")[0])
    return next((file for file, inside in CWRU_VARIABLES.items() if inside == number), number)


def cwru_rate(record: int) -> float:
    """The sampling rate of a record in Hz."""
    return 48_000.0 if record in CWRU_48_KHZ else 12_000.0


def cwru_leaves(path: Path, leaves: Leaves) -> Leaves:
    """The variables of the record that a file is named after, if it holds several: 99 holds 98 as well."""
    records = {int(match[1]) for name in leaves if (match := CWRU_VARIABLE.fullmatch(name))}
    if len(records) < 2:
        return leaves
    number = cwru_number(path)
    own = {number, CWRU_VARIABLES.get(number or 0)} & records
    if len(own) != 1:
        raise InputError(
            f"{path}: holds the records {', '.join(map(str, sorted(records)))}, and is named after none of them; "
            "expected the name of one, or --variable"
        )
    kept = own.pop()
    return {
        name: leaf
        for name, leaf in leaves.items()
        if (match := CWRU_VARIABLE.fullmatch(name)) is None or int(match[1]) == kept
    }


def cwru_signal(path: Path, leaves: Leaves, channels: Sequence[str]) -> Signal | None:
    """The channels of a record, of DE (drive end), FE (fan end) and BA (base), without a choice DE; None if it is none.

    Raises:
        InputError: a record without these channels, or with one that is no vector of numbers.
    """
    found = {match[2]: name for name in leaves if (match := CWRU_VARIABLE.fullmatch(name))}
    if not found:
        return None
    names = [end for end in ("DE", "FE", "BA") if end in found]
    chosen = [names[i] for i in choose(path, names, channels, default="DE")]
    columns = [np.asarray(leaves[found[end]].value) for end in chosen]
    for end, values in zip(chosen, columns, strict=True):
        if values.dtype.kind not in "fiu" or values.ndim != 1:
            raise InputError(
                f"{path}: its {found[end]} is {values.dtype} of shape {values.shape}, expected a column of numbers"
            )
    record = cwru_record(found[chosen[0]])
    return Signal(stacked(path, columns, chosen), tuple(chosen), cwru_rate(record), record)
