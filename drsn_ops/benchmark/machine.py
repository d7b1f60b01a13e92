"""The machine that is measured: its processor, its threads, its allocator."""

from __future__ import annotations

import argparse
import platform
import re
import sys
from pathlib import Path

import torch

from ..arguments import MAX_PROCESSES, count


def processor() -> str:
    """The processor's model as Linux names it, else as Python does."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


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


def settle_allocator() -> None:
    """Brings glibc's malloc to where a training run has it.

    It gives a large block back to the system at every free, and faults it in again at every allocation, until
    it has freed one block of that size; in a fresh process this alone would multiply the time of the formulas
    that need the most memory. 32 MB is the most that it learns to keep.
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")
