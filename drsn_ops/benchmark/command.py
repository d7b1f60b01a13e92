"""``python -m drsn_ops bench``: the medians of every provider."""

from __future__ import annotations

import argparse
import math
import statistics
import sys

import torch

from ..arguments import MAX_COUNT, count
from ..machine import processor
from .cases import Case
from .contest import WrongResult, measure
from .machine import add_machine_arguments, use_machine


def shape(text: str) -> tuple[int, ...]:
    sizes = tuple(map(count(), text.split(",")))
    if not 2 <= len(sizes) <= 5:
        raise argparse.ArgumentTypeError(f"{text!r} has {len(sizes)} axes, not two to five")
    if math.prod(sizes) > MAX_COUNT:
        raise argparse.ArgumentTypeError(f"{text!r} has more than {MAX_COUNT} elements")
    return sizes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_machine_arguments(parser)
    parser.add_argument("--shape", type=shape, default=(64, 16, 1024), help="of x (default: 64,16,1024)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")


def run(args: argparse.Namespace) -> int:
    """``python -m drsn_ops bench``: medians of every provider, in about a minute."""
    if not use_machine(args):
        return 2
    timer = "cold" if args.device == "cpu" else "graph"
    print(f"{'operator':<16}{'direction':<20}{'provider':<26}{'median us':>12}{'/ drsn_ops':>12}")
    for operator, direction in (
        ("shrink", "inference in place"),
        ("shrink", "forward+backward"),
        ("soft_threshold", "forward+backward"),
    ):
        case = Case(operator, direction, args.shape, device=args.device, timer=timer)
        try:
            results = measure(case, () if args.no_compile else ("default",), budget=5.0)
        except WrongResult as error:
            print(error, file=sys.stderr)
            return 1
        medians = {runner.name: statistics.median(times) for runner, times in results}
        for name, seconds in sorted(medians.items(), key=lambda item: item[1]):
            ratio = seconds / medians["drsn_ops"]
            print(f"{operator:<16}{direction:<20}{name:<26}{seconds * 1e6:>12.1f}{ratio:>12.2f}", flush=True)
    where = (
        torch.cuda.get_device_name() if args.device == "cuda" else f"{processor()}, {args.threads} threads"
    )
    kind = "float32, cold" if args.device == "cpu" else "float32"
    print(f"x of {'x'.join(map(str, args.shape))}, {kind}; {where}; torch {torch.__version__}")
    return 0
