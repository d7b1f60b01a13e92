"""``torch.autograd.Function`` over the operators with a gate between mean and threshold; which way a call goes is as in
`autograd`, and whether it may come here at all is for `gate` to say.

Later derivatives are those of the plain formulas, over what the forward pass has kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..reference import Statistic
from .autograd import (
    FastFunction,
    _BelowAutograd,
    _count,
    _needs_grad,
    _overwrites,
    _transforming,
    aliases,
)
from .masks import Layout, Planes
from .plain_gate import BATCH, LAYER, RMS, RUNNING, Gate, Norm

_ops = torch.ops.drsn_ops


def gated_shrink(x: Tensor, residual: Tensor | None, gate: Gate, per_sample: bool, inplace: bool) -> Tensor:
    """``soft_threshold(x, alpha * mean) + residual``, with alpha from the gate; brings its statistics up to date."""
    needs_grad = _needs_grad(x, residual, *gate.parameters)
    blocked = inplace and not _overwrites(x, needs_grad)
    if blocked or torch.compiler.is_compiling():
        arguments = (x, residual, *gate.functional, per_sample)
        if not needs_grad and gate.kind != BATCH:
            y = _ops.gated_shrink.default(*arguments)
        else:
            y, _, state, _ = _ops.gated_shrink_with_mask.default(*arguments)
        if inplace:  # before the statistics, since it may be refused
            y = x.copy_(y)
        if gate.kind == BATCH:
            _update_gate(gate, state, x.shape[0])
        return y
    if x.is_neg():  # in place a kernel overwrites x, and elsewhere its operator could
        x = x.resolve_neg()
    if needs_grad:
        return GatedShrink.call(x, residual, *gate.parameters, gate, per_sample, inplace)[0]
    if not inplace and gate.kind != BATCH:
        return _ops.gated_shrink.default(x, residual, *gate.functional, per_sample)
    y = _ops.gated_shrink_.default(x, residual, *gate, per_sample, inplace, False)[0]
    _count_up(gate)
    if inplace:
        torch.autograd.graph.increment_version(x)
    return x if inplace else y


def _count_up(*norms: Gate | Norm) -> None:
    """Tells autograd what the kernels have written; of BatchNorm's buffers PyTorch tells it of this one."""
    for norm in norms:
        if norm.batches is not None:
            torch.autograd.graph.increment_version(norm.batches)


@torch.no_grad()
def _update(norm: Gate | Norm, mean: Tensor, var: Tensor) -> None:
    """Brings running statistics up to date as the kernels do; var is unbiased."""
    if norm.batches is not None:
        norm.batches.add_(1)
    if norm.running_mean is None or norm.running_var is None:
        return
    factor: Any = norm.momentum
    if norm.momentum < 0 and norm.batches is not None:
        factor = 1 / norm.batches.double()
    for running, new in ((norm.running_mean, mean), (norm.running_var, var)):
        running.copy_((1 - factor) * running + factor * new)


@torch.no_grad()
def _update_gate(gate: Gate, state: Tensor, samples: int) -> None:
    hidden = gate.w1.shape[0]
    var, mean = torch.var_mean(state[: samples * hidden].view(samples, hidden), 0)
    _update(gate, mean, var)


