"""Reads NumPy's files, .npy and .npz."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arguments import InputError, first_line
from .variables import Leaves, leaves_of


def read_npy(path: Path) -> npt.NDArray[Any]:
    """The array of a .npy file, once its size fits the file's.

    Raises:
        InputError: it is damaged, holds objects or is of another version than 1.0 and 2.0.
    """
    versions = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
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
            return np.fromfile(file, dtype).reshape(shape, order="F" if fortran else "C")
    # a damaged header can raise nearly anything
    except Exception as error:
        raise InputError(f"{path}: cannot be read: {first_line(error)}") from error


def read_npz(path: Path) -> Leaves:
    """The arrays of a .npz file by name.

    Raises:
        InputError: it is damaged or holds objects.
    """
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: cannot be read: it is no .npz file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            variables = {name: arrays[name] for name in arrays.files}
    except Exception as error:
        raise InputError(f"{path}: cannot be read: {first_line(error)}") from error
    return leaves_of(variables)
