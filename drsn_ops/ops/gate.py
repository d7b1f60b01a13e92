"""A gate and a normalisation as the operators take them, and what they compute, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference import accumulator, per_row

# NormKind of csrc/params.h
NONE, LAYER, RMS, BATCH, RUNNING = range(5)


class Norm(NamedTuple):
    """A normalisation; a negative momentum averages over all batches."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    batches: Tensor | None
    momentum: float
    kind: int
    eps: float

    @property
    def functional(self) -> tuple[Any, ...]:
        """The arguments of an operator that writes no statistics."""
        return *self[:4], *self[6:]


class Gate(NamedTuple):
    """``sigmoid(w2 relu(norm(w1 m + b1)) + b2)``."""

    w1: Tensor
    b1: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    w2: Tensor
    b2: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    batches: Tensor | None
    momentum: float
    kind: int
    eps: float

    @property
    def parameters(self) -> tuple[Tensor | None, ...]:
        return self[:6]

    @property
    def functional(self) -> tuple[Any, ...]:
        """The arguments of an operator that writes no statistics."""
        return *self[:8], *self[10:]


def gate_formula(
    mean: Tensor, parameters: Sequence[Tensor | None], kind: int, eps: float, statistics: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """alpha, (N, C) or (N, 1); the (N, H) numbers before the normalisation; the statistics that normalised them.

    ``statistics`` are the running ones for `RUNNING`; those of `BATCH` are made here, and other kinds have none.
    """
    w1, b1, weight, bias, w2, b2 = (None if t is None else t.to(mean.dtype) for t in parameters)
    h = hidden = F.linear(mean, w1, b1)  # type: ignore[arg-type]
    if kind == LAYER:
        h = F.layer_norm(h, h.shape[1:], eps=eps)
    elif kind == RMS:
        h = F.rms_norm(h, h.shape[1:], eps=eps)
    elif kind != NONE:
        statistics = batch_statistics(h, eps) if kind == BATCH else statistics
        h = normalised(h, statistics)  # type: ignore[arg-type]
    h = affine(h, weight, bias).relu()
    return F.linear(h, w2, b2).sigmoid(), hidden, statistics  # type: ignore[arg-type]


def batch_statistics(h: Tensor, eps: float) -> Tensor:
    """The mean and ``1 / sqrt(variance + eps)`` of each feature, (2, C), over all other axes of h."""
    var, mean = torch.var_mean(h, [0, *range(2, h.dim())], correction=0)
    return torch.stack([mean, torch.rsqrt(var + eps)])


def running_statistics(
    mean: Tensor | None, var: Tensor | None, features: int, eps: float, like: Tensor
) -> Tensor:
    """The same of running statistics, in the type of ``like``; a mean or variance that is None is 0 or 1."""
    mean = like.new_zeros(features) if mean is None else mean.to(like.dtype)
    var = like.new_ones(features) if var is None else var.to(like.dtype)
    return torch.stack([mean, torch.rsqrt(var + eps)])


def normalised(h: Tensor, statistics: Tensor) -> Tensor:
    """``(h - mean) * rstd``; mean and rstd are the rows of ``statistics``."""
    mean, rstd = statistics
    return (h - per_row(mean[None], h)) * per_row(rstd[None], h)


def affine(h: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``h * weight + bias``, each with one number a feature."""
    h = h if weight is None else h * per_row(weight[None], h)
    return h if bias is None else h + per_row(bias[None], h)


def batch_norm_formula(
    z: Tensor, weight: Tensor | None, bias: Tensor | None, kind: int, eps: float, statistics: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The normalised z in the accumulator's type, and the statistics that normalised it.

    ``statistics`` are the running ones for `RUNNING`; those of `BATCH` are made here.
    """
    wide: Any = (None if t is None else t.to(accumulator(z.dtype)) for t in (z, weight, bias))
    source, weight, bias = wide
    used: Any = batch_statistics(source, eps) if kind == BATCH else statistics
    return affine(normalised(source, used), weight, bias), used


def count_up(*norms: Gate | Norm) -> None:
    """Tells autograd that the kernels wrote num_batches_tracked: PyTorch's BatchNorm tells this, and no more."""
    for norm in norms:
        if norm.batches is not None:
            torch.autograd.graph.increment_version(norm.batches)


@torch.no_grad()
def update_running_statistics(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    momentum: float,
    mean: Tensor,
    var: Tensor,
) -> None:
    """Counts a batch, and moves the running statistics towards its mean and its unbiased variance.

    ``running = (1 - momentum) * running + momentum * new``; a negative momentum averages over all batches.
    """
    if batches is not None:
        batches.add_(1)
    if running_mean is None or running_var is None:
        return
    factor: Any = momentum if momentum >= 0 or batches is None else 1 / batches.double()
    for running, new in ((running_mean, mean), (running_var, var)):
        running.copy_((1 - factor) * running.to(new.dtype) + factor * new)


def update(norm: Gate | Norm, mean: Tensor, var: Tensor) -> None:
    """`update_running_statistics` of this normalisation."""
    update_running_statistics(norm.running_mean, norm.running_var, norm.batches, norm.momentum, mean, var)


@torch.no_grad()
def update_from_state(norm: Norm, state: Tensor, count: int) -> None:
    """The same by the batch's own statistics, (2, C), each of ``count`` numbers."""
    mean, rstd = state
    update(norm, mean, (rstd**-2 - norm.eps).clamp(min=0) * (count / (count - 1)))
