"""The accuracy that ``python -m drsn_ops train`` reaches on the digits, over seeds, with the operators and without."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from .rows import Row, environment

BACKENDS = ("drsn_ops", "reference")


def final_accuracy(*flags: str) -> float:
    """Of one training, in a fresh process with one thread, on the test images."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        command = (sys.executable, "-m", "drsn_ops", "train", *flags, "--output-dir", str(folder))
        subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, "OMP_NUM_THREADS": "1"})
        with (folder / "curve.csv").open() as curve:
            *_, last = csv.DictReader(curve)
    return float(last["test_accuracy"])


def measure_digits(*flags: str, seeds: int = 3) -> list[Row]:
    """A row a seed and backend. ``flags`` are added to each training's."""
    torch.set_num_threads(1)
    around = environment("cpu")
    return [
        {
            "seed": seed,
            "backend": backend,
            "test_accuracy": final_accuracy("--seed", str(seed), "--backend", backend, *flags),
            **around,
        }
        for seed in range(seeds)
        for backend in BACKENDS
    ]
