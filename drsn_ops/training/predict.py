"""The command ``python -m drsn_ops predict``: the class of each recording, as a model that ``train`` left sees it."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..arguments import MAX_PROCESSES, InputError, count, counted
from ..data.flags import add_file_flags, overridden
from ..data.places import named_as_table, recordings_within
from ..data.signals import SUFFIXES, require_readers
from ..files import replacing
from .model import Model, Prediction, cells_of, load_model
from .outputs import require_output
from .processes import usable_device
from .report import warn_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``predict``."""
    add = parser.add_argument
    add("model", type=Path, help="model.pt of train")
    add(
        "recordings",
        type=Path,
        nargs="+",
        metavar="FILE|FOLDER",
        help="folders are searched, with those within",
    )
    add(
        "--output",
        type=Path,
        metavar="FILE.csv",
        help="write every window: class and probability of each class",
    )
    add("--jobs", type=count(1, MAX_PROCESSES), help="files read at the same time (default: one a processor)")
    add("--device", default="cpu", help="where the network runs (default: cpu)")
    add_file_flags(parser, of_model=True)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status: 1 where a recording could not be used."""
    model = load_model(args.model, usable_device(args.device))
    model.reading = overridden(model.reading, args)
    found = [recordings_in(place) for place in args.recordings]
    paths = [path for held, _ in found for path in held]
    require_readers(paths)
    if args.output:
        require_output(args.output, [args.model, *paths])
    warn_of([path for _, passed_over in found for path in passed_over])
    widths = max(len(str(path)) for path in paths), max(map(len, model.classes))
    status = 0
    with ExitStack() as files:
        rows = None
        if args.output:
            temporary = files.enter_context(replacing(args.output))
            # names of files may be any bytes
            table = temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape")
            rows = csv.writer(files.enter_context(table))
            rows.writerow(["file", "window", "predicted", *model.classes])
        for path, prediction in model.predict_files(paths, jobs=args.jobs):
            if isinstance(prediction, InputError):
                hint = (
                    "; if its lines are labels and series, evaluate takes it" if named_as_table(path) else ""
                )
                print(f"drsn_ops predict: {prediction}{hint}", file=sys.stderr)
                status = 1
                continue
            print(line_of(path, prediction, widths), flush=True)
            if rows:
                rows.writerows(windows_of(path, prediction, model))
    return status


def recordings_in(place: Path) -> tuple[list[Path], list[Path]]:
    """A file itself; of a folder the recordings in it and in the folders within, and the files that are passed over.

    Raises:
        InputError: a folder without recordings.
    """
    if not place.is_dir():
        return [place], []
    found, passed_over = recordings_within(place)
    if not found:
        raise InputError(f"{place}: holds no recordings, which end in {', '.join(SUFFIXES)}")
    return found, passed_over


def line_of(path: Path, prediction: Prediction, widths: tuple[int, int]) -> str:
    """The line of one recording, its columns as wide as the longest path and class."""
    voters = f"{prediction.share:4.0%} of {counted(len(prediction.probabilities), 'window')}"
    return f"{path!s:{widths[0]}}  {prediction.label:{widths[1]}}  probability {prediction.probability:.3f}  {voters}"


def windows_of(path: Path, prediction: Prediction, model: Model) -> Iterator[Sequence[Any]]:
    """A line of the .csv file for each window of a recording."""
    for window, row in enumerate(prediction.probabilities.tolist()):
        yield [path, window, *cells_of(row, model.classes)]
