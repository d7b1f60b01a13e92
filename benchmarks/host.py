"""What a call costs before any element is computed: one thread, tensors of a few elements, and the import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

import drsn_ops

from .rows import Row, environment, percentiles

IMPORT = "import time, torch; start = time.perf_counter(); import drsn_ops; print(1e6 * (time.perf_counter() - start))"
IMPORTS = 15
IMPORTED = "import drsn_ops, after torch"


def calls(device: str) -> dict[str, Callable[[], object]]:
    """What is timed, by name; x has 4 x 4 elements, or 2 samples of 4 x 4."""
    torch.manual_seed(0)
    x, tau = torch.randn(4, 4, device=device), torch.rand(4, device=device)
    features, alpha = torch.randn(2, 4, 4, device=device), torch.rand(2, 4, device=device)
    leaves = [t.clone().requires_grad_() for t in (x, tau, features, alpha)]
    xg, taug, featuresg, alphag = leaves
    module = drsn_ops.Shrinkage(4).to(device)
    evaluated = drsn_ops.Shrinkage(4).to(device).eval().requires_grad_(False)
    operator = torch.ops.drsn_ops.soft_threshold.default

    ones = {t.shape: torch.ones_like(t) for t in (x, features)}

    def with_backward(y: Tensor, *wanted: Tensor) -> object:
        return torch.autograd.grad(y, wanted, ones[y.shape])

    return {
        "the registered operator": lambda: operator(x, tau, 0.0),
        "soft_threshold, no gradient": lambda: drsn_ops.soft_threshold(x, tau),
        "soft_threshold, forward": lambda: drsn_ops.soft_threshold(xg, taug),
        "soft_threshold, forward + backward": lambda: with_backward(
            drsn_ops.soft_threshold(xg, taug), xg, taug
        ),
        "x * tau, forward + backward, for comparison": lambda: with_backward(xg * taug, xg, taug),
        "shrink, forward": lambda: drsn_ops.shrink(featuresg, alphag),
        "shrink, forward + backward": lambda: with_backward(
            drsn_ops.shrink(featuresg, alphag), featuresg, alphag
        ),
        "Shrinkage, evaluation": lambda: evaluated(features),
        "Shrinkage, forward": lambda: module(featuresg),
        "Shrinkage, forward + backward": lambda: with_backward(
            module(featuresg), featuresg, *module.parameters()
        ),
    }


def import_time() -> float:
    """Microseconds that importing the package takes in a fresh process that has imported torch."""
    done = subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True)
    return float(done.stdout)


def measure_host(device: str, rounds: int) -> list[Row]:
    """A row a call. The import, which a cold disk slows, is measured once before it counts."""
    torch.set_num_threads(1)
    samples: dict[str, list[float]] = {}
    timers = {name: Timer("call()", globals={"call": call}) for name, call in calls(device).items()}
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
