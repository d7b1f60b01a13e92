"""``torch.autograd.Function`` over the operators with a gate between mean and threshold.

A call takes the ways that `autograd` lists; `plain_gate` decides which gates come here. Second derivatives are those of
the plain formulas over what the forward pass kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.library import register_autograd

from .. import reference
from .autograd import (
    BelowAutograd,
    aliases,
    gradients,
    is_compiling,
    may_overwrite,
    scope,
    statistic_size,
    transforming,
    wants_grad,
)
from .gate import (
    BATCH,
    RUNNING,
    Gate,
    Norm,
    batch_norm_formula,
    count_up,
    gate_formula,
    update,
    update_from_state,
)
from .library import OPS
from .masks import Layout, Planes


def gated_shrink(x: Tensor, residual: Tensor | None, gate: Gate, per_sample: bool, inplace: bool) -> Tensor:
    """``soft_threshold(x, alpha * mean) + residual`` with alpha from the gate, whose running statistics it updates."""
    needs_grad = wants_grad(x, residual, *gate.parameters)
    blocked = inplace and not may_overwrite(x, needs_grad)
    if blocked or is_compiling():
        arguments = (x, residual, *gate.functional, per_sample)
        if not needs_grad and gate.kind != BATCH:
            y = OPS.gated_shrink.default(*arguments)
        else:
            y, _, state, _ = OPS.gated_shrink_with_mask.default(*arguments)
        if inplace:  # before the statistics: autograd may refuse it
            y = x.copy_(y)
        if gate.kind == BATCH:
            _update_gate(gate, state, x.shape[0])
        return y
    if x.is_neg():  # no kernel may write into such an x, and gated_shrink_ could
        x = x.resolve_neg()
    if needs_grad:
        return GatedShrink.apply(x, residual, *gate.parameters, gate, per_sample, inplace)[0]
    if not inplace and gate.kind != BATCH:
        return OPS.gated_shrink.default(x, residual, *gate.functional, per_sample)
    y = OPS.gated_shrink_.default(x, residual, *gate, per_sample, inplace, False)[0]
    count_up(gate)
    if inplace:
        torch.autograd.graph.increment_version(x)
    return x if inplace else y


@torch.no_grad()
def _update_gate(gate: Gate, state: Tensor, samples: int) -> None:
    hidden = gate.w1.shape[0]
    var, mean = torch.var_mean(state[: samples * hidden].view(samples, hidden), 0)
    update(gate, mean, var)


class GatedShrink(Function):
    """Also returns the means, through which second derivatives reach x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor]:  # rest: the gate's parameters, gate, per_sample, inplace
        *parameters, gate, per_sample, inplace = rest
        with BelowAutograd():
            y, *kept = OPS.gated_shrink_.default(x, residual, *gate, per_sample, inplace, True)
        count_up(gate)
        if inplace:
            ctx.mark_dirty(x)
            y = x
        GatedShrink.keep(ctx, x, parameters, gate.kind, gate.eps, per_sample, kept)
        return y, kept[0]

    @staticmethod
    def keep(
        ctx: Any, x: Tensor, parameters: Any, kind: int, eps: float, per_sample: bool, kept: Any
    ) -> None:
        mean, state, mask = kept
        ctx.layout = Layout.of(x)
        ctx.options = kind, eps, per_sample, ctx.layout.channels_last
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask, mean, state, *parameters)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_mean: Tensor | None) -> tuple[Tensor | None, ...]:
        need_x, need_residual, *need_parameters = needed = ctx.needs_input_grad[:8]
        saved = ctx.saved_tensors
        if grad is None:
            grad = saved[1].new_zeros(ctx.layout.shape, dtype=ctx.layout.dtype)
        if not need_x and not any(need_parameters):
            return None, grad, *[None] * 9
        if torch.is_grad_enabled() or transforming(grad, grad_mean, *saved[1:]):
            with reference.no_autocast(grad):  # as the kernels computed it
                dx, *found = _gated_shrink_gradients(ctx, grad, grad_mean, saved)
        else:
            dx, *found = OPS.gated_shrink_backward.default(
                grad, grad_mean, *saved, *ctx.options, need_x, any(need_parameters)
            )
        if all(needed):
            return dx, grad, *found, None, None, None
        found = [t if need else None for t, need in zip(found, need_parameters, strict=True)]
        return dx if need_x else None, grad if need_residual else None, *found, None, None, None


def _gated_shrink_gradients(
    ctx: Any, grad: Tensor, grad_mean: Tensor | None, saved: Any
) -> list[Tensor | None]:
    """The gradients of x and of the parameters in differentiable steps; mean, an output, has a gradient of its own."""
    mask, mean, state, *parameters = saved
    kind, eps, per_sample, _ = ctx.options
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        tensors = aliases(mean, *parameters)
        alpha = _alpha(tensors[0], tensors[1:], kind, eps, state)
    statistic = mean.mean(1, keepdim=True) if per_sample else mean
    planes = Planes.read(mask, ctx.layout)
    dtau = -planes.active_sums(grad)
    dalpha = (dtau * statistic).sum_to_size(alpha.shape)
    dmean = (dtau * alpha).sum_to_size(statistic.shape) / (mean.shape[1] if per_sample else 1)
    gate_mean, *found = gradients([alpha], tensors, [dalpha], create_graph)
    for term in (gate_mean, grad_mean):
        if term is not None:
            dmean = dmean + term
    dx = planes.combine(grad, dmean / statistic_size(ctx.layout.shape, False)).to(grad.dtype)
    return [dx, *found]


