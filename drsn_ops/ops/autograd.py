"""``torch.autograd.Function`` over the registered operators.

Which way a call goes:

- nothing needs a gradient: the operator that keeps no mask;
- eager autograd: the ``Function`` below, whose backward is an operator that works from the mask, or, where
  ``create_graph=True`` asks for more, the plain formulas of `masks` on the same bits, to any order;
- ``torch.compile``, ``torch.export``, ``torch.jit.trace``: the registered operator as ``tracing`` describes it;
- a ``torch.func`` transform, forward-mode AD, an export to ONNX, or a device without kernels: the plain formulas of
  ``reference``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd import forward_ad as _forward_ad

from .. import reference
from ..reference import Statistic, per_row
from .library import has_kernels
from .masks import Layout, Planes, is_channels_last, shrink_gradients, soft_threshold_gradients

_ops = torch.ops.drsn_ops

# Below autograd's keys: register_autograd's kernel would cost a second graph node and some microseconds a call.
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_in_torch_func = torch._C._are_functorch_transforms_active
# by names of their own: a call on small tensors asks for each
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_in_torchscript = torch._C._is_tracing
_in_jit_trace: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]


def _traced_in_torch_func() -> bool:
    return torch._C._functorch.maybe_current_level() is not None


# What torch.compiler.assume_constant_result sets; it would import the compiler, and sympy, with the package.
_traced_in_torch_func._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _exporting_to_onnx() -> bool:
    """Whether an ONNX exporter traces, of which there is none before its module has been imported."""
    onnx: Any = sys.modules.get("torch.onnx")
    return onnx is not None and bool(onnx.is_in_onnx_export())


_exporting_to_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _has_tangent(*tensors: Tensor | None) -> bool:
    return any(t is not None and _forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _transforming(*tensors: Tensor | None) -> bool:
    """Whether a transform, or an exporter to ONNX, watches, and only plain operators go through it.

    Forward mode is on for all threads at once; of these tensors, those of its own thread have tangents.
    """
    forward_mode = _forward_ad._current_level >= 0
    if _is_compiling():
        return _traced_in_torch_func() or forward_mode or _exporting_to_onnx()
    if _in_torchscript() and _exporting_to_onnx():
        return True
    return _in_torch_func() or (forward_mode and _has_tangent(*tensors))


def _tracing() -> bool:
    """Whether a tracer records the registered operators, which say what an autograd.Function does not."""
    return _is_compiling() or _in_jit_trace()


def serves(x: Tensor) -> bool:
    """Whether kernels serve the device of x."""
    return x.is_cpu or has_kernels(x.device)


def fuses(x: Tensor, *others: Tensor | None) -> bool:
    """Whether compiled operators compute on these tensors, and not the plain formulas."""
    return not _transforming(x, *others) and serves(x) and not _in_jit_trace()


def _needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a derivative may be asked for; a jit trace is one for both cases, and is checked without gradients."""
    wanted = _is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return wanted or _in_jit_trace()


def _overwrites(x: Tensor, needs_grad: bool) -> bool:
    """Whether a kernel may write into x; ``Tensor.copy_`` knows the rules for leaves, views and overlapping memory."""
    if _tracing() or (needs_grad and (x.requires_grad and x.is_leaf or x._is_view())):
        return False
    # PyTorch's own operators would write first and then refuse.
    if x.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError("x: Inplace update to inference tensor outside InferenceMode is not allowed")
    if x.is_neg() or x.is_conj():
        return False
    return x.is_contiguous() or is_channels_last(x)


def aliases(*tensors: Any) -> list[Any]:
    """The tensors under new names, so that a derivative by one is not also taken along what made another."""
    return [None if t is None else t.view_as(t) for t in tensors]


class FastFunction(Function):
    """``call`` is ``apply`` without the part that serves torch.func transforms, which never come here."""

    @classmethod
    def call(cls, *args: Any) -> Any:
        return super(Function, cls).apply(*args)  # type: ignore[misc]


