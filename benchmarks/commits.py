"""Two commits on the same calls in one run: each is built in a git worktree, their processes take turns."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drsn_ops.arguments import MAX_PROCESSES, count
from drsn_ops.benchmark.contest import require_same

from .rows import environment

ROOT = Path(__file__).parent.parent
CALLS = Path(__file__).with_name("calls.py")
TOLERANCE = 1e-4  # commits may sum in another order


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("commits", nargs=2, metavar="COMMIT", help="the second is compared with the first")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=count(1, MAX_PROCESSES), default=1)
    parser.add_argument("--shape", type=count(), nargs=3, default=(64, 16, 1024), help="of x: N C L")
    parser.add_argument("--only", default="", metavar="WORDS", help="calls with these words in their names")
    parser.add_argument("--rounds", type=count(), default=5, help="processes of each commit (default: 5)")


@contextmanager
def built(commit: str, folder: Path) -> Iterator[Path]:
    """A worktree of the commit, with the package compiled in place."""
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", folder, commit], cwd=ROOT, check=True)
    try:
        build = [sys.executable, "setup.py", "build_ext", "--inplace"]
        subprocess.run(build, cwd=folder, check=True, stdout=sys.stderr)
        yield folder
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=ROOT, check=True)


def tensors(value: Any) -> Tensor:
    """All numbers of a result in a row: what is 0 but for rounding is measured by what stands beside it."""
    return torch.cat([t.detach().double().flatten().cpu() for t in torch.utils._pytree.tree_leaves(value)])


def sample(tree: Path, args: argparse.Namespace, results: Path) -> dict[str, float]:
    """Seconds of each call, in a fresh process that imports the package from ``tree``."""
    flags = ["--device", args.device, "--threads", args.threads, "--shape", *args.shape, "--only", args.only]
    command = [sys.executable, CALLS, *flags, "--results", results]
    environ = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(list(map(str, command)), env=environ, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def times_of(trees: list[Path], args: argparse.Namespace) -> list[dict[str, list[float]]]:
    """The times of each call in each tree, a round at a time; every round begins with the other tree.

    Raises:
        WrongResult: A call returns something else in the second tree.
    """
    results = [tree.with_suffix(".pt") for tree in trees]
    found: list[dict[str, list[float]]] = [{}, {}]
    for turn in range(args.rounds):
        for index in (0, 1) if turn % 2 == 0 else (1, 0):
            for name, seconds in sample(trees[index], args, results[index]).items():
                found[index].setdefault(name, []).append(seconds)
        first, second = (torch.load(path) for path in results)
        for name, wanted in first.items():
            require_same(name, args.commits[1], [tensors(second[name])], [tensors(wanted)], TOLERANCE)
    return found


def run(args: argparse.Namespace) -> int:
    try:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            trees = [Path(folder) / name for name in ("first", "second")]
            for commit, tree in zip(args.commits, trees, strict=True):
                stack.enter_context(built(commit, tree))
            first, second = times_of(trees, args)
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(map(str, error.cmd))}: exit status {error.returncode}", file=sys.stderr)
        return 1
    names = [commit[:12] for commit in args.commits]
    print(f"{'median us':<46}{names[0]:>14}{names[1]:>14}{'ratio':>8}")
    for name in first:
        before, after = (1e6 * statistics.median(times[name]) for times in (first, second))
        print(f"{name:<46}{before:>14.2f}{after:>14.2f}{after / before:>8.3f}")
    shape = "x".join(map(str, args.shape))
    print(
        f"x of {shape}; {environment(args.device)['machine']}; threads: {args.threads}; torch {torch.__version__}"
    )
    return 0
