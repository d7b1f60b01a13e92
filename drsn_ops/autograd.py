"""``torch.autograd.Function`` over the registered operators.

Which way a call goes:

- nothing needs a gradient: the operator that keeps no code;
- eager autograd: the ``Function`` below, whose backward works from the code. It is linear in the gradient, and its
  adjoint is an operator too, so ``create_graph=True`` goes on to any order in fused operators;
- ``torch.compile``, ``torch.export``, ``torch.jit.trace``: the registered operator as ``tracing`` describes it;
- a ``torch.func`` transform, forward-mode AD, or a device without kernels: the plain formulas of ``reference``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd import forward_ad as _forward_ad

from . import reference
from ._library import has_kernels
from .codes import Layout, Masks, is_channels_last, soft_threshold_masks, widened
from .reference import accumulator

_ops = torch.ops.drsn_ops

# Below autograd's keys: register_autograd's kernel would cost a second graph node and some microseconds a call.
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_in_torch_func = torch._C._are_functorch_transforms_active
_in_jit_trace: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]


def _traced_in_torch_func() -> bool:
    return torch._C._functorch.maybe_current_level() is not None


# What torch.compiler.assume_constant_result sets; it would import the compiler, and sympy, with the package.
_traced_in_torch_func._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _has_tangent(*tensors: Tensor | None) -> bool:
    return any(t is not None and _forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _transforming(*tensors: Tensor | None) -> bool:
    """Whether a transform watches that only plain operators go through.

    Forward mode is on for all threads at once; of these tensors, those of its own thread have tangents.
    """
    forward_mode = _forward_ad._current_level >= 0
    if torch.compiler.is_compiling():
        return _traced_in_torch_func() or forward_mode
    return _in_torch_func() or (forward_mode and _has_tangent(*tensors))


def _tracing() -> bool:
    """Whether a tracer records the registered operators, which say what an autograd.Function does not."""
    return torch.compiler.is_compiling() or _in_jit_trace()


def serves(x: Tensor) -> bool:
    """Whether kernels serve the device of x."""
    return x.is_cpu or has_kernels(x.device)


def fuses(x: Tensor, *others: Tensor | None) -> bool:
    """Whether compiled operators compute on these tensors, and not the plain formulas."""
    return not _transforming(x, *others) and serves(x) and not _in_jit_trace()


def _needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a derivative may be asked for; a jit trace is one for both cases, and is checked without gradients."""
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
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
    if inplace and not _overwrites(x, needs_grad):
        kept = x.clone() if x.is_complex() else x  # a complex x is what its backward keeps
        return x.copy_(soft_threshold(kept, tau, value, False))
    if not needs_grad:
        if not inplace:
            return _ops.soft_threshold.default(x, tau, value)
        _ops.soft_threshold_.default(x, tau, value, False)
        torch.autograd.graph.increment_version(x)
        return x
    if _tracing():
        return _ops.soft_threshold_with_code.default(x, tau, value)[0]
    return (ComplexSoftThreshold if x.is_complex() else SoftThreshold).call(x, tau, value, inplace)


class SoftThreshold(FastFunction):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: Tensor | None, value: float, inplace: bool) -> Tensor:
        ctx.channels_last = is_channels_last(x)
        ctx.tau = None if tau is None else (tau.shape, tau.dtype)
        with _BelowAutograd():
            if inplace:
                code = _ops.soft_threshold_.default(x, tau, value, True)
                ctx.mark_dirty(x)
                y = x
            else:
                y, code = _ops.soft_threshold_with_code.default(x, tau, value)
        ctx.save_for_backward(code)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (code,) = ctx.saved_tensors
        need_x, need_tau = ctx.needs_input_grad[:2]
        layout = Layout(grad.shape, grad.dtype, ctx.channels_last)
        dx, dtau = soft_threshold_backward(grad, code, layout, ctx.tau if need_tau else None, need_x)
        return dx if need_x else None, dtau if need_tau else None, None, None


