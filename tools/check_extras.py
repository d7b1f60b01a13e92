"""Tries the extras of a wheel, each alone in a new environment: what it is for runs, the rest names what it lacks.

python tools/check_extras.py WHEEL

PyTorch is installed first, in the version that requirements.txt pins, and has to stay what it is. Then the wheel, and
each extra as the command that lacks it says. Needs the extra `files`, to write recordings.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pandas
import scipy.io
import soundfile
from try_wheel import Environment, write_recordings

ROOT = Path(__file__).parents[1]
TORCH = re.search(r"^torch==\S+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[0]
CORE = "the command"
TRAIN = "train --epochs 1 --blocks 3 --points 64 --sampling-rate 8000"
EXPERIMENT = "experiment --num-signals 80 --points 64 --networks ResNet DRSN-CW --snr 0 --seeds 2 --blocks 3 --epochs 1"


class Bare(Environment):
    """A new environment with PyTorch and the wheel; its commands run in a folder that others share."""

    def __init__(self, name: str, place: Path, wheel: Path) -> None:
        print(f"\n{name}", flush=True)
        (place / name).mkdir()
        super().__init__(place / name, sys.executable)
        self.shared = place / "shared"
        self.install(TORCH)
        self.has = self.pytorch()
        self.add(str(wheel))

    def add(self, requirement: str) -> None:
        """Installs it; exits where another PyTorch came with it."""
        self.install(requirement)
        if self.pytorch() != self.has:
            sys.exit(f"{requirement}: has put PyTorch {self.pytorch()} in the place of {self.has}")
        print(f"  + {requirement}", flush=True)

    def runs(self, command: str) -> None:
        """Exits unless the command runs."""
        self.drsn_ops(*shlex.split(command), folder=str(self.shared))
        print(f"  runs   {command}", flush=True)

    def lacks(self, command: str, what: str, package: str, extra: str) -> str:
        """Exits unless the command ends in the line on what it lacks, and writes nothing. Returns its advice."""
        before = sorted(self.shared.rglob("*"))
        words = shlex.split(command)
        done = self.result(self.python, "-m", "drsn_ops", *words, folder=str(self.shared))
        advice = f"drsn_ops[{extra}]"
        line = f"drsn_ops {words[0]}: {what} needs {package}: pip install '{advice}'\n"
        if (done.returncode, done.stdout, done.stderr) != (2, "", line):
            ended = f"ended with {done.returncode}\n{done.stdout}{done.stderr}"
            sys.exit(f"{command}: {ended}expected 2 and the line\n{line}")
        if sorted(self.shared.rglob("*")) != before:
            sys.exit(f"{command}: wrote files, and was refused for want of {package}")
        print(f"  lacks  {command}: {package}", flush=True)
        return advice


def write_all(folder: Path) -> None:
    """Recordings in .csv and in .npy files, and one in every other format."""
    write_recordings(folder / "csv")
    for path in (folder / "csv").rglob("*.csv"):
        x = np.loadtxt(path, skiprows=1)
        copy = folder / "npy" / path.parent.name / f"{path.stem}.npy"
        copy.parent.mkdir(parents=True, exist_ok=True)
        np.save(copy, x)
    others, table = folder / "others", pandas.DataFrame({"x": x})
    others.mkdir()
    np.savez(others / "a.npz", x=x)
    scipy.io.savemat(others / "a.mat", {"x": x})
    with h5py.File(others / "a.h5", "w") as file:
        file["x"] = x
    soundfile.write(others / "a.wav", x / 2, 8000)
    table.to_parquet(others / "a.parquet")
    table.to_excel(others / "a.xlsx", index=False)


def check(place: Path, wheel: Path) -> None:
    """Tries every extra that commands need, and the one that builds the site."""
    train = Bare("train", place, wheel)
    train.runs("info")
    train.runs("bench --shape 2,4,64")
    train.lacks("evaluate model.pt --data npy", CORE, "numpy", "train")
    train.lacks(EXPERIMENT, CORE, "numpy", "train")
    train.add(train.lacks("train", CORE, "numpy", "train"))
    train.runs("train --epochs 1 --output-dir digits")
    train.runs(f"{TRAIN} --data npy --output-dir OUT")
    train.runs("evaluate OUT/model.pt --data npy --output-dir report")
    train.runs("predict OUT/model.pt npy --output predicted.csv")
    train.runs("export OUT/model.pt --format pt2-plain")
    train.runs(f"{EXPERIMENT} --output-dir experiment")
    train.lacks("export OUT/model.pt", "--format onnx", "onnx", "export")
    table = f"{TRAIN} --data csv --output-dir OUT2"
    train.add(train.lacks(table, "reading .csv files", "pandas", "files"))
    train.runs(table)
    board = f"{TRAIN} --data npy --output-dir OUT3 --tensorboard"
    train.add(train.lacks(board, "--tensorboard", "tensorboard", "tensorboard"))
    train.runs(board)

    files = Bare("files", place, wheel)
    predict = "predict OUT/model.pt npy csv others"
    files.add(files.lacks(predict, CORE, "numpy", "files"))
    files.runs(predict)
    files.runs("export OUT/model.pt --format pt2")
    files.lacks("train", CORE, "sklearn", "train")
    files.lacks("export OUT/model.pt", "--format onnx", "onnx", "export")

    export = Bare("export", place, wheel)
    export.add(export.lacks("export OUT/model.pt", CORE, "numpy", "export"))
    export.runs("export OUT/model.pt --output OUT/it.onnx")
    export.runs("export OUT/model.pt --format pt2 --output OUT/it.pt2")
    export.runs("predict OUT/model.pt npy")
    export.lacks("predict OUT/model.pt csv", "reading .csv files", "pandas", "files")
    export.lacks("evaluate OUT/model.pt --data npy", CORE, "sklearn", "train")

    docs = Bare("docs", place, wheel)
    docs.add("drsn_ops[docs]")
    site = ("-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", place / "site")
    docs.run(docs.python, *site, folder=str(ROOT))
    print("  builds the site")


def main() -> None:
    parser = argparse.ArgumentParser(description="Tries the extras of a wheel, each in a new environment.")
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel.resolve(strict=True)
    # PyTorch's own, at its import without NumPy; and of the site's theme
    os.environ |= {"PYTHONWARNINGS": "ignore:Failed to initialize NumPy", "NO_MKDOCS_2_WARNING": "1"}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "shared").mkdir()
        write_all(place / "shared")
        check(place, wheel)
    print(f"\n{wheel.name}: every extra brings what its commands need")


if __name__ == "__main__":
    main()
