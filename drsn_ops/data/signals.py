"""One file of any format to a signal: its channels, and its sampling rate where the file says it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from ..arguments import InputError, require_choice, require_packages
from .channels import LAYOUTS, Found, Signal, signal_of
from .cwru_files import CWRU_VARIABLE, cwru_leaves, cwru_rate, cwru_record, cwru_signal
from .dialects import WORDS
from .mat_files import read_hdf5, read_mat
from .npy_files import read_npy, read_npz
from .table_files import read_parquet, read_xlsx
from .text_files import read_text
from .variables import find_variable
from .wav_files import read_wav

__all__ = ["SUFFIXES", "FileOptions", "Signal", "Table", "read_signal", "read_table"]

TEXT = (".csv", ".tsv", ".txt")
VARIABLES = (".mat", ".npz", ".h5", ".hdf5")
SOUND = (".wav", ".flac")
# of files that are recordings
SUFFIXES = (".mat", *TEXT, ".npy", ".npz", *SOUND, ".parquet", ".xlsx", ".h5", ".hdf5")
# of the extra `files`, what reads them; in .mat files before 7.3 there is no HDF5
PACKAGES = {
    **dict.fromkeys(TEXT, ("pandas",)),
    **dict.fromkeys(SOUND, ("soundfile",)),
    ".mat": ("scipy",),
    ".parquet": ("pandas", "pyarrow"),
    ".xlsx": ("pandas", "openpyxl"),
}


@dataclass(frozen=True)
class FileOptions:
    """How files are read.

    Attributes:
        variable: names, or patterns of `fnmatch`, of the variable of .mat, .npz and HDF5 files, dotted within structs,
            or of the sheet of .xlsx files; the first that a file has is read.
        channels: names of the channels to read, or numbers from 0, times not counted; empty where there is one.
        layout: ``"points-first"``, ``"channels-first"``, ``"windows"`` (a window in each row), or ``"auto"``, which
            refuses arrays of which nobody can tell; see `drsn_ops.data.channels.arranged`.
        delimiter, decimal, encoding: of text files; None finds them out.

    Raises:
        ValueError: a bad argument.
    """

    variable: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    layout: str = "auto"
    delimiter: str | None = None
    decimal: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        for name in ("variable", "channels"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(one, str) and one for one in value):
                raise ValueError(f"{name}: got {value!r}, expected a tuple of names")
        require_choice("layout", self.layout, LAYOUTS)
        require_choice("decimal", self.decimal, (None, ".", ","))
        mark = WORDS.get(self.delimiter or "", self.delimiter)
        if mark is not None and (
            len(mark) != 1 or mark.isalnum() or mark in '".+-\n#' or mark == self.decimal
        ):
            raise ValueError(
                f"delimiter: got {self.delimiter!r}, expected a character that is in no number, 'tab' or 'space'"
            )
        if self.encoding is not None:
            try:
                b"".decode(self.encoding)
                "".encode(self.encoding)
            # some of Python's encodings are none of text, and one is of nothing
            except (LookupError, ValueError):
                raise ValueError(
                    f"encoding: got {self.encoding!r}, expected one that Python knows, of text"
                ) from None


class Table(NamedTuple):
    """The names of columns, if there are any, and numbers, (lines, columns)."""

    names: tuple[str, ...]
    values: npt.NDArray[Any]


def require_readers(paths: Iterable[Path]) -> None:
    """Raise MissingPackage where a package is missing that reads files of these endings."""
    for suffix in sorted({path.suffix.lower() for path in paths}):
        require_packages(f"reading {suffix} files", "files", *PACKAGES.get(suffix, ()))


def read_signal(path: Path, options: FileOptions) -> Signal:
    """Read a recording. Its format is told by the file's ending, and of .mat files by the content.

    Raises:
        InputError: it is no file of its ending, is damaged, or holds no signal that can be told.
        MissingPackage: a package is missing that reads files of its ending.
    """
    require_readers([path])
    try:
        suffix = path.suffix.lower()
        if suffix in VARIABLES:
            return read_variable(path, options)
        return signal_of(path, read_array(path, options), options.channels, options.layout)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def read_table(path: Path, options: FileOptions) -> Table:
    """Read a table of numbers as it lies in the file, such as one of labelled series.

    Raises:
        InputError: it is no file of its ending, is damaged, or holds no table.
        MissingPackage: a package is missing that reads files of its ending.
    """
    require_readers([path])
    try:
        found = read_array(path, options)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    if found.values.ndim != 2 or found.values.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: holds {found.values.dtype} of shape {found.values.shape}, expected a table of numbers"
        )
    return Table(found.names, found.values)


def read_array(path: Path, options: FileOptions) -> Found:
    """What a file with one array or table holds."""
    suffix = path.suffix.lower()
    if not path.stat().st_size:
        raise InputError(f"{path}: is empty; remove it, or put its recording there")
    if suffix in TEXT:
        return read_text(path, options.delimiter, options.decimal, options.encoding)
    if suffix in SOUND:
        return read_wav(path)
    if suffix == ".npy":
        return Found(read_npy(path))
    if suffix == ".parquet":
        return read_parquet(path)
    if suffix == ".xlsx":
        return read_xlsx(path, options.variable)
    raise InputError(f"{path}: ends in {path.suffix or 'nothing'!r}, expected {', '.join(SUFFIXES)}")


def read_variable(path: Path, options: FileOptions) -> Signal:
    """A variable of a file that holds several."""
    if not path.stat().st_size:
        raise InputError(f"{path}: is empty; remove it, or put its recording there")
    read = {".mat": read_mat, ".npz": read_npz}.get(path.suffix.lower(), read_hdf5)
    leaves = read(path)
    if leaves.keys().isdisjoint(options.variable):
        leaves = cwru_leaves(path, leaves)
    if not options.variable:
        signal = cwru_signal(path, leaves, options.channels)
        if signal is not None:
            return signal
    found = find_variable(path, leaves, options.variable, options.channels)
    if CWRU_VARIABLE.fullmatch(found.source):
        record = cwru_record(found.source)
        found = found._replace(rate=cwru_rate(record), record=record)
    return signal_of(path, found, options.channels, options.layout)
