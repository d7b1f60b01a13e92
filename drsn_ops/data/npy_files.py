"""Reads .npy files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def read_npy(path: Path) -> npt.NDArray[Any]:
    """The array of a .npy file, once its size fits the file's.

    Raises:
        ValueError, OSError: it is damaged, holds objects or is of another version than 1.0 and 2.0.
    """
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
        return np.fromfile(file, dtype).reshape(shape, order="F" if fortran else "C")
