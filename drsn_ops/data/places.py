"""Finds recordings: turns a place on the disk into a list of files, each with its class and, if given, its part.

A place is one of these. Hidden files and folders are skipped everywhere.

- A folder that holds, for each class, a folder of its name; the files may lie deeper.
- A folder of CWRU's files under their published numbers or names, which tell the class.
- A folder that holds folders ``train`` and ``test``, perhaps ``validation`` too, each one of the above.
- A folder that holds ``NAME_TRAIN`` and ``NAME_TEST``, ending in .tsv, .txt or .csv, or one such file: UCR's tables,
  whose lines are a label and a series.

Within class folders a file may be given a part by its name, ``train_1.csv`` or ``1_TRAIN.csv``, or by a folder's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..arguments import InputError
from .cwru_files import CWRU_NUMBERS, cwru_class
from .signals import SUFFIXES, FileOptions, read_table
from .splits import PARTS, Part

TABLES = (".tsv", ".txt", ".csv")
# Notes that lie beside recordings of another ending, and notes by their name.
BESIDE = (".txt", ".xlsx")
NOTES = ("readme", "license", "licence", "notes", "copying", "changelog")
NAMES: dict[str, Part] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
ANY = "|".join(NAMES)
NAMED = re.compile(rf"(?:({ANY})[\W_].*|.*[\W_]({ANY}))", re.IGNORECASE)


class Source(NamedTuple):
    """A recording: its file, its class, its part if one is given.

    ``values``, where they have been read, is a line of the table ``path``, whose number is ``line``. ``published`` says
    that the file's name told the class, so that the file must hold the record of that name.
    """

    path: Path
    label: str
    part: Part | None = None
    published: bool = False
    line: int | None = None
    values: npt.NDArray[Any] | None = None

    @property
    def name(self) -> Path:
        """The file, or a line of it as ``FILE:LINE``."""
        return self.path if self.line is None else Path(f"{self.path}:{self.line}")


class Found(NamedTuple):
    """The recordings of a place, their classes in order, and the files that were passed over."""

    sources: list[Source]
    classes: tuple[str, ...]
    passed_over: tuple[Path, ...]


def find(place: Path, options: FileOptions) -> Found:
    """The recordings of a place.

    Raises:
        InputError: it is none of the places above.
    """
    if place.is_file():
        return of_tables({place: None}, options, ())
    if not place.is_dir():
        raise InputError(f"{place}: no such folder or file")
    folders, files = visible(place)
    tables = tables_of(place, files)
    if tables:
        return of_tables(tables, options, tuple(file for file in files if file not in tables))
    parts = {folder: NAMES[folder.name.lower()] for folder in folders if folder.name.lower() in NAMES}
    if {"train", "test"} <= set(parts.values()):
        found = [
            (part, of_folder(folder)) for part in PARTS for folder, named in parts.items() if named == part
        ]
        sources = [source._replace(part=part) for part, (held, _, _) in found for source in held]
        others = [path for folder in folders if folder not in parts for path in files_within(folder)]
        passed_over = [path for _, (_, _, passed) in found for path in passed]
        return Found(sources, ordered(sources), (*files, *others, *passed_over))
    return of_folder(place)


def of_folder(place: Path) -> Found:
    """The recordings of a folder of class folders, or of CWRU's files."""
    folders, files = visible(place)
    within = {folder: files_within(folder) for folder in folders}
    for folder, inside in within.items():
        if not inside:
            raise InputError(f"{folder}: holds no files; expected recordings of a class")
    recorded = {folder: recordings_of(inside) for folder, inside in within.items()}
    flat = recordings_of(files)
    classes = [folder for folder, inside in recorded.items() if inside]
    published = [file for file in flat if file.suffix.lower() == ".mat"]
    if classes and published:
        raise InputError(f"{place}: holds both .mat files and folders; expected one or the other")
    if classes:
        sources = [
            Source(file, folder.name, named_part(file.relative_to(folder)))
            for folder in classes
            for file in recorded[folder]
        ]
    elif published:
        sources = [Source(file, cwru_class(file), published=True) for file in published]
    elif flat:
        raise InputError(
            f"{place}: holds recordings such as {flat[0].name}, but no folders; expected one for each class"
        )
    else:
        raise InputError(f"{place}: holds no recordings ({' '.join(SUFFIXES)}), nor folders of them")
    taken = {source.path for source in sources}
    every = sorted([*files, *(file for inside in within.values() for file in inside)])
    return Found(sources, ordered(sources), tuple(file for file in every if file not in taken))


