"""The machine that a process runs on: its processor, its cache, its allocator."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

# glibc learns from blocks of up to 32 MB, with the header that it adds.
_LARGEST = 31 << 20


def processor() -> str:
    """The processor's model as Linux names it, else as Python does."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def last_level_cache() -> int:
    """Bytes of the largest cache that a core reaches, as Linux tells it; else 32 MB."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(path.read_text().strip().removesuffix("K")) << 10 for path in sizes), default=32 << 20)


def settle_allocator() -> None:
    """Brings glibc's malloc to where a long training run has it.

    It gives a large block back to the system at every free, and faults it in again at every allocation, until it has
    freed one block of that size; the memory at the end of its heap it gives back once there is twice that size. In a
    fresh process every step would fault its activations in. Afterwards the process keeps up to 62 MB that nothing
    uses, and returns blocks of more than 32 MB at once, as before. Other allocators are left as they are.
    """
    torch.empty(_LARGEST, dtype=torch.uint8, device="cpu")
