"""Recorded signals from files: the bearing data of Case Western Reserve University, and folders of .npy and .csv files.

A recording is cut into windows, and whole recordings go to the training or to the test split: windows of one recording
are so alike that a network which has seen some of them knows the others. For the same reason a recording that is there
twice is refused. Values are kept as they are in the file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .data import InputError, require_seed
from .modules import require_positive

# The numbers of the files at 12 kHz with a fault of the drive end's bearing, and of the baseline, as published by
# Case Western Reserve University's Bearing Data Center; fault diameters in inches.
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

# the start of a number, or all of one that is written in letters
NUMBER = re.compile(r"[+-]?(\.?\d|(nan|inf|infinity)$)", re.IGNORECASE)

Array = npt.NDArray[np.float32]


class Windows(NamedTuple):
    """Windows, (N, 1, points) of float32, and of each, (N,) of int64, its class and its recording's place in files."""

    x: Tensor
    labels: Tensor
    recording: Tensor


class Recordings(NamedTuple):
    """A training and a test split without a recording in common, the names of the classes, the recordings' files."""

    train: Windows
    test: Windows
    classes: tuple[str, ...]
    files: tuple[Path, ...]


class Source(NamedTuple):
    """A file with one recording, and the name of its class."""

    path: Path
    label: str


class Content(NamedTuple):
    """What is read from a file: the values, and the name of their recording, the same in every copy of it."""

    values: npt.NDArray[Any]
    name: str


def cwru(
    folder: str | Path,
    *,
    points: int = 2048,
    step: int | None = None,
    test_share: float = 0.25,
    seed: int = 0,
) -> Recordings:
    """Read the drive-end channel of the bearing data of Case Western Reserve University (CWRU), at 12 kHz.

    Args:
        folder: MATLAB files with their published number or name, ``105.mat`` or ``IR007_0.mat``, of which the class
            follows (`CWRU_NUMBERS`), or folders of MATLAB files, each of which is a class of the folder's name.
        points: of a window.
        step: points from one window to the next; None for windows side by side.
        test_share: of the recordings of each class that go to the test split: at least one, and never all.
        seed: of the choice of these.

    The baseline, whose variables are X097 to X100, is recorded at 48 kHz where the faults are at 12 (W. A. Smith and
    R. B. Randall, Mech. Syst. Signal Process. 64-65, 2015, 100-131). It is resampled to 12 kHz, or else the rate
    itself would tell it from the faults; the filter, which falls from 5.2 kHz on and to -6 dB at 6 kHz, may still do
    so. The four loads of one published class are recordings of one and the same bearing: a test on them does not show
    what a network makes of a bearing that it has not seen.

    Returns:
        `Recordings`, the same for the same files and seed.

    Raises:
        ValueError: a bad argument.
        InputError: a folder without MATLAB files, a file of another number or name, damaged, without its variable
            ``X..._DE_time``, shorter than a window or not finite in float32; a record in two files, as under its number
            and its name; a class with one recording only.
    """
    folder = Path(folder)
    folders, files = class_folders(folder), files_in(folder, (".mat",))
    if files and folders:
        raise InputError(f"{folder}: holds both .mat files and folders; expected one or the other")
    if files:
        sources = [Source(path, cwru_class(path)) for path in files]
        present = {source.label for source in sources}
        classes = tuple(name for name in CWRU_NUMBERS if name in present)
    else:
        sources = class_sources(folder, folders, (".mat",))
        classes = tuple(path.name for path in folders)
    return split(folder, sources, classes, read_cwru, points, step, test_share, seed)


def folder(
    folder: str | Path,
    *,
    column: int | str | None = None,
    points: int = 2048,
    step: int | None = None,
    test_share: float = 0.25,
    seed: int = 0,
) -> Recordings:
    """Read a folder that holds one folder of .npy and .csv files for each class, of its name.

    Args:
        folder: the outer one. A file is a recording: an array of (points,) or (points, columns), or lines of numbers
            with commas between the columns. A first line is taken for the columns' names if no field of it begins like
            a number; lines that begin with ``#`` are passed over.
        column: which one to read, a number from 0, as an integer or in digits, or a name in the first line of .csv
            files. None reads files with one column, and refuses others: their first one is often the time.
        points, step, test_share, seed: as in `cwru`.

    Returns:
        `Recordings`, the same for the same files and seed.

    Raises:
        ValueError: a bad argument.
        InputError: no folders, or one without such files; a file that is damaged, without the column, shorter than a
            window or not finite in float32; two files with the same values in it; a class with one recording only.
    """
    # no name is of digits
    column = int(column) if isinstance(column, str) and column.isdecimal() else column
    if not (column is None or isinstance(column, str) or (type(column) is int and column >= 0)):
        raise ValueError(f"column: got {column!r}, expected an integer of at least 0, a name or None")

    def read(path: Path) -> Content:
        return read_column(path, column)

    folder = Path(folder)
    folders = class_folders(folder)
    sources = class_sources(folder, folders, (".npy", ".csv"))
    return split(folder, sources, tuple(path.name for path in folders), read, points, step, test_share, seed)


def class_folders(folder: Path) -> list[Path]:
    """The folders within, but for hidden ones."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of these endings, in either case, but for hidden ones, which macOS puts beside others."""
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )


