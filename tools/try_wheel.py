"""Tries a wheel as its users will: in new environments, with nothing of the source tree in reach.

python tools/try_wheel.py WHEEL                              this Python and the newest PyTorch
python tools/try_wheel.py WHEEL --python python3.10 --python python3.13 --torch 2.11.0 --torch newest    each with each
python tools/try_wheel.py WHEEL --quick                      without the operators' tests, which take minutes

PyTorch is installed first, then the wheel, which must leave it as it is. The operators' tests run from the sdist beside
the wheel; then the commands on digits and on recordings made here, and torch.compile in a process of its own. The first
failure ends it with the words of what failed. torch.compile needs a C++ compiler and the headers of the Python tried,
ensurepip is not needed: the pip of the Python that runs this file installs into every environment.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

OPERATOR_TESTS = (
    "soft_threshold shrink gated_shrink batch_norm_shrink batch_norm_relu batch_norm_relu_conv "
    "residual_unit library errors properties modules packaging machinery transforms precision processes"
).split()
SMALL = "--points 64 --blocks 3 --widths 4 8 16 --batch-size 8 --epochs 3".split()
ABOUT_PYTORCH = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda]))"
COMPILED = """
import torch, drsn_ops
torch.manual_seed(0)
network = drsn_ops.models.drsn(blocks=3, widths=(4, 8, 16), num_classes=2)
x = torch.randn(4, 1, 64)
for _ in range(2):
    network(x).sum().backward()
expected = network.eval()(x)
torch.testing.assert_close(torch.compile(network, fullgraph=True)(x), expected)
compiled = torch.compile(network.train(), fullgraph=True)
compiled(x).sum().backward()
"""
EXPORTED = """
import torch, drsn_ops
x = torch.randn(4, 1, 64)
program = torch.export.load("model.pt2").module()
torch.testing.assert_close(program(x), drsn_ops.load_model("model.pt").network(x), rtol=1e-4, atol=1e-4)
"""


class Environment:
    """A new one in a folder; what runs in it knows of no other place."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        self.python = folder / "venv" / "bin" / "python"
        self.run(python, "-m", "venv", "--without-pip", "venv")

    def result(self, *command: str | Path, folder: str = ".") -> subprocess.CompletedProcess[str]:
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        own = {"PYTHONNOUSERSITE": "1", "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        return subprocess.run(
            command,
            cwd=self.folder / folder,
            env={name: value for name, value in os.environ.items() if name not in hidden} | own,
            capture_output=True,
            text=True,
        )

    def run(self, *command: str | Path, folder: str = ".") -> str:
        """What the command prints; ends this program if it fails."""
        done = self.result(*command, folder=folder)
        if done.returncode:
            words = f"{done.stdout}{done.stderr}status {done.returncode}"
            sys.exit(f"{words} of {shlex.join(map(str, command))}")
        return done.stdout

    def install(self, *packages: str | Path) -> None:
        self.run(sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet", *packages)

    def pytorch(self) -> list[str]:
        """Its version, and the CUDA that it is built with."""
        return json.loads(self.run(self.python, "-c", ABOUT_PYTORCH))

    def drsn_ops(self, *arguments: str, folder: str = ".") -> str:
        return self.run(self.python, "-m", "drsn_ops", *arguments, folder=folder)


def write_recordings(folder: Path) -> None:
    """Text files of sines, of a frequency for each class, in noise."""
    noise = random.Random(0)
    for place, name in enumerate(("bad", "good")):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            with (folder / name / f"{number}.csv").open("w", newline="") as file:
                rows = ([math.sin((0.2 + 0.4 * place) * i) + noise.gauss(0, 0.2)] for i in range(704))
                csv.writer(file).writerows([["acceleration"], *rows])


def run_tests(environment: Environment, sdist: Path) -> str:
    """pytest's last line, of the operators' tests on the package that is installed."""
    environment.run("tar", "-xf", sdist)
    (source,) = environment.folder.glob("drsn_ops-*/")
    (source / "drsn_ops").rename(environment.folder / "not imported")
    tests = [f"tests/test_{name}.py" for name in OPERATOR_TESTS]
    pytest = (environment.python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile")
    return environment.run(*pytest, *tests, folder=source.name).splitlines()[-1].strip("= ")


def run_commands(environment: Environment) -> None:
    environment.drsn_ops("train", "--epochs", "2", "--output-dir", "digits")
    write_recordings(environment.folder / "recordings")
    environment.drsn_ops("train", "--data", "recordings", "--output-dir", "out", *SMALL)
    environment.drsn_ops("evaluate", "out/model.pt", "--data", "recordings", "--output-dir", "evaluated")
    environment.drsn_ops("predict", "out/model.pt", "recordings/bad")
    environment.drsn_ops("export", "out/model.pt", "--format", "onnx")
    environment.drsn_ops("export", "out/model.pt", "--format", "pt2")
    environment.run(environment.python, "-c", EXPORTED, folder="out")
    environment.run(environment.python, "-c", COMPILED)


def attempt(wheel: Path, sdist: Path | None, python: str, torch: str) -> str:
    """What was tried and with which PyTorch, in a line."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Environment(Path(folder), python)
        environment.install("torch" if torch == "newest" else f"torch=={torch}")
        version, cuda = environment.pytorch()
        environment.install(f"drsn_ops[test] @ {wheel.as_uri()}")
        if environment.pytorch() != [version, cuda]:
            sys.exit(f"{wheel.name}: installing it replaced PyTorch {version}")
        about = environment.run(python, "-V").strip()
        info = json.loads(environment.drsn_ops("info"))
        tests = run_tests(environment, sdist) if sdist else "no tests"
        run_commands(environment)
    kernels = "loaded" if info["cuda_reason"] is None else f"not loaded: {info['cuda_reason']}"
    return (
        f"{about}, PyTorch {version} (CUDA {cuda}): {tests}; train, evaluate, predict, export and torch.compile "
        f"ran; CPU kernels {info['simd_in_use']}, CUDA kernels {kernels}"
    )


def program(name: str) -> str:
    """The path of a program, which is found from every folder."""
    found = shutil.which(name)
    if found is None:
        raise argparse.ArgumentTypeError(f"there is no {name}")
    return os.path.abspath(found)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Tries a wheel in new environments.")
    parser.add_argument("wheel", type=Path, help="with the sdist of its version beside it, unless --quick")
    parser.add_argument(
        "--python", action="append", type=program, metavar="PATH", help="a Python (default: this one)"
    )
    parser.add_argument("--torch", action="append", metavar="VERSION", help="or newest, the default")
    parser.add_argument("--quick", action="store_true", help="without the operators' tests")
    options = parser.parse_args(arguments)
    wheel = options.wheel.resolve()
    sdist = None if options.quick else wheel.with_name("-".join(wheel.name.split("-")[:2]) + ".tar.gz")
    for path in filter(None, (wheel, sdist)):
        if not path.is_file():
            parser.error(f"there is no {path}; make wheel builds the wheel and the sdist")
    for python in options.python or [sys.executable]:
        for torch in options.torch or ["newest"]:
            print(attempt(wheel, sdist, python, torch), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
