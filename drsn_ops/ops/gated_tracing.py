"""What ``torch.compile`` and ``torch.export`` see of the operators with a gate; see `tracing`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import register_autograd

from ..reference import accumulator
from .gated_autograd import BatchNormShrink, GatedShrink
from .masks import Layout
from .plain_gate import BATCH, RUNNING
from .tracing import _mask_like, _mean_like, register_fake


def _state_like(x: Tensor, w1: Tensor, w2: Tensor, kind: int) -> Tensor:
    hidden, outputs = w1.shape[0], w2.shape[0]
    statistics = 2 * hidden if kind in (BATCH, RUNNING) else 0
    return x.new_empty([x.shape[0] * (hidden + outputs) + statistics], dtype=accumulator(x.dtype))


def _gradients_like(grad: Tensor, parameters: tuple[Tensor | None, ...], needed: bool) -> list[Tensor]:
    wide = accumulator(grad.dtype)
    return [grad.new_empty([0] if t is None or not needed else t.shape, dtype=wide) for t in parameters]


@register_fake("gated_shrink")
def _(x: Tensor, residual: Tensor | None, *gate: Any) -> Tensor:
    return Layout.of(x).empty(x)


@register_fake("gated_shrink_with_mask")
def _(
    x: Tensor,
    residual: Tensor | None,
    w1: Tensor,
    b1: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    w2: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    *_, kind, _, _ = rest
    return Layout.of(x).empty(x), _mean_like(x, False), _state_like(x, w1, w2, kind), _mask_like(x, 3)


@register_fake("gated_shrink_")
def _(
    x: Tensor,
    residual: Tensor | None,
    w1: Tensor,
    b1: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    w2: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    *_, kind, _, _, inplace, with_mask = rest
    y = x.new_empty([0]) if inplace else Layout.of(x).empty(x)
    mask = _mask_like(x, 3)
    return y, _mean_like(x, False), _state_like(x, w1, w2, kind), mask if with_mask else mask.new_empty([0])


@register_fake("gated_shrink_backward")
def _(
    grad: Tensor, grad_mean: Tensor | None, mask: Tensor, mean: Tensor, state: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    *parameters, _, _, _, channels_last, need_x, need_gate = rest
    dx = Layout(list(grad.shape), grad.dtype, channels_last).empty(grad) if need_x else grad.new_empty([0])
    return dx, *_gradients_like(grad, tuple(parameters), need_gate)


def _batch_norm_shrink_like(operator: str) -> Callable[..., tuple[Tensor, ...]]:
    """The fake kernel of both operators: they differ in arguments that no shape depends on."""
    names = [argument.name for argument in getattr(torch.ops.drsn_ops, operator).default._schema.arguments]

    def fake(*values: Any) -> tuple[Tensor, ...]:
        given = dict(zip(names, values, strict=True))
        z = given["z"]
        state = _state_like(z, given["w1"], given["w2"], given["gate_norm"])
        return z.new_empty(z.shape), _mean_like(z, False), state, state.new_empty([2, z.shape[1]])

    return fake


for _operator in ("batch_norm_shrink", "batch_norm_shrink_"):
    register_fake(_operator)(_batch_norm_shrink_like(_operator))


@register_fake("batch_norm_shrink_backward")
def _(
    grad: Tensor,
    z: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    input_norm: int,
    mean: Tensor,
    state: Tensor,
    input_state: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    *gate, _, _, _, need_z, need_parameters = rest
    dz = grad.new_empty(grad.shape if need_z else [0])
    return dz, *_gradients_like(grad, (weight, bias, *gate), need_parameters)


def _save_gated_shrink(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, *parameters, _, _, kind, eps, per_sample = inputs
    _, mean, state, mask = output
    ctx.layout = Layout.of(x)
    ctx.options = kind, eps, per_sample, ctx.layout.channels_last
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(mask, mean, state, *parameters)


def _gated_shrink_backward(ctx: Any, grad: Tensor | None, grad_mean: Tensor | None, *_: Any) -> Any:
    return *GatedShrink.backward(ctx, grad, grad_mean)[:8], *[None] * 5


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
    _, mean, state, input_state = output
    ctx.save_for_backward(z, mean, state, input_state, weight, bias, *gate)


def _batch_norm_shrink_backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
    needs = ctx.needs_input_grad
    found = BatchNormShrink.gradients(ctx, grad, needs[:4] + needs[8:14])
    return *found[:4], *[None] * 4, *found[4:], *[None] * 5


register_autograd(
    "drsn_ops::gated_shrink_with_mask", _gated_shrink_backward, setup_context=_save_gated_shrink
)
register_autograd(
    "drsn_ops::batch_norm_shrink", _batch_norm_shrink_backward, setup_context=_save_batch_norm_shrink
)
