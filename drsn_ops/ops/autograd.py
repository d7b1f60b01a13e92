"""``torch.autograd.Function`` over the registered operators, and the way that a call takes.

- No gradient is needed: the operator that keeps no mask; only that which returns the mean of `shrink` makes one too.
- Eager autograd: the ``Function`` below. Its backward is an operator that works from the mask; under
  ``create_graph=True`` it is the plain formulas of `masks` on the same bits, to any order.
- ``torch.compile`` and ``torch.export``: the registered operator, with its fake kernel (`fake_kernels`) and the
  derivative that is registered below.
- A ``torch.func`` transform, forward-mode AD, an export to ONNX, ``torch.jit.trace``, or a device without kernels: the
  plain formulas of `reference`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd import forward_ad as _forward_ad
from torch.library import register_autograd

from .. import reference
from ..reference import Statistic, per_row
from .library import OPS, has_kernels
from .masks import Layout, Planes, is_channels_last, shrink_gradients, soft_threshold_gradients

# An operator called below autograd's keys skips the graph node of register_autograd, which costs microseconds a call.
BelowAutograd = torch._C._AutoDispatchBelowAutograd
# Bound once: every call asks for each, and on small tensors a look-up counts.
is_compiling = torch.compiler.is_compiling
_in_dynamo = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled
_in_torch_func = torch._C._are_functorch_transforms_active
_in_jit_trace = torch._C._is_tracing
_has_torch_function = torch.overrides.has_torch_function_variadic
_soft_threshold, _abs_mean, _shrink = (op.default for op in (OPS.soft_threshold, OPS.abs_mean, OPS.shrink))
_OWN = (Tensor, torch.nn.Parameter)


def _traced_in_torch_func() -> bool:
    return torch._C._functorch.maybe_current_level() is not None


# What torch.compiler.assume_constant_result sets; that would import the compiler and sympy with the package.
_traced_in_torch_func._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _exporting_to_onnx() -> bool:
    """True while an ONNX exporter traces; before torch.onnx has been imported there is none."""
    onnx: Any = sys.modules.get("torch.onnx")
    return onnx is not None and bool(onnx.is_in_onnx_export())


_exporting_to_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _has_tangent(*tensors: Tensor | None) -> bool:
    return any(t is not None and _forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def transforming(*tensors: Tensor | None) -> bool:
    """True under torch.func, forward-mode AD, an ONNX export or torch.jit.trace: use the plain formula.

    Forward mode is on for all threads at once; only the tensors of its own thread have tangents.
    """
    forward_mode = _forward_ad._current_level >= 0
    if is_compiling():
        return _traced_in_torch_func() or forward_mode or _exporting_to_onnx()
    return _in_torch_func() or _in_jit_trace() or (forward_mode and _has_tangent(*tensors))


def serves(x: Tensor) -> bool:
    """True if there are kernels for the device of x."""
    return x.is_cpu or has_kernels(x.device)


def fuses(x: Tensor, *others: Tensor | None) -> bool:
    """True if the compiled operators compute on these tensors, False if the plain formulas do."""
    return not transforming(x, *others) and serves(x)


def is_eager(value: Any, x: Tensor) -> TypeGuard[Tensor]:
    """True if two plain tensors meet nothing but eager autograd and kernels: no mode, transform, tracer or tangent.

    Where caches are cold, each thing that is asked costs microseconds.
    """
    return (
        not _in_dynamo()
        and type(x) in _OWN
        and type(value) in _OWN
        and not _has_torch_function(x, value)
        and _forward_ad._current_level < 0
        and not _in_torch_func()
        and not _in_jit_trace()
        and ((x.is_cpu and value.is_cpu) or (x.is_cuda and value.device == x.device))
        and serves(x)
    )


def wants_grad(*tensors: Tensor | None) -> bool:
    """True if autograd records a call on these tensors."""
    if _is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def may_overwrite(x: Tensor, needs_grad: bool) -> bool:
    """True if a kernel may write into x; else ``Tensor.copy_`` has to, which knows the rules for leaves and views."""
    if is_compiling() or (needs_grad and (x.requires_grad and x.is_leaf or x._is_view())):
        return False
    # Refused here: PyTorch's own operators write first and refuse afterwards.
    if x.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError("x: Inplace update to inference tensor outside InferenceMode is not allowed")
    if x.is_neg() or x.is_conj():
        return False
    return x.is_contiguous() or is_channels_last(x)


def aliases(*tensors: Any) -> list[Any]:
    """Views of the tensors: a derivative by one then leaves out the paths through tensors made from it."""
    return [None if t is None else t.view_as(t) for t in tensors]


def gradients(
    results: Sequence[Tensor],
    tensors: Sequence[Tensor | None],
    grads: Sequence[Tensor],
    create_graph: bool,
) -> list[Tensor | None]:
    """The gradients of those tensors that require one and that a result depends on."""
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(results, wanted, grads, create_graph=create_graph, allow_unused=True))
    return [next(found) if t is not None and t.requires_grad else None for t in tensors]


def scope(per_sample: bool) -> Statistic:
    """The operators' ``per_sample`` as `reference` calls it."""
    return "sample" if per_sample else "channel"


