"""Reads tables of numbers from .parquet and .xlsx files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arguments import InputError, first_line
from .channels import LISTED, Found
from .text_files import UNITS

NUMBER, NOTHING = "number", "nothing"


def read_parquet(path: Path) -> Found:
    """The columns of numbers and of times.

    Raises:
        InputError: it is damaged, or numbers are missing or among text.
    """
    import pandas

    try:
        frame = pandas.read_parquet(path, engine="pyarrow")
    except Exception as error:
        raise InputError(f"{path}: cannot be read as a Parquet file: {first_line(error)}") from error
    if isinstance(frame.index, pandas.DatetimeIndex):
        frame.insert(0, frame.index.name or "time", frame.index)
    return columns_of(path, frame, 1)


def read_xlsx(path: Path, sheets: Sequence[str] = ()) -> Found:
    """The columns of the only sheet, or of the first of ``sheets`` that there is; names, and units below
    them, may be above the numbers.

    Raises:
        InputError: it is damaged, has several sheets and none is chosen, or numbers are missing or among text.
    """
    import pandas

    try:
        found = pandas.read_excel(path, sheet_name=None, header=None, engine="openpyxl")
    except Exception as error:
        raise InputError(f"{path}: cannot be read as an Excel workbook: {first_line(error)}") from error
    filled = {name: frame for name, frame in found.items() if frame.notna().any(axis=None)}
    names = [name for name in sheets if name in filled] if sheets else list(filled)
    if not names or (len(names) > 1 and not sheets):
        held = ", ".join(map(repr, list(found)[:LISTED]))
        raise InputError(
            f"{path}: holds the sheets {held}; expected one with numbers, or --variable with its name"
        )
    frame = filled[names[0]]
    kinds = frame.map(kind_of)
    # formatted cells count as used, though nothing is in them
    used = kinds != NOTHING
    frame, kinds = (one.loc[: used.index[used.any(axis=1)].max(), used.any()] for one in (frame, kinds))
    # the last row tells which columns hold numbers
    first = int(np.argmax((kinds == kinds.iloc[-1]).all(axis=1)))
    above = [[str(cell).strip() for cell in frame.iloc[row]] for row in range(max(first - 2, 0), first)]
    units = tuple(above.pop()) if len(above) > 1 and all(map(UNITS.fullmatch, above[-1])) else ()
    if first and (kinds.iloc[first - 1][kinds.iloc[-1] == NUMBER] == NUMBER).any():
        raise InputError(
            f"{path}: row {first} of sheet {names[0]!r} has other columns of numbers than the last"
        )
    body = frame.iloc[first:].reset_index(drop=True).infer_objects()
    body.columns = above[-1] if above else [str(place) for place in range(body.shape[1])]
    read = columns_of(path, body, first + 1, units)
    return read if above else Found(read.values)


def kind_of(cell: Any) -> str:
    """Whether a cell holds a number, a date, text or nothing."""
    if isinstance(cell, (int, float)) and not isinstance(cell, bool):
        return NUMBER if cell == cell else NOTHING
    return "text" if isinstance(cell, str) else type(cell).__name__


def columns_of(path: Path, frame: Any, first: int, given: Sequence[str] = ()) -> Found:
    """The columns of a frame that hold numbers or times of day; those of text alone are left out."""
    import pandas

    names: list[str] = []
    units: list[str] = []
    columns: list[npt.NDArray[Any]] = []
    for place in range(frame.shape[1]):
        name, column = str(frame.columns[place]), frame.iloc[:, place]
        unit = given[place] if given else ""
        if pandas.api.types.is_datetime64_any_dtype(column):
            column = (column - column.iloc[0]).dt.total_seconds()
            unit = "s"
        elif not pandas.api.types.is_numeric_dtype(column):
            numbers = pandas.to_numeric(column, errors="coerce")
            if numbers.isna().all() and not column.isna().any():
                continue
            column = numbers
        if column.isna().any():
            row = int(np.argmax(column.isna().to_numpy())) + first
            raise InputError(f"{path}: row {row} of {name!r} is empty or text, expected a number")
        names.append(name)
        units.append(unit)
        columns.append(column.to_numpy())
    if not columns:
        raise InputError(f"{path}: holds no columns of numbers")
    return Found(np.stack(columns, axis=-1), tuple(names), tuple(units))
