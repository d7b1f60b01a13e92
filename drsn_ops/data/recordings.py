"""Recorded signals from files: the bearing data of Case Western Reserve University, and folders of .npy and .csv files.

A recording is cut into windows, and whole recordings go to the training or to the test split: windows of one recording
are so alike that a network which has seen some of them knows the others. For the same reason a recording that is there
twice is refused, also in another format or precision. Values are kept as they are in the file, or taken less the mean
of their window.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..arguments import InputError, first_line, require_choice, require_positive, require_seed

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
# what the variables of these files are called after; those of all others are called after the file's number
CWRU_VARIABLES = dict(zip(range(3001, 3009), (*range(56, 60), *range(48, 52)), strict=True))
# the records at 48 kHz: the baseline, and the published table of that rate with faults of the drive end's bearing
CWRU_48_KHZ = frozenset(
    number
    for first, last in (
        *((97, 100), (109, 112), (122, 125), (135, 138), (148, 151), (161, 164), (173, 177)),
        *((189, 192), (201, 204), (213, 217), (226, 229), (238, 241), (250, 253), (262, 265)),
    )
    for number in range(first, last + 1)
)

# The share of a recording's range that counts for nothing: what float32 may lose of it, and copies may differ by.
NEGLIGIBLE = 1e-3

# the start of a number, or all of one that is written in letters
NUMBER = re.compile(r"[+-]?(\.?\d|(nan|inf|infinity)$)", re.IGNORECASE)

Array = npt.NDArray[np.float32]
Normalise = Literal["none", "mean"]
Scalar = TypeVar("Scalar", bound=np.generic)


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
    """What is read from a file: the values, (points,), and the number of the published record that they are, if any."""

    values: npt.NDArray[Any]
    record: int | None


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
        folder: MATLAB files with their published number or name, ``105.mat`` or ``IR007_0.mat``, of which the class
            follows (`CWRU_NUMBERS`), or folders of MATLAB files, each of which is a class of the folder's name.
        points: of a window.
        step: points from one window to the next; None for windows side by side.
        normalise: ``"mean"`` takes the mean of each window off it, before it is narrowed to float32.
        test_share: of the recordings of each class that go to the test split: at least one, and never all.
        seed: of the choice of these.

    The baseline, whose variables are X097 to X100, is recorded at 48 kHz where the faults are at 12 (W. A. Smith and
    R. B. Randall, Mech. Syst. Signal Process. 64-65, 2015, 100-131). It is resampled to 12 kHz, as is any other record
    that is published at 48 (`CWRU_48_KHZ`), or else the rate itself would tell it from the others; the filter, which
    falls from 5.2 kHz on and to -6 dB at 6 kHz, may still do so. The four loads of one published class are recordings
    of one and the same bearing: a test on them does not show what a network makes of a bearing that it has not seen.

    Returns:
        `Recordings`, the same for the same files and seed.

    Raises:
        ValueError: a bad argument.
        InputError: a folder without MATLAB files, a file of another number or name, damaged, without its variable
            ``X..._DE_time``, with the record of another number than that it is named after, shorter than a window, not
            finite in float32 or lost in it; a record in two files, as under its number and its name, or its values; a
            class with one recording only.
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
    return split(folder, sources, classes, read, points, step, normalise, test_share, seed)


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
    """Read a folder that holds one folder of .npy and .csv files for each class, of its name.

    Args:
        folder: the outer one. A file is a recording: an array of (points,) or (points, columns), or lines of numbers
            with commas between the columns. A first line is taken for the columns' names if no field of it begins like
            a number; lines that begin with ``#`` are passed over, and blank ones before and after the numbers.
        column: which one to read, a number from 0, as an integer or in digits, or a name in the first line of .csv
            files. None reads files with one column, and refuses others: their first one is often the time.
        points, step, normalise, test_share, seed: as in `cwru`.

    Returns:
        `Recordings`, the same for the same files and seed.

    Raises:
        ValueError: a bad argument.
        InputError: no folders, or one without such files; a file that is damaged, without the column, with a gap,
            shorter than a window, not finite in float32 or lost in it; two files with the same values, to rounding; a
            class with one recording only.
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
    classes = tuple(path.name for path in folders)
    return split(folder, sources, classes, read, points, step, normalise, test_share, seed)


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


