"""What shrinkage adds to a ResNet: training steps of whole networks, one `Shrinkage`, and its evaluation."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Sequence

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor, nn

from drsn_ops import Shrinkage
from drsn_ops.benchmark.cases import Case
from drsn_ops.benchmark.clocks import event_sampler, graph_sampler, host_sampler, sampler
from drsn_ops.benchmark.contest import Contender, Copy, Inputs, check, require_same
from drsn_ops.benchmark.formulas import FORMULAS
from drsn_ops.benchmark.machine import settle_allocator

from .grid import LARGE, SIZES
from .networks import CLASSES, SHAPES, THRESHOLDS, FormulaShrinkage, build, variants
from .rows import Row, environment, peak_bytes, peak_of, percentiles

CALL_SHAPE = SIZES[1]
STEP_MODES = {"cpu": ("eager", "compile"), "cuda": ("eager", "graph", "compile", "compile/reduce-overhead")}
STEP_DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.bfloat16)}
EVALUATED = {"cpu": SIZES, "cuda": (*SIZES, LARGE[3])}  # the last moves 805 MB
TIMERS = {"cpu": ("host",), "cuda": ("events", "graph")}
ROUNDS = {
    "paper": 6,
    "resnet18": 1,
}  # times as many: its step is short, and varies more than what is looked for
SECONDS = 0.02  # a sample of the calls of one module

Sampler = Callable[[], float]


def compiled(module: nn.Module, mode: str) -> Callable[..., Tensor]:
    """The module in a mode: "compile" is torch.compile's default, "compile/..." another, the rest are eager."""
    name, _, which = mode.partition("/")
    if name != "compile":
        return module
    # Each instance is one more version of the same function to torch.compile, which stops at 8 of them.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(module, mode=which or "default", dynamic=False, fullgraph=True)


