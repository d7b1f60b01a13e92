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
import os
import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..arguments import InputError, flagged
from .cwru_files import CWRU_NUMBERS, cwru_class, cwru_load
from .signals import SUFFIXES, FileOptions, read_table
from .splits import PARTS, Part

TABLES = (".tsv", ".txt", ".csv")
# Notes that lie beside recordings of another ending, and notes by their name.
BESIDE = (".txt", ".xlsx")
LISTED = 8
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
    require_no_parts(place, parts)
    return of_folder(place)


def chosen(found: Found, place: str | Path, classes: Sequence[str], loads: Sequence[int]) -> Found:
    """Of the recordings of a place those of these classes, and at these loads; all where none is named.

    Raises:
        InputError: a class or a load that there is none of; loads of files that are no published ones of CWRU.
    """
    unknown = [name for name in classes if name not in found.classes]
    if unknown:
        raise InputError(
            f"{flagged('classes', tuple(unknown))}: there is no such class in {place}; expected one or more of "
            f"{', '.join(map(repr, found.classes))}"
        )
    sources = [source for source in found.sources if not classes or source.label in classes]
    asked = flagged("loads", tuple(loads))
    if loads:
        own = next((source for source in sources if not source.published), None)
        if own:
            raise InputError(
                f"{asked}: expected none with {place}, where a folder or a label says what {own.name} is; the loads of "
                "CWRU's records are known by their published names, in one folder"
            )
        known = [cwru_load(source.path) for source in sources]
        if not {*loads} <= {*known}:
            there = ", ".join(map(str, sorted({*known})))
            raise InputError(f"{asked}: expected loads of recordings in {place}: {there}")
        sources = [source for source, load in zip(sources, known, strict=True) if load in loads]
    present = {source.label for source in sources}
    without = next((name for name in classes if name not in present), None)
    if without is not None:
        its = sorted({cwru_load(source.path) for source in found.sources if source.label == without})
        raise InputError(
            f"{flagged('classes', (without,))}: {place} has no recording of it at {asked}; expected its loads, "
            f"{', '.join(map(str, its))}, or --classes without it"
        )
    return found._replace(sources=sources, classes=tuple(name for name in found.classes if name in present))


def require_both_parts(every: Found, found: Found, place: str | Path) -> None:
    """Raise InputError where a place gives a split, and what was found of it is of one part: it would be split anew."""
    both = {"train", "test"}
    before, after = ({source.part for source in held.sources} for held in (every, found))
    if None not in before and both <= before and not both <= after:
        raise InputError(
            f"{place}: gives a split, of which --classes and --loads leave no recordings to "
            f"{' and '.join(sorted(both - after))}; expected a choice with both, or --split recording or time"
        )


def require_no_parts(place: Path, parts: dict[Path, Part]) -> None:
    """Raise InputError where folders named after parts are no classes, but parts of which train or test is missing.

    A folder is a part if another one is of a part too, or if it holds what a place does: folders, or CWRU's files. A
    class may be called ``train`` if its files lie in its folder.
    """
    within = [path for folder in parts for path in files_within(folder) if path.parent != folder]
    if len(set(parts.values())) > 1 or recordings_of(within) or any(map(holds_published, parts)):
        names = " and ".join(folder.name for folder in parts)
        lacking = " and ".join(part for part in ("train", "test") if part not in parts.values())
        raise InputError(
            f"{place}: holds {names}, named after part{'s' * (len(parts) > 1)} of a split, but no {lacking}; expected "
            f"train and test, perhaps validation; or a part alone, as {min(parts)}; or classes of other names"
        )


def holds_published(folder: Path) -> bool:
    """Whether a folder holds CWRU's files under their published names."""
    for file in visible(folder)[1]:
        if file.suffix.lower() == ".mat":
            try:
                cwru_class(file)
            except InputError:
                continue
            return True
    return False


def of_folder(place: Path) -> Found:
    """The recordings of a folder of class folders, or of CWRU's files."""
    folders, files = visible(place)
    within = {folder: files_within(folder) for folder in folders}
    for folder, inside in within.items():
        if not inside:
            raise InputError(f"{folder}: holds no files; expected recordings of a class")
    recorded = {folder: recordings_of(inside) for folder, inside in within.items()}
    every = sorted([*files, *(file for inside in within.values() for file in inside)])
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
        endings = sorted({file.suffix.lower() or "nothing" for file in every})
        seen = f", but files that end in {', '.join(endings[:LISTED])}" if endings else ""
        raise InputError(f"{place}: holds no recordings ({' '.join(SUFFIXES)}), nor folders of them{seen}")
    taken = {source.path for source in sources}
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
    """The files in a folder and in those within, without hidden ones. A folder that is linked to is entered once."""
    found: list[Path] = []
    entered = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True):
        found += [path for name in files if not is_hidden(name) and (path := Path(place, name)).is_file()]
        inner = []
        for name in sorted(folders):
            real = os.path.realpath(Path(place, name))
            if not is_hidden(name) and real not in entered:
                entered.add(real)
                inner.append(name)
        folders[:] = inner
    return sorted(found)


def recordings_of(files: list[Path]) -> list[Path]:
    """Those of the files that are recordings: notes are not.

    A README is one, and so are texts and sheets beside recordings of other endings: one, or fewer than these, or all
    named as these are.
    """
    held = [
        file for file in files if file.suffix.lower() in SUFFIXES and not file.name.lower().startswith(NOTES)
    ]
    others = [file for file in held if file.suffix.lower() not in BESIDE]
    stems = {file.with_suffix("") for file in others}
    notes = [file for file in held if file.suffix.lower() in BESIDE]
    few = len(notes) < max(len(others), 2) or stems.issuperset(note.with_suffix("") for note in notes)
    return others if others and few else held


def recordings_within(folder: Path) -> tuple[list[Path], list[Path]]:
    """The recordings in a folder and in those within, and the files that are passed over.

    They are those that `find` takes: what is a note is told class folder by class folder, also in folders of parts.
    """
    files = files_within(folder)
    groups, found = dict[tuple[str, ...], list[Path]](), set[Path]()
    loose: list[Path] = []
    for file in files:
        folders = file.relative_to(folder).parts[:-1]
        parts = len(list(takewhile(lambda name: name.lower() in NAMES, folders)))
        if len(folders) > parts:
            groups.setdefault(folders[: parts + 1], []).append(file)
        else:
            loose.append(file)
    for group in groups.values():
        found.update(recordings_of(group))
    # beside folders of recordings, texts and what ends otherwise are notes
    endings = {file.suffix.lower() for file in found}.difference(BESIDE)
    found.update(recordings_of([file for file in loose if not found or file.suffix.lower() in endings]))
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
