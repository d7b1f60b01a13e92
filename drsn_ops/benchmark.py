"""Times the operators beside eager PyTorch, torch.compile and a copy of the same bytes, all in one run.

Every provider of a case gets the same inputs and lives under the same allocation rule:

* in place, each leaves its result in x: the tidy and strong formulas with PyTorch's in-place operators, which
  is faster than their usual form and a copy; the naive one and what torch.compile is given with ``x.copy_``.
* in every other direction each returns fresh tensors, allocated inside the timed call.

The calls go over a pool of inputs. What a call uses up (x in place, the graph of a backward) is made anew
before each pass over the pool, outside the timed region: soft-thresholding one buffer again and again would
soon time zeros. On the CPU the pool is of a cache's size, as the x of a network has just been written; on
CUDA it is past three times the L2.
"""

from __future__ import annotations

import argparse
import concurrent.futures.process
import itertools
import math
import multiprocessing
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch._functorch.config
from torch import Tensor

import drsn_ops
from drsn_ops.arguments import MAX_COUNT, MAX_PROCESSES, count
from drsn_ops.reference import accumulator, per_row

OPERATORS = ("soft_threshold", "abs_mean", "shrink", "shrink+residual")
# "forward" records what gradients need; "inference" has inputs that need none.
DIRECTIONS = ("inference", "inference in place", "forward", "backward", "forward+backward")
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs", "reduce-overhead")
CPU_POOL_BYTES = 16 << 20
MAX_POOL = 256

Formula = Callable[[Tensor, Tensor, bool], Tensor]
Provider = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Case:
    """What every provider is asked to do."""

    operator: str
    direction: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    device: str = "cpu"
    timer: str = "host"  # on CUDA "graph", the device's time alone, or "events", with the wait for the host

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.operator}, {self.direction}, {shape} {dtype} {self.layout}, {self.timer}"

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:2])

    @property
    def inplace(self) -> bool:
        return self.direction == "inference in place"

    @property
    def trains(self) -> bool:
        return not self.direction.startswith("inference")


def bytes_moved(case: Case) -> int:
    """The least an operator can move: each tensor and number a row once, and the code where it is needed.

    The gradient of the residual is g itself, and moves nothing. A number a row has the accumulator's size.
    """
    forward, forward_rows, backward, backward_rows, planes = {
        "soft_threshold": (2, 1, 2, 1, 2),  # x, y; tau | g, dx; dtau
        "abs_mean": (1, 1, 1, 1, 2),  # x; m | dx; g
        "shrink": (2, 2, 2, 3, 3),  # x, y; alpha, m | g, dx; alpha, m, dalpha
        "shrink+residual": (3, 2, 2, 3, 3),  # x, residual, y; alpha, m | g, dx; alpha, m, dalpha
    }[case.operator]
    segments = 1 if case.operator == "soft_threshold" else case.rows
    code = planes * segments * math.ceil(case.numel / max(segments, 1) / 8) if case.trains else 0

    def one_way(tensors: int, numbers: int) -> int:
        wide = accumulator(case.dtype).itemsize
        return tensors * case.numel * case.dtype.itemsize + numbers * case.rows * wide + code

    there, back = one_way(forward, forward_rows), one_way(backward, backward_rows)
    return {"backward": back, "forward+backward": there + back}.get(case.direction, there)


def row_mean(magnitude: Tensor) -> Tensor:
    """The mean over the spatial axes; without any, ``mean(dim=())`` would reduce every axis."""
    axes = tuple(range(2, magnitude.dim()))
    return magnitude.mean(axes, keepdim=True) if axes else magnitude


def norm_mean(x: Tensor) -> Tensor:
    """``row_mean(x.abs())`` without a tensor of magnitudes."""
    axes = tuple(range(2, x.dim()))
    return torch.linalg.vector_norm(x, 1, axes, keepdim=True) / math.prod(x.shape[2:]) if axes else x.abs()


def naive(x: Tensor, threshold: Tensor, relative: bool) -> Tensor:
    """As most published code has it, with zeros made by ``sub - sub``."""
    magnitude = x.abs()
    sub = magnitude - (threshold * row_mean(magnitude) if relative else threshold)
    return x.sign() * torch.max(sub, sub - sub)


def naive_(x: Tensor, threshold: Tensor, relative: bool) -> Tensor:
    return x.copy_(naive(x, threshold, relative))


def tidy(x: Tensor, threshold: Tensor, relative: bool) -> Tensor:
    magnitude = x.abs()
    tau = threshold * row_mean(magnitude) if relative else threshold
    return x.sign() * torch.relu(magnitude - tau)


