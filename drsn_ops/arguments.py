"""Checks of arguments, parsers of the command line's numbers, and the errors for what the user can correct."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import chain
from typing import Any

MAX_COUNT = 2**31 - 1
MAX_SEED = 2**64 - 1  # of PyTorch's generators
MAX_PROCESSES = 1024  # or threads
COMMA = ("classes", "channels", "variable")  # the settings whose flags take names between commas
# its products with data stay finite in float32
MAX_REAL = 1e30


class InputError(Exception):
    """A file, a folder or a flag that the user gave cannot be used. The message, one line, says which and why."""


class MissingPackage(ImportError):
    """A package that comes with an extra is not installed. The message, one line, says what needs it."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message: PyTorch may append a stack to it."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def as_input_error(error: ValueError) -> InputError:
    """What is wrong with an argument as what is wrong with its flag: ``test_share: ...`` is ``--test-share: ...``."""
    name, colon, problem = str(error).partition(":")
    return InputError(
        f"--{name.replace('_', '-')}:{problem}" if colon and name.isidentifier() else str(error)
    )


def require_packages(what: str, extra: str, *names: str) -> None:
    """Raise `MissingPackage` unless all of these packages, which the extra brings, are installed."""
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a mere folder of that name, such as of results, has none
            raise MissingPackage(f"{what} needs {name}: pip install 'drsn_ops[{extra}]'", name=name)


def require_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(
            f"{name}: got {value!r}, expected {', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}"
        )


def require_positive(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: got {value!r}, expected an integer of at least 1")


def require_seed(seed: object) -> None:
    """Raise ValueError unless ``seed`` is an integer of at least 0, as NumPy's generators require."""
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed: got {seed!r}, expected an integer of at least 0")


def number(kind: type[int] | type[float], minimum: float, maximum: float) -> Callable[[str], Any]:
    """A parser of finite numbers from ``minimum`` to ``maximum``."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not minimum <= value <= maximum:
            noun, form = ("an integer", "") if kind is int else ("a number", "g")
            raise argparse.ArgumentTypeError(
                f"must be {noun} from {minimum:{form}} to {maximum:{form}}, got {text!r}"
            )
        return value

    return parse


def count(minimum: int = 1, maximum: int = MAX_COUNT) -> Callable[[str], int]:
    """A parser of counts."""
    return number(int, minimum, maximum)


seed = number(int, 0, MAX_SEED)
learning_rate = number(float, 1 / MAX_REAL, MAX_REAL)
# beyond 130, noise is lost in float32
decibels = number(float, -100, 130)


def defaults(of: Mapping[str, object], name: str) -> str:
    """The default of a setting for ``--help``: its value in each of several records."""
    values = {key: as_flag(getattr(record, name)) for key, record in of.items()}
    if len(set(values.values())) == 1:
        return f"default: {values.popitem()[1]}"
    return "default: " + ", ".join(f"{value} for {key}" for key, value in values.items())


def as_flag(value: object) -> str:
    """A setting as the command line takes it."""
    if isinstance(value, list | tuple):
        return " ".join(map(as_flag, value))
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def flagged(name: str, value: object) -> str:
    """A setting with its flag, as the command line takes it."""
    flag = "--" + name.replace("_", "-")
    if value is None or value is False or value in ((), []):
        return f"no {flag}"
    if name in COMMA and isinstance(value, list | tuple):
        return f"{flag} {shlex.quote(','.join(map(as_flag, value)))}"
    return flag if value is True else f"{flag} {as_flag(value)}"


def counted(number: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def to_go_on(**flags: object) -> str:
    """The flags to resume a command with, quoted for a shell; a flag of None is left out, one of True has no value."""
    given = {f"--{name}": value for name, value in flags.items() if value is not None}
    words = ((flag,) if value is True else (flag, as_flag(value)) for flag, value in given.items())
    return "to go on: " + shlex.join(chain.from_iterable(words))
