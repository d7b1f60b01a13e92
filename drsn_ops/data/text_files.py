"""Reads text files of numbers, .csv, .tsv and .txt: their dialect is found out, or given where nobody can tell."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..arguments import InputError, first_line
from .channels import Found

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
# A date with the year first and a time of day, or a time of day
DATE = re.compile(
    r"(?:\d{4}[-/]\d\d?[-/]\d\d?[T ])?\d\d?:\d\d:\d\d(?:[.,]\d+)?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?",
    re.IGNORECASE,
)
# The start of a number in digits; no date, no time of day.
NUMBER_LIKE = re.compile(r"(?!\d{4}-\d\d-\d\d)[+-]?\.?\d[^\s:/]*")
UNITS = re.compile(r"[\[(].*[\])]|[µμnmk]?(?:s|V|A|g|N|Pa|Hz|m/s\^?2?|m/s²|Nm)|%|-|rpm|bar|°?C|", re.ASCII)
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


def read_text(
    path: Path, delimiter: str | None = None, decimal: str | None = None, encoding: str | None = None
) -> Found:
    """The numbers of a text file, (lines, columns), and the names and units of its columns where it has them.

    Lines that begin with ``#`` are skipped, and the lines before the first one of numbers alone. The last of these that
    has as many fields is that of the names, or the last but one, with units below it. The first column may hold dates
    with the year first, or times of day; they are read as seconds since the first.

    Args:
        delimiter: a character, ``"tab"`` or ``"space"`` for runs of spaces. None for the one of tab ``; | ,`` and space
            that makes numbers of the lines.
        decimal: ``"."`` or ``","``. None for the one that makes numbers of the lines.
        encoding: None for that of a byte order mark, else UTF-8 if it is valid, else Latin-1.

    Raises:
        InputError: lines have a gap, text, or more or fewer fields than the others; it cannot be told whether a comma
            is a delimiter or a decimal mark; there are no numbers, or the encoding is another one.
    """
    import pandas

    text = decoded(path, encoding)
    given = WORDS.get(delimiter or "", delimiter)
    dialect = find_dialect(path, text, given, decimal)
    header, start, offset = split_header(path, text, dialect)
    names, units = names_of(path, header, dialect)
    body = without_end(text[offset:])
    if (
        decimal is None
        and dialect.decimal == "."
        and dialect.delimiter != ","
        and "." not in body
        and "," in body
    ):
        dialect = dialect._replace(decimal=",")
    try:
        frame = pandas.read_csv(
            io.StringIO(body),
            sep=r"\s+" if dialect.delimiter == SPACES else dialect.delimiter,
            decimal=dialect.decimal,
            header=None,
            dtype={
                **dict.fromkeys(range(dialect.dated, dialect.columns), np.float64),
                **({0: str} if dialect.dated else {}),
                dialect.columns: str,
            },
            keep_default_na=False,
            na_values=["nan", "NaN", "NAN"],
            comment="#",
            skip_blank_lines=False,
            skipinitialspace=True,
        )
        if frame.shape[1] != dialect.columns + dialect.trailing or (
            dialect.trailing and (frame.pop(dialect.columns) != "").any()
        ):
            raise ValueError(f"its lines differ from the first in the number of fields, {dialect.columns}")
    except (ValueError, pandas.errors.ParserError) as error:
        raise InputError(f"{path}: {trouble(body, start, dialect) or first_line(error)}") from error
    if dialect.dated:
        frame[0] = seconds(path, frame[0], dialect)
        names = names or ("time", *map(str, range(1, dialect.columns)))
        units = ("s", *(units or names)[1:])
    values: npt.NDArray[Any] = frame.to_numpy()
    return Found(values, names, units)


def seconds(path: Path, column: Any, dialect: Dialect) -> Any:
    """A column of dates or of times of day as seconds since its first."""
    import pandas

    wrong = np.flatnonzero(~column.map(lambda field: dialect.is_number(field.strip(), 0)).to_numpy(bool))
    try:
        if len(wrong):
            raise ValueError(f"{column[wrong[0]]!r}")
        times = column.str.strip().str.replace(",", ".")
        long = "-" in times[0] or "/" in times[0]
        read = pandas.to_datetime(times, format="mixed", utc=True) if long else pandas.to_timedelta(times)
        return (read - read[0]).dt.total_seconds()
    except ValueError as error:
        raise InputError(
            f"{path}: its first column has dates or times, and one that is none: {first_line(error)}"
        ) from error


def decoded(path: Path, encoding: str | None) -> str:
    """The text of a file, with ``\\n`` at the ends of lines."""
    content = path.read_bytes()
    if encoding is None:
        marks = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
        encoding = next((name for mark, name in marks.items() if content.startswith(mark)), "utf-8")
        guesses = ["utf-8", "latin-1"] if encoding == "utf-8" else [encoding]
    else:
        guesses = [encoding]
    for guess in guesses:
        try:
            text = content.decode(guess)
        except UnicodeError as error:
            if guess == guesses[-1]:
                raise InputError(
                    f"{path}: not text in {guess}: {first_line(error)}; expected --encoding with its encoding"
                ) from error
        else:
            break
    if "\0" in text:
        raise InputError(
            f"{path}: holds zero bytes, so it is no text in {guess}; expected text, or --encoding with its encoding"
        )
    text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


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
    last = [line.partition("#")[0] for line in rest.split("\n")[1:] if not is_left_out(line)]
    return found + last[-SAMPLE_LINES:]


def fields_of(line: str, delimiter: str) -> list[str]:
    """The fields of a line, without spaces and quotes around them."""
    if delimiter == NONE:
        return [line.strip(' \t"')]
    if delimiter == SPACES:
        return line.split()
    # numbers have no quotes
    fields = next(csv.reader([line], delimiter=delimiter)) if '"' in line else line.split(delimiter)
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
    # of those that read as many lines, the one with most columns, and of these the first
    best = max(found, key=lambda dialect: (found[dialect], dialect.columns))
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


def split_header(path: Path, text: str, dialect: Dialect) -> tuple[list[str], int, int]:
    """The lines before the numbers, and the first line of these: its number from 1 and its place."""
    header: list[str] = []
    number, place = 1, 0
    for number, place, line in lines_of(text):  # noqa: B007
        if not is_left_out(line) and dialect.numbers(line):
            break
        if line.strip():
            header.append(line)
    data = text[place:].split("\n", 2)
    first, second = (dialect.fields(line) for line in (*data, "", "")[:2])
    plain = [str(i) for i in range(dialect.columns)]
    # pandas numbers columns without names; of two, the line may also begin an index
    if not header and dialect.columns > 1 and first == plain and (dialect.columns > 2 or second[:1] != ["1"]):
        return [data[0]], number + 1, place + len(data[0]) + 1
    above = [line for line in header if not is_left_out(line)][-1:]
    for line in above:
        if is_damaged(line, dialect):
            raise InputError(
                f"{path}: {line.strip()[:60]!r} above the numbers is neither names nor {dialect.columns} "
                f"number{'s' * (dialect.columns > 1)}"
            )
    return header, number, place


def is_damaged(line: str, dialect: Dialect) -> bool:
    """Whether a line above the numbers looks as if it were one of them, but for a gap or a letter."""
    if dialect.columns == 1:
        return NUMBER_LIKE.fullmatch(line.strip()) is not None
    fields = dialect.fields(line)
    numbers = [field for field in fields if NUMBERS[dialect.decimal].fullmatch(field)]
    gap = fields[0] == "" and any(not field.isdecimal() for field in numbers)
    starts = DATE if dialect.dated else NUMBER_LIKE
    return bool(numbers) and (gap or starts.fullmatch(fields[0]) is not None)


def names_of(path: Path, header: Sequence[str], dialect: Dialect) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names and units of the columns in the lines before the numbers."""
    # a comment names several columns, not one
    header = [line for line in header if not is_left_out(line) or dialect.columns > 1]
    rows = [
        [field.strip(' "') for field in dialect.fields(line.lstrip("# \t") if is_left_out(line) else line)]
        for line in header
    ]
    plain = [not is_left_out(line) for line in header]
    wide = [
        row[: dialect.columns]
        for row in rows
        if len(row) in (dialect.columns, dialect.columns + dialect.trailing)
    ]
    if not wide or len(rows[-1]) not in (dialect.columns, dialect.columns + dialect.trailing):
        if sum(plain) == 1 and dialect.delimiter not in (NONE, SPACES) and len(rows[plain.index(True)]) > 1:
            row = rows[plain.index(True)]
            raise InputError(
                f"{path}: its first line names {len(row)} columns, the others have {dialect.columns}"
            )
        return (), ()
    if len(wide) > 1 and all(map(UNITS.fullmatch, wide[-1])):
        return tuple(wide[-2]), tuple(wide[-1])
    return tuple(wide[-1]), ()


def without_end(text: str) -> str:
    """A text without blank lines and comments at its end."""
    while True:
        text = text.rstrip("\n ")
        last = text[text.rfind("\n") + 1 :]
        if not last.lstrip().startswith("#"):
            return text
        text = text[: len(text) - len(last)]


def trouble(body: str, start: int, dialect: Dialect) -> str | None:
    """What is wrong with the first line that is, for a message."""
    for number, _, line in lines_of(body):
        if dialect.numbers(line) or line.lstrip().startswith("#"):
            continue
        place = f"line {start + number - 1}"
        if not line.strip():
            return f"{place} is blank, a gap between numbers"
        fields = dialect.fields(line.partition("#")[0])
        fields = fields[:-1] if dialect.trailing and fields[-1] == "" else fields
        if len(fields) != dialect.columns:
            return f"{place} has {len(fields)} fields, the first line of numbers {dialect.columns}"
        bad = next(field for i, field in enumerate(fields) if not dialect.is_number(field, i))
        return (
            f"{place} has a gap, expected a number"
            if bad == ""
            else f"{place} holds {bad[:60]!r}, expected a number"
        )
    return None