def tidy_(x: Tensor, threshold: Tensor, relative: bool) -> Tensor:
    sign = x.sign()
    magnitude = x.abs_()
    tau = threshold * row_mean(magnitude) if relative else threshold
    return magnitude.sub_(tau).relu_().mul_(sign)


def strong(x: Tensor, threshold: Tensor, relative: bool) -> Tensor:
    """The least traffic that PyTorch's own operators allow."""
    tau = threshold * norm_mean(x) if relative else threshold
    return x - x.clamp(-tau, tau)


def strong_(x: Tensor, threshold: Tensor, relative: bool) -> Tensor:
    tau = threshold * norm_mean(x) if relative else threshold
    return x.sub_(x.clamp(-tau, tau))


FORMULAS: dict[str, tuple[Formula, Formula]] = {
    "naive": (naive, naive_),
    "tidy": (tidy, tidy_),
    "strong": (strong, strong_),
}


def eager(case: Case, name: str, inplace: bool) -> Provider:
    """The operator of a case by one of the formulas."""
    if case.operator == "abs_mean":
        return lambda x, _, __: norm_mean(x) if name == "strong" else row_mean(x.abs())
    formula = FORMULAS[name][inplace]
    relative = case.operator != "soft_threshold"

    def with_residual(x: Tensor, threshold: Tensor, residual: Tensor | None) -> Tensor:
        assert residual is not None
        y = formula(x, threshold, relative)
        return y.add_(residual) if inplace else y + residual

    if case.operator == "shrink+residual":
        return with_residual
    return lambda x, threshold, _: formula(x, threshold, relative)


def ours(case: Case) -> Provider:
    inplace = case.inplace
    if case.operator == "soft_threshold":
        return lambda x, tau, _: drsn_ops.soft_threshold(x, tau, inplace=inplace)
    if case.operator == "abs_mean":
        return lambda x, _, __: drsn_ops.abs_mean(x)
    # Without return_threshold there is one result.
    return lambda x, alpha, residual: drsn_ops.shrink(x, alpha, residual=residual, inplace=inplace)


def in_place(provider: Provider) -> Provider:
    return lambda x, threshold, residual: x.copy_(provider(x, threshold, residual))


def takes_part(case: Case, modes: Iterable[str]) -> list[str]:
    """The modes of torch.compile that can be timed in a case."""
    # It needs a GPU, and a forward whose backward is not the next thing to run leaves its fast path.
    left_out = case.device == "cpu" or case.direction in ("forward", "backward")
    return [mode for mode in modes if mode != "reduce-overhead" or not left_out]


def providers(case: Case, modes: Iterable[str]) -> Iterator[tuple[str, Provider]]:
    """drsn_ops, the eager formulas, and torch.compile of each formula in each of the modes."""
    # A captured graph runs one backward many times, so a compiled one may not write over its arguments.
    torch._functorch.config.donated_buffer = case.timer != "graph"
    yield "drsn_ops", ours(case)
    names = [
        name for name in FORMULAS if case.operator != "abs_mean" or name != "naive"
    ]  # the tidy mean again
    for name in names:
        yield f"eager/{name}", eager(case, name, case.inplace)
    for mode in takes_part(case, modes):
        for name in names:
            fresh = eager(case, name, inplace=False)
            function = in_place(fresh) if case.inplace else fresh
            yield f"compile/{name}/{mode}", torch.compile(function, mode=mode, dynamic=False, fullgraph=True)


