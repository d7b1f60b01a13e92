"""The providers of a case: drsn_ops, three eager formulas, and torch.compile of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..layers import BATCH_NORMS
from ..reference import accumulator
from .cases import Case

COMPILE_MODES = ("default", "max-autotune-no-cudagraphs", "reduce-overhead")

Formula = Callable[[Tensor, Tensor, bool], Tensor]
Provider = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def row_mean(magnitude: Tensor) -> Tensor:
    """The mean over the spatial axes; without any, ``mean(dim=())`` would reduce every axis."""
    axes = tuple(range(2, magnitude.dim()))
    return magnitude.mean(axes, keepdim=True) if axes else magnitude


def norm_mean(x: Tensor) -> Tensor:
    """``row_mean(x.abs())`` without a tensor of magnitudes."""
    axes = tuple(range(2, x.dim()))
    return torch.linalg.vector_norm(x, 1, axes, keepdim=True) / math.prod(x.shape[2:]) if axes else x.abs()


def naive(x: Tensor, threshold: Tensor, relative: bool) -> Tensor:
    """What most published code does: zeros are made by ``sub - sub``."""
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
    if case.operator == "batch_norm_relu":
        return BatchNormRelu(case, lambda x, bn: F.relu(bn(x), inplace=True))
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


class BatchNormRelu(nn.Module):
    """A function of x and a BatchNorm as a provider, its parameters among the leaves; the bias keeps x off the kink."""

    def __init__(self, case: Case, function: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        kind = BATCH_NORMS[max(len(case.shape) - 2, 1)]
        self.bn = kind(case.shape[1], device=case.device, dtype=accumulator(case.dtype))
        nn.init.constant_(self.bn.bias, -0.5)
        self.function = function
        self.train(case.trains).requires_grad_(case.trains)

    def forward(self, x: Tensor, threshold: Tensor, residual: Tensor | None) -> Tensor:
        return self.function(x, self.bn)


def functions(case: Case, library: Any = functional) -> Provider:
    """The operator of a case by the functions of drsn_ops.functional, or of drsn_ops.reference."""
    inplace = case.inplace
    if case.operator == "batch_norm_relu":
        made = BatchNormRelu(case, library.batch_norm_relu)
        return made if library is functional else made.double()
    if case.operator == "soft_threshold":
        return lambda x, tau, _: library.soft_threshold(x, tau, inplace=inplace)
    if case.operator == "abs_mean":
        return lambda x, _, __: library.abs_mean(x)
    return lambda x, alpha, residual: library.shrink(x, alpha, residual=residual, inplace=inplace)


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
    yield "drsn_ops", functions(case)
    # The naive mean is the tidy one.
    names = [name for name in FORMULAS if case.operator != "abs_mean" or name != "naive"]
    if case.operator == "batch_norm_relu":
        names = ["modules"]
    for name in names:
        yield f"eager/{name}", eager(case, name, case.inplace)
    for mode in takes_part(case, modes):
        for name in names:
            fresh = eager(case, name, inplace=False)
            function = in_place(fresh) if case.inplace else fresh
            yield f"compile/{name}/{mode}", torch.compile(function, mode=mode, dynamic=False, fullgraph=True)
