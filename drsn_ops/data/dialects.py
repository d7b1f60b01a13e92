"""Finds out how the lines of a text file are read: the delimiter, the decimal mark, the number of columns."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..arguments import InputError

# Runs of spaces are one delimiter.
SPACES = " "
# In the order of preference where several read the same numbers.
DELIMITERS = ("\t", ";", "|", ",", SPACES)
# Stands for the delimiter of a file with one column.
NONE = "\x1f"
WORDS = {"\\t": "\t", "tab": "\t", "space": SPACES, "spaces": SPACES}
NUMBERS = {
    mark: re.compile(rf"[+-]?(?:(?:{digits})(?:e[+-]?\d+)?|nan|inf|infinity)", re.IGNORECASE)
    for mark, digits in ((".", r"\d+\.?\d*|\.\d+"), (",", r"\d+(?:,\d+)?|,\d+"))
}
# Whole numbers are not written so: a comma beside them is a decimal mark.
DECIMALS = re.compile(r"[+-]?0\d+(?:e[+-]?\d+)?|\d{2,}e[+-]?\d+|[+-]0", re.IGNORECASE)
# A date, with the year first or the day before dots, and a time of day, or that alone.
DATE = re.compile(
    r"(?:(?:\d{4}[-/]\d\d?[-/]\d\d?|\d\d?\.\d\d?\.\d{4})[T ])?"
    r"\d\d?:\d\d:\d\d(?:[.,]\d+)?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?",
    re.IGNORECASE,
)
# The lines that the dialect is found in: as many at the start and at the end, or as many characters.
SAMPLE_LINES, SAMPLE_CHARACTERS = 100, 50_000


class Dialect(NamedTuple):
    """How lines are read.

    Attributes:
        columns: how many, without an empty field after a delimiter at the end of each line.
        trailing: whether there is one.
        dated: whether the first column holds dates or times of day.
    """

    delimiter: str
    decimal: str
    columns: int
    trailing: bool
    dated: bool

    def fields(self, line: str) -> list[str]:
        """The fields of a line."""
        return fields_of(line, self.delimiter)

    def numbers(self, line: str) -> bool:
        """Whether a line holds a number in each column, and no more than a comment after them."""
        fields = self.fields(line.partition("#")[0])
        fields = fields[:-1] if self.trailing and fields[-1] == "" else fields
        return len(fields) == self.columns and all(map(self.is_number, fields, range(self.columns)))

    def is_number(self, field: str, column: int) -> bool:
        """Whether a field holds what its column does."""
        kind = DATE if self.dated and column == 0 else NUMBERS[self.decimal]
        return kind.fullmatch(field) is not None


def is_left_out(line: str) -> bool:
    """Whether a line is blank or a comment."""
    return not line.strip() or line.lstrip().startswith("#")


def lines_of(text: str) -> Iterator[tuple[int, int, str]]:
    """The lines with their numbers from 1 and their places in the text."""
    place = 0
    for number, line in enumerate(io.StringIO(text), 1):
        yield number, place, line.rstrip("\n")
        place += len(line)


def sample(text: str) -> list[str]:
    """The lines at the start and at the end that are neither blank nor comments."""
    found: list[str] = []
    place = 0
    for _, place, line in lines_of(text):  # noqa: B007
        if not is_left_out(line):
            found.append(line.partition("#")[0])
        if len(found) >= SAMPLE_LINES or (place > SAMPLE_CHARACTERS and len(found) > 2):
            break
    rest = text[max(place + len(found[-1]) if found else 0, len(text) - SAMPLE_CHARACTERS) :]
    # the first of these may be a part of a line
    last = rest.split("\n")[1:][-SAMPLE_LINES:]
    return found + [line.partition("#")[0] for line in last if not is_left_out(line)]


def fields_of(line: str, delimiter: str) -> list[str]:
    """The fields of a line, without spaces and quotes around them."""
    if delimiter == NONE:
        return [line.strip(' \t"')]
    if delimiter == SPACES:
        return line.split()
    fields = line.split(delimiter)
    if '"' in line:
        try:
            fields = next(csv.reader([line], delimiter=delimiter))
        except csv.Error:
            pass
    return [field.strip() for field in fields]


def find_dialect(path: Path, text: str, delimiter: str | None, decimal: str | None) -> Dialect:
    """The dialect in which most lines of the sample hold numbers alone, as many in each."""
    lines = sample(text)
    if not lines:
        raise InputError(f"{path}: holds no numbers")
    tabs = any("\t" in line.strip() for line in lines)
    found: dict[Dialect, int] = {}
    for mark in DELIMITERS if delimiter is None else (delimiter,):
        if delimiter is None and (not any(mark in line for line in lines) or (mark == SPACES and tabs)):
            continue
        for point in (".", ",") if decimal is None else (decimal,):
            if mark != point:
                count(lines, mark, point, found)
    if delimiter is None:
        for point in (".", ",") if decimal is None else (decimal,):
            count(lines, NONE, point, found)
    if not found:
        line = next((line for line in lines if re.search(r"\d", line)), lines[0])
        raise InputError(
            f"{path}: no line holds numbers alone, such as {line.strip()[:60]!r}; expected them, or --delimiter and "
            "--decimal as they are"
        )
    if delimiter is None:
        found = {
            one: lines
            for one, lines in found.items()
            if one.columns + one.trailing > 1 or one.delimiter == NONE
        }
    best = max(found, key=lambda dialect: found[dialect])
    if best.delimiter in (",", NONE) and None in (delimiter, decimal):
        commas = next((one for one in found if one.delimiter == "," and one.columns > 1), None)
        marks = next((one for one in found if (one.delimiter, one.decimal) == (NONE, ",")), None)
        if commas and (marks or best == commas):
            best = marks if is_decimal_comma(path, lines, marks is not None) and marks else commas
    return best


def count(lines: Sequence[str], delimiter: str, decimal: str, found: dict[Dialect, int]) -> None:
    """Add the dialect of these marks, with the number of lines that it makes numbers of, if there are any."""
    columns: Counter[tuple[int, bool, bool]] = Counter()
    number = NUMBERS[decimal].fullmatch
    for line in lines:
        fields = fields_of(line, delimiter)
        trailing = len(fields) > 1 and fields[-1] == ""
        fields = fields[:-1] if trailing else fields
        dated = len(fields) > 1 and DATE.fullmatch(fields[0]) is not None
        if all(map(number, fields[dated:])):
            columns[len(fields), trailing, dated] += 1
    if columns:
        key, lines_found = columns.most_common(1)[0]
        found[Dialect(delimiter, decimal, *key)] = lines_found


def is_decimal_comma(path: Path, lines: Sequence[str], alone: bool) -> bool:
    """Whether the comma of lines such as ``1,5`` is a decimal mark; raises InputError where nobody can tell.

    Args:
        alone: whether there is no more than one comma in a line.
    """
    numbers = [bool(re.fullmatch(r"[-+\d.,e \t]*\d[-+\d.,e \t]*", line, re.IGNORECASE)) for line in lines]
    data = [line.strip() for line, is_data in zip(lines, numbers, strict=True) if is_data]
    whole = [line for line in data if "." not in line]
    # a line of names above has a comma between two, and none for one
    header = lines[: numbers.index(True)] if alone and True in numbers else []
    told = {"," in header[-1]} if header and (len(header) == 1 or "," in header[-1]) else set()
    told |= {True} if len(whole) < len(data) or not alone else set()
    told |= {True} if any(re.search(r",\s*[-+]", line) for line in whole) else set()
    fields = [field.strip() for line in whole for field in line.split(",") if "," in line]
    told |= {False} if any(map(DECIMALS.fullmatch, fields)) else set()
    if len(told) != 1:
        example = next(line for line in (*whole, *data, *lines) if "," in line)
        number = "one with a decimal comma" if alone else "fewer with decimal commas"
        raise InputError(
            f"{path}: {example[:60]!r} may be {'two' if alone else 'several'} numbers or {number}; "
            "expected --delimiter , or --decimal ,"
        )
    return told == {False}