def soft_threshold(x: Tensor, tau: Tensor | None, value: float, inplace: bool) -> Tensor:
    """``sign(x) * max(|x| - tau, 0)``; ``value`` is tau where ``tau`` is None."""
    if _transforming(x, tau) or not serves(x) or (x.is_complex() and _tracing()):
        return reference.soft_threshold(x, value if tau is None else tau, inplace=inplace)
    needs_grad = _needs_grad(x, tau)
    if inplace:
        keeps = needs_grad and x.is_complex()  # its backward keeps x
        if keeps or not _overwrites(x, needs_grad):
            return x.copy_(soft_threshold(x.clone() if keeps else x, tau, value, False))
    if not needs_grad:
        if not inplace:
            return _ops.soft_threshold.default(x, tau, value)
        _ops.soft_threshold_.default(x, tau, value, False)
        torch.autograd.graph.increment_version(x)
        return x
    if _tracing():
        return _ops.soft_threshold_with_mask.default(x, tau, value)[0]
    if x.is_complex():
        return ComplexSoftThreshold.call(x, tau, value)
    return SoftThreshold.call(x, tau, value, inplace)


class SoftThreshold(FastFunction):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: Tensor | None, value: float, inplace: bool) -> Tensor:
        ctx.channels_last = is_channels_last(x)
        ctx.tau = None if tau is None else (tau.shape, tau.dtype)
        with _BelowAutograd():
            if inplace:
                mask = _ops.soft_threshold_.default(x, tau, value, True)
                ctx.mark_dirty(x)
                y = x
            else:
                y, mask = _ops.soft_threshold_with_mask.default(x, tau, value)
        ctx.save_for_backward(mask)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        need_x, need_tau = ctx.needs_input_grad[:2]
        layout = Layout(grad.shape, grad.dtype, ctx.channels_last)
        tau_shape, tau_dtype = ctx.tau if need_tau else ([], None)
        if _needs_grad(grad) or _transforming(grad):
            dx, dtau = soft_threshold_gradients(grad, mask, layout)
            if need_tau:
                dtau = dtau.sum_to_size(tau_shape).to(tau_dtype)
        else:
            dx, dtau = _ops.soft_threshold_backward.default(
                grad, mask, tau_shape, tau_dtype, layout.channels_last, need_x
            )
        return dx if need_x else None, dtau if need_tau else None, None, None


