"""Reads one file of any format into a signal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..arguments import InputError, first_line
from .csv_files import read_csv
from .cwru_files import read_cwru
from .npy_files import read_npy
from .windows import require_real

SUFFIXES: tuple[str, ...] = (".mat", ".csv", ".tsv", ".txt", ".npy")


@dataclass(frozen=True)
class FileOptions:
    """How files are read."""

    variable: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    layout: str = "auto"
    delimiter: str | None = None
    decimal: str | None = None
    encoding: str | None = None


class Signal(NamedTuple):
    """A recording as it is in its file: (points, channels), or (windows, points, channels)."""

    values: npt.NDArray[Any]
    channels: tuple[str, ...]
    rate: float | None
    record: int | None


class Table(NamedTuple):
    """The names of a table's columns, and its numbers, (lines, columns)."""

    names: list[str]
    values: npt.NDArray[Any]


def read_signal(path: Path, options: FileOptions) -> Signal:
    """Read a file. Raises InputError."""
    if path.suffix.lower() == ".mat":
        values, record, rate = read_cwru(path)
        return Signal(values[:, None], (), rate, record)
    try:
        names, values = ([], read_npy(path)) if path.suffix.lower() == ".npy" else read_csv(path)
    # a damaged file can raise nearly anything
    except Exception as error:
        raise InputError(f"{path}: cannot be read: {first_line(error)}") from error
    require_real(path, values)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2:
        raise InputError(f"{path}: has shape {values.shape}, expected (points,) or (points, columns)")
    columns = values.shape[1]
    held = f"has {columns} columns" + (f", {', '.join(map(repr, names))}" if names else "")
    if not options.channels and columns != 1:
        raise InputError(f"{path}: {held}; expected one, or a column to be chosen")
    for name in options.channels:
        if not name.isdecimal() and names.count(name) != 1:
            raise InputError(f"{path}: {held}; expected one of the name {name!r}")
        if name.isdecimal() and int(name) >= columns:
            raise InputError(f"{path}: {held}; expected a column {name}, counted from 0")
    chosen = [int(name) if name.isdecimal() else names.index(name) for name in options.channels] or [0]
    return Signal(values[:, chosen], options.channels, None, None)


def read_table(path: Path, options: FileOptions) -> Table:
    """Read a table of numbers. Raises InputError."""
    lines = path.read_text(encoding=options.encoding or "utf-8-sig").splitlines()
    delimiter = options.delimiter or next((mark for mark in "\t," if mark in lines[0]), None)
    return Table([], np.loadtxt(lines, delimiter=delimiter, ndmin=2))