def pool_size(device: str, size: int) -> int:
    """How many buffers of so many bytes fill a pool."""
    if device == "cpu":
        return min(max(CPU_POOL_BYTES // max(size, 1), 1), MAX_POOL)
    return min(3 * torch.cuda.get_device_properties(device).L2_cache_size // max(size, 1) + 1, MAX_POOL)


class Inputs:
    """A pool of x and residual, one threshold and one gradient, for every provider of a case."""

    def __init__(self, case: Case, count: int | None = None) -> None:
        self.count = count or pool_size(case.device, case.numel * case.dtype.itemsize)
        generator = torch.Generator(case.device).manual_seed(0)
        formats = {("channels_last", 4): torch.channels_last, ("channels_last", 5): torch.channels_last_3d}
        layout = formats.get((case.layout, len(case.shape)), torch.contiguous_format)

        def pool() -> list[Tensor]:
            made = []
            for _ in range(self.count):
                x = torch.randn(case.shape, dtype=case.dtype, device=case.device, generator=generator)
                made.append(x.contiguous(memory_format=layout).requires_grad_(case.trains))
            return made

        self.x = pool()
        self.residual: list[Tensor | None] = [None] * self.count
        if case.operator == "shrink+residual":
            self.residual = [*pool()]
        self.grad = torch.randn_like(self.x[0].detach()) if case.trains else None
        threshold = torch.rand(case.shape[:2], dtype=torch.float32, device=case.device, generator=generator)
        self.threshold = (0.25 + threshold / 2).to(case.dtype)
        self.scratch = [torch.empty_like(x) for x in self.x] if case.inplace else []


class Contender:
    """A provider on the inputs of a case: ``fresh`` makes what a call uses up, ``call`` is what is timed."""

    def __init__(self, case: Case, name: str, function: Provider, inputs: Inputs) -> None:
        self.case, self.name, self.function, self.inputs = case, name, function, inputs
        self.count = inputs.count
        threshold = inputs.threshold
        if name != "drsn_ops" or case.operator == "soft_threshold":
            threshold = per_row(threshold, inputs.x[0])  # spares the formulas the reshaping of alpha
        self.threshold = threshold.detach().clone().requires_grad_(case.trains)
        self.grad = inputs.grad
        if case.trains and case.operator == "abs_mean":
            self.grad = torch.randn_like(self.output(0).detach())  # the formulas keep axes of 1

    def output(self, index: int) -> Tensor:
        return self.function(self.inputs.x[index], self.threshold, self.inputs.residual[index])

    def leaves(self, index: int) -> list[Tensor]:
        leaves = [self.inputs.x[index], self.threshold, self.inputs.residual[index]]
        return [leaf for leaf in leaves[: 1 if self.case.operator == "abs_mean" else 3] if leaf is not None]

    def fresh(self, index: int) -> Tensor | None:
        if self.case.inplace:
            return self.inputs.scratch[index].copy_(self.inputs.x[0])
        return self.output(index) if self.case.direction == "backward" else None

    def call(self, index: int, state: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        if self.case.direction in ("inference", "forward"):
            return self.output(index)
        if self.case.inplace:
            assert state is not None
            return self.function(state, self.threshold, self.inputs.residual[index])
        y = self.output(index) if state is None else state
        # What a captured graph reads must stay for its replays.
        return torch.autograd.grad(y, self.leaves(index), self.grad, retain_graph=self.case.timer == "graph")


class Copy:
    """The copy that moves as many bytes as the case: half of them read, half written."""

    name = "copy"

    def __init__(self, case: Case) -> None:
        size = max(bytes_moved(case) // (2 * torch.float32.itemsize), 1)
        self.count = pool_size(case.device, bytes_moved(case))
        self.sources = [torch.randn(size, dtype=torch.float32, device=case.device) for _ in range(self.count)]
        self.targets = [torch.empty_like(source) for source in self.sources]

    def fresh(self, index: int) -> None:
        return None

    def call(self, index: int, state: Tensor | None) -> Tensor:
        return self.targets[index].copy_(self.sources[index])


Runner = Contender | Copy


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
    if case.timer == "host":
        return host_sampler(runner, seconds)
    if case.timer == "events" or "reduce-overhead" in runner.name:  # which captures graphs of its own
        return event_sampler(runner)
    return graph_sampler(runner, refresh=case.inplace)


def settle_allocator() -> None:
    """Brings glibc's malloc to where a training run has it.

    It gives a large block back to the system at every free, and faults it in again at every allocation, until
    it has freed one block of that size; in a fresh process this alone would multiply the time of the formulas
    that need the most memory. 32 MB is the most that it learns to keep.
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")


def measure(
    case: Case,
    modes: Iterable[str] = COMPILE_MODES,
    *,
    rounds: int = 15,
    seconds: float = 0.005,
    budget: float = 20.0,
) -> list[tuple[Runner, list[float]]]:
    """Seconds a call of each provider and the copy: five rounds, up to ``rounds`` within ``budget`` seconds.

    On the CPU a round times every provider once, so that a disturbance from outside meets all of them. On
    CUDA, where captured graphs would fight for memory, a provider has its rounds before the next is built.
    """
    settle_allocator()
    torch.compiler.reset()  # else the formulas compiled for earlier shapes count against this one
    inputs = Inputs(case)
    results: list[tuple[Runner, list[float]]] = []

    def prepare(name: str, function: Provider | None) -> tuple[Callable[[], float], list[float]] | None:
        try:
            runner = Contender(case, name, function, inputs) if function else Copy(case)
            sample = sampler(case, runner, seconds)
            sample()  # compiles and warms up
        except RuntimeError as error:  # no compiler for torch.compile, or too little memory for this provider
            if name == "drsn_ops":
                raise
            print(f"{case}: no {name}: {str(error).strip().partition(chr(10))[0]}", file=sys.stderr)
            return None
        results.append((runner, []))
        return sample, results[-1][1]

    def time_together(group: Iterable[tuple[str, Provider | None]]) -> None:
        ready = [prepared for name, function in group if (prepared := prepare(name, function))]
        start = time.perf_counter()
        for done in range(rounds):
            if done >= 5 and time.perf_counter() - start > budget:
                break
            for sample, times in ready:
                times.append(sample())

    everyone: list[tuple[str, Provider | None]] = [("copy", None), *providers(case, modes)]
    for group in [everyone] if case.device == "cpu" else [[one] for one in everyone]:
        time_together(group)
    return results


def compile_case(case: Case, modes: tuple[str, ...]) -> None:
    """Leaves what torch.compile makes of a case in the compiler's cache on disk, and says so where it cannot."""
    try:
        run_compiled_once(case, modes)
    except RuntimeError as error:
        print(f"{case}: not compiled ahead: {str(error).strip().partition(chr(10))[0]}", file=sys.stderr)
    torch.compiler.reset()
    if case.device != "cpu":
        torch.cuda.empty_cache()  # the other processes need it


def run_compiled_once(case: Case, modes: tuple[str, ...]) -> None:
    inputs = Inputs(case, 1)
    for name, function in providers(case, modes):
        if name.startswith("compile/"):
            contender = Contender(case, name, function, inputs)
            contender.call(0, contender.fresh(0))


def compile_ahead(cases: Sequence[Case], modes: tuple[str, ...], jobs: int) -> None:
    """``compile_case`` in several processes, so that ``measure`` need not wait for one compilation after the other."""
    fresh = multiprocessing.get_context("spawn")
    threads = (torch.get_num_threads(),)  # part of what the compiler's cache goes by
    try:
        with concurrent.futures.ProcessPoolExecutor(jobs, fresh, torch.set_num_threads, threads) as pool:
            for _ in pool.map(compile_case, cases, itertools.repeat(modes)):
                pass
    except concurrent.futures.process.BrokenProcessPool as error:
        print(f"compiling ahead ended: {error}", file=sys.stderr)


def processor() -> str:
    """The processor's model as Linux names it, else as Python does."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def shape(text: str) -> tuple[int, ...]:
    sizes = tuple(map(count(), text.split(",")))
    if not 2 <= len(sizes) <= 5:
        raise argparse.ArgumentTypeError(f"{text!r} has {len(sizes)} axes, not two to five")
    if math.prod(sizes) > MAX_COUNT:
        raise argparse.ArgumentTypeError(f"{text!r} has more than {MAX_COUNT} elements")
    return sizes


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=count(1, MAX_PROCESSES), default=2, help="on the CPU (default: 2)")


def use_machine(args: argparse.Namespace) -> bool:
    """Sets the threads; False, and a line, where the device is not there."""
    torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: this PyTorch finds no CUDA device", file=sys.stderr)
        return False
    return True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_machine_arguments(parser)
    parser.add_argument("--shape", type=shape, default=(64, 16, 1024), help="of x (default: 64,16,1024)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")


def run(args: argparse.Namespace) -> int:
    """``python -m drsn_ops bench``: medians of every provider, in about a minute."""
    if not use_machine(args):
        return 2
    timer = "host" if args.device == "cpu" else "graph"
    print(f"{'operator':<16}{'direction':<20}{'provider':<26}{'median us':>12}{'/ drsn_ops':>12}")
    for operator, direction in (
        ("shrink", "inference in place"),
        ("shrink", "forward+backward"),
        ("soft_threshold", "forward+backward"),
    ):
        case = Case(operator, direction, args.shape, device=args.device, timer=timer)
        results = measure(case, () if args.no_compile else ("default",), budget=5.0)
        medians = {runner.name: statistics.median(times) for runner, times in results}
        for name, seconds in sorted(medians.items(), key=lambda item: item[1]):
            ratio = seconds / medians["drsn_ops"]
            print(f"{operator:<16}{direction:<20}{name:<26}{seconds * 1e6:>12.1f}{ratio:>12.2f}", flush=True)
    where = (
        torch.cuda.get_device_name() if args.device == "cuda" else f"{processor()}, {args.threads} threads"
    )
    print(f"x of {'x'.join(map(str, args.shape))}, float32; {where}; torch {torch.__version__}")
    return 0
