"""The machine that is measured: its device, its threads."""

from __future__ import annotations

import argparse
import sys

import torch

from ..arguments import MAX_PROCESSES, count


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=count(1, MAX_PROCESSES), default=2, help="on the CPU (default: 2)")


def use_machine(args: argparse.Namespace) -> bool:
    """Sets the threads; prints a line and returns False where the device is missing."""
    torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: this PyTorch finds no CUDA device", file=sys.stderr)
        return False
    return True
