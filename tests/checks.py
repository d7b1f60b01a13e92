"""What the tests of the operators share: shapes, layouts, and the one rule by which numbers are compared."""

import functools
import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import drsn_ops
from drsn_ops.reference import accumulator

REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# what PyTorch makes of the ValueError that an operator raises
REFUSAL = RuntimeError if torch.__version__ >= (2, 15) else ValueError


def require_compilation_no_export():
    """Skip where the compiler of this PyTorch, 2.11, says of every compilation that it is an export."""
    told = torch.compile(lambda x: x + torch.compiler.is_exporting(), backend="eager")
    if told(torch.zeros(1)).any():
        pytest.skip(
            "this PyTorch takes every compilation for an export, which has its own convolution and layout"
        )


# Rows of 1, 49, 784, 1000 and 4097; one sample, one channel; every number of spatial axes.
SHAPES = (
    (3, 5),
    (1, 7),
    (2, 3, 7, 7),
    (2, 1, 28, 28),
    (1, 4, 1000),
    (2, 3, 4097),
    (2, 3, 4, 5, 6),
    (2, 70, 33),
    (2, 1500, 5),
)
EMPTY = ((0, 3, 5), (2, 3, 0), (2, 0, 5), (0, 3))

LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "misaligned", "expanded")


def lay_out(x, layout):
    """The values of x in memory of another kind; expanded memory repeats the first sample."""
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced":
        return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]
    if layout == "misaligned":
        return misaligned(x, 1)
    if layout == "expanded":
        return x[:1].expand(x.shape) if x.shape[0] else x
    return x.contiguous()


def misaligned(x, offset):
    """The values of x in contiguous memory so many elements past the start of an allocation."""
    memory = x.new_empty(offset + x.numel())
    memory[offset:] = x.flatten()
    return memory[offset:].view(x.shape)


def leaf(x):
    """A leaf of the same memory."""
    return x.detach().requires_grad_()


def assert_close(actual, expected, *, terms=None):
    """A float64 reference, met up to the rounding of the type of ``actual``.

    The result is rounded once: one unit in the last place. What went before, in the accumulator's type, may move it by
    a few units of the largest number; for a sum, by a few of the sum of its terms' magnitudes.
    """
    unit = torch.finfo(actual.dtype).eps
    wide = torch.finfo(accumulator(actual.dtype)).eps
    scale = expected.abs().max().item() if terms is None else terms
    if expected.numel() == 0:
        scale = 0.0
    bits = torch.complex128 if actual.is_complex() else torch.float64
    torch.testing.assert_close(
        actual.to(bits), expected.to(bits), rtol=unit, atol=16 * wide * scale + torch.finfo(actual.dtype).tiny
    )


def assert_same_bits(results):
    """``results()``, tensors, have the same bits run after run and for any number of threads."""
    before, first = torch.get_num_threads(), results()
    try:
        for threads in (1, 2, 3, 8, before, before):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(first, results(), strict=True))
    finally:
        torch.set_num_threads(before)


def at_kinks(x, tau):
    """Where ``|x|`` is so near to tau that rounding may put it on the other side; of few elements.

    Their value hardly depends on the side, their derivative does: a gradient of 0 there lets them flip.
    """
    x, tau = x.detach(), tau.detach().double()
    band = tau.abs() * (2.0**-40 if x.dtype == torch.float64 else 2.0**-14)
    near = (x.double().abs() - tau).abs() <= band
    assert near.sum() <= 2 + x.numel() / 100, f"{near.sum()} of {x.numel()} elements lie at a kink"
    return near


def away_from_kink(x, tau):
    """x, with the elements next to 0 and to tau, where another rounding changes the derivative, moved away."""
    x = torch.where(x.abs() < 1e-3, x + 0.01, x)
    near = (x.abs() - tau).abs() < 0.02 * tau.abs() + 1e-6
    return torch.where(near, x * 1.1, x)


def pairwise(*factors):
    """The fewest combinations, nearly, in which every two values of two factors meet."""
    factors = [list(factor) for factor in factors]
    combinations = list(itertools.product(*(range(len(factor)) for factor in factors)))

    def pairs(combination):
        return set(itertools.combinations(enumerate(combination), 2))

    missing, chosen = set().union(*map(pairs, combinations)), []
    while missing:
        best = max(combinations, key=lambda combination: len(pairs(combination) & missing))
        missing -= pairs(best)
        chosen.append(tuple(factor[index] for factor, index in zip(factors, best, strict=True)))
    return chosen