def class_sources(folder: Path, folders: list[Path], suffixes: tuple[str, ...]) -> list[Source]:
    """The files of these endings in each class's folder."""
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


def cwru_class(path: Path) -> str:
    """The class that the published number or name of a file stands for."""
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


def read_cwru(path: Path) -> Content:
    """The drive-end channel of a file, at 12 kHz, and the record that its variable names."""
    from scipy.io import loadmat
    from scipy.signal import resample_poly

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
    values = np.asarray(variables[channels[0]]).ravel()
    require_real(path, values)
    record = int(channels[0][1:-8])
    if record in CWRU_NUMBERS["normal"]:
        # zeros beyond the ends would be a step for a signal that is not about 0, and ring
        values = resample_poly(values, 1, 4, padtype="mean")
    return Content(values, f"record {record}")


def cwru_number(name: str) -> int | None:
    """The record's number, if the file is named after it; the baseline's of load 0 to 3 are 97 to 100."""
    if match := re.fullmatch(r"normal_(\d)", name, re.IGNORECASE):
        return CWRU_NUMBERS["normal"][0] + int(match[1])
    return int(name) if name.isdecimal() else None


def read_column(path: Path, column: int | str | None) -> Content:
    """One column of a .npy or .csv file, named after a hash of its values, which a copy in the other format shares."""
    names: list[str] = []
    try:
        if path.suffix.lower() == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            names, values = read_csv(path)
    except (OSError, ValueError, EOFError) as error:
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
    values = values[:, index].astype(np.float64)
    return Content(values, f"values of hash {hashlib.sha256(values.tobytes()).hexdigest()[:16]}")


def read_csv(path: Path) -> tuple[list[str], npt.NDArray[np.float64]]:
    """The names of a .csv file's columns, if it has any, and its numbers, (lines, columns)."""
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("#")]
    names = [name.strip(' "') for line in lines[:1] for name in line.split(",")]
    if any(map(NUMBER.match, names)):
        names = []
    else:
        lines = lines[1:]
    if not lines:
        raise ValueError("it holds no numbers")
    values = np.loadtxt(lines, delimiter=",", ndmin=2)
    if names and len(names) != values.shape[1]:
        raise ValueError(f"its first line names {len(names)} columns, the others have {values.shape[1]}")
    return names, values


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def require_real(path: Path, values: npt.NDArray[Any]) -> None:
    """Refuse what is not real numbers."""
    if values.dtype.kind not in "fiu":
        raise InputError(f"{path}: holds {values.dtype}, expected real numbers")


def split(
    folder: Path,
    sources: list[Source],
    classes: tuple[str, ...],
    read: Callable[[Path], Content],
    points: int,
    step: int | None,
    test_share: float,
    seed: int,
) -> Recordings:
    """Cut every recording into windows, and give some recordings of each class to the test split."""
    require_positive("points", points)
    step = points if step is None else step
    require_positive("step", step)
    if not 0 < test_share < 1:
        raise ValueError(f"test_share: got {test_share!r}, expected a number between 0 and 1")
    require_seed(seed)
    tested = set(choose(folder, sources, classes, test_share, seed))
    files = tuple(source.path for source in sources)
    parts: list[tuple[Array, int]] = []
    seen: dict[str, Path] = {}
    for path, label in sources:
        values, name = read(path)
        if name in seen:
            raise InputError(f"{path}: holds {name}, as does {seen[name]}; expected each recording once")
        seen[name] = path
        parts.append((cut(path, values, points, step), classes.index(label)))
    train, test = (
        join([(*parts[i], i) for i in range(len(sources)) if (i in tested) == wanted])
        for wanted in (False, True)
    )
    return Recordings(train, test, classes, files)


def choose(
    folder: Path, sources: list[Source], classes: tuple[str, ...], share: float, seed: int
) -> Iterator[int]:
    """The recordings to test on: a share of each class's, which does not depend on the other classes."""
    for label, name in enumerate(classes):
        members = [i for i, source in enumerate(sources) if source.label == name]
        if len(members) < 2:
            raise InputError(
                f"{folder}: class {name!r} has one recording, expected one to train on and one to test"
            )
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        yield from np.random.default_rng((seed, label)).permutation(members)[:count].tolist()


def cut(path: Path, values: npt.NDArray[Any], points: int, step: int) -> Array:
    """The windows of a recording, (windows, points); what is left at its end is dropped."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    # not before, as a number of float64 may be inf in float32
    if not np.isfinite(narrow).all():
        raise InputError(f"{path}: holds values that are not finite in float32")
    if len(narrow) < points:
        raise InputError(f"{path}: has {len(narrow)} points, expected at least the {points} of a window")
    return np.lib.stride_tricks.sliding_window_view(narrow, points)[::step]


def join(parts: list[tuple[Array, int, int]]) -> Windows:
    """One split from the windows, class and index of each of its recordings."""
    counts = torch.tensor([len(windows) for windows, _, _ in parts])
    labels, indices = (torch.tensor([part[i] for part in parts]) for i in (1, 2))
    return Windows(
        torch.from_numpy(np.concatenate([windows for windows, _, _ in parts])[:, None]),
        labels.repeat_interleave(counts),
        indices.repeat_interleave(counts),
    )