def read_published(path: Path) -> Content:
    """What `read_cwru` reads of a file whose class follows from its name, once the record is one of that name."""
    content, label, number = read_cwru(path), cwru_class(path), cwru_number(path.stem)
    numbers = CWRU_NUMBERS[label] if number is None else [number]
    if content.record not in {*numbers, *map(CWRU_VARIABLES.get, numbers)}:
        named = label if number is None else f"record {number}"
        rate = " of 48 kHz" if content.record in CWRU_48_KHZ else ""
        raise InputError(f"{path}: named after {named}, but holds record {content.record}{rate}")
    return content


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
    values = np.asarray(variables[channels[0]])
    require_real(path, values)
    if values.size != max(values.shape, default=0):
        raise InputError(f"{path}: its {channels[0]} has shape {values.shape}, expected one column")
    values = values.ravel()
    record = int(channels[0][1:-8])
    if record in CWRU_48_KHZ:
        # zeros beyond the ends would be a step for a signal that is not about 0, and ring
        values = resample_poly(values, 1, 4, padtype="mean")
    return Content(values, record)


def cwru_number(name: str) -> int | None:
    """The record's number, if the file is named after it; the baseline's of load 0 to 3 are 97 to 100."""
    if match := re.fullmatch(r"normal_(\d)", name, re.IGNORECASE):
        return CWRU_NUMBERS["normal"][0] + int(match[1])
    return int(name) if name.isdecimal() else None


def read_column(path: Path, column: int | str | None) -> Content:
    """One column of a .npy or .csv file."""
    try:
        names, values = read_npy(path) if path.suffix.lower() == ".npy" else read_csv(path)
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
    return Content(values[:, index], None)


def read_npy(path: Path) -> tuple[list[str], npt.NDArray[Any]]:
    """No names, and the array of a .npy file, of a size that is not taken on trust."""
    versions = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in versions:
            raise ValueError("it is of .npy version {}.{}, expected 1.0 or 2.0".format(*version))
        shape, fortran, dtype = versions[version](file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, expected numbers")
        promised, held = math.prod(shape) * dtype.itemsize, path.stat().st_size - file.tell()
        if promised != held:
            raise ValueError(f"it holds {held} bytes of data where its header says {promised}")
        return [], np.fromfile(file, dtype).reshape(shape, order="F" if fortran else "C")


def read_csv(path: Path) -> tuple[list[str], npt.NDArray[np.float64]]:
    """The names of a .csv file's columns, if it has any, and its numbers, (lines, columns)."""
    text = path.read_text(encoding="utf-8-sig")
    lines = {i: line for i, line in enumerate(text.splitlines(), 1) if not line.startswith("#")}
    filled = [i for i, line in lines.items() if line.strip()]
    names = [name.strip(' "') for i in filled[:1] for name in lines[i].split(",")]
    if any(map(NUMBER.match, names)):
        names = []
    else:
        filled = filled[1:]
    if not filled:
        raise ValueError("it holds no numbers")
    for i, line in lines.items():
        if filled[0] < i < filled[-1] and not line.strip():
            raise ValueError(f"line {i} is blank, a gap between numbers")
    values = np.loadtxt([lines[i] for i in filled], delimiter=",", ndmin=2)
    if names and len(names) != values.shape[1]:
        raise ValueError(f"its first line names {len(names)} columns, the others have {values.shape[1]}")
    return names, values


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
    normalise: Normalise,
    test_share: float,
    seed: int,
) -> Recordings:
    """Cut every recording into windows, and give some recordings of each class to the test split."""
    require_positive("points", points)
    step = points if step is None else step
    require_positive("step", step)
    require_choice("normalise", normalise, get_args(Normalise))
    if not 0 < test_share < 1:
        raise ValueError(f"test_share: got {test_share!r}, expected a number between 0 and 1")
    require_seed(seed)
    tested = set(choose(folder, sources, classes, test_share, seed))
    files = tuple(source.path for source in sources)
    parts: list[tuple[Array, int]] = []
    records: dict[int, Path] = {}
    seen = Seen()
    for path, label in sources:
        values, record = read(path)
        if record is not None and records.setdefault(record, path) != path:
            raise InputError(
                f"{path}: holds record {record}, as does {records[record]}; expected each recording once"
            )
        windows = cut(path, values, points, step, normalise)
        copied = seen.add(windows)
        if copied is not None:
            raise InputError(f"{path}: holds the values of {files[copied]}; expected each recording once")
        parts.append((windows, classes.index(label)))
    train, test = (
        join([(*parts[i], i) for i in range(len(sources)) if (i in tested) == wanted])
        for wanted in (False, True)
    )
    return Recordings(train, test, classes, files)


