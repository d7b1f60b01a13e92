"""Arrays of real numbers in MATLAB 5 files, read here because SciPy's reader crashes the process on damaged ones."""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# the kinds of elements, and those that numbers are stored as
MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
# the classes of arrays of numbers, and the flag of those that are complex
NUMERIC = range(6, 16)
COMPLEX = 0x800


def read_arrays(path: Path, names: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of real numbers whose names match a regular expression, of whatever type they are stored as.

    Raises:
        ValueError, zlib.error, struct.error: another or a damaged file, or such a variable that is something else.
    """
    content = memoryview(path.read_bytes())
    version, order = bytes(content[124:126]), {b"IM": "<", b"MI": ">"}.get(bytes(content[126:128]))
    if order is None or 1 not in version:
        raise ValueError(
            "it is of another version, expected one saved with -v7 or -v6"
            if order
            else "it does not begin as one"
        )
    arrays = {}
    for kind, data in elements(content[128:], order):
        if kind == COMPRESSED:
            kind, data = next(elements(memoryview(zlib.decompress(data)), order))
        if kind == MATRIX:
            (_, flags), (_, shape), (_, name), *numbers = elements(data, order, 4)
            variable = bytes(name).decode("latin-1")
            if re.fullmatch(names, variable):
                (bits,) = struct.unpack_from(f"{order}I", flags)
                if bits & 255 not in NUMERIC or bits & COMPLEX or not numbers or numbers[0][0] not in NUMBERS:
                    raise ValueError(f"its {variable} is something else, expected real numbers")
                lengths = np.frombuffer(shape, f"{order}i4").tolist()
                stored, dtype = numbers[0][1], np.dtype(order + NUMBERS[numbers[0][0]])
                if min(lengths) < 0 or math.prod(lengths) * dtype.itemsize != len(stored):
                    raise ValueError(f"its {variable} has {len(stored)} bytes where its shape is {lengths}")
                arrays[variable] = np.frombuffer(stored, dtype).reshape(lengths, order="F")
    return arrays


def elements(content: memoryview, order: str, most: int | None = None) -> Iterator[tuple[int, memoryview]]:
    """The kind and the data of each element, or of the first ones."""
    start = 0
    while start < len(content) and most != 0:
        kind, size = struct.unpack_from(f"{order}2I", content, start)
        begin = start + 8
        if kind >> 16:
            # up to four bytes, which lie in the tag
            kind, size, begin = kind & 0xFFFF, kind >> 16, start + 4
        if begin + size > len(content):
            raise ValueError(f"it is cut short: {len(content) - begin} bytes are left of {size}")
        yield kind, content[begin : begin + size]
        start = begin + size if kind == COMPRESSED else start + (begin - start + size + 7) // 8 * 8
        most = None if most is None else most - 1
