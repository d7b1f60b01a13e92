"""Whole networks beside PyTorch's plain ResNet: training steps, with what shrinkage adds to them, and evaluation."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drsn_ops.benchmark.clocks import event_sampler, graph_sampler, host_sampler
from drsn_ops.benchmark.contest import require_same
from drsn_ops.machine import settle_allocator

from .networks import CLASSES, LAYOUTS, OWN, PLAIN, SHAPES, THRESHOLDS, build, variants
from .rows import Row, environment, peak_of, percentiles

MODES = {"cpu": ("eager", "compile"), "cuda": ("eager", "graph", "compile", "compile/reduce-overhead")}
CAPTURED = ("graph", "compile/reduce-overhead")  # what does not wait for the host
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.bfloat16)}
ROUNDS = {"paper": 4, "cifar10": 2}  # times as many: a short step varies more than what is looked for
EVALUATED = ((128, 1, 2048), (1, 1, 2048))  # of the paper's network
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

Sampler = Callable[[], float]
Contestant = tuple[str, str, str, str]  # variant, provider, mode, layout


def compiled(module: nn.Module, mode: str) -> Callable[..., Tensor]:
    """The module in a mode: "compile" is torch.compile's default, "compile/..." another, the rest are eager."""
    name, _, which = mode.partition("/")
    if name != "compile":
        return module
    # Each instance is one more version of the same function to torch.compile, which stops at 8 of them.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(module, mode=which or "default", dynamic=False, fullgraph=True)


