"""What ``torch.compile`` and ``torch.export`` see of the operators: shapes, strides and derivatives without data."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.library import register_autograd

from ..reference import accumulator
from .autograd import AbsMean, Shrink, SoftThreshold
from .masks import Layout, is_channels_last

_Fake = TypeVar("_Fake", bound=Callable[..., Any])


def register_fake(operator: str) -> Callable[[_Fake], _Fake]:
    """``torch.library.register_fake`` for functions that say nothing of devices: a mix of them ends up here, as a call
    with a meta tensor.
    """
    arguments = getattr(torch.ops.drsn_ops, operator).default._schema.arguments

    def register(fake: _Fake) -> _Fake:
        @functools.wraps(fake)
        def checked(*values: Any) -> Any:
            given = [(a.name, v) for a, v in zip(arguments, values, strict=True) if isinstance(v, Tensor)]
            first, x = given[0]
            for name, t in given:
                if t.device != x.device:
                    raise ValueError(
                        f"{name}: got a tensor on {t.device}, expected {x.device}, the device of {first}"
                    )
            return fake(*values)

        torch.library.register_fake(f"drsn_ops::{operator}", checked)
        return fake

    return register


def _mask_like(x: Tensor, planes: int) -> Tensor:
    segments, length = (x.shape[0] * x.shape[1], math.prod(x.shape[2:]))
    if is_channels_last(x):
        segments, length = x.shape[0], x.shape[1] * length
    return x.new_empty([segments, planes, (length + 7) // 8], dtype=torch.uint8)


def _soft_threshold_mask_like(x: Tensor) -> Tensor:
    return x.new_empty([2, (x.numel() + 7) // 8], dtype=torch.uint8)


def _mean_like(x: Tensor, per_sample: bool) -> Tensor:
    return x.new_empty([x.shape[0], 1 if per_sample else x.shape[1]], dtype=accumulator(x.dtype))


@register_fake("soft_threshold")
def _(x: Tensor, tau: Tensor | None, value: float) -> Tensor:
    return Layout.of(x).empty(x)


@register_fake("soft_threshold_with_mask")
def _(x: Tensor, tau: Tensor | None, value: float) -> tuple[Tensor, Tensor]:
    return Layout.of(x).empty(x), _soft_threshold_mask_like(x)


@register_fake("soft_threshold_")
def _(x: Tensor, tau: Tensor | None, value: float, with_mask: bool) -> Tensor:
    return _soft_threshold_mask_like(x)[: 2 if with_mask else 0]


@register_fake("soft_threshold_backward")
def _(
    grad: Tensor,
    mask: Tensor,
    tau_shape: list[int],
    tau_dtype: torch.dtype | None,
    channels_last: bool,
    need_x: bool,
) -> tuple[Tensor, Tensor]:
    layout = Layout(list(grad.shape), grad.dtype, channels_last)
    return layout.empty(grad) if need_x else grad.new_empty([0]), _dtau_like(
        layout, grad, tau_shape, tau_dtype
    )


def _dtau_like(
    layout: Layout, grad: Tensor, tau_shape: Sequence[int], tau_dtype: torch.dtype | None
) -> Tensor:
    if tau_dtype is None:
        return grad.new_empty([0])
    follows = layout.channels_last and list(tau_shape) == layout.shape
    return Layout(list(tau_shape), tau_dtype, follows).empty(grad)


@register_fake("complex_soft_threshold_backward")
def _(
    grad: Tensor, x: Tensor, tau: Tensor | None, value: float, need_x: bool, need_tau: bool
) -> tuple[Tensor, Tensor]:
    layout = Layout.of(x)
    dtau = _dtau_like(layout, grad, *((tau.shape, tau.dtype) if need_tau and tau is not None else ([], None)))
    return layout.empty(x) if need_x else x.new_empty([0]), dtau


@register_fake("abs_mean")
def _(x: Tensor, per_sample: bool) -> Tensor:
    return _mean_like(x, per_sample)


@register_fake("abs_mean_with_mask")
def _(x: Tensor, per_sample: bool) -> tuple[Tensor, Tensor]:
    return _mean_like(x, per_sample), _mask_like(x, 2)


@register_fake("abs_mean_backward")
def _(grad: Tensor, mask: Tensor, shape: list[int], dtype: torch.dtype, channels_last: bool) -> Tensor:
    return Layout(list(shape), dtype, channels_last).empty(mask)


@register_fake("shrink")
def _(x: Tensor, alpha: Tensor, residual: Tensor | None, per_sample: bool) -> tuple[Tensor, Tensor]:
    return Layout.of(x).empty(x), _mean_like(x, per_sample)


@register_fake("shrink_with_mask")
def _(x: Tensor, alpha: Tensor, residual: Tensor | None, per_sample: bool) -> tuple[Tensor, Tensor, Tensor]:
    return Layout.of(x).empty(x), _mean_like(x, per_sample), _mask_like(x, 3)


@register_fake("shrink_")
def _(
    x: Tensor, alpha: Tensor, residual: Tensor | None, per_sample: bool, with_mask: bool
) -> tuple[Tensor, Tensor]:
    return _mean_like(x, per_sample), _mask_like(x, 3) if with_mask else x.new_empty([0], dtype=torch.uint8)


@register_fake("shrink_backward")
def _(
    grad: Tensor,
    grad_mean: Tensor | None,
    mask: Tensor,
    alpha: Tensor,
    mean: Tensor,
    per_sample: bool,
    channels_last: bool,
    need_x: bool,
    need_alpha: bool,
) -> tuple[Tensor, Tensor]:
    layout = Layout(list(grad.shape), grad.dtype, channels_last)
    dx = layout.empty(grad) if need_x else grad.new_empty([0])
    return dx, mean.new_empty(alpha.shape if need_alpha else [0])


def _save_soft_threshold(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, tau, _ = inputs
    ctx.channels_last = is_channels_last(x)
    ctx.tau = None if tau is None else (tau.shape, tau.dtype)
    ctx.save_for_backward(output[1])


def _soft_threshold_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return SoftThreshold.backward(ctx, grad)[:3]


def _save_abs_mean(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.layout = Layout.of(inputs[0])
    ctx.per_sample = inputs[1]
    ctx.save_for_backward(output[1])


def _abs_mean_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return AbsMean.backward(ctx, grad)


def _save_shrink(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, alpha, _, ctx.per_sample = inputs
    _, mean, mask = output
    ctx.layout = Layout.of(x)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(mask, alpha, mean)


def _shrink_backward(
    ctx: Any, grad: Tensor | None, grad_mean: Tensor | None, _: Any
) -> tuple[Tensor | None, ...]:
    return Shrink.backward(ctx, grad, grad_mean)[:4]


register_autograd(
    "drsn_ops::soft_threshold_with_mask", _soft_threshold_backward, setup_context=_save_soft_threshold
)
register_autograd("drsn_ops::abs_mean_with_mask", _abs_mean_backward, setup_context=_save_abs_mean)
register_autograd("drsn_ops::shrink_with_mask", _shrink_backward, setup_context=_save_shrink)
