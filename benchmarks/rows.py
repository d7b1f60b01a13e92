"""A measurement as rows of plain values, with what the times depend on in each."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import drsn_ops
from drsn_ops.benchmark.cases import Case, bytes_moved
from drsn_ops.benchmark.clocks import Runner
from drsn_ops.benchmark.contest import Contender
from drsn_ops.machine import processor

Row = dict[str, Any]


def kept_for_backward(contender: Contender) -> tuple[int, int]:
    """Bytes that a recorded forward keeps alive: beyond its inputs, and with the inputs that it saves."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = contender.output(0)  # alive until the hooks are done, so that no address comes twice
    total = sum(kept.values())
    del output
    return total - sum(kept.get(leaf.untyped_storage().data_ptr(), 0) for leaf in contender.leaves(0)), total


def peak_of(run: Callable[[], object], device: str) -> int:
    """The most that ``run`` holds at a time beyond what was there before it."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def peak_bytes(contender: Contender) -> int:
    """The most that one call, and the forward before a backward, holds at a time beyond its inputs."""
    return peak_of(lambda: contender.call(0, contender.fresh(0)), contender.case.device)


def percentiles(samples: list[float]) -> list[float]:
    """p20, p50 and p80."""
    points = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    return torch.tensor(samples, dtype=torch.float64).quantile(points).tolist()


def first_line(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.partition("\n")[0] or None


def commit() -> str | None:
    """What git calls the sources. Results, and the pages that they are put into, make them no others."""
    name = first_line("git", "describe", "--always")
    written = (":(top,exclude)benchmarks/results", ":(top,exclude)README.md", ":(top,exclude)docs")
    changed = first_line("git", "status", "--porcelain", "-uno", "--", ":(top)", *written)
    return f"{name}-dirty" if name and changed else name


def environment(device: str) -> Row:
    """What a time depends on besides the case."""
    gpu = torch.cuda.get_device_name(device) if device != "cpu" else None
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "gpu": gpu,
        "driver": first_line(*query) if gpu else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "simd": drsn_ops.build_info()["simd_in_use"],
        "commit": commit(),
        "date": date.today().isoformat(),
    }


def slug(around: Row) -> str:
    """The machine's name as a file's."""
    return re.sub(r"[^a-z0-9]+", "-", (around["gpu"] or around["machine"]).lower()).strip("-")


def labels(case: Case) -> Row:
    """What tells the rows of a case from those of another."""
    return {
        "operator": case.operator,
        "direction": case.direction,
        "shape": list(case.shape),
        "dtype": str(case.dtype).removeprefix("torch."),
        "layout": case.layout,
        "timer": case.timer,
    }


def rows_of(case: Case, results: list[tuple[Runner, list[float]]], around: Row) -> list[Row]:
    """A row a provider from what ``measure`` returned; times in microseconds, a call."""
    times = {runner.name: [1e6 * point for point in percentiles(samples)] for runner, samples in results}
    copy_us = times["copy"][1]
    rows = []
    for runner, samples in results:
        p20, p50, p80 = times[runner.name]
        saved = kept = peak = None
        if isinstance(runner, Contender):
            peak = peak_bytes(runner)
            saved, kept = kept_for_backward(runner) if case.trains else (0, 0)
        rows.append(
            {
                **labels(case),
                "provider": runner.name,
                "samples": len(samples),
                "p20_us": p20,
                "p50_us": p50,
                "p80_us": p80,
                "bytes": bytes_moved(case),
                "copy_us": copy_us,
                "fraction": copy_us / p50,
                "saved_bytes": saved,
                "saved_bytes_per_element": None if saved is None else saved / max(case.numel, 1),
                "kept_bytes": kept,
                "peak_bytes": peak,
                **around,
            }
        )
    return rows