def statistic_size(shape: Sequence[int], per_sample: bool) -> int:
    """The number of elements that a mean is over, at least 1."""
    return max(math.prod(shape[1 if per_sample else 2 :]), 1)


def soft_threshold(x: Tensor, tau: Tensor | None, value: float, inplace: bool) -> Tensor:
    """``sign(x) * max(|x| - tau, 0)``; ``value`` is tau where ``tau`` is None."""
    if transforming(x, tau) or not serves(x) or (x.is_complex() and is_compiling()):
        return reference.soft_threshold(x, value if tau is None else tau, inplace=inplace)
    needs_grad = wants_grad(x, tau)
    if inplace:
        keeps = needs_grad and x.is_complex()  # its backward keeps x
        if keeps or not may_overwrite(x, needs_grad):
            return x.copy_(soft_threshold(x.clone() if keeps else x, tau, value, False))
    if needs_grad and is_compiling():
        return OPS.soft_threshold_with_mask.default(x, tau, value)[0]
    if not inplace:
        return eager_soft_threshold(x, tau, value)
    if needs_grad:
        return SoftThreshold.apply(x, tau, value, True)
    OPS.soft_threshold_.default(x, tau, value, False)
    torch.autograd.graph.increment_version(x)
    return x


def eager_soft_threshold(x: Tensor, tau: Tensor | None, value: float) -> Tensor:
    """The same out of place, where `is_eager`."""
    if not wants_grad(x, tau):
        return _soft_threshold(x, tau, value)
    if x.is_complex():
        return ComplexSoftThreshold.apply(x, tau, value)
    return SoftThreshold.apply(x, tau, value, False)


class SoftThreshold(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: Tensor | None, value: float, inplace: bool) -> Tensor:
        with BelowAutograd():
            if inplace:
                mask = OPS.soft_threshold_.default(x, tau, value, True)
                ctx.mark_dirty(x)
                y = x
            else:
                y, mask = OPS.soft_threshold_with_mask.default(x, tau, value)
        SoftThreshold.keep(ctx, (x, tau), (y, mask))
        return y

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, tau = inputs[:2]
        ctx.channels_last = is_channels_last(x)
        ctx.tau = None if tau is None else (tau.shape, tau.dtype)
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        need_x, need_tau = ctx.needs_input_grad[:2]
        layout = Layout(grad.shape, grad.dtype, ctx.channels_last)
        tau_shape, tau_dtype = ctx.tau if need_tau else ([], None)
        if wants_grad(grad) or transforming(grad):
            dx, dtau = soft_threshold_gradients(grad, mask, layout)
            if need_tau:
                dtau = dtau.sum_to_size(tau_shape).to(tau_dtype)
        else:
            dx, dtau = OPS.soft_threshold_backward.default(
                grad, mask, tau_shape, tau_dtype, layout.channels_last, need_x
            )
        return dx if need_x else None, dtau if need_tau else None, None, None


register_autograd(
    OPS.soft_threshold_with_mask.default,
    lambda ctx, grad, _: SoftThreshold.backward(ctx, grad)[:3],
    setup_context=SoftThreshold.keep,
)