class GatedShrink(FastFunction):
    """Returns the means too, so that later derivatives find the way to x through them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor]:  # rest: the gate's parameters, gate, per_sample, inplace
        *parameters, gate, per_sample, inplace = rest
        ctx.layout = Layout.of(x)
        ctx.options = gate.kind, gate.eps, per_sample, ctx.layout.channels_last
        ctx.set_materialize_grads(False)
        with _BelowAutograd():
            y, mean, state, mask = _ops.gated_shrink_.default(x, residual, *gate, per_sample, inplace, True)
        _count_up(gate)
        if inplace:
            ctx.mark_dirty(x)
            y = x
        ctx.save_for_backward(mask, mean, state, *parameters)
        return y, mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_mean: Tensor | None) -> tuple[Tensor | None, ...]:
        need_x, need_residual, *need_parameters = needed = ctx.needs_input_grad[:8]
        saved = ctx.saved_tensors
        if grad is None:
            grad = saved[1].new_zeros(ctx.layout.shape, dtype=ctx.layout.dtype)
        if not need_x and not any(need_parameters):
            return None, grad, *[None] * 9
        if torch.is_grad_enabled() or _transforming(grad, grad_mean, *saved[1:]):
            with reference.no_autocast(grad):  # as the kernels computed it
                dx, *found = _gated_shrink_backward(ctx, grad, grad_mean, saved)
        else:
            dx, *found = _ops.gated_shrink_backward.default(
                grad, grad_mean, *saved, *ctx.options, need_x, any(need_parameters)
            )
        if all(needed):
            return dx, grad, *found, None, None, None
        found = [t if need else None for t, need in zip(found, need_parameters, strict=True)]
        return dx if need_x else None, grad if need_residual else None, *found, None, None, None


def _gated_shrink_backward(
    ctx: Any, grad: Tensor, grad_mean: Tensor | None, saved: Any
) -> list[Tensor | None]:
    """The gradients of x and of the parameters in steps that can be differentiated: mean is an output of the operator
    and has a gradient of its own.
    """
    mask, mean, state, *parameters = saved
    kind, eps, per_sample, _ = ctx.options
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        tensors = aliases(mean, *parameters)
        alpha = gate_formula(tensors[0], tensors[1:], kind, eps, state)
    statistic = mean.mean(1, keepdim=True) if per_sample else mean
    planes = Planes.read(mask, ctx.layout)
    dtau = -planes.active_sums(grad)
    dalpha = (dtau * statistic).sum_to_size(alpha.shape)
    dmean = (dtau * alpha).sum_to_size(statistic.shape) / (mean.shape[1] if per_sample else 1)
    gate_mean, *found = _gradients(alpha, tensors, dalpha, create_graph)
    for share in (gate_mean, grad_mean):
        if share is not None:
            dmean = dmean + share
    dx = planes.combine(grad, dmean / _count(ctx.layout.shape, False)).to(grad.dtype)
    return [dx, *found]


def _gradients(
    y: Tensor, tensors: list[Tensor | None], grad: Tensor, create_graph: bool
) -> list[Tensor | None]:
    """The gradients of those tensors that require one."""
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=create_graph))
    return [next(found) if t is not None and t.requires_grad else None for t in tensors]


def gate_formula(
    mean: Tensor, parameters: list[Tensor | None], kind: int, eps: float, state: Tensor
) -> Tensor:
    """alpha, (N, C) or (N, 1); running statistics are those of the forward pass, which ``state`` has kept."""
    w1, b1, weight, bias, w2, b2 = (None if t is None else t.to(mean.dtype) for t in parameters)
    h = F.linear(mean, w1, b1)  # type: ignore[arg-type]
    if kind == LAYER:
        h = F.layer_norm(h, h.shape[1:], weight, bias, eps)
    elif kind == RMS:
        h = F.rms_norm(h, h.shape[1:], weight, eps)
    elif kind == BATCH:
        h = F.batch_norm(h, None, None, weight, bias, True, 0.0, eps)
    elif kind == RUNNING:
        h = normalised(h, state[-2 * h.shape[1] :].view(2, -1), weight, bias)
    return F.linear(h.relu(), w2, b2).sigmoid()  # type: ignore[arg-type]


def normalised(h: Tensor, statistics: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``(h - mean) * rstd * weight + bias``; mean and rstd are the rows of ``statistics``."""

    def per_feature(values: Tensor) -> Tensor:
        return reference.per_row(values[None], h)

    mean, rstd = statistics
    h = (h - per_feature(mean)) * per_feature(rstd)
    h = h if weight is None else h * per_feature(weight)
    return h if bias is None else h + per_feature(bias)