def soft_threshold_backward(
    grad: Tensor, code: Tensor, layout: Layout, tau: tuple[Sequence[int], torch.dtype] | None, need_x: bool
) -> tuple[Tensor, Tensor]:
    """``(passes * grad, -sum of active * sign * grad)``; a result that is not needed is empty."""
    if _transforming(grad):
        passes, masks = soft_threshold_masks(code, layout)
        dx = torch.where(passes, grad, 0)
        dtau = -masks.along_sign(widened(grad))
        return dx, dtau if tau is None else dtau.sum_to_size(tau[0]).to(tau[1])
    arguments = (
        grad,
        code,
        [] if tau is None else tau[0],
        None if tau is None else tau[1],
        layout.channels_last,
        need_x,
    )
    if _needs_grad(grad):
        return SoftThresholdBackward.call(layout, *arguments)
    return _ops.soft_threshold_backward.default(*arguments)


class SoftThresholdBackward(FastFunction):
    @staticmethod
    def forward(ctx: Any, layout: Layout, grad: Tensor, code: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        ctx.layout = layout
        ctx.save_for_backward(code)
        ctx.set_materialize_grads(False)
        dx, dtau = _ops.soft_threshold_backward.default(grad, code, *rest)
        return dx, dtau

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, dtau: Tensor | None) -> tuple[Tensor | None, ...]:
        (code,) = ctx.saved_tensors
        tangent = (
            None if dx is None and dtau is None else SoftThresholdTangent.call(ctx.layout, dx, dtau, code)
        )
        return None, tangent, None, None, None, None, None


class SoftThresholdTangent(FastFunction):
    """``passes * dx - active * sign * dtau``."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, dx: Tensor | None, dtau: Tensor | None, code: Tensor) -> Tensor:
        ctx.layout = layout
        ctx.tau = None if dtau is None else (dtau.shape, dtau.dtype)
        ctx.save_for_backward(code)
        wide = None if dtau is None else dtau.to(accumulator(layout.dtype))
        return _ops.soft_threshold_tangent.default(dx, wide, code, *layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (code,) = ctx.saved_tensors
        _, need_dx, need_dtau, _ = ctx.needs_input_grad
        dx, dtau = soft_threshold_backward(grad, code, ctx.layout, ctx.tau if need_dtau else None, need_dx)
        return None, dx if need_dx else None, dtau if need_dtau else None, None


class ComplexSoftThreshold(FastFunction):
    """Keeps x: its phase is no code of a few bits. Later derivatives are those of the plain formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: Tensor | None, value: float, inplace: bool) -> Tensor:
        ctx.value = value
        ctx.save_for_backward(x.clone() if inplace else x, tau)
        with _BelowAutograd():
            if not inplace:
                return _ops.soft_threshold.default(x, tau, value)
            _ops.soft_threshold_.default(x, tau, value, False)
        ctx.mark_dirty(x)
        return x

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
        return dx if need_x else None, dtau if need_tau else None, None, None


# The two linear maps of a code that every derivative of abs_mean and shrink is made of.


def combine(grad: Tensor | None, w: Tensor | None, v: Tensor | None, code: Tensor, layout: Layout) -> Tensor:
    """``active * (grad + sign * w) + sign * v`` with one w and one v a row."""
    if _transforming(grad, w, v):
        combined = Masks.read(code, layout).combine(grad, w, v, accumulator(layout.dtype))
        return combined.to(layout.dtype)
    if _needs_grad(grad, w, v):
        return Combine.call(grad, w, v, code, layout)
    return _ops.combine.default(grad, w, v, code, *layout)


