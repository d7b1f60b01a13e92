"""Clocks: functions that time what a runner calls, on the host, between CUDA events or in a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from .cases import Case


class Runner(Protocol):
    """``fresh`` makes what a call uses up, ``call`` is what is timed; the pool has ``count`` inputs."""

    name: str
    count: int

    def fresh(self, index: int) -> Any: ...

    def call(self, index: int, state: Any) -> Any: ...


def host_sampler(runner: Runner, seconds: float) -> Callable[[], float]:
    """Seconds a call, over as many passes of the pool as take ``seconds``."""

    def sample() -> float:
        elapsed, calls = 0.0, 0
        while not calls or elapsed < seconds:
            states = [runner.fresh(index) for index in range(runner.count)]
            start = time.perf_counter()
            for index, state in enumerate(states):
                runner.call(index, state)
            elapsed += time.perf_counter() - start
            calls += runner.count
        return elapsed / calls

    return sample


def time_in_turn(runners: Sequence[tuple[Runner, list[float]]]) -> None:
    """One pass over all pools, which are of one size: appends the seconds of each call to its runner's times.

    Each is called on its first input, then each on its second: between two uses of an input lie all others.
    """
    visits = [(index, *one) for index in range(runners[0][0].count) for one in runners]
    states = [runner.fresh(index) for index, runner, _ in visits]
    for (index, runner, times), state in zip(visits, states, strict=True):
        start = time.perf_counter()
        runner.call(index, state)
        times.append(time.perf_counter() - start)


def between_events(run: Callable[[], object]) -> float:
    """Seconds on the device from before the first to after the last of what ``run`` queues."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def event_sampler(runner: Runner) -> Callable[[], float]:
    def sample() -> float:
        states = [runner.fresh(index) for index in range(runner.count)]

        def run() -> None:
            for index, state in enumerate(states):
                runner.call(index, state)

        return between_events(run) / runner.count

    return sample


def graph_sampler(runner: Runner, refresh: bool) -> Callable[[], float]:
    """Seconds a call in the replay of a CUDA graph that holds one call for each input of the pool."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for index in range(min(runner.count, 3)):
            runner.call(index, runner.fresh(index))
        # A backward runs on the stream of its forward, which has to be the captured one.
        states = [runner.fresh(index) for index in range(runner.count)]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        # Kept until the end of the capture, so that the outputs rotate as the inputs do.
        outputs = [runner.call(index, state) for index, state in enumerate(states)]
    del outputs

    def sample() -> float:
        # Naming the states keeps the memory that the graph reads.
        for index in range(len(states) if refresh else 0):
            runner.fresh(index)
        return between_events(graph.replay) / len(states)

    return sample


def sampler(case: Case, runner: Runner, seconds: float) -> Callable[[], float]:
    if case.timer in ("host", "cold"):
        return host_sampler(runner, seconds)
    if case.timer == "events" or "reduce-overhead" in runner.name:  # which captures graphs of its own
        return event_sampler(runner)
    return graph_sampler(runner, refresh=case.inplace)
