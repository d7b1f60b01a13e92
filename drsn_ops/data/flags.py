"""The command line's flags for reading recordings, which several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from ..arguments import InputError, count, number
from .channels import LAYOUTS
from .cwru_files import CWRU_LOADS
from .recordings import Reading
from .signals import FileOptions
from .splits import Split
from .windows import Normalise

# the names of `add_choice_flags` and `add_file_flags`, and those that `add_window_flags` has beside the choice
CHOICE_FLAGS = ("classes", "loads")
FILE_FLAGS = (
    *("variable", "channels", "layout", "delimiter", "decimal", "encoding"),
    *("sampling_rate", "resample", "pad"),
)
WINDOW_FLAGS = ("step", "normalise", "split", "test_share")
FLAGS = (*CHOICE_FLAGS, *FILE_FLAGS, *WINDOW_FLAGS)
SIMULATED = "vibration"  # --data of the simulated machine
ALIASES = ("cwru", "folder")  # earlier forms of --data: the folder is --data-dir
MAX_SIGNALS, MAX_BLOCKS = 10_000_000, 1000


class Names(argparse.Action):
    """Collects names that are separated by commas, of a flag that may be repeated."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        given = [name.strip() for name in values.split(",")]
        if not all(given):
            raise argparse.ArgumentError(self, f"expected names separated by commas, got {values!r}")
        setattr(namespace, self.dest, (*(getattr(namespace, self.dest) or ()), *given))


def checked(name: str, text: str) -> str:
    """The value of an option of files, once `FileOptions` takes it."""
    option: dict[str, Any] = {name: text}
    try:
        FileOptions(**option)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).partition(": ")[2]) from error
    return text


def add_choice_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which recordings of a place are read. One that is not given is None."""
    add = parser.add_argument_group("choice of recordings").add_argument
    add(
        "--classes",
        action=Names,
        metavar="NAME[,NAME]",
        help="the classes whose recordings are read, by name (default: all)",
    )
    add(
        "--loads",
        type=count(CWRU_LOADS[0], CWRU_LOADS[-1]),
        nargs="+",
        metavar="HP",
        help="of the bearing data of Case Western Reserve University, files under their published numbers or names: "
        f"the loads of the motor whose recordings are read, of {', '.join(map(str, CWRU_LOADS))} (default: all)",
    )


def add_file_flags(parser: argparse.ArgumentParser, *, of_model: bool = False) -> None:
    """Add the flags that say how files are read. One not given is None; ``of_model``: a model's own reading stands."""
    rest = "A flag that is not given is as in the training." if of_model else None
    add = parser.add_argument_group("files of recordings", rest).add_argument
    add(
        "--variable",
        action=Names,
        metavar="NAME[,NAME]",
        help="of .mat, .npz and .h5 files: the variable to read, by its name or a pattern as 'X*_DE_time', dotted in a "
        "structure as bearing.gs; of several, the first that a file has (default: the only long one)",
    )
    add(
        "--channels",
        action=Names,
        metavar="NAME[,NAME]",
        help="the channels to read, by name or by number from 0, without columns of times (default: the only one)",
    )
    add("--column", dest="channels", action=Names, help=argparse.SUPPRESS)
    add(
        "--layout",
        choices=LAYOUTS,
        help="of an array: whether points or channels come first, or windows, (windows, points) (default: auto, by its "
        "shape)",
    )
    add(
        "--delimiter",
        type=partial(checked, "delimiter"),
        metavar="TEXT",
        help="between the columns of text files: a character, tab or space (default: found out)",
    )
    add(
        "--decimal",
        choices=(".", ","),
        metavar="SIGN",
        help="the decimal sign of text files: a point or a comma (default: found out)",
    )
    add(
        "--encoding",
        type=partial(checked, "encoding"),
        metavar="NAME",
        help="of text files, as utf-8 or latin-1 (default: found out)",
    )
    add(
        "--sampling-rate",
        type=number(float, 1e-6, 1e12),
        metavar="HZ",
        help="of files that say none (default: that of the model's windows)"
        if of_model
        else "of the windows; files that say none have it (default: the one that the files say)",
    )
    add(
        "--resample",
        action="store_true",
        default=None,
        help=f"bring files of other rates to {'that of the model' if of_model else 'it, or to the lowest of all'} "
        "(default: refuse them)",
    )
    add(
        "--pad",
        action="store_true",
        default=None,
        help="fill recordings that are shorter than a window up with their mean (default: refuse them)",
    )


def add_window_flags(parser: argparse.ArgumentParser, step: str = "a window") -> None:
    """Add the flags that say which recordings are read, how they are cut and split. One not given is None.

    ``step`` says what it is then.
    """
    add_choice_flags(parser)
    add = parser.add_argument_group("windows of recordings").add_argument
    add("--step", type=count(), help=f"points from one window to the next (default: {step})")
    add(
        "--normalise",
        choices=get_args(Normalise),
        help="each channel of a window: as it is, less its mean, or divided by its standard deviation too (default: "
        "standard)",
    )
    add(
        "--split",
        choices=get_args(Split),
        help="recording: whole recordings to test; time: the last part of each; given: folders train and test, or "
        "files named so (default: given where the names say so, else recording)",
    )
    add(
        "--test-share",
        type=number(float, 0.001, 0.999),
        metavar="SHARE",
        help="of the recordings of each class, or of each recording, to test, where no split is given (default: 0.25)",
    )


def place_of(data: str, data_dir: Path | None, names: Sequence[str]) -> str:
    """The absolute path of the recordings that ``--data`` and ``--data-dir`` ask for; ``names`` are no paths.

    Raises:
        InputError: they ask for none.
    """
    path = Path(data)
    if data in ALIASES and data_dir:
        path = data_dir
    elif data in ALIASES and not path.exists():
        raise InputError(
            f"--data {data} needs the folder that holds its files: --data-dir DIR, or --data DIR"
        )
    elif data_dir:
        raise InputError(f"--data-dir {data_dir}: expected none with --data {data}, a path itself")
    if not path.exists():
        raise InputError(
            f"{path}: no such file or folder; --data takes a path to recordings, or a name: {', '.join(names)}"
        )
    return os.path.abspath(path)


def reading_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `read_recordings` of which a flag was given."""
    given = {name: getattr(args, name, None) for name in FLAGS}
    return {name: value for name, value in given.items() if value is not None}


def overridden(reading: Reading, args: argparse.Namespace) -> Reading:
    """A model's reading with the file flags that were given; ``--sampling-rate`` is that of files that say none.

    Raises:
        InputError: ``--sampling-rate`` with a model of no known rate.
    """
    given = reading_arguments(args)
    rate = given.get("sampling_rate")
    if rate is not None and reading.sampling_rate is None:
        raise InputError(
            f"--sampling-rate {rate:g}: expected none with this model, whose own recordings said no rate"
        )
    options = {field.name for field in fields(FileOptions)}
    return replace(
        reading,
        options=replace(reading.options, **{name: value for name, value in given.items() if name in options}),
        cutting=replace(reading.cutting, pad=given.get("pad", reading.cutting.pad)),
        resample=given.get("resample", reading.resample),
        unsaid_rate=rate,
    )