def _alpha(mean: Tensor, parameters: list[Tensor | None], kind: int, eps: float, state: Tensor) -> Tensor:
    """alpha by the plain formula; running statistics are at the end of ``state``, as the forward pass found them."""
    hidden = parameters[0].shape[0]  # type: ignore[union-attr]
    statistics = state[-2 * hidden :].view(2, hidden) if kind == RUNNING else None
    return gate_formula(mean, parameters, kind, eps, statistics)[0]


def _save_gated_shrink(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, *parameters, _, _, kind, eps, per_sample = inputs
    GatedShrink.keep(ctx, x, parameters, kind, eps, per_sample, output[1:])


def _gated_shrink_backward(ctx: Any, grad: Tensor | None, grad_mean: Tensor | None, *_: Any) -> Any:
    return *GatedShrink.backward(ctx, grad, grad_mean)[:8], *[None] * 5


register_autograd(
    OPS.gated_shrink_with_mask.default, _gated_shrink_backward, setup_context=_save_gated_shrink
)


def batch_norm_shrink(z: Tensor, residual: Tensor | None, norm: Norm, gate: Gate, per_sample: bool) -> Tensor:
    """`gated_shrink` of the normalised z; updates the running statistics of both normalisations."""
    needs_grad = wants_grad(z, residual, *norm[:2], *gate.parameters)
    if is_compiling():
        y, _, state, input_state = OPS.batch_norm_shrink.default(
            z, residual, *norm.functional, *gate.functional, per_sample
        )
        if norm.kind == BATCH:
            update_from_state(norm, input_state, z.numel() // z.shape[1])
        if gate.kind == BATCH:
            _update_gate(gate, state, z.shape[0])
        return y
    if needs_grad:
        return BatchNormShrink.apply(z, residual, *norm[:2], *gate.parameters, norm, gate, per_sample)
    with BelowAutograd():
        if BATCH not in (norm.kind, gate.kind):
            arguments = *norm.functional, *gate.functional, per_sample
            return OPS.batch_norm_shrink.default(z, residual, *arguments)[0]
        y = OPS.batch_norm_shrink_.default(z, residual, *norm, *gate, per_sample)[0]
    count_up(norm, gate)
    return y


class BatchNormShrink(Function):
    """Keeps z, from which the backward pass computes the normalised x again."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, residual: Tensor | None, *rest: Any) -> Tensor:
        *parameters, norm, gate, ctx.per_sample = rest  # parameters: of the normalisation, then of the gate
        ctx.input_kind, ctx.input_eps, ctx.kind, ctx.eps = norm.kind, norm.eps, gate.kind, gate.eps
        with BelowAutograd():
            y, *kept = OPS.batch_norm_shrink_.default(z, residual, *norm, *gate, ctx.per_sample)
        count_up(norm, gate)
        ctx.save_for_backward(z, *kept, *parameters)
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
        if torch.is_grad_enabled() or transforming(grad, *saved):
            with reference.no_autocast(grad):  # as the kernels computed it
                dz, *found = _batch_norm_shrink_gradients(ctx, grad, z, state, input_state, parameters)
        else:
            dz, *found = OPS.batch_norm_shrink_backward.default(
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


def _batch_norm_shrink_gradients(
    ctx: Any, grad: Tensor, z: Tensor, state: Tensor, input_state: Tensor, parameters: list[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of z and of the parameters, by differentiating the plain formula."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        source, weight, bias, *rest = tensors = aliases(z, *parameters)
        x, _ = batch_norm_formula(source, weight, bias, ctx.input_kind, ctx.input_eps, input_state)
        alpha = _alpha(reference.abs_mean(x), rest, ctx.kind, ctx.eps, state)
        y = reference.shrink_and_mean(x, alpha, scope(ctx.per_sample), None)[0].to(z.dtype)
    return gradients([y], tensors, [grad], create_graph)


def _save_batch_norm_shrink(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    (
        z,
        _,
        weight,
        bias,
        _,
        _,
        ctx.input_kind,
        ctx.input_eps,
        *gate,
        _,
        _,
        ctx.kind,
        ctx.eps,
        ctx.per_sample,
    ) = inputs
    ctx.save_for_backward(z, *output[1:], weight, bias, *gate)


def _batch_norm_shrink_backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
    needs = ctx.needs_input_grad
    found = BatchNormShrink.gradients(ctx, grad, needs[:4] + needs[8:14])
    return *found[:4], *[None] * 4, *found[4:], *[None] * 5


register_autograd(
    OPS.batch_norm_shrink.default, _batch_norm_shrink_backward, setup_context=_save_batch_norm_shrink
)
