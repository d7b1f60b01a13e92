"""The fake kernels, by which ``torch.compile`` and ``torch.export`` know the shapes and strides of results."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..reference import accumulator
from .gate import BATCH, RUNNING
from .library import NAMESPACE, OPS
from .masks import Layout, is_channels_last
from .spatial import same_padding

_Fake = TypeVar("_Fake", bound=Callable[..., Any])


def register_fake(operator: str) -> Callable[[_Fake], _Fake]:
    """``torch.library.register_fake`` with a check of devices: PyTorch calls a fake kernel if any tensor is on meta."""
    arguments = getattr(OPS, operator).default._schema.arguments

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

        torch.library.register_fake(f"{NAMESPACE}::{operator}", checked)
        return fake

    return register


def _mask_like(x: Tensor, planes: int) -> Tensor:
    segments, length = Layout.of(x).segments
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
def _(x: Tensor, alpha: Tensor, residual: Tensor | None, per_sample: bool) -> Tensor:
    return Layout.of(x).empty(x)


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


_GATE = ("w1", "b1", "norm_weight", "norm_bias", "w2", "b2")


def _register_by_names(operator: str) -> Callable[[Callable[[Any], Any]], None]:
    """`register_fake` for a function of one object, whose attributes are the operator's arguments."""
    names = [argument.name for argument in getattr(OPS, operator).default._schema.arguments]

    def register(fake: Callable[[Any], Any]) -> None:
        register_fake(operator)(
            lambda *values: fake(SimpleNamespace(**dict(zip(names, values, strict=True))))
        )

    return register


def _state_like(x: Tensor, a: Any) -> Tensor:
    hidden, outputs = a.w1.shape[0], a.w2.shape[0]
    statistics = 2 * hidden if a.gate_norm in (BATCH, RUNNING) else 0
    return x.new_empty([x.shape[0] * (hidden + outputs) + statistics], dtype=accumulator(x.dtype))


def _gradients_like(a: Any, parameters: tuple[str, ...], needed: bool) -> list[Tensor]:
    found = (getattr(a, name) for name in parameters)
    none = [0], accumulator(a.grad.dtype)
    like = (none if t is None else (t.shape if needed else [0], t.dtype) for t in found)
    return [a.grad.new_empty(shape, dtype=dtype) for shape, dtype in like]


@_register_by_names("gated_shrink")
def _(a: Any) -> Tensor:
    return Layout.of(a.x).empty(a.x)


@_register_by_names("gated_shrink_with_mask")
def _(a: Any) -> tuple[Tensor, ...]:
    return Layout.of(a.x).empty(a.x), _mean_like(a.x, False), _state_like(a.x, a), _mask_like(a.x, 3)


@_register_by_names("gated_shrink_")
def _(a: Any) -> tuple[Tensor, ...]:
    y = a.x.new_empty([0]) if a.inplace else Layout.of(a.x).empty(a.x)
    mask = _mask_like(a.x, 3) if a.with_mask else a.x.new_empty([0], dtype=torch.uint8)
    return y, _mean_like(a.x, False), _state_like(a.x, a), mask


@_register_by_names("gated_shrink_backward")
def _(a: Any) -> tuple[Tensor, ...]:
    layout = Layout(list(a.grad.shape), a.grad.dtype, a.channels_last)
    dx = layout.empty(a.grad) if a.need_x else a.grad.new_empty([0])
    return dx, *_gradients_like(a, _GATE, a.need_gate)


def _batch_norm_shrink_like(a: Any) -> tuple[Tensor, ...]:
    state = _state_like(a.z, a)
    return Layout.of(a.z).empty(a.z), _mean_like(a.z, False), state, state.new_empty([2, a.z.shape[1]])


_register_by_names("batch_norm_shrink")(_batch_norm_shrink_like)
_register_by_names("batch_norm_shrink_")(_batch_norm_shrink_like)


@_register_by_names("batch_norm_shrink_backward")
def _(a: Any) -> tuple[Tensor, ...]:
    dz = Layout.of(a.z).empty(a.grad) if a.need_z else a.grad.new_empty([0])
    return dz, *_gradients_like(a, ("weight", "bias", *_GATE), a.need_parameters)


def _batch_norm_relu_like(a: Any) -> tuple[Tensor, ...]:
    padded = [size + sum(same_padding([size], a.stride)) for size in a.x.shape[2:]]
    channels_last = is_channels_last(a.x)
    y = Layout([*a.x.shape[:2], *padded], a.x.dtype, channels_last).empty(a.x)
    return y, *_shortcut_and_state_like(a, channels_last)


def _shortcut_and_state_like(a: Any, channels_last: bool) -> tuple[Tensor, Tensor]:
    x = a.x
    shape = [x.shape[0], a.shortcut_channels, *_strided(x.shape[2:], a.stride)]
    shortcut = Layout(shape, x.dtype, channels_last).empty(x) if a.shortcut_channels else x.new_empty([0])
    return shortcut, x.new_empty([2, x.shape[1]], dtype=accumulator(x.dtype))


def _strided(sizes: Sequence[int], stride: int) -> list[int]:
    return [(size + stride - 1) // stride for size in sizes]


_register_by_names("batch_norm_relu")(_batch_norm_relu_like)
_register_by_names("batch_norm_relu_")(_batch_norm_relu_like)


@_register_by_names("batch_norm_relu_backward")
def _(a: Any) -> tuple[Tensor, ...]:
    dx = Layout.of(a.x).empty(a.x) if a.need_x else a.x.new_empty([0])
    return dx, *_gradients_like(a, ("weight", "bias"), a.need_parameters)


def _batch_norm_relu_conv_like(a: Any) -> tuple[Tensor, ...]:
    shape = [a.x.shape[0], a.conv_weight.shape[0], *_strided(a.x.shape[2:], a.stride)]
    return Layout(shape, a.x.dtype, True).empty(a.x), *_shortcut_and_state_like(a, True)


_register_by_names("batch_norm_relu_conv")(_batch_norm_relu_conv_like)
_register_by_names("batch_norm_relu_conv_")(_batch_norm_relu_conv_like)


@_register_by_names("residual_unit")
def _(a: Any) -> Tensor:
    shape = [a.x.shape[0], a.conv_weight2.shape[0], *_strided(a.x.shape[2:], a.stride)]
    return Layout(shape, a.x.dtype, True).empty(a.x)


@_register_by_names("batch_norm_relu_conv_backward")
def _(a: Any) -> tuple[Tensor, ...]:
    x, shape = a.x, a.conv_weight.shape if a.need_conv else [0]
    dx = Layout(x.shape, x.dtype, True).empty(x) if a.need_x else x.new_empty([0])
    of_norm = _gradients_like(a, ("weight", "bias"), a.need_parameters)
    return dx, *of_norm, x.new_empty(shape), x.new_empty(shape[:1])
