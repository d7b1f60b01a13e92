"""Reads the variables of MATLAB files, those before version 7.3 and those of HDF5, and of other HDF5 files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import InputError, first_line, require_packages
from .variables import Leaves, leaves_of


def read_mat(path: Path) -> Leaves:
    """The variables of a MATLAB file of any version, which its content tells.

    Raises:
        InputError: it is damaged or no such file.
    """
    with path.open("rb") as file:
        start = file.read(520)
    if b"\x89HDF\r\n\x1a\n" in (start[:8], start[512:]):
        return read_hdf5(path)
    from scipy.io import loadmat

    try:
        variables = loadmat(path, simplify_cells=True)
    # a damaged file can raise nearly anything
    except Exception as error:
        # of what is no such file at all it says a version
        kind = "it is none" if "Unknown mat file type" in str(error) else first_line(error)
        raise InputError(f"{path}: cannot be read as a MATLAB file: {kind}") from error
    return leaves_of(variables)


def read_hdf5(path: Path) -> Leaves:
    """The variables of an HDF5 file, dotted for groups. MATLAB's arrays have their axes in MATLAB's order.

    Raises:
        InputError: it is damaged or no HDF5 file.
    """
    require_packages("reading HDF5 files", "files", "h5py")
    import h5py

    def tree(item: Any) -> Any:
        if isinstance(item, h5py.Group):
            return {name: tree(item[name]) for name in item if not name.startswith("#")}
        values = item[()]
        kind = item.attrs.get("MATLAB_class", b"")
        if "MATLAB_empty" in item.attrs:
            return None
        if item.dtype.hasobject:
            # the fields of an array of structs, and cells
            if h5py.check_ref_dtype(item.dtype) is None:
                return None
            return [tree(file[reference]) for reference in np.ravel(values.T)]
        if kind == b"char":
            return "".join(map(chr, np.ravel(values.T)))
        return np.squeeze(values.T) if kind else values

    try:
        with h5py.File(path) as file:
            variables = tree(file)
    except Exception as error:
        raise InputError(f"{path}: cannot be read as an HDF5 file: {first_line(error)}") from error
    return leaves_of(variables)
