"""Recorded signals: the bearing data of Case Western Reserve University, and folders of .npy and .csv files.

Every file is one recording. It is cut into windows, and whole recordings go to the training or to the test split:
windows of one recording resemble each other so much that a network which was trained on some of them knows the others.
For the same reason, a recording that is there twice is refused, also in another format or precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from ..arguments import InputError, first_line
from .csv_files import read_csv
from .cwru_files import CWRU_NUMBERS, cwru_class, read_cwru, read_published
from .npy_files import read_npy
from .splits import Source, Windows, split
from .windows import Cutting, Normalise, require_real


class Recordings(NamedTuple):
    """A training and a test split without a common recording, the names of the classes, the recordings' files."""

    train: Windows
    test: Windows
    classes: tuple[str, ...]
    files: tuple[Path, ...]


def cwru(
    folder: str | Path,
    *,
    points: int = 2048,
    step: int | None = None,
    normalise: Normalise = "none",
    test_share: float = 0.25,
    seed: int = 0,
) -> Recordings:
    """Read the drive-end channel of the bearing data of Case Western Reserve University (CWRU), at 12 kHz.

    Args:
        folder: MATLAB files under their published number or name, ``105.mat`` or ``IR007_0.mat``, which tells their
            class (`CWRU_NUMBERS`), or folders of MATLAB files, each of which is a class of the folder's name.
        points: points of a window.
        step: points from one window to the next; None for windows side by side.
        normalise: ``"mean"`` subtracts the mean of each window, before the conversion to float32.
        test_share: share of the recordings of each class in the test split: at least one, and never all.
        seed: of the choice of these.

    The baseline, whose variables are X097 to X100, is recorded at 48 kHz, the faults at 12 kHz (W. A. Smith and
    R. B. Randall, Mech. Syst. Signal Process. 64-65, 2015, 100-131). It is resampled to 12 kHz, as is any other record
    that is published at 48 kHz (`CWRU_48_KHZ`): otherwise the rate itself would tell it from the others. The filter,
    which falls from 5.2 kHz on and reaches -6 dB at 6 kHz, may still do so. The four loads of one published class are
    recordings of the same bearing: a test on them does not show what a network makes of a bearing that it has not seen.

    Returns:
        `Recordings`, the same for the same files and seed.

    Raises:
        ValueError: a bad argument.
        InputError: a folder without MATLAB files; a file that has another number or name, is damaged, has no variable
            ``X..._DE_time``, holds another record than its name says, is shorter than a window, or is not finite in
            float32 or loses its differences there; a record, or its values, in two files; a class with one recording.
    """
    folder = Path(folder)
    folders, files = class_folders(folder), files_in(folder, (".mat",))
    if files and folders:
        raise InputError(f"{folder}: holds both .mat files and folders; expected one or the other")
    if files:
        read = read_published
        sources = [Source(path, cwru_class(path)) for path in files]
        present = {source.label for source in sources}
        classes = tuple(name for name in CWRU_NUMBERS if name in present)
    else:
        read = read_cwru
        sources = class_sources(folder, folders, (".mat",))
        classes = tuple(path.name for path in folders)
    splits = split(folder, sources, classes, read, Cutting(points, step, normalise), test_share, seed)
    return Recordings(*splits, classes, tuple(source.path for source in sources))


def folder(
    folder: str | Path,
    *,
    column: int | str | None = None,
    points: int = 2048,
    step: int | None = None,
    normalise: Normalise = "none",
    test_share: float = 0.25,
    seed: int = 0,
) -> Recordings:
    """Read a folder that holds, for each class, a folder of its name with .npy and .csv files.

    Args:
        folder: the outer folder. A file is a recording: an array of (points,) or (points, columns), or lines of numbers
            with commas between the columns. A first line is read as the columns' names if no field of it begins like a
            number. Lines that begin with ``#`` are skipped, and blank lines before and after the numbers.
        column: the column to read: a number from 0, as an integer or in digits, or a name in the first line of .csv
            files. None reads files with one column and refuses others: their first column is often the time.
        points, step, normalise, test_share, seed: as in `cwru`.

    Returns:
        `Recordings`, the same for the same files and seed.

    Raises:
        ValueError: a bad argument.
        InputError: no folders, or one without such files; a file that is damaged, lacks the column, has a gap, is
            shorter than a window, or is not finite in float32 or loses its differences there; two files with the same
            values, to rounding; a class with one recording.
    """
    # a name does not consist of digits
    column = int(column) if isinstance(column, str) and column.isdecimal() else column
    if not (column is None or isinstance(column, str) or (type(column) is int and column >= 0)):
        raise ValueError(f"column: got {column!r}, expected an integer of at least 0, a name or None")

    def read(path: Path) -> tuple[npt.NDArray[Any], None]:
        return read_column(path, column), None

    folder = Path(folder)
    folders = class_folders(folder)
    sources = class_sources(folder, folders, (".npy", ".csv"))
    classes = tuple(path.name for path in folders)
    splits = split(folder, sources, classes, read, Cutting(points, step, normalise), test_share, seed)
    return Recordings(*splits, classes, tuple(source.path for source in sources))


def class_folders(folder: Path) -> list[Path]:
    """The folders within, without hidden ones."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of these suffixes, in either case, without hidden ones, which macOS puts beside others."""
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )


def class_sources(folder: Path, folders: list[Path], suffixes: tuple[str, ...]) -> list[Source]:
    """The files of these suffixes in each class's folder."""
    wanted = " or ".join(suffixes)
    if not folders:
        raise InputError(f"{folder}: holds no {wanted} files, nor folders of them")
    sources = []
    for path in folders:
        found = files_in(path, suffixes)
        if not found:
            raise InputError(f"{path}: holds no {wanted} files")
        sources += [Source(file, path.name) for file in found]
    return sources


def read_column(path: Path, column: int | str | None) -> npt.NDArray[Any]:
    """One column of a .npy or .csv file."""
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
    if column is None and columns != 1:
        raise InputError(f"{path}: {held}; expected one, or a column to be chosen")
    if isinstance(column, str) and names.count(column) != 1:
        raise InputError(f"{path}: {held}; expected one of the name {column!r}")
    index = names.index(column) if isinstance(column, str) else column or 0
    if index >= columns:
        raise InputError(f"{path}: {held}; expected a column {column}, counted from 0")
    return values[:, index]
