"""How long recordings take from their files to a verdict: reading, training and predicting, with the defaults."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

import drsn_ops
from drsn_ops.data import read_recordings
from drsn_ops.data.vibration import CLASSES, vibration

from .rows import Row, environment

POINTS = 2048  # of a window
RATE = 12_000.0
# about as much as the drive-end files of Case Western Reserve University hold
RECORDINGS, SECONDS = 64, 10.0

Result = TypeVar("Result")


def measure_recordings(
    data: Path | None,
    *flags: str,
    recordings: int = RECORDINGS,
    seconds: float = SECONDS,
    files: int = 1000,
) -> list[Row]:
    """A row each for reading a folder, training on it, predicting all of it, and predicting small files.

    Args:
        data: a folder of recordings as ``train --data`` takes it; None makes some of the simulated machine.
        flags: added to those of ``train``.
        recordings, seconds: how many are made, and how long each is.
        files: the number of small ones, of one window each.
    """
    with tempfile.TemporaryDirectory() as place:
        temporary = Path(place)
        folder, name = data, data.resolve().name if data else "simulated"
        if folder is None:
            folder = make_recordings(temporary / "simulated", recordings, seconds)
        paths, reading = read(folder)
        training = train(folder, temporary / "run", flags)
        model = temporary / "run" / "model.pt"
        predicting = [predict(model, paths), predict_small(model, temporary / "small", files)]
    rows = [reading, training, *predicting]
    return [{"data": name, **row, **environment("cpu")} for row in rows]


def make_recordings(folder: Path, count: int, seconds: float) -> Path:
    """Simulated recordings as MATLAB files, in a folder a class."""
    from scipy.io import savemat

    made = vibration(count, points=round(RATE * seconds), rate=RATE)
    for number, (values, label) in enumerate(zip(made.x[:, 0].double().numpy(), made.labels, strict=True)):
        place = folder / CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        savemat(place / f"{number}.mat", {"acceleration": values[:, None]})
    return folder


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """The seconds that a call takes, and what it returns."""
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def command(*words: object) -> float:
    """The seconds that a command takes in a process of its own, from its start to its end."""
    line = (sys.executable, "-m", "drsn_ops", *map(str, words))
    seconds, _ = timed(lambda: subprocess.run(line, check=True, stdout=subprocess.DEVNULL))
    return seconds


def read(folder: Path) -> tuple[Sequence[Path], Row]:
    """The files, and the row: read for the second time, with SciPy imported and the files in the system's memory."""
    read_recordings(folder, points=POINTS)
    seconds, found = timed(lambda: read_recordings(folder, points=POINTS))
    windows = sum(len(split.labels) for split in (found.train, found.validation, found.test))
    counts = {"recordings": len(found.files), "windows": windows, "classes": len(found.classes)}
    return found.files, {"what": "read", "seconds": seconds, **counts}


def train(folder: Path, output: Path, flags: Sequence[str]) -> Row:
    """The command ``train`` with its defaults."""
    seconds = command("train", "--data", folder, "--output-dir", output, *flags)
    report = json.loads((output / "report.json").read_text())
    accuracy = {scope: report[f"by_{scope}"]["accuracy"] for scope in ("window", "recording")}
    verdict = (
        (output / "report.txt").read_text().partition("\n\n")[2]
    )  # without the title, which has the path
    return {"what": "train", "seconds": seconds, "accuracy": accuracy, "verdict": verdict}


def predict(model: Path, paths: Sequence[Path]) -> Row:
    """Every recording, from its file to its class."""
    loaded = drsn_ops.load_model(model)
    seconds, predicted = timed(lambda: list(loaded.predict_files(paths)))
    windows = sum(len(prediction.probabilities) for _, prediction in predicted)
    return {"what": "predict", "seconds": seconds, "recordings": len(predicted), "windows": windows}


def predict_small(model: Path, folder: Path, count: int) -> Row:
    """The command ``predict`` on text files of one window each."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        np.savetxt(folder / f"{number:05}.csv", random.standard_normal(POINTS), fmt="%.6f")
    return {"what": "predict small", "seconds": command("predict", model, folder), "recordings": count}