class Step:
    """A training step, as a runner of drsn_ops.benchmark."""

    name = "step"

    def __init__(
        self, network: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, mode: str, device: str
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(shape, generator=generator).to(device)
        self.labels = torch.randint(CLASSES, shape[:1], generator=generator).to(device)
        network = network.to(device)
        # So slow that the last step has numbers like the first.
        # Fused: PyTorch's fastest, and the fewest calls for the parameters that shrinkage adds.
        self.optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9, fused=True)
        self.network = compiled(network, mode)
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)
        self.tolerance = 0.1 if dtype == torch.bfloat16 else 1e-3
        self.count = 1 if device == "cpu" else 4  # lets the host run ahead, as in training

    def fresh(self, index: int) -> None:
        return None

    def call(self, index: int, state: None) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            loss = F.cross_entropy(self.network(self.x), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def peak_bytes(self) -> int:
        self.optimizer.zero_grad(set_to_none=True)
        return peak_of(lambda: self.call(0, None), self.x.device.type)


class Call(Contender):
    """A `Shrinkage` with a residual on the inputs of a case; in training its parameters get gradients too."""

    def __init__(self, case: Case, name: str, module: nn.Module, mode: str, inputs: Inputs) -> None:
        function = compiled(module, mode)
        super().__init__(case, name, lambda x, _, residual: function(x, residual), inputs)
        self.parameters = list(module.parameters())

    def leaves(self, index: int) -> list[Tensor]:
        residual = self.inputs.residual[index]
        assert residual is not None
        return [self.inputs.x[index], residual, *self.parameters]


def logits(step: Step) -> Tensor:
    with step.autocast:
        return step.network(step.x).detach().double()


def logits_of_the_reference(network: str, variant: str, dtype: torch.dtype, device: str) -> Tensor:
    made = build(network, variant, variants(network)[0 if variant == "ResNet" else 1][1])
    for module in made.modules():
        if isinstance(module, Shrinkage):
            module.use_reference = True
    return logits(Step(made, SHAPES[network], dtype, "eager", device))


def warm(name: str, mode: str, make: Callable[..., Sampler], *arguments: object) -> Sampler | None:
    """A sampler that has compiled and run; None, and a line, where torch.compile cannot."""
    try:
        sample = make(*arguments)
        sample()
        sample()
    except RuntimeError as error:
        if not mode.startswith("compile"):
            raise
        print(f"no {name}: {str(error).strip().partition(chr(10))[0]}", file=sys.stderr)
        return None
    return sample


def interleave(samples: Sequence[Sampler], rounds: int) -> list[list[float]]:
    """The times of each, one a round; every round begins with the next of them."""
    times: list[list[float]] = [[] for _ in samples]
    for turn in range(rounds):
        for place in range(len(samples)):
            index = (turn + place) % len(samples)
            times[index].append(samples[index]())
    return times


def in_rounds(times: list[float], others: list[float]) -> list[float]:
    """The percentiles of the ratio that times have to others of the same rounds."""
    return percentiles([mine / other for mine, other in zip(times, others, strict=True)])


def row(
    times: list[float],
    peak: int | None,
    base: tuple[list[float], int | None] | None,
    eager: list[float] | None = None,
    **what: object,
) -> Row:
    """Times in microseconds, and their ratios to those of the same rounds of ``base`` and of the eager twin."""
    ratios: list[float] | list[None] = in_rounds(times, base[0]) if base else [None] * 3
    return {
        **what,
        "samples": len(times),
        **{f"{p}_us": 1e6 * time for p, time in zip(("p20", "p50", "p80"), percentiles(times), strict=True)},
        **{f"ratio_{p}": ratio for p, ratio in zip(("p20", "p50", "p80"), ratios, strict=True)},
        "eager_ratio_p50": in_rounds(times, eager)[1] if eager else None,
        "peak_bytes": peak,
        "peak_ratio": peak / base[1] if base and base[1] and peak else None,
    }


def step_sampler(step: Step, timer: str, wanted: Tensor) -> Sampler:
    """Raises `WrongResult` unless the network returns the logits of the reference, but for rounding."""
    require_same(step.name, "its network", [logits(step)], [wanted], step.tolerance)
    if timer == "host":
        return host_sampler(step, 0.0)
    return graph_sampler(step, refresh=False) if timer == "graph" else event_sampler(step)


def step_rows(network: str, dtype: torch.dtype, modes: Sequence[str], device: str, rounds: int) -> list[Row]:
    """Every variant of a network in every mode, all of them in turn."""
    torch.compiler.reset()
    shape = SHAPES[network]
    entries: dict[tuple[str, str, str], tuple[Step, Sampler, str]] = {}
    truth = {variant: logits_of_the_reference(network, variant, dtype, device) for variant in THRESHOLDS}
    for mode in modes:
        timer = "host" if device == "cpu" else "graph" if mode == "graph" else "events"
        for variant, provider in variants(network):
            step = Step(build(network, variant, provider), shape, dtype, mode, device)
            step.name = f"{network}, {variant}, {provider}, {mode}"
            sample = warm(step.name, mode, step_sampler, step, timer, truth[variant])
            if sample:
                entries[mode, variant, provider] = step, sample, timer
    times = dict(zip(entries, interleave([sample for _, sample, _ in entries.values()], rounds), strict=True))
    # A captured graph has its memory already.
    measured = ("eager", "compile")
    peaks = {key: step.peak_bytes() if key[0] in measured else None for key, (step, _, _) in entries.items()}
    plain = {mode: (mode, *variants(network)[0]) for mode in modes}
    return [
        row(
            times[mode, variant, provider],
            peaks[mode, variant, provider],
            (times[plain[mode]], peaks[plain[mode]]) if plain[mode] in entries else None,
            times["eager", variant, provider],
            what="step",
            network=network,
            shape=list(shape),
            variant=variant,
            provider=provider,
            mode=mode,
            timer=timer,
            dtype=str(dtype).removeprefix("torch."),
        )
        for (mode, variant, provider), (_, _, timer) in entries.items()
    ]


def call_sampler(call: Call, wanted: Sequence[Tensor]) -> Sampler:
    """Raises `WrongResult` unless the call returns what the reference does."""
    check(call, wanted)
    return sampler(call.case, call, SECONDS)


def call_rows(
    what: str, shape: tuple[int, ...], timer: str, modes: Iterable[str], device: str, rounds: int
) -> list[Row]:
    """A `Shrinkage` of channel-wise thresholds, the formulas in its place, and a copy of the same bytes."""
    torch.compiler.reset()
    # A captured graph runs one backward many times, so a compiled one may not write over its arguments.
    torch._functorch.config.donated_buffer = timer != "graph"
    direction = "inference" if what == "evaluation" else "forward+backward"
    case = Case("shrink+residual", direction, shape, device=device, timer=timer)
    ours = Shrinkage(shape[1])
    plain = copy.deepcopy(ours).double()
    plain.use_reference = True
    contestants = [
        ("drsn_ops", "eager"),
        *((formula, mode) for mode in ("eager", *modes) for formula in FORMULAS),
    ]
    with torch.set_grad_enabled(case.trains):
        inputs = Inputs(case)
        plain.train(case.trains).to(device)
        # x and the residual; the parameters' gradients are sums that nearly cancel
        wanted = Call(case, "reference", plain, "eager", inputs.first(shape[0])).result()[:2]
        entries: list[tuple[str, str, str, Call | Copy, Sampler]] = []
        for provider, mode in contestants:
            module = ours if provider == "drsn_ops" else FormulaShrinkage(ours, provider)
            module.train(case.trains).to(device)
            name = f"{provider}/{mode}"
            call = Call(case, name, module, mode, inputs)
            sample = warm(f"{case} {name}", mode, call_sampler, call, wanted)
            if sample:
                entries.append(("Shrinkage", provider, mode, call, sample))
        if what == "evaluation":
            moved = Copy(case)
            entries.append(("copy", "copy", "eager", moved, sampler(case, moved, SECONDS)))
        times = interleave([entry[-1] for entry in entries], rounds)
        return [
            row(
                times[index],
                peak_bytes(runner) if isinstance(runner, Call) and "reduce-overhead" not in mode else None,
                None,
                what=what,
                network=None,
                shape=list(shape),
                variant=variant,
                provider=provider,
                mode=mode,
                timer=timer,
                dtype="float32",
            )
            for index, (variant, provider, mode, runner, _) in enumerate(entries)
        ]


def measure_tax(device: str, rounds: int, compile_modes: Sequence[str]) -> list[Row]:
    """Every row; each network in the default mode of torch.compile, each call in all of ``compile_modes``."""
    settle_allocator()
    around = environment(device)
    calls = [f"compile/{mode}" for mode in compile_modes if device == "cuda" or mode != "reduce-overhead"]
    steps = [mode for mode in STEP_MODES[device] if compile_modes or not mode.startswith("compile")]
    rows: list[Row] = []
    for network in SHAPES:
        for dtype in STEP_DTYPES[device]:
            print(f"step, {network}, {dtype}, {', '.join(steps)}", file=sys.stderr)
            rows += step_rows(network, dtype, steps, device, rounds * ROUNDS[network])
    cases = [("call", CALL_SHAPE), *(("evaluation", shape) for shape in EVALUATED[device])]
    for what, shape in cases:
        for timer in TIMERS[device]:
            print(f"{what}, {shape}, {timer}", file=sys.stderr)
            rows += call_rows(what, shape, timer, calls, device, rounds)
    return [{**one, **around} for one in rows]