class Operators(TorchDispatchMode):
    """The names of the compiled operators that a call runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "drsn_ops":
            self.names.append(function._schema.name.removeprefix("drsn_ops::"))
        return function(*args, **(kwargs or {}))


def operators_of(function, *args, **options):
    with Operators() as operators:
        function(*args, **options)
    return operators.names


class Replaced:
    """A method of a class in whose place is one that says so and calls it, until it is removed."""

    def __init__(self, kind, name, seen):
        self.kind, self.name, self.own = kind, name, vars(kind).get(name)
        original = getattr(kind, name)

        @functools.wraps(original)
        def method(module, *args, **options):
            seen()
            return original(module, *args, **options)

        setattr(kind, name, method)

    def remove(self):
        if self.own is None:
            delattr(self.kind, self.name)
        else:
            setattr(self.kind, self.name, self.own)


NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "rms": nn.RMSNorm, "none": nn.Identity}


def randomise(module):
    """Every parameter and running statistic something that is not its first value; weights keep ReLUs alive."""
    for name, parameter in module.named_parameters():
        nn.init.uniform_(parameter, -0.5, 1.0) if "weight" in name else nn.init.uniform_(parameter, -0.3, 0.5)
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5) if "var" in name else nn.init.uniform_(buffer, -0.5, 0.5)
    return module


def make_gate(channels, hidden, outputs, norm="batch", *, linear_bias=True, **options):
    """A gate with random parameters, float64; options are those of the norm."""
    gate = nn.Sequential(
        nn.Linear(channels, hidden, bias=linear_bias),
        NORMS[norm](hidden, **options),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs, bias=linear_bias),
        nn.Sigmoid(),
    )
    return randomise(gate.double())


def make_features(shape, device="cpu"):
    """Float64 normal numbers, the same on every device, with a magnitude of each row's own: a batch has statistics."""
    rows = torch.rand(*shape[:2], *[1] * (len(shape) - 2), dtype=torch.float64) + 0.5
    return (torch.randn(shape, dtype=torch.float64) * rows).to(device)


def make_calls(device="cpu"):
    """Each differentiable function with the float64 tensors that it is called with, away from its kinks.

    No statistic couples the samples: the normalisations are the running ones, or a sample's own.
    """
    torch.manual_seed(0)
    x = away_from_kink(make_features((3, 4, 5), device), torch.tensor(0.4, dtype=torch.float64))
    tau, alpha = (torch.full(s, 0.4, dtype=torch.float64, device=device) for s in ((4, 1), (3, 4)))
    gate = make_gate(4, 5, 4, "layer").to(device)
    gate[2].inplace = False  # which torch.func.linearize cannot follow
    norm = randomise(nn.BatchNorm1d(4).double()).to(device).eval()
    shrinkage = randomise(drsn_ops.Shrinkage(4, "channel-shared", norm="layer").double()).to(device)
    unit = randomise(drsn_ops.RSBU(4, 6, stride=2, norm="none").double()).to(device).eval()
    threshold = drsn_ops.SoftThreshold(4, 0.4).double().to(device)
    return {
        "soft_threshold": (drsn_ops.soft_threshold, (x, tau)),
        "soft_threshold by a number": (lambda x: drsn_ops.soft_threshold(x, 0.4), (x,)),
        "abs_mean": (drsn_ops.abs_mean, (x,)),
        "shrink": (drsn_ops.shrink, (x, alpha)),
        "shrink of a sample": (
            lambda x, alpha, residual: drsn_ops.shrink(x, alpha, statistic="sample", residual=residual),
            (x, alpha[:, :1], x.flip(0)),
        ),
        "gated_shrink": (lambda x: drsn_ops.gated_shrink(x, gate), (x,)),
        "batch_norm_shrink": (lambda z: drsn_ops.batch_norm_shrink(z, norm, gate), (x,)),
        "batch_norm_relu": (lambda x: drsn_ops.batch_norm_relu(x, norm), (x,)),
        "SoftThreshold": (threshold, (x,)),
        "Shrinkage": (shrinkage, (x, x.flip(0))),
        "RSBU": (unit, (x,)),
    }


CALLS = tuple(make_calls())