def ordered(sources: Iterable[Source]) -> tuple[str, ...]:
    """The classes of the sources: CWRU's as published, others by name."""
    present = {source.label for source in sources}
    if all(source.published for source in sources):
        return tuple(name for name in CWRU_NUMBERS if name in present)
    return tuple(sorted(present))


def visible(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files in a folder, without hidden ones, which macOS puts beside others."""
    paths = sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    return [path for path in paths if path.is_dir()], [path for path in paths if path.is_file()]


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def files_within(folder: Path) -> list[Path]:
    """The files in a folder and in those within, without hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if not any(map(is_hidden, path.relative_to(folder).parts)) and path.is_file()
    )


def recordings_of(files: list[Path]) -> list[Path]:
    """Those of the files that are recordings: notes, as a README and tables beside other recordings, are not."""
    held = [
        file for file in files if file.suffix.lower() in SUFFIXES and not file.name.lower().startswith(NOTES)
    ]
    others = [file for file in held if file.suffix.lower() not in BESIDE]
    return others or held


def recordings_within(folder: Path) -> tuple[list[Path], list[Path]]:
    """The recordings in a folder and in those within, and the files that are passed over.

    They are those that `find` takes: what is a note is told class folder by class folder, also in folders of parts.
    """
    files = files_within(folder)
    everywhere, groups, found = set(recordings_of(files)), dict[tuple[str, ...], list[Path]](), set[Path]()
    for file in files:
        folders = file.relative_to(folder).parts[:-1]
        parts = len(list(takewhile(lambda name: name.lower() in NAMES, folders)))
        if len(folders) > parts:
            groups.setdefault(folders[: parts + 1], []).append(file)
        elif file in everywhere:
            found.add(file)
    for group in groups.values():
        found.update(recordings_of(group))
    return [file for file in files if file in found], [file for file in files if file not in found]


def named_part(path: Path) -> Part | None:
    """The part that a file's name gives it, or a folder's on the way to it."""
    for folder in path.parts[:-1]:
        if folder.lower() in NAMES:
            return NAMES[folder.lower()]
    match = NAMED.fullmatch(path.stem)
    return NAMES[(match[1] or match[2]).lower()] if match else None


def tables_of(place: Path, files: list[Path]) -> dict[Path, Part | None]:
    """UCR's tables among the files, of one data set; each in one format."""
    found: dict[str, dict[Part, list[Path]]] = {}
    for file in files:
        name, _, part = file.stem.rpartition("_")
        if named_as_table(file):
            found.setdefault(name, {}).setdefault(NAMES[part.lower()], []).append(file)
    whole = {name: parts for name, parts in found.items() if {"train", "test"} <= set(parts)}
    if len(whole) > 1:
        raise InputError(
            f"{place}: holds the tables of {len(whole)} data sets, {', '.join(sorted(whole))}; "
            "expected a folder for each"
        )
    return {
        min(copies, key=lambda file: TABLES.index(file.suffix.lower())): part
        for parts in whole.values()
        for part, copies in sorted(parts.items(), key=lambda entry: PARTS.index(entry[0]))
    }


def named_as_table(file: Path) -> bool:
    """Whether a file is named as UCR's tables are."""
    return file.suffix.lower() in TABLES and file.stem.rpartition("_")[2].lower() in NAMES


def of_tables(tables: dict[Path, Part | None], options: FileOptions, passed_over: tuple[Path, ...]) -> Found:
    """The lines of UCR's tables: a label, then a series, which is shorter where it ends in NaN; labels go by size."""
    sources = []
    for path, part in tables.items():
        if path.suffix.lower() not in TABLES:
            raise InputError(
                f"{path}: is a file; expected a folder of recordings, or a table ({' '.join(TABLES)}) whose lines are "
                "a label and a series"
            )
        try:
            names, values = read_table(path, options)
        except InputError as error:
            raise InputError(
                f"{error}; a line of a table is a label, which is a number, and a series"
            ) from error
        if values.shape[1] < 2:
            raise InputError(f"{path}: has one column, expected a label and a series in each line")
        for i, label in enumerate(values[:, 0].tolist()):
            line = i + 1 + bool(names)
            if not math.isfinite(label):
                raise InputError(f"{path}: line {line} has the label {label}, expected a number")
            series = values[i, 1:]
            length = np.flatnonzero(~np.isnan(series))[-1:].sum() + 1
            name = str(int(label)) if label == int(label) else str(label)
            sources.append(Source(path, name, part, line=line, values=series[:length]))
    return Found(sources, tuple(sorted({source.label for source in sources}, key=float)), passed_over)
