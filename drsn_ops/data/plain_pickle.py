"""Reads pickles of plain values and arrays of bytes, without calling anything that they name.

An unpickler that allows NumPy's names is not safe: a file can make NumPy build a dtype that takes bytes for pointers.
"""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
NAMES = (*RECONSTRUCT, "numpy.ndarray", "numpy.dtype", "_codecs.encode")


@dataclass(eq=False)
class Named:
    """Stands for what a pickle names. Its call is recorded with its arguments and state, and not made."""

    name: str
    arguments: tuple[Any, ...] | None = None
    state: Any = None

    def __call__(self, *arguments: Any) -> Any:
        match self.name, arguments:
            case "_codecs.encode", (str(text), "latin1"):  # bytes, as Python 3 pickles them for Python 2
                return text.encode("latin-1")
        return Named(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class PlainDict(dict[Any, Any]):
    """A dict of plain keys: the hash of deeply nested tuples overflows the stack."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, (str, bytes, int)):
            raise pickle.UnpicklingError(f"it has a key of type {type(key).__name__}")
        super().__setitem__(key, value)


class Opcodes(dict[int, Any]):
    """The unpickler's handler of each allowed opcode."""

    def __missing__(self, opcode: int) -> Any:
        raise pickle.UnpicklingError(f"it has opcode {opcode:#04x}, which a data file has no use for")


# sets hash their items, and a bytearray is allocated before its content is read
FORBIDDEN = (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8)


# The unpickler in Python, since the memo of the one in C grows to the largest index that a file names.
class PlainUnpickler(pickle._Unpickler):
    dispatch = Opcodes(
        {
            opcode: load
            for opcode, load in pickle._Unpickler.dispatch.items()
            if bytes([opcode]) not in FORBIDDEN
        }
    )

    def load_empty_dictionary(self) -> None:
        self.append(PlainDict())  # type: ignore[attr-defined]

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary

    def load_dict(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        values = PlainDict()
        for key, value in zip(items[::2], items[1::2], strict=True):
            values[key] = value
        self.append(values)  # type: ignore[attr-defined]

    dispatch[pickle.DICT[0]] = load_dict

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a data file has no use for")
        return Named(f"{module}.{name}")


def loads(content: bytes) -> Any:
    """The content of a pickle: plain values as they are, strings of Python 2 as bytes, all else as `Named`.

    Raises:
        pickle.UnpicklingError: a name, an opcode or a key that plain values and arrays do not need.
        Exception: nearly any, for a damaged pickle.
    """
    return PlainUnpickler(io.BytesIO(content), encoding="bytes").load()


def unsigned_bytes(value: object) -> npt.NDArray[np.uint8] | None:
    """The array of unsigned bytes that a value from `loads` stands for, or None."""
    match value:
        case Named(
            name=name,
            state=(
                1,
                tuple(shape),
                Named(
                    name="numpy.dtype",
                    arguments=("u1" | b"u1", _, _),
                    state=(3, "|" | b"|", None, None, None, -1, -1, 0),
                ),
                fortran,
                bytes(content),
            ),
        ) if (
            name in RECONSTRUCT
            and all(type(n) is int and n >= 0 for n in shape)
            and math.prod(shape) == len(content)
        ):
            array = np.frombuffer(content, np.uint8)
            return array.reshape(shape, order="F" if fortran else "C")
    return None
