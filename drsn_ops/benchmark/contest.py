"""The contest: every provider on the inputs of a case, checked against the reference, then timed in turn."""

from __future__ import annotations

import concurrent.futures.process
import copy
import itertools
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from .. import reference
from ..machine import last_level_cache, settle_allocator
from ..reference import accumulator, per_row
from .cases import Case, bytes_moved
from .clocks import Runner, sampler, time_in_turn
from .formulas import COMPILE_MODES, Provider, functions, providers

HOT_BYTES = 16 << 20
COLD_CACHES = 2  # times the last-level cache lie between two uses of a cold input
MAX_POOL = 256
CHECKED_ELEMENTS = 1 << 22  # of x; of a larger one the first samples are checked


class WrongResult(Exception):
    """A provider computes something else than the reference: its time would say nothing."""


def require_same(
    what: object, name: str, found: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float
) -> None:
    """Raises `WrongResult` where an element differs by more than this part of the largest one that is wanted."""
    for one, truth in zip(found, wanted, strict=True):
        largest = truth.abs().max().clamp(min=torch.finfo(truth.dtype).tiny)
        difference = (one.double().reshape(truth.shape) - truth).abs().max() / largest
        if not difference <= tolerance:
            raise WrongResult(
                f"{what}: {name} differs from the reference by {difference:.1e} of the largest element, "
                f"allowed are {tolerance:.1e}"
            )


def pool_size(case: Case, size: int, contenders: int = 1) -> int:
    """How many buffers of so many bytes fill a pool, where so many contenders have one each."""
    if case.device != "cpu":
        wanted = 3 * torch.cuda.get_device_properties(case.device).L2_cache_size + 1
    else:
        wanted = COLD_CACHES * last_level_cache() // contenders if case.timer == "cold" else HOT_BYTES
    return min(max(math.ceil(wanted / max(size, 1)), 1), MAX_POOL)


class Inputs:
    """A pool of x, residual and gradient, and one threshold."""

    def __init__(self, case: Case, count: int | None = None) -> None:
        self.count = count or pool_size(case, case.nbytes)
        generator = torch.Generator(case.device).manual_seed(0)
        formats = {("channels_last", 4): torch.channels_last, ("channels_last", 5): torch.channels_last_3d}
        layout = formats.get((case.layout, len(case.shape)), torch.contiguous_format)

        def pool() -> list[Tensor]:
            """Half of the magnitudes lie below every threshold, half above: rounding moves none across."""
            made = []
            for _ in range(self.count):
                x = torch.randn(case.shape, dtype=case.dtype, device=case.device, generator=generator)
                x = torch.where(x.abs() < 0.67, x / 8, x + x.sign())
                made.append(x.contiguous(memory_format=layout).requires_grad_(case.trains))
            return made

        self.x = pool()
        self.residual: list[Tensor | None] = [None] * self.count
        if case.operator == "shrink+residual":
            self.residual = [*pool()]
        results = [x.detach() if case.operator != "abs_mean" else x.new_empty(case.shape[:2]) for x in self.x]
        self.grads = [torch.empty_like(y).normal_(generator=generator) for y in results if case.trains]
        threshold = torch.rand(case.shape[:2], dtype=torch.float32, device=case.device, generator=generator)
        self.threshold = (0.25 + threshold / 2).to(case.dtype)
        self.scratch = [torch.empty_like(x) for x in self.x] if case.inplace else []

    def first(self, samples: int, index: int = 0) -> Inputs:
        """The first samples of one input of the pool, in float64."""

        def wide(t: Tensor) -> Tensor:
            return t.detach()[:samples].double().requires_grad_(t.requires_grad)

        made = copy.copy(self)
        made.count = 1
        made.x = [wide(self.x[index])]
        made.residual = [None if t is None else wide(t) for t in self.residual[index : index + 1]]
        made.grads = [wide(grad) for grad in self.grads[index : index + 1]]
        made.threshold = wide(self.threshold)
        made.scratch = [wide(x) for x in self.scratch[index : index + 1]]
        return made


class Contender:
    """A provider on the inputs of a case: ``fresh`` makes what a call uses up, ``call`` is what is timed."""

    def __init__(self, case: Case, name: str, function: Provider, inputs: Inputs) -> None:
        self.case, self.name, self.function, self.inputs = case, name, function, inputs
        self.count = inputs.count
        threshold = inputs.threshold
        if name not in ("drsn_ops", "reference") or case.operator == "soft_threshold":
            threshold = per_row(threshold, inputs.x[0])  # spares the formulas the reshaping of alpha
        self.threshold = threshold.detach().clone().requires_grad_(case.trains)
        self.grads = inputs.grads
        if case.operator == "abs_mean" and self.grads:
            y = self.output(0)  # the formulas keep axes of 1 and the type of x
            self.grads = [grad.to(y.dtype).reshape(y.shape) for grad in self.grads]

    def output(self, index: int) -> Tensor:
        return self.function(self.inputs.x[index], self.threshold, self.inputs.residual[index])

    def leaves(self, index: int) -> list[Tensor]:
        x, residual = self.inputs.x[index], self.inputs.residual[index]
        if isinstance(self.function, nn.Module):
            return [x, *self.function.parameters()]
        leaves = [x, self.threshold, residual]
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
        again = self.case.timer == "graph"
        return torch.autograd.grad(y, self.leaves(index), self.grads[index], retain_graph=again)

    def result(self) -> list[Tensor]:
        made = self.call(0, self.fresh(0))
        return [t.detach() for t in (made if isinstance(made, tuple) else (made,))]