class Step:
    """A training step or, with ``trains=False``, an evaluation, as a runner of drsn_ops.benchmark."""

    name = "step"

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        mode: str,
        device: str,
        layout: str = "contiguous",
        trains: bool = True,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        memory_format = FORMATS[layout]
        self.x = torch.randn(shape, generator=generator).to(device, memory_format=memory_format)
        self.labels = torch.randint(CLASSES, shape[:1], generator=generator).to(device)
        network = network.to(device, memory_format=memory_format).train(trains)
        self.trains = trains
        # So slow that the last step has numbers like the first.
        # Fused: PyTorch's fastest, and the fewest calls for the parameters that shrinkage adds.
        self.optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9, fused=True)
        self.network = compiled(network, mode)
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)
        self.tolerance = 0.1 if dtype == torch.bfloat16 else 1e-3
        self.count = 1 if device == "cpu" else 4  # lets the host run ahead, as in training

    def fresh(self, index: int) -> None:
        return None

    def logits(self) -> Tensor:
        with self.autocast, torch.set_grad_enabled(self.trains):
            return self.network(self.x)

    def call(self, index: int, state: None) -> Tensor:
        if not self.trains:
            return self.logits()
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            loss = F.cross_entropy(self.network(self.x), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def peak_bytes(self) -> int:
        self.optimizer.zero_grad(set_to_none=True)
        return peak_of(lambda: self.call(0, None), self.x.device.type)


def warm(name: str, mode: str, make: Callable[..., Sampler], *arguments: object) -> Sampler | None:
    """A sampler that has compiled and run; None, and a line, where torch.compile cannot."""
    start = time.perf_counter()
    try:
        sample = make(*arguments)
        sample()
        sample()
    except RuntimeError as error:
        if not mode.startswith("compile"):
            raise
        print(f"no {name}: {str(error).strip().partition(chr(10))[0]}", file=sys.stderr)
        return None
    print(f"{name}: ready in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return sample


def interleave(samples: Sequence[Sampler], rounds: int) -> list[list[float]]:
    """The times of each, one a round; every round begins with the next of them."""
    times: list[list[float]] = [[] for _ in samples]
    for turn in range(rounds):
        for place in range(len(samples)):
            index = (turn + place) % len(samples)
            times[index].append(samples[index]())
    return times


def row(
    times: list[float], base: list[float] | None = None, own: list[float] | None = None, **what: object
) -> Row:
    """Times in microseconds; of the same rounds their ratios to ``base``, and what they are above ``own``."""
    ratios: list[float] | list[None] = [None] * 3
    if base:
        ratios = percentiles([mine / other for mine, other in zip(times, base, strict=True)])
    added = [mine - other for mine, other in zip(times, own, strict=True)] if own else []
    return {
        **what,
        "samples": len(times),
        **{
            f"{p}_us": 1e6 * point for p, point in zip(("p20", "p50", "p80"), percentiles(times), strict=True)
        },
        **{f"ratio_{p}": ratio for p, ratio in zip(("p20", "p50", "p80"), ratios, strict=True)},
        "added_us": 1e6 * median(added) if added else None,
    }


def step_sampler(step: Step, timer: str, wanted: Tensor) -> Sampler:
    """Raises `WrongResult` unless the network returns the logits of its twin in PyTorch, but for rounding."""
    require_same(step.name, "its network", [step.logits().detach().double()], [wanted], step.tolerance)
    if timer == "host":
        return host_sampler(step, 0.0 if step.trains else 0.01)
    return graph_sampler(step, refresh=False) if timer == "graph" else event_sampler(step)


def contestants(what: str, network: str, modes: Sequence[str]) -> list[Contestant]:
    """All in every layout and mode; but torch.compile, which is slow, has the plain ResNet and what a table shows."""

    def takes_part(variant: str, provider: str, mode: str) -> bool:
        shown = what == "step" and (network == "paper" or variant == "DRSN-CW")
        return shown or (variant, provider) == PLAIN or not mode.startswith("compile")

    return [
        (*who, mode, layout)
        for mode in modes
        for layout in LAYOUTS.get(network, ("contiguous",))
        for who in variants(network)
        if takes_part(*who, mode)
    ]


def base_of(times: dict[Contestant, list[float]], mode: str) -> Contestant | None:
    """PyTorch's plain ResNet, the fastest of those that wait for the host, or of those that do not."""
    peers = [one for one in times if one[:2] == PLAIN and (one[2] in CAPTURED) == (mode in CAPTURED)]
    return min(peers, key=lambda one: median(times[one]), default=None)


def network_rows(
    what: str,
    network: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    modes: Sequence[str],
    device: str,
    rounds: int,
) -> list[Row]:
    """A network in every variant, mode and layout, all of them in turn."""
    torch.compiler.reset()
    trains = what == "step"
    truth = {}
    for variant in THRESHOLDS:
        twin = build(network, variant, "pytorch")
        truth[variant] = Step(twin, shape, dtype, "eager", device, trains=trains).logits().detach().double()
    entries: dict[Contestant, tuple[Step, Sampler, str]] = {}
    for one in contestants(what, network, modes):
        variant, provider, mode, layout = one
        timer = "host" if device == "cpu" else "graph" if mode == "graph" else "events"
        step = Step(build(network, variant, provider), shape, dtype, mode, device, layout, trains)
        step.name = f"{what} of {network}, {', '.join(one)}"
        sample = warm(step.name, mode, step_sampler, step, timer, truth[variant])
        if sample:
            entries[one] = step, sample, timer
    times = dict(zip(entries, interleave([sample for _, sample, _ in entries.values()], rounds), strict=True))
    # A captured graph has its memory already.
    peaks = {one: entries[one][0].peak_bytes() for one in entries if trains and one[2] not in CAPTURED}
    rows = []
    for one in entries:
        variant, provider, mode, layout = one
        base = base_of(times, mode)
        plain = [peak for other, peak in peaks.items() if (*other[:2], other[2]) == (*PLAIN, mode)]
        shrinks = provider == "drsn_ops" and THRESHOLDS[variant]
        rows.append(
            row(
                times[one],
                base and times[base],
                times[(*OWN, mode, layout)] if shrinks and (*OWN, mode, layout) in times else None,
                what=what,
                network=network,
                shape=list(shape),
                variant=variant,
                provider=provider,
                mode=mode,
                layout=layout,
                timer=entries[one][2],
                dtype=str(dtype).removeprefix("torch."),
                peak_bytes=peaks.get(one),
                peak_ratio=peaks[one] / min(plain) if one in peaks and plain else None,
            )
        )
    return rows


def measure_tax(device: str, rounds: int, compiles: bool) -> list[Row]:
    """Every row: the steps of each network, then the evaluation of the paper's."""
    settle_allocator()
    around = environment(device)
    modes = [mode for mode in MODES[device] if compiles or not mode.startswith("compile")]
    cases = [("step", network, shape) for network, shape in SHAPES.items()]
    cases += [("evaluation", "paper", shape) for shape in EVALUATED]
    rows: list[Row] = []
    for what, network, shape in cases:
        for dtype in DTYPES[device]:
            rows += network_rows(what, network, shape, dtype, modes, device, rounds * ROUNDS.get(network, 1))
    return [{**one, **around} for one in rows]
