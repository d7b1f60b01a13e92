"""Builds a second copy of the package, of another name, operator namespace and oldest PyTorch, and runs both at once.

python tools/second_copy.py    compiles the CPU's kernels, which takes minutes

This is the layout that kernels from a hub need: their name is given from outside, and a process may have several of one
kind.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

import drsn_ops

ROOT = Path(__file__).parents[1]
NAME, OLDEST = "second_copy", "2.12"


def build(place: Path) -> None:
    """The package's modules and a library of their own in a folder of another name, and nothing else."""
    package = place / NAME
    shutil.copytree(
        ROOT / "drsn_ops", package, ignore=lambda _, names: {n for n in names if ".so" in n or ".json" in n}
    )
    choices = {"PORTABLE": "1", "USE_CUDA": "0", "OPERATOR_NAMESPACE": NAME, "OLDEST_TORCH": OLDEST}
    folders = ("--build-lib", place / "built", "--build-temp", place / "objects")
    command = [sys.executable, "setup.py", "--quiet", "build_ext", *folders]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, **choices})
    for name in ("_ops_cpu.so", "build_info.json"):
        shutil.copy(place / "built" / "drsn_ops" / name, package)


def results(package: ModuleType, compiled: bool) -> list[Tensor]:
    """Results and gradients of one copy's operators, functions and units."""
    torch.manual_seed(0)
    x = torch.randn(4, 16, 33, requires_grad=True)
    tau = torch.rand(16, 1, requires_grad=True)
    unit, norm = package.RSBU(16, 32, stride=2), torch.nn.BatchNorm1d(16)

    def everything(x: Tensor, tau: Tensor) -> list[Tensor]:
        shrunk = package.soft_threshold(x, tau), package.shrink(x, torch.full((4, 16), 0.5)), unit(x)
        return [*shrunk, package.abs_mean(x), package.batch_norm_relu(x, norm)]

    run = torch.compile(everything, fullgraph=True, backend="aot_eager") if compiled else everything
    found = run(x, tau)
    parameters = [x, tau, *unit.parameters()]
    return [*found, *torch.autograd.grad(sum(y.square().sum() for y in found), parameters)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        sys.path.insert(0, folder)
        second = importlib.import_module(NAME)
        info = second.build_info()
        assert (info["namespace"], info["oldest_torch"]) == (NAME, OLDEST), info
        assert Path(second.__file__).is_relative_to(folder)
        for compiled in (False, True):
            pairs = zip(results(drsn_ops, compiled), results(second, compiled), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
        own, others = (getattr(torch.ops, name).shrink.default for name in ("drsn_ops", NAME))
        assert own is not others
        assert not any(name.partition(".")[0] == "drsn_ops" for name in modules_of(second))
    print(
        f"torch.ops.drsn_ops and torch.ops.{NAME} in one process: the same results and gradients, compiled too"
    )


def modules_of(package: ModuleType) -> set[str]:
    """The modules whose functions and classes this copy offers."""
    return {getattr(value, "__module__", NAME) or NAME for value in vars(package).values()}


if __name__ == "__main__":
    main()
