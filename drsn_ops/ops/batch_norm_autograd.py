"""``torch.autograd.Function`` over the operators that normalise, apply a ReLU and, some of them, convolve.

A call takes the ways that `autograd` lists; `plain_gate` decides which modules come here. Second derivatives are those
of the plain formula over what the forward pass kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.library import register_autograd

from ..reference import no_autocast
from .autograd import BelowAutograd, aliases, gradients, is_compiling, transforming, wants_grad
from .gate import BATCH, Norm, batch_norm_formula, count_up, update_from_state
from .library import OPS
from .spatial import convolution, pad_same, shortcut_of

# Of a convolution too, or of none: the operator that only reads running statistics, and that which updates them.
_READS = {False: OPS.batch_norm_relu.default, True: OPS.batch_norm_relu_conv.default}
_UPDATES = {False: OPS.batch_norm_relu_.default, True: OPS.batch_norm_relu_conv_.default}


def batch_norm_relu(
    x: Tensor,
    norm: Norm,
    stride: int = 1,
    shortcut_channels: int | None = None,
    conv: tuple[Tensor, Tensor | None] | tuple[()] = (),
) -> tuple[Tensor, Tensor | None]:
    """``relu(norm(x))``, padded for a convolution of this stride, and the shortcut; updates running statistics.

    With the weight and the bias of that convolution it is what the convolution makes of it.
    """
    if is_compiling():
        arguments = *norm.functional, *conv
        y, shortcut, state = _run(_READS[bool(conv)], x, arguments, stride, shortcut_channels)
        if norm.kind == BATCH:
            update_from_state(norm, state, x.numel() // x.shape[1])
    elif wants_grad(x, *norm[:2], *conv):
        y, shortcut = BatchNormRelu.apply(x, *norm[:2], *conv, norm, stride, shortcut_channels)
    else:
        updates = norm.kind == BATCH
        operator = (_UPDATES if updates else _READS)[bool(conv)]
        arguments = *(norm if updates else norm.functional), *conv
        with BelowAutograd():
            y, shortcut, _ = _run(operator, x, arguments, stride, shortcut_channels)
        count_up(norm)
    return y, shortcut


def _run(
    operator: Callable[..., tuple[Tensor, Tensor, Tensor]],
    x: Tensor,
    arguments: Sequence[Any],
    stride: int,
    channels: int | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """y, the shortcut and the state. A shortcut that leaves nothing out and adds no channels is x itself."""
    itself = stride == 1 and channels == x.shape[1]
    made = 0 if channels is None or itself else channels
    y, shortcut, state = operator(x, *arguments, stride, made)
    return y, x if itself else shortcut if made else None, state


class BatchNormRelu(Function):
    """Keeps x, from which the backward pass computes again what the ReLU let through."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor | None]:  # rest: the convolution's weight and bias, if any; norm, the geometry
        *conv, norm, stride, channels = rest
        with BelowAutograd():
            y, shortcut, state = _run(_UPDATES[bool(conv)], x, (*norm, *conv), stride, channels)
        count_up(norm)
        BatchNormRelu.keep(ctx, (x, weight, bias, state, *conv), norm.kind, norm.eps, stride, channels)
        return y, shortcut

    @staticmethod
    def keep(ctx: Any, saved: tuple[Any, ...], *options: Any) -> None:
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_shortcut: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:-3]
        return *BatchNormRelu.gradients(ctx, needs, grad, grad_shortcut), None, None, None

    @staticmethod
    def gradients(
        ctx: Any, needs: Sequence[bool], grad: Tensor | None, grad_shortcut: Tensor | None
    ) -> Sequence[Tensor | None]:
        """The gradients of x and of the parameters; ``grad_shortcut`` is that of the shortcut."""
        need_x, need_norm, need_conv = needs[0], any(needs[1:3]), any(needs[3:])
        if not need_x:
            grad_shortcut = None
        if grad is None and grad_shortcut is None:
            return [None] * len(needs)
        x, weight, bias, state, *conv = saved = ctx.saved_tensors
        kind, _, stride, _ = ctx.options
        if grad is None or torch.is_grad_enabled() or transforming(grad, grad_shortcut, *saved):
            found = _gradients(ctx.options, grad, grad_shortcut, *saved)
        elif conv:
            found = OPS.batch_norm_relu_conv_backward.default(
                *(grad, grad_shortcut, x, weight, bias, kind, state),
                *(conv[0], stride, need_x, need_norm, need_conv),
            )
        else:
            found = OPS.batch_norm_relu_backward.default(
                grad, grad_shortcut, x, weight, bias, kind, state, stride, need_x, need_norm
            )
        return [t if need else None for t, need in zip(found, needs, strict=True)]


def _gradients(
    options: tuple[Any, ...], grad: Tensor | None, grad_shortcut: Tensor | None, *saved: Any
) -> list[Tensor | None]:
    """The gradients of x and of the parameters, by differentiating the plain formula of what has a gradient."""
    x, weight, bias, state, *conv = saved
    kind, eps, stride, channels = options
    create_graph = torch.is_grad_enabled()
    results, grads = [], [t for t in (grad, grad_shortcut) if t is not None]
    with torch.enable_grad(), no_autocast(x):  # as the kernels computed it
        x, weight, bias, *conv = tensors = aliases(x, weight, bias, *conv)
        if grad is not None:
            y = pad_same(batch_norm_formula(x, weight, bias, kind, eps, state)[0].relu(), stride)
            results.append((convolution(y, stride, *conv) if conv else y).to(x.dtype))
        if grad_shortcut is not None:
            results.append(shortcut_of(x, stride, channels))
    return gradients(results, tensors, grads, create_graph)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, _, kind, eps, *conv, stride, channels = inputs
    BatchNormRelu.keep(ctx, (x, weight, bias, output[2], *conv), kind, eps, stride, channels)


def _backward(ctx: Any, grad: Tensor | None, grad_shortcut: Tensor | None, _: Any) -> Any:
    needs, channels = ctx.needs_input_grad, ctx.options[3]
    found = BatchNormRelu.gradients(ctx, needs[:3] + needs[7:-2], grad, grad_shortcut if channels else None)
    return *found[:3], *[None] * 4, *found[3:], None, None


for _operator in _READS.values():
    register_autograd(_operator, _backward, setup_context=_save)
