"""Reads text files of numbers, .csv, .tsv and .txt, with names above them or without."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arguments import InputError, first_line
from .channels import Found
from .dialects import DATE, NONE, NUMBERS, SPACES, WORDS, Dialect, find_dialect, is_left_out, lines_of

# The start of a number in digits; no date, no time of day.
NUMBER_LIKE = re.compile(r"(?!\d{4}-\d\d-\d\d)[+-]?\.?\d[^\s:/]*")
# Three decimals may be thousands, and say nothing.
NUMBER = r"\d+(?:\.(?!\d{3}(?!\d))\d+)?(?![.,\d])"
RATE = re.compile(
    r"[#%;\s]*(?:sampl(?:e|ing)[ _-]?(?:rate|freq(?:uency)?)|abtast(?:rate|frequenz)|fs)"
    rf"(?:[\s:=]+(?P<number>{NUMBER})\s*(?P<unit>k?)hz|\s*[\[(](?P<first>k?)hz[\])][\s:=]+(?P<last>{NUMBER}))\s*$",
    re.IGNORECASE,
)
UNITS = re.compile(r"[\[(].*[\])]|[µμnmk]?(?:s|V|A|g|N|Pa|Hz|m/s\^?2?|m/s²|Nm)|%|-|rpm|bar|°?C|", re.ASCII)


def read_text(
    path: Path, delimiter: str | None = None, decimal: str | None = None, encoding: str | None = None
) -> Found:
    """The numbers of a text file, (lines, columns), and the names and units of its columns where it has them.

    Lines that begin with ``#`` are skipped, and the lines before the first one of numbers alone. The last of these that
    has as many fields is that of the names, or the last but one, with units below it; one such as ``Sampling rate: 10
    kHz`` or ``# fs (Hz) = 10000`` says the rate, but for a column of times with a name. The first column may hold dates
    with the year first or the day before dots, or times of day; they are read as seconds since the first.

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
        names = names or ("time", *map(str, range(dialect.columns - 1)))
        units = ("s", *(units or names)[1:])
    values: npt.NDArray[Any] = frame.to_numpy()
    return Found(values, names, units, rate_in(header))


def rate_in(header: Sequence[str]) -> float | None:
    """The sampling rate in Hz that a line above the numbers says, such as ``# Sampling rate: 25.6 kHz``."""
    said = set()
    for line in header:
        if match := RATE.match(line):
            said.add(
                float(match["number"] or match["last"]) * (1e3 if match["unit"] or match["first"] else 1.0)
            )
    return said.pop() if len(said) == 1 and min(said) > 0 else None


def seconds(path: Path, column: Any, dialect: Dialect) -> Any:
    """A column of dates or of times of day as seconds since its first."""
    import pandas

    wrong = np.flatnonzero(~column.map(lambda field: dialect.is_number(field.strip(), 0)).to_numpy(bool))
    try:
        if len(wrong):
            raise ValueError(f"{column[wrong[0]]!r}")
        times = column.str.strip().str.replace(",", ".")
        times = times.str.replace(r"^(\d\d?)\.(\d\d?)\.(\d{4})", r"\3-\2-\1", regex=True)
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
    # a comment names several columns, not one, and a line that says the rate none
    header = [
        line for line in header if not RATE.match(line) and (not is_left_out(line) or dialect.columns > 1)
    ]
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