class Seen:
    """The recordings so far, by the peak of their first window, which copies have in common."""

    def __init__(self) -> None:
        self.recordings: list[Array] = []
        self.peaks: list[tuple[float, int]] = []

    def add(self, windows: Array) -> int | None:
        """Add a recording. Returns the place of one before that is the same for as long as both last, if there is one.

        The same is what a network cannot tell apart: windows that differ by no more than a negligible share of the
        recording's range, as they do where one has been narrowed, printed or made shorter.
        """
        peak, tolerance = float(windows[0].max()), NEGLIGIBLE * extent(windows)
        near = slice(
            bisect_left(self.peaks, (peak - tolerance, 0)),
            bisect_right(self.peaks, (peak + tolerance, math.inf)),
        )
        for _, i in self.peaks[near]:
            pairs = zip(windows, self.recordings[i], strict=False)
            if all(np.abs(ours.astype(float) - theirs).max() <= tolerance for ours, theirs in pairs):
                return i
        insort(self.peaks, (peak, len(self.recordings)))
        self.recordings.append(windows)
        return None


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


def cut(path: Path, values: npt.NDArray[Any], points: int, step: int, normalise: Normalise) -> Array:
    """The windows of a recording, (windows, points); what is left at its end is dropped."""
    wide = values.astype(np.float64)
    require_finite(path, wide)
    if len(wide) < points:
        raise InputError(f"{path}: has {len(wide)} points, expected at least the {points} of a window")
    if normalise == "none":
        return windows_of(narrowed(path, wide), points, step)
    windows = windows_of(wide, points, step)
    return narrowed(path, windows - windows.mean(-1, keepdims=True))


def windows_of(values: npt.NDArray[Scalar], points: int, step: int) -> npt.NDArray[Scalar]:
    """Views of (points,) at every ``step``."""
    return np.lib.stride_tricks.sliding_window_view(values, points)[::step]


def narrowed(path: Path, values: npt.NDArray[np.float64]) -> Array:
    """The values in float32, once they are there and what tells them apart is too."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    # not before, as a number of float64 may be inf in float32
    require_finite(path, narrow)
    if 0 < NEGLIGIBLE * extent(values) < np.abs(narrow - values).max():
        raise InputError(
            f"{path}: holds values from {values.min():.9g} to {values.max():.9g}, whose differences float32 loses; "
            "expected them less their mean (normalise: mean) or scaled"
        )
    return narrow


def extent(values: npt.NDArray[Any]) -> float:
    """The largest value less the smallest."""
    return float(values.max()) - float(values.min())


def require_finite(path: Path, values: npt.NDArray[Any]) -> None:
    """Refuse what is not a number, or infinite."""
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds values that are not finite in float32")


def join(parts: list[tuple[Array, int, int]]) -> Windows:
    """One split from the windows, class and index of each of its recordings."""
    counts = torch.tensor([len(windows) for windows, _, _ in parts], device="cpu")
    labels, indices = (torch.tensor([part[i] for part in parts], device="cpu") for i in (1, 2))
    return Windows(
        torch.from_numpy(np.concatenate([windows for windows, _, _ in parts])[:, None]),
        labels.repeat_interleave(counts),
        indices.repeat_interleave(counts),
    )