class ComplexSoftThreshold(FastFunction):
    """Keeps x: its phase is no mask of a few bits. Later derivatives are those of the plain formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: Tensor | None, value: float) -> Tensor:
        ctx.value = value
        ctx.save_for_backward(x, tau)
        with _BelowAutograd():
            return _ops.soft_threshold.default(x, tau, value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, tau = ctx.saved_tensors
        need_x, need_tau = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() or _transforming(x, tau, grad):
            with torch.enable_grad():
                x, tau = aliases(x, tau)
                wanted: Any = [t for t, need in ((x, need_x), (tau, need_tau)) if need]
                y = reference.soft_threshold(x, ctx.value if tau is None else tau)
                found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
            dx, dtau = next(found) if need_x else None, next(found) if need_tau else None
        else:
            dx, dtau = _ops.complex_soft_threshold_backward.default(grad, x, tau, ctx.value, need_x, need_tau)
        return dx if need_x else None, dtau if need_tau else None, None


def _count(shape: Sequence[int], per_sample: bool) -> int:
    return max(math.prod(shape[1 if per_sample else 2 :]), 1)


def abs_mean(x: Tensor, per_sample: bool) -> Tensor:
    """Mean of ``|x|`` over each row, (N, C), or each sample, (N, 1)."""
    if _transforming(x) or not serves(x):
        return reference.abs_mean(x, statistic="sample" if per_sample else "channel")
    if not _needs_grad(x):
        return _ops.abs_mean.default(x, per_sample)
    if _tracing():
        return _ops.abs_mean_with_mask.default(x, per_sample)[0]
    return AbsMean.call(x, per_sample)


class AbsMean(FastFunction):
    @staticmethod
    def forward(ctx: Any, x: Tensor, per_sample: bool) -> Tensor:
        ctx.layout = Layout.of(x)
        ctx.per_sample = per_sample
        with _BelowAutograd():
            mean, mask = _ops.abs_mean_with_mask.default(x, per_sample)
        ctx.save_for_backward(mask)
        return mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        layout = ctx.layout
        grad = grad / _count(layout.shape, ctx.per_sample)
        if not (_needs_grad(grad) or _transforming(grad)):
            return _ops.abs_mean_backward.default(grad, mask, *layout), None
        planes = Planes.read(mask, layout)
        return planes.along_sign(per_row(grad, planes.nonzero)).to(layout.dtype), None


def shrink(
    x: Tensor, alpha: Tensor, residual: Tensor | None, per_sample: bool, inplace: bool
) -> tuple[Tensor, Tensor]:
    """``(soft_threshold(x, alpha * mean) + residual, mean)``; alpha of shape (N or 1, C or 1)."""
    if _transforming(x, alpha, residual) or not serves(x):
        statistic: Statistic = "sample" if per_sample else "channel"
        return reference.shrink_and_mean(x, alpha, statistic, residual, inplace)
    needs_grad = _needs_grad(x, alpha, residual)
    if inplace and not _overwrites(x, needs_grad):
        y, mean = shrink(x, alpha, residual, per_sample, False)
        return x.copy_(y), mean
    if not needs_grad:
        if not inplace:
            return _ops.shrink.default(x, alpha, residual, per_sample)
        mean, _ = _ops.shrink_.default(x, alpha, residual, per_sample, False)
        torch.autograd.graph.increment_version(x)
        return x, mean
    if _tracing():
        return _ops.shrink_with_mask.default(x, alpha, residual, per_sample)[:2]
    return Shrink.call(x, alpha, residual, per_sample, inplace)


class Shrink(FastFunction):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, alpha: Tensor, residual: Tensor | None, per_sample: bool, inplace: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.layout = Layout.of(x)
        ctx.per_sample = per_sample
        ctx.set_materialize_grads(False)
        with _BelowAutograd():
            if inplace:
                mean, mask = _ops.shrink_.default(x, alpha, residual, per_sample, True)
                ctx.mark_dirty(x)
                y = x
            else:
                y, mean, mask = _ops.shrink_with_mask.default(x, alpha, residual, per_sample)
        ctx.save_for_backward(mask, alpha, mean)
        return y, mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_mean: Tensor | None) -> tuple[Tensor | None, ...]:
        mask, alpha, mean = ctx.saved_tensors
        need_x, need_alpha, need_residual = ctx.needs_input_grad[:3]
        if grad is None:
            grad = mean.new_zeros(ctx.layout.shape, dtype=ctx.layout.dtype)
        dx, dalpha = None, None
        if need_x or need_alpha:
            dx, dalpha = shrink_backward(
                grad, grad_mean, mask, alpha, mean, ctx.layout, ctx.per_sample, need_x, need_alpha
            )
        return (
            dx if need_x else None,
            dalpha if need_alpha else None,
            grad if need_residual else None,
            None,
            None,
        )


def shrink_backward(
    grad: Tensor,
    grad_mean: Tensor | None,
    mask: Tensor,
    alpha: Tensor,
    mean: Tensor,
    layout: Layout,
    per_sample: bool,
    need_x: bool,
    need_alpha: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of x, through the band and through the mean, and of alpha."""
    if not (torch.is_grad_enabled() or _transforming(grad, grad_mean, alpha, mean)):
        return _ops.shrink_backward.default(
            grad, grad_mean, mask, alpha, mean, per_sample, layout.channels_last, need_x, need_alpha
        )
    # alpha, and mean, which is an output of the operator, have gradients
    count = _count(layout.shape, per_sample)
    dx, dalpha = shrink_gradients(Planes.read(mask, layout), grad, grad_mean, alpha, mean, count)
    return dx.to(layout.dtype), dalpha
