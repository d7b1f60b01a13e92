"""Pickles of plain values and arrays of bytes, read without calling anything that they name.

A `pickle.Unpickler` that allows only NumPy's names is not safe: a file can have NumPy make a dtype that takes bytes for
pointers, an index of the memo can claim all memory, and a key of tuples within tuples overflows the stack.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from pickletools import genops
from typing import Any

import numpy as np
import numpy.typing as npt

NAMES = (
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
)
# the instructions whose argument is the value
NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
TEXTS = ("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
BYTES = ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8")
# of Python 2, whose str was bytes
STRINGS = ("STRING", "BINSTRING", "SHORT_BINSTRING")
EMPTY: dict[str, Any] = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
SINGLE = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


@dataclass(frozen=True)
class Name:
    """A function or class that a pickle names, with its module before it."""

    name: str


@dataclass(eq=False)
class Call:
    """A call that a pickle asks for, and the state that what comes of it is to take; neither is done."""

    name: str
    arguments: Any
    state: Any = None


def loads(content: bytes) -> Any:
    """What a pickle holds: plain values as they are, strings of Python 2 as bytes, everything else as a `Call`.

    Raises:
        pickle.UnpicklingError: a name, an instruction or a key that plain values and arrays have no use for.
        Exception: nearly any, for a pickle that is damaged.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def taken() -> list[Any]:
        """What lies above the last mark, which is taken away with it."""
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    argument: Any
    for opcode, argument, _ in genops(content):
        instruction = opcode.name
        if instruction in (*NUMBERS, *TEXTS, *BYTES):
            stack.append(argument)
        elif instruction in STRINGS:
            stack.append(argument.encode("latin-1"))
        elif instruction in EMPTY:
            stack.append(EMPTY[instruction]())
        elif instruction in SINGLE:
            stack.append(SINGLE[instruction])
        elif instruction == "MARK":
            marks.append(len(stack))
        elif instruction in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif instruction in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif instruction in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(instruction[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif instruction == "TUPLE":
            stack.append(tuple(taken()))
        elif instruction == "LIST":
            stack.append(taken())
        elif instruction == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif instruction == "APPENDS":
            items = taken()
            stack[-1].extend(items)
        elif instruction == "DICT":
            stack.append(put({}, taken()))
        elif instruction == "SETITEM":
            value, key = stack.pop(), stack.pop()
            put(stack[-1], [key, value])
        elif instruction == "SETITEMS":
            items = taken()
            put(stack[-1], items)
        elif instruction == "GLOBAL":
            stack.append(known(argument.replace(" ", ".")))
        elif instruction == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(known(f"{module}.{name}"))
        elif instruction == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(call(function.name, arguments))
        elif instruction == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        elif instruction == "STOP":
            return stack.pop()
        elif instruction not in ("PROTO", "FRAME"):
            raise pickle.UnpicklingError(f"it has {instruction}, which a data file has no use for")


def known(name: str) -> Name:
    """A name, if an array is pickled with it."""
    if name not in NAMES:
        raise pickle.UnpicklingError(f"it names {name}, which a data file has no use for")
    return Name(name)


def call(name: str, arguments: Any) -> Any:
    """The bytes that are meant, which Python 3 pickles as Latin-1 for Python 2, or else the call, not done."""
    match name, arguments:
        case "_codecs.encode", (str(text), "latin1"):
            return text.encode("latin-1")
    return Call(name, arguments)


def put(values: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    """Add keys and values that alternate."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, bytes, int)):
            raise pickle.UnpicklingError(f"it has a key of type {type(key).__name__}")
        values[key] = value
    return values


def unsigned_bytes(value: object) -> npt.NDArray[np.uint8] | None:
    """The array of unsigned bytes that a value from `loads` stands for, None where it stands for something else."""
    match value:
        case Call(
            name="numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct",
            state=(
                1,
                tuple(shape),
                Call(
                    name="numpy.dtype",
                    arguments=("u1" | b"u1", _, _),
                    state=(3, "|" | b"|", None, None, None, -1, -1, 0),
                ),
                fortran,
                bytes(content),
            ),
        ) if all(type(n) is int and n >= 0 for n in shape) and math.prod(shape) == len(content):
            array = np.frombuffer(content, np.uint8)
            return array.reshape(shape, order="F" if fortran else "C")
    return None
