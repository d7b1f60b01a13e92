"""The accuracy that ``python -m drsn_ops train`` reaches on the published program's images, over seeds."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from .rows import Row

BACKENDS = ("drsn_ops", "reference")
# of the recipe for MNIST, by the flags that mend it
CHOICES = (
    (),
    ("--batch-norm-momentum", "0.1"),
    ("--fresh-noise",),
    ("--epochs", "10"),
)


class Training(NamedTuple):
    """One training: what tells its row from the others, and the flags of ``train``."""

    labels: Row
    flags: tuple[str, ...]


def digits(seeds: int) -> list[Training]:
    """The digits, with the compiled operators and with the plain formulas."""
    return [
        Training({"seed": seed, "backend": backend}, ("--seed", str(seed), "--backend", backend))
        for seed in range(seeds)
        for backend in BACKENDS
    ]


def mnist(folder: Path, seeds: int) -> list[Training]:
    """MNIST by its recipe, and with one of the recipe's choices mended."""
    data = ("--data", "mnist", "--data-dir", str(folder), "--batch-statistics")
    return [
        Training({"seed": seed, "choice": " ".join(choice)}, (*data, "--seed", str(seed), *choice))
        for seed in range(seeds)
        for choice in CHOICES
    ]


def accuracies(flags: Sequence[str]) -> Row:
    """Those of one training, in a fresh process with one thread, on the test images after the last epoch."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        command = (sys.executable, "-m", "drsn_ops", "train", *flags, "--output-dir", str(folder))
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=one_thread)
        with (folder / "curve.csv").open() as curve:
            *_, last = csv.DictReader(curve)
    names = ("test_accuracy", "test_batch_statistics_accuracy")
    return {name: float(last[name]) for name in names if name in last}


def measure_images(
    trainings: Sequence[Training],
    around: Row,
    known: Sequence[Row] = (),
    workers: int = 1,
    keep: Callable[[list[Row]], object] = lambda rows: None,
) -> list[Row]:
    """A row for each training, in their order.

    Args:
        trainings: what to measure.
        around: the rest of a new row, the machine and the versions.
        known: rows that are not measured again.
        workers: how many trainings run side by side.
        keep: is called after each training, with all rows that there are.
    """
    rows = {
        index: row
        for index, training in enumerate(trainings)
        for row in known
        if training.labels.items() <= row.items()
    }
    missing = [index for index in range(len(trainings)) if index not in rows]
    lock = Lock()

    def add(index: int) -> None:
        training = trainings[index]
        found = accuracies(training.flags)
        with lock:
            rows[index] = {**training.labels, **found, **around}
            keep([rows[index] for index in sorted(rows)])
            done = len(rows) + len(missing) - len(trainings)
            shown = f"{done}/{len(missing)} train {' '.join(training.flags)}: {found['test_accuracy']:.2%}"
            print(shown, file=sys.stderr, flush=True)

    pool = ThreadPoolExecutor(workers)  # the processes that these threads start do the work
    try:
        for done in as_completed([pool.submit(add, index) for index in missing]):
            done.result()
    finally:
        # also where one has failed: those that have not begun never do
        pool.shutdown(cancel_futures=True)
    return [rows[index] for index in sorted(rows)]