def row_sums(grad: Tensor, code: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The sums over each row, (N, C), of ``active * sign * grad`` and of ``sign * grad``."""
    if _transforming(grad):
        return Masks.read(code, layout).row_sums(grad)
    if _needs_grad(grad):
        return RowSums.call(grad, code, layout)
    return _ops.row_sums.default(grad, code, layout.channels_last)


class Combine(FastFunction):
    @staticmethod
    def forward(
        ctx: Any, grad: Tensor | None, w: Tensor | None, v: Tensor | None, code: Tensor, layout: Layout
    ) -> Tensor:
        ctx.layout = layout
        ctx.shapes = [None if t is None else t.shape for t in (w, v)]
        ctx.save_for_backward(code)
        return _ops.combine.default(grad, w, v, code, *layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (code,) = ctx.saved_tensors
        need_grad, need_w, need_v = ctx.needs_input_grad[:3]
        dgrad = combine(grad, None, None, code, ctx.layout) if need_grad else None
        active, sign = row_sums(grad, code, ctx.layout) if need_w or need_v else (None, None)
        dw = active.sum_to_size(ctx.shapes[0]) if need_w and active is not None else None
        dv = sign.sum_to_size(ctx.shapes[1]) if need_v and sign is not None else None
        return dgrad, dw, dv, None, None


class RowSums(FastFunction):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, code: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        ctx.layout = layout
        ctx.save_for_backward(code)
        ctx.set_materialize_grads(False)
        return _ops.row_sums.default(grad, code, layout.channels_last)

    @staticmethod
    def backward(ctx: Any, active: Tensor | None, sign: Tensor | None) -> tuple[Tensor | None, ...]:
        (code,) = ctx.saved_tensors
        if active is None and sign is None:
            return None, None, None
        return combine(None, active, sign, code, ctx.layout), None, None


def _count(shape: Sequence[int], per_sample: bool) -> int:
    return max(math.prod(shape[1 if per_sample else 2 :]), 1)


def abs_mean(x: Tensor, per_sample: bool) -> Tensor:
    """Mean of ``|x|`` over each row, (N, C), or each sample, (N, 1)."""
    if _transforming(x) or not serves(x):
        return reference.abs_mean(x, statistic="sample" if per_sample else "channel")
    if not _needs_grad(x):
        return _ops.abs_mean.default(x, per_sample)
    if _tracing():
        return _ops.abs_mean_with_code.default(x, per_sample)[0]
    return AbsMean.call(x, per_sample)


class AbsMean(FastFunction):
    @staticmethod
    def forward(ctx: Any, x: Tensor, per_sample: bool) -> Tensor:
        ctx.layout = Layout.of(x)
        ctx.per_sample = per_sample
        with _BelowAutograd():
            mean, code = _ops.abs_mean_with_code.default(x, per_sample)
        ctx.save_for_backward(code)
        return mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (code,) = ctx.saved_tensors
        return combine(None, None, grad / _count(ctx.layout.shape, ctx.per_sample), code, ctx.layout), None


def shrink(
    x: Tensor, alpha: Tensor, residual: Tensor | None, per_sample: bool, inplace: bool
) -> tuple[Tensor, Tensor]:
    """``(soft_threshold(x, alpha * mean) + residual, mean)``; alpha of shape (N or 1, C or 1)."""
    if _transforming(x, alpha, residual) or not serves(x):
        statistic = "sample" if per_sample else "channel"
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
        return _ops.shrink_with_code.default(x, alpha, residual, per_sample)[:2]
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
                mean, code = _ops.shrink_.default(x, alpha, residual, per_sample, True)
                ctx.mark_dirty(x)
                y = x
            else:
                y, mean, code = _ops.shrink_with_code.default(x, alpha, residual, per_sample)
        ctx.save_for_backward(code, alpha, mean)
        return y, mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_mean: Tensor | None) -> tuple[Tensor | None, ...]:
        code, alpha, mean = ctx.saved_tensors
        need_x, need_alpha, need_residual = ctx.needs_input_grad[:3]
        if grad is None:
            grad = mean.new_zeros(ctx.layout.shape, dtype=ctx.layout.dtype)
        dx, dalpha = None, None
        if need_x or need_alpha:
            dx, dalpha = shrink_backward(
                grad, grad_mean, code, alpha, mean, ctx.layout, ctx.per_sample, need_x, need_alpha
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
    code: Tensor,
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
            grad, grad_mean, code, alpha, mean, per_sample, layout.channels_last, need_x, need_alpha
        )
    # The same in steps that can be differentiated: alpha, and mean, which is an output of the operator, have gradients.
    dtau = -row_sums(grad, code, layout)[0] * ~(alpha * mean < 0)
    dmean = (dtau * alpha).sum_to_size(mean.shape)
    if grad_mean is not None:
        dmean = dmean + grad_mean
    dx = combine(grad, None, dmean / _count(layout.shape, per_sample), code, layout)
    return dx, (dtau * mean).sum_to_size(alpha.shape)
