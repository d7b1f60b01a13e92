"""``torch.autograd.Function`` over the operator that normalises and applies a ReLU.

A call takes the ways that `autograd` lists; `plain_gate` decides which BatchNorms come here. Second derivatives are
those of the plain formula over what the forward pass kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.library import register_autograd

from .autograd import BelowAutograd, aliases, gradients, is_compiling, transforming, wants_grad
from .gate import BATCH, Norm, batch_norm_formula, count_up, update_from_state
from .library import OPS
from .spatial import pad_same, shortcut_of


def batch_norm_relu(
    x: Tensor, norm: Norm, stride: int = 1, shortcut_channels: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """``relu(norm(x))``, padded for a convolution of this stride, and the shortcut; updates running statistics."""
    if is_compiling():
        y, shortcut, state = _run(OPS.batch_norm_relu.default, x, norm.functional, stride, shortcut_channels)
        if norm.kind == BATCH:
            update_from_state(norm, state, x.numel() // x.shape[1])
    elif wants_grad(x, *norm[:2]):
        y, shortcut = BatchNormRelu.apply(x, *norm[:2], norm, stride, shortcut_channels)
    else:
        writes = norm.kind == BATCH
        operator = OPS.batch_norm_relu_.default if writes else OPS.batch_norm_relu.default
        with BelowAutograd():
            y, shortcut, _ = _run(operator, x, norm if writes else norm.functional, stride, shortcut_channels)
        count_up(norm)
    return y, shortcut


def _run(
    operator: Callable[..., tuple[Tensor, Tensor, Tensor]],
    x: Tensor,
    norm: Sequence[Any],
    stride: int,
    channels: int | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """y, the shortcut and the state. A shortcut that leaves nothing out and adds no channels is x itself."""
    itself = stride == 1 and channels == x.shape[1]
    made = 0 if channels is None or itself else channels
    y, shortcut, state = operator(x, *norm, stride, made)
    return y, x if itself else shortcut if made else None, state


class BatchNormRelu(Function):
    """Keeps x, from which the backward pass computes again where the ReLU let it through."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm, *geometry: Any
    ) -> tuple[Tensor, Tensor | None]:  # geometry: stride, shortcut_channels
        with BelowAutograd():
            y, shortcut, state = _run(OPS.batch_norm_relu_.default, x, norm, *geometry)
        count_up(norm)
        BatchNormRelu.keep(ctx, (x, weight, bias, state), norm.kind, norm.eps, *geometry)
        return y, shortcut

    @staticmethod
    def keep(ctx: Any, saved: tuple[Any, ...], *options: Any) -> None:
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_shortcut: Tensor | None) -> tuple[Tensor | None, ...]:
        return *BatchNormRelu.gradients(ctx, grad, grad_shortcut), None, None, None

    @staticmethod
    def gradients(ctx: Any, grad: Tensor | None, grad_shortcut: Tensor | None) -> Sequence[Tensor | None]:
        """The gradients of x and of the parameters; ``grad_shortcut`` is that of the shortcut."""
        needs = need_x, *need_parameters = ctx.needs_input_grad[:3]
        if not need_x:
            grad_shortcut = None
        if grad is None and grad_shortcut is None:
            return None, None, None
        x, weight, bias, state = saved = ctx.saved_tensors
        kind, _, stride, _ = ctx.options
        if grad is None or torch.is_grad_enabled() or transforming(grad, grad_shortcut, *saved):
            found = _gradients(ctx.options, grad, grad_shortcut, *saved)
        else:
            found = OPS.batch_norm_relu_backward.default(
                grad, grad_shortcut, x, weight, bias, kind, state, stride, need_x, any(need_parameters)
            )
        return [t if need else None for t, need in zip(found, needs, strict=True)]


def _gradients(
    options: tuple[Any, ...],
    grad: Tensor | None,
    grad_shortcut: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    state: Tensor,
) -> list[Tensor | None]:
    """The gradients of x and of the parameters, by differentiating the plain formula of what has a gradient."""
    kind, eps, stride, channels = options
    create_graph = torch.is_grad_enabled()
    results, grads = [], [t for t in (grad, grad_shortcut) if t is not None]
    with torch.enable_grad():
        x, weight, bias = tensors = aliases(x, weight, bias)
        if grad is not None:
            y = batch_norm_formula(x, weight, bias, kind, eps, state)[0].relu()
            results.append(pad_same(y, stride).to(x.dtype))
        if grad_shortcut is not None:
            results.append(shortcut_of(x, stride, channels))
    return gradients(results, tensors, grads, create_graph)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, _, *options = inputs
    BatchNormRelu.keep(ctx, (x, weight, bias, output[2]), *options)


def _backward(ctx: Any, grad: Tensor | None, grad_shortcut: Tensor | None, _: Any) -> Any:
    channels = ctx.options[3]
    return *BatchNormRelu.gradients(ctx, grad, grad_shortcut if channels else None), *[None] * 6


register_autograd(OPS.batch_norm_relu.default, _backward, setup_context=_save)