class ComplexSoftThreshold(Function):
    """Keeps x, whose phase does not fit into a mask. Later derivatives are those of the plain formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: Tensor | None, value: float) -> Tensor:
        ctx.value = value
        ctx.save_for_backward(x, tau)
        with BelowAutograd():
            return OPS.soft_threshold.default(x, tau, value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, tau = ctx.saved_tensors
        need_x, need_tau = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() or transforming(x, tau, grad):
            with torch.enable_grad():
                x, tau = aliases(x, tau)
                wanted: Any = [t for t, need in ((x, need_x), (tau, need_tau)) if need]
                y = reference.soft_threshold(x, ctx.value if tau is None else tau)
                found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
            dx, dtau = next(found) if need_x else None, next(found) if need_tau else None
        else:
            dx, dtau = OPS.complex_soft_threshold_backward.default(grad, x, tau, ctx.value, need_x, need_tau)
        return dx if need_x else None, dtau if need_tau else None, None


def abs_mean(x: Tensor, per_sample: bool) -> Tensor:
    """Mean of ``|x|`` over each row, (N, C), or each sample, (N, 1)."""
    if transforming(x) or not serves(x):
        return reference.abs_mean(x, statistic=scope(per_sample))
    if is_compiling() and wants_grad(x):
        return OPS.abs_mean_with_mask.default(x, per_sample)[0]
    return eager_abs_mean(x, per_sample)


def eager_abs_mean(x: Tensor, per_sample: bool) -> Tensor:
    """The same, where `is_eager`."""
    return AbsMean.apply(x, per_sample) if wants_grad(x) else _abs_mean(x, per_sample)


class AbsMean(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, per_sample: bool) -> Tensor:
        with BelowAutograd():
            output = OPS.abs_mean_with_mask.default(x, per_sample)
        AbsMean.keep(ctx, (x, per_sample), output)
        return output[0]

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.per_sample = inputs
        ctx.layout = Layout.of(x)
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        layout = ctx.layout
        grad = grad / statistic_size(layout.shape, ctx.per_sample)
        if not (wants_grad(grad) or transforming(grad)):
            return OPS.abs_mean_backward.default(grad, mask, *layout), None
        planes = Planes.read(mask, layout)
        return planes.along_sign(per_row(grad, planes.nonzero)).to(layout.dtype), None


register_autograd(
    OPS.abs_mean_with_mask.default,
    lambda ctx, grad, _: AbsMean.backward(ctx, grad),
    setup_context=AbsMean.keep,
)


def shrink(
    x: Tensor,
    alpha: Tensor,
    residual: Tensor | None,
    per_sample: bool,
    inplace: bool,
    with_mean: bool,
) -> tuple[Tensor, Tensor | None]:
    """``(soft_threshold(x, alpha * mean) + residual, mean)``; alpha of shape (N or 1, C or 1).

    Without ``with_mean``, mean may be None.
    """
    if transforming(x, alpha, residual) or not serves(x):
        return reference.shrink_and_mean(x, alpha, scope(per_sample), residual, inplace)
    needs_grad = wants_grad(x, alpha, residual)
    if inplace and not may_overwrite(x, needs_grad):
        y, mean = shrink(x, alpha, residual, per_sample, False, with_mean)
        return x.copy_(y), mean
    if needs_grad and not is_compiling():
        return Shrink.apply(x, alpha, residual, per_sample, inplace)
    if inplace:
        mean, _ = OPS.shrink_.default(x, alpha, residual, per_sample, False)
        torch.autograd.graph.increment_version(x)
        return x, mean
    if needs_grad or with_mean:
        return OPS.shrink_with_mask.default(x, alpha, residual, per_sample)[:2]
    return _shrink(x, alpha, residual, per_sample), None


def eager_shrink(x: Tensor, alpha: Tensor, per_sample: bool) -> Tensor:
    """The result alone, where `is_eager`."""
    if wants_grad(x, alpha):
        return Shrink.apply(x, alpha, None, per_sample, False)[0]
    return _shrink(x, alpha, None, per_sample)


class Shrink(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, alpha: Tensor, residual: Tensor | None, per_sample: bool, inplace: bool
    ) -> tuple[Tensor, Tensor]:
        with BelowAutograd():
            if inplace:
                mean, mask = OPS.shrink_.default(x, alpha, residual, per_sample, True)
                ctx.mark_dirty(x)
                y = x
            else:
                y, mean, mask = OPS.shrink_with_mask.default(x, alpha, residual, per_sample)
        Shrink.keep(ctx, (x, alpha, residual, per_sample), (y, mean, mask))
        return y, mean

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, alpha, _, ctx.per_sample = inputs
        _, mean, mask = output
        ctx.layout = Layout.of(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask, alpha, mean)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_mean: Tensor | None) -> tuple[Tensor | None, ...]:
        mask, alpha, mean = ctx.saved_tensors
        layout, per_sample = ctx.layout, ctx.per_sample
        need_x, need_alpha, need_residual = ctx.needs_input_grad[:3]
        if grad is None:
            grad = mean.new_zeros(layout.shape, dtype=layout.dtype)
        dresidual = grad if need_residual else None
        if not need_x and not need_alpha:
            return None, None, dresidual, None, None
        # alpha, and mean, which is an output of the operator, have gradients of their own
        if torch.is_grad_enabled() or transforming(grad, grad_mean, alpha, mean):
            count = statistic_size(layout.shape, per_sample)
            dx, dalpha = shrink_gradients(Planes.read(mask, layout), grad, grad_mean, alpha, mean, count)
            dx = dx.to(layout.dtype)
        else:
            dx, dalpha = OPS.shrink_backward.default(
                grad, grad_mean, mask, alpha, mean, per_sample, layout.channels_last, need_x, need_alpha
            )
        return dx if need_x else None, dalpha if need_alpha else None, dresidual, None, None


register_autograd(
    OPS.shrink_with_mask.default,
    lambda ctx, grad, grad_mean, _: Shrink.backward(ctx, grad, grad_mean)[:4],
    setup_context=Shrink.keep,
)