def truth(case: Case, inputs: Inputs) -> list[Tensor]:
    """The results of the reference in float64 that are checked, for as many samples as are."""
    function = functions(case, reference)
    samples = max(CHECKED_ELEMENTS * case.shape[0] // case.numel, 1)
    # a BatchNorm takes all samples; the gradients of its parameters are sums that cancel
    if isinstance(function, nn.Module):
        return Contender(case, "reference", function, inputs.first(case.shape[0])).result()[:1]
    return Contender(case, "reference", function, inputs.first(samples)).result()


def check(contender: Contender, wanted: Sequence[Tensor]) -> None:
    """Raises `WrongResult` unless the contender's first results are those of the reference, up to rounding."""
    dtype = contender.case.dtype
    tolerance = 8 * torch.finfo(dtype).eps + 64 * torch.finfo(accumulator(dtype)).eps
    if contender.case.operator == "batch_norm_relu":
        tolerance *= 16  # PyTorch sums the channels of channels_last one element after the other
    found = [one[: t.shape[0]] for one, t in zip(contender.result(), wanted, strict=False)]
    require_same(contender.case, contender.name, found, wanted, tolerance)


class Copy:
    """The copy that moves as many bytes as the case: half of them read, half written, in two halves for two passes."""

    name = "copy"

    def __init__(self, case: Case, count: int | None = None) -> None:
        size = max(bytes_moved(case) // (2 * torch.float32.itemsize), 1)
        self.count = count or pool_size(case, bytes_moved(case))
        self.sources = [torch.randn(size, dtype=torch.float32, device=case.device) for _ in range(self.count)]
        self.parts = [
            source.chunk(2 if case.direction == "forward+backward" else 1) for source in self.sources
        ]
        self.targets = [torch.empty_like(source) for source in self.sources] if case.inplace else []

    def fresh(self, index: int) -> None:
        return None

    def call(self, index: int, state: None) -> list[Tensor]:
        if self.targets:
            return [self.targets[index].copy_(self.sources[index])]
        return [part.clone() for part in self.parts[index]]


def measure(
    case: Case,
    modes: Iterable[str] = COMPILE_MODES,
    *,
    rounds: int = 15,
    seconds: float = 0.005,
    budget: float = 20.0,
) -> list[tuple[Runner, list[float]]]:
    """Seconds per call of each provider and of the copy: five rounds, up to ``rounds`` within ``budget`` seconds.

    On the CPU a round times every provider once, so that a disturbance from outside meets all of them; of cold
    inputs every call is timed, at least four a round. On CUDA, where captured graphs would fight for memory, a
    provider has its rounds before the next is built.
    """
    settle_allocator()
    torch.compiler.reset()  # else the formulas compiled for earlier shapes count against this one
    everyone: list[tuple[str, Provider | None]] = [("copy", None), *providers(case, modes)]
    # What the cache cannot hold half of is cold without that; and pools of all contenders take no more memory than so.
    cold = case.timer == "cold" and case.nbytes < COLD_CACHES * last_level_cache()
    inputs = Inputs(case, pool_size(case, case.nbytes, len(everyone)))
    wanted = truth(case, inputs)
    results: list[tuple[Runner, list[float]]] = []

    def prepare(name: str, function: Provider | None) -> tuple[Callable[[], float], list[float]] | None:
        try:
            runner: Contender | Copy
            if function is None:
                runner = Copy(case, inputs.count if cold else None)
            else:
                runner = Contender(case, name, function, Inputs(case, inputs.count) if cold else inputs)
                check(runner, wanted)
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
            if cold:
                for _ in range(math.ceil(4 / inputs.count)):
                    time_in_turn(results)
            else:
                for sample, times in ready:
                    times.append(sample())

    for group in [everyone] if case.device == "cpu" else [[one] for one in everyone]:
        time_together(group)
    return results


def compile_case(case: Case, modes: tuple[str, ...]) -> None:
    """Fills the compiler's cache on disk with a case; prints a line where it cannot."""
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
    """`compile_case` in several processes; `measure` then waits for no compilation."""
    fresh = multiprocessing.get_context("spawn")
    threads = (torch.get_num_threads(),)  # part of what the compiler's cache goes by
    try:
        with concurrent.futures.ProcessPoolExecutor(jobs, fresh, torch.set_num_threads, threads) as pool:
            for _ in pool.map(compile_case, cases, itertools.repeat(modes)):
                pass
    except concurrent.futures.process.BrokenProcessPool as error:
        print(f"compiling ahead ended: {error}", file=sys.stderr)