def batch_norm_shrink(z: Tensor, residual: Tensor | None, norm: Norm, gate: Gate, per_sample: bool) -> Tensor:
    """`gated_shrink` of the normalised z; brings the statistics of both normalisations up to date."""
    needs_grad = _needs_grad(z, residual, *norm[:2], *gate.parameters)
    updates = BATCH in (norm.kind, gate.kind)
    if torch.compiler.is_compiling() or not (needs_grad or updates):
        y, _, state, input_state = _ops.batch_norm_shrink.default(
            z, residual, *norm.functional, *gate.functional, per_sample
        )
        if norm.kind == BATCH:
            _update_input(norm, input_state, z.numel() // z.shape[1])
        if gate.kind == BATCH:
            _update_gate(gate, state, z.shape[0])
        return y
    if needs_grad:
        return BatchNormShrink.call(z, residual, *norm[:2], *gate.parameters, norm, gate, per_sample)
    y = _ops.batch_norm_shrink_.default(z, residual, *norm, *gate, per_sample)[0]
    _count_up(norm, gate)
    return y


@torch.no_grad()
def _update_input(norm: Norm, input_state: Tensor, count: int) -> None:
    mean, rstd = input_state
    _update(norm, mean, (rstd**-2 - norm.eps).clamp(min=0) * (count / (count - 1)))


class BatchNormShrink(FastFunction):
    """Keeps z, from which the normalised x is computed again."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, residual: Tensor | None, *rest: Any) -> Tensor:
        *parameters, norm, gate, ctx.per_sample = rest  # parameters: of the normalisation, then of the gate
        ctx.input_kind, ctx.input_eps, ctx.kind, ctx.eps = norm.kind, norm.eps, gate.kind, gate.eps
        with _BelowAutograd():
            y, mean, state, input_state = _ops.batch_norm_shrink_.default(
                z, residual, *norm, *gate, ctx.per_sample
            )
        _count_up(norm, gate)
        ctx.save_for_backward(z, mean, state, input_state, *parameters)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *BatchNormShrink.gradients(ctx, grad, ctx.needs_input_grad[:10]), None, None, None

    @staticmethod
    def gradients(ctx: Any, grad: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """The gradients of z, residual and the parameters."""
        z, mean, state, input_state, *parameters = saved = ctx.saved_tensors
        need_z, need_residual, *need_parameters = needs
        dresidual = grad if need_residual else None
        if not need_z and not any(need_parameters):
            return None, dresidual, *[None] * 8
        if torch.is_grad_enabled() or _transforming(grad, *saved):
            with reference.no_autocast(grad):  # as the kernels computed it
                dz, *found = _batch_norm_shrink_backward(ctx, grad, z, state, input_state, parameters)
        else:
            dz, *found = _ops.batch_norm_shrink_backward.default(
                grad,
                z,
                *parameters[:2],
                ctx.input_kind,
                mean,
                state,
                input_state,
                *parameters[2:],
                ctx.kind,
                ctx.eps,
                ctx.per_sample,
                need_z,
                any(need_parameters),
            )
        wanted = [t if need else None for t, need in zip(found, need_parameters, strict=True)]
        return dz if need_z else None, dresidual, *wanted


def _batch_norm_shrink_backward(
    ctx: Any, grad: Tensor, z: Tensor, state: Tensor, input_state: Tensor, parameters: list[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of z and of the parameters, by differentiating the plain formula."""
    create_graph = torch.is_grad_enabled()
    wide = state.dtype
    with torch.enable_grad():
        tensors = aliases(z, *parameters)
        source, weight, bias = (None if t is None else t.to(wide) for t in tensors[:3])
        if ctx.input_kind == BATCH:
            x = F.batch_norm(source, None, None, weight, bias, True, 0.0, ctx.input_eps)  # type: ignore[arg-type]
        else:
            x = normalised(source, input_state, weight, bias)  # type: ignore[arg-type]
        alpha = gate_formula(reference.abs_mean(x), tensors[3:], ctx.kind, ctx.eps, state)
        statistic: Statistic = "sample" if ctx.per_sample else "channel"
        y = reference.shrink_and_mean(x, alpha, statistic, None)[0].to(z.dtype)
    return _gradients(y, tensors, grad, create_graph)
