"""Reads the MATLAB files of the bearing data of Case Western Reserve University (CWRU)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arguments import InputError, first_line
from .windows import require_real

# The numbers of the published files at 12 kHz with a fault of the drive end's bearing, and of the baseline, as in the
# tables of the Bearing Data Center. Fault diameters in inches.
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
CWRU_PARTS = {"IR": "inner race", "B": "ball", "OR": "outer race"}
# The numbers in the variables' names of these files. In all other files it is the file's own number.
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


def cwru_class(path: Path) -> str:
    """The class of a file by its published number or name."""
    name = path.stem
    if name.isdecimal():
        for label, numbers in CWRU_NUMBERS.items():
            if int(name) in numbers:
                return label
    elif re.fullmatch(r"normal_\d", name, re.IGNORECASE):
        return "normal"
    elif match := re.fullmatch(r"(IR|B|OR)(\d{3})(@\d+)?_\d", name, re.IGNORECASE):
        label = f"{CWRU_PARTS[match[1].upper()]} 0.{match[2]}"
        if label in CWRU_NUMBERS:
            return label
    raise InputError(f"{path}: not the number or name of a CWRU baseline or 12 kHz drive-end file")


def cwru_number(name: str) -> int | None:
    """The record's number if the file is named after it; the baseline at loads 0 to 3 is 97 to 100."""
    if match := re.fullmatch(r"normal_(\d)", name, re.IGNORECASE):
        return CWRU_NUMBERS["normal"][0] + int(match[1])
    return int(name) if name.isdecimal() else None


def require_record(path: Path, record: int | None) -> None:
    """Raise InputError unless a file whose name tells its class holds a record of that name."""
    label, number = cwru_class(path), cwru_number(path.stem)
    numbers = CWRU_NUMBERS[label] if number is None else [number]
    if record not in {*numbers, *map(CWRU_VARIABLES.get, numbers)}:
        named = label if number is None else f"record {number}"
        rate = " of 48 kHz" if record in CWRU_48_KHZ else ""
        raise InputError(f"{path}: named after {named}, but holds record {record}{rate}")


def read_cwru(path: Path) -> tuple[npt.NDArray[Any], int, float]:
    """Read the drive-end channel of a file, the number of the record from its variable's name, and its rate in Hz."""
    from scipy.io import loadmat

    try:
        variables = loadmat(path)
    # a damaged file can raise nearly anything
    except Exception as error:
        raise InputError(f"{path}: not a MATLAB 5 file: {first_line(error)}") from error
    channels = [name for name in variables if re.fullmatch(r"X\d+_DE_time", name)]
    # the file of record 99 holds record 98 as well
    if len(channels) > 1:
        number = cwru_number(path.stem)
        channels = [name for name in channels if int(name[1:-8]) == number]
    if len(channels) != 1:
        raise InputError(f"{path}: has no variable X..._DE_time, or several and none of its number")
    values = np.asarray(variables[channels[0]])
    require_real(path, values)
    if values.size != max(values.shape, default=0):
        raise InputError(f"{path}: its {channels[0]} has shape {values.shape}, expected one column")
    values = values.ravel()
    record = int(channels[0][1:-8])
    return values, record, 48_000.0 if record in CWRU_48_KHZ else 12_000.0
