"""What a call costs before any element is computed: one thread, tensors of a few elements, and the import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import torch
from torch.utils.benchmark import Timer

from .calls import calls
from .rows import Row, environment, percentiles

IMPORT = "import time, torch; start = time.perf_counter(); import drsn_ops; print(1e6 * (time.perf_counter() - start))"
IMPORTS = 15
IMPORTED = "import drsn_ops, after torch"


def host_calls(device: str) -> dict[str, Callable[[], object]]:
    """What is timed, by name; tensors have 32 elements at most."""
    x, tau = torch.randn(4, 4, device=device), torch.rand(4, device=device)
    operator = torch.ops.drsn_ops.soft_threshold.default
    return {"the registered operator": lambda: operator(x, tau, 0.0), **calls(device)}


def import_time() -> float:
    """Microseconds that importing the package takes in a fresh process that has imported torch."""
    done = subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True)
    return float(done.stdout)


def measure_host(device: str, rounds: int) -> list[Row]:
    """A row a call. The import, which a cold disk slows, is measured once before it counts."""
    torch.set_num_threads(1)
    samples: dict[str, list[float]] = {}
    timers = {name: Timer("call()", globals={"call": call}) for name, call in host_calls(device).items()}
    for timer in timers.values():
        timer.timeit(1000)
    for _ in range(rounds):
        for name, timer in timers.items():
            samples.setdefault(name, []).append(1e6 * timer.timeit(1000).mean)
    import_time()
    samples[IMPORTED] = [import_time() for _ in range(min(rounds, IMPORTS))]
    around = environment(device)
    return [
        {"call": name, **dict(zip(("p20_us", "p50_us", "p80_us"), percentiles(times), strict=True)), **around}
        for name, times in samples.items()
    ]
