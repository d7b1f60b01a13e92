"""The functions that users call. Arguments are checked before anything is computed or written."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import reference
from .arguments import require_choice
from .ops import autograd, batch_norm_autograd, gated_autograd
from .ops.autograd import is_eager
from .ops.checks import (
    check_alpha,
    check_batch,
    check_broadcasts,
    check_companion,
    check_gate,
    check_module,
    check_residual,
    check_rows,
    check_threshold,
    check_x,
    is_per_row,
    is_sharded,
)
from .ops.masks import is_channels_last
from .ops.plain_gate import plain_batch_norm, plain_gate
from .reference import NUMBERS, REAL, STATISTICS, Statistic, accumulator

_WIDE = {dtype: accumulator(dtype) for dtype in REAL}
# What an operator raises that is called without checks; the latter from PyTorch 2.15 on, and for a sparse tensor.
_REFUSALS = (ValueError, RuntimeError)


def _operators(x: Tensor) -> Any:
    """The module that computes on x: `autograd`, or `sharding`, which has the same functions."""
    if not is_sharded(x):
        return autograd
    from .ops import sharding

    return sharding


def _add(y: Tensor, residual: Tensor, inplace: bool = False) -> Tensor:
    """The sum with a residual of another type, which is placed as y is if y is a DTensor."""
    if is_sharded(y):
        from .ops import sharding

        residual = sharding.place_like(residual, y)
    return y.add_(residual) if inplace else y + residual


def soft_threshold(x: Tensor, tau: Tensor | float, *, inplace: bool = False) -> Tensor:
    r"""Soft thresholding, ``y = sign(x) * max(|x| - tau, 0)``, with a threshold that can be learned.

    Where ``|x| > tau``, strictly, the derivative by x is 1 and that by tau is ``-sign(x)``; elsewhere, at
    ``|x| == tau`` too, both are 0 (Zhao et al., IEEE TII 2020, DOI 10.1109/TII.2019.2943898, eq. 10). A complex x keeps
    its phase and loses tau of its magnitude: ``sgn(x) * max(|x| - tau, 0)``.

    NaN in x or tau comes out as NaN. The backward pass keeps 2 bits an element, not x (of a complex x, x itself).

    Args:
        x: float16, bfloat16, float32, float64, complex64 or complex128, of any shape. Arithmetic is in float32, or in
            float64 for the wide types.
        tau: in the units of x: a number >= 0, or a real tensor that broadcasts to x and receives a gradient of its own
            shape. A negative entry of a tensor is not an error: it acts as 0 and gets the gradient 0, as
            ``tau.clamp(min=0)`` would.
        inplace: write the result into x, whose memory tau may not share, unless tau is x itself.

    Returns:
        A tensor of the shape and type of x, contiguous or, like x, channels_last; x itself where ``inplace``.

    Raises:
        TypeError: a type that is not listed.
        ValueError: a negative number, a tau that does not broadcast to x, or one on another device.
        RuntimeError: with ``inplace``, a tau that shares memory with x.

    Examples:
        >>> x = torch.tensor([-2.0, -0.5, 0.5, 3.0])
        >>> drsn_ops.soft_threshold(x, 1.0)
        tensor([-1., -0.,  0.,  2.])
    """
    if not inplace and is_eager(tau, x) and tau.dtype is x.dtype:
        try:
            return autograd.eager_soft_threshold(x, tau, 0.0)
        except _REFUSALS:
            pass  # the checks below say what is wrong in their own words
    if has_torch_function_variadic(x, tau):
        return handle_torch_function(soft_threshold, (x, tau), x, tau, inplace=inplace)
    check_x(x, NUMBERS)
    if not isinstance(tau, Tensor):
        check_threshold(tau)
        if not reference.varies(tau):
            return _operators(x).soft_threshold(x, None, float(tau), inplace)
        tau = reference.filled((), tau, accumulator(x.dtype), x.device)
    if tau.dim() == 0 and tau.device != x.device:
        tau = tau.to(x.device)
    check_companion("tau", tau, x)
    check_broadcasts("tau", tau, x)
    wide = accumulator(x.dtype)
    if tau.dtype != wide and tau.dtype != x.dtype:
        tau = tau.to(wide)
    return _operators(x).soft_threshold(x, tau, 0.0, inplace)


def abs_mean(x: Tensor, *, statistic: Statistic = "channel") -> Tensor:
    r"""The mean of ``|x|`` over the spatial axes, or over channels and spatial axes.

    Sums run in float32 (float64 for float64) in one fixed order: the result has the same bits from run to run and for
    any number of threads. Its derivative is ``sign(x) / count``; the backward pass keeps 2 bits an element.

    Args:
        x: (N, C, \*spatial) with up to three spatial axes, float16, bfloat16, float32 or float64.
        statistic: ``"channel"``, a mean a channel, or ``"sample"``, one a sample.

    Returns:
        (N, C), or (N, 1) for ``"sample"``; float64 for float64, else float32: a statistic keeps its precision where
        activations are narrow. 0, not NaN, where there are no elements.

    Raises:
        TypeError: x has another type.
        ValueError: x has fewer than two or more than five axes, or ``statistic`` is another word.

    Examples:
        >>> drsn_ops.abs_mean(torch.tensor([[[1.0, -3.0], [0.0, 4.0]]]))
        tensor([[2., 2.]])
    """
    if is_eager(x, x) and statistic in STATISTICS:
        try:
            return autograd.eager_abs_mean(x, statistic == "sample")
        except _REFUSALS:
            pass  # as in soft_threshold
    if has_torch_function_variadic(x):
        return handle_torch_function(abs_mean, (x,), x, statistic=statistic)
    check_rows(x)
    require_choice("statistic", statistic, STATISTICS)
    return _operators(x).abs_mean(x, statistic == "sample")


@overload
def shrink(
    x: Tensor,
    alpha: Tensor | float,
    *,
    statistic: Statistic = ...,
    residual: Tensor | None = ...,
    inplace: bool = ...,
    return_threshold: Literal[False] = ...,
) -> Tensor: ...
@overload
def shrink(
    x: Tensor,
    alpha: Tensor | float,
    *,
    statistic: Statistic = ...,
    residual: Tensor | None = ...,
    inplace: bool = ...,
    return_threshold: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def shrink(
    x: Tensor,
    alpha: Tensor | float,
    *,
    statistic: Statistic = "channel",
    residual: Tensor | None = None,
    inplace: bool = False,
    return_threshold: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""The shrinkage of a DRSN block in one operator: ``soft_threshold(x, alpha * abs_mean(x)) + residual``.

    Gradients flow to alpha, to residual, and to x through the band and through the mean. With g the gradient of the
    result and ``active = |x| > tau``:

        d_tau = -sum(g * sign(x) * active);  d_alpha = d_tau * mean;  d_mean = d_tau * alpha
        dx = g * active + sign(x) * d_mean / count

    The backward pass keeps 3 bits an element and a mean a row, not x. Source: Zhao et al., Deep Residual Shrinkage
    Networks for Fault Diagnosis, IEEE TII 2020, DOI 10.1109/TII.2019.2943898.

    Args:
        x: (N, C, \*spatial) with up to three spatial axes, float16, bfloat16, float32 or float64.
        alpha: the scale of the threshold, from a gate that ends in a sigmoid as a rule: (N, C), (N, 1), (C,) or a
            number. A negative threshold acts as 0 and passes no gradient.
        statistic: ``"channel"``, the mean of each channel, or ``"sample"``, that of the whole sample.
        residual: a tensor of the shape of x, added in the same pass.
        inplace: write the result, the sum where there is a residual, into x, whose memory no other tensor may share,
            unless the residual is x itself.
        return_threshold: return ``(result, tau)``; tau = alpha * mean is (N, C), or (N, 1) where neither depends on
            the channel, float64 for float64, else float32.

    Returns:
        A tensor of the shape and type of x (a residual of a wider type widens it), contiguous or, like x,
        channels_last; x itself where ``inplace``.

    Raises:
        TypeError: x, alpha or residual has a type that is not listed.
        ValueError: a shape, a device or ``statistic`` that does not fit.
        RuntimeError: with ``inplace``, a tensor that shares memory with x.

    Examples:
        >>> x = torch.tensor([[[1.0, -3.0], [0.0, 4.0]]])
        >>> drsn_ops.shrink(x, 0.5)
        tensor([[[ 0., -2.],
                 [ 0.,  3.]]])
    """
    if (
        residual is None
        and not (inplace or return_threshold)
        and is_eager(alpha, x)
        and _WIDE.get(x.dtype) is alpha.dtype
        and x.dim() > 1
        and alpha.dim() == 2
        and alpha.size(0) == x.size(0)
        and statistic in STATISTICS
    ):
        try:
            return autograd.eager_shrink(x, alpha, statistic == "sample")
        except _REFUSALS:
            pass  # as in soft_threshold
    if has_torch_function_variadic(x, alpha, residual):
        return handle_torch_function(
            shrink,  # type: ignore[arg-type]  # an overloaded function
            (x, alpha, residual),
            x,
            alpha,
            statistic=statistic,
            residual=residual,
            inplace=inplace,
            return_threshold=return_threshold,
        )
    check_rows(x)
    require_choice("statistic", statistic, STATISTICS)
    wide = accumulator(x.dtype)
    n, c = x.shape[:2]
    if isinstance(alpha, Tensor):
        check_companion("alpha", alpha, x)
        if not (is_per_row(alpha, n, c) or (alpha.dim() == 1 and alpha.shape[0] == c)):
            raise ValueError(
                f"alpha: got shape {tuple(alpha.shape)}, expected ({n}, {c}), ({n}, 1) or ({c},)"
            )
    values = reference.gate_values(alpha, wide, x.device)
    if inplace and return_threshold:
        values = values.clone()  # it may share the memory of x
    check_residual(residual, x)
    fused = residual if residual is not None and residual.dtype == x.dtype else None
    # a residual of another type may still share the memory of x
    addend = residual.clone() if inplace and residual is not None and fused is None else residual
    y, mean = _operators(x).shrink(x, values, fused, statistic == "sample", inplace, return_threshold)
    if addend is not None and fused is None:
        y = _add(y, addend, inplace)
    return (y, (values if isinstance(alpha, Tensor) else alpha) * mean) if return_threshold else y


@torch.fx.wrap
def into_gate(means: Tensor, weights: list[Tensor]) -> Tensor:
    """The means in the type of `reference.gate_dtype`."""
    return means.to(reference.first_real(weights, means.dtype))


def gated_shrink(
    x: Tensor,
    gate: nn.Module,
    *,
    statistic: Statistic = "channel",
    residual: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    r"""The whole of a DRSN block's shrinkage: a gate makes the thresholds out of x, and they are applied to it.

    With ``m`` the (N, C) matrix of channel-wise abs-means of x:

        alpha = gate(m)
        tau   = alpha * abs_mean(x, statistic=statistic)
        y     = sign(x) * max(|x| - tau, 0) + residual

    Gradients flow to residual, to the gate's parameters, and to x through the band, the mean and the gate. The backward
    pass keeps 3 bits an element and some numbers a row, not x. Source: Zhao et al., Deep Residual Shrinkage Networks
    for Fault Diagnosis, IEEE TII 2020, DOI 10.1109/TII.2019.2943898.

    One operator computes all of it where the gate is that of `Shrinkage` with nothing attached:
    ``nn.Sequential(Linear(C, H), norm, ReLU(), Linear(H, C or 1), Sigmoid())`` with ``norm`` one of
    ``nn.BatchNorm1d``, ``nn.LayerNorm``, ``nn.RMSNorm`` and ``nn.Identity``. It computes the gate in float32 (float64
    for a float64 x) whatever the parameters' type, under ``torch.autocast`` too, and updates a BatchNorm's
    running statistics. Any other gate, and one with a hook, a subclass, a parametrization or, on a module or its
    class, a replaced ``forward``, is called as it is, between `abs_mean` and `shrink`; autocast then applies to it. Its
    means have the type of its first real floating-point parameter; without one, float32 (float64 for a float64 x).

    Args:
        x: (N, C, \*spatial) with up to three spatial axes, float16, bfloat16, float32 or float64.
        gate: a module that makes (N, C) or (N, 1) numbers out of the (N, C) means.
        statistic: ``"channel"``, the mean of each channel, or ``"sample"``, that of the whole sample.
        residual: a tensor of the shape of x, added in the same pass.
        inplace: write the result, the sum where there is a residual, into x, whose memory no other tensor may share,
            unless the residual is x itself.

    Returns:
        A tensor of the shape and type of x (a residual of a wider type widens it), contiguous or, like x,
        channels_last; x itself where ``inplace``.

    Raises:
        TypeError: a gate that is no module, or a `Shrinkage`, or a type of x or residual that is not listed.
        ValueError: a shape, a device or ``statistic`` that does not fit, or a batch of one for a gate that normalises
            over the batch.
        RuntimeError: with ``inplace``, a tensor that shares memory with x.

    Examples:
        >>> x = torch.tensor([[[4.0, -2.0], [1.0, 1.0]]])
        >>> gate = drsn_ops.Shrinkage(2, norm="none").fc.requires_grad_(False)
        >>> for parameter in gate.parameters():
        ...     _ = parameter.zero_()  # so that alpha is 1/2
        >>> drsn_ops.gated_shrink(x, gate)
        tensor([[[ 2.5000, -0.5000],
                 [ 0.5000,  0.5000]]])
    """
    if isinstance(x, Proxy) or isinstance(residual, Proxy):  # a node of torch.fx takes no module
        weights: Any = [w for w in reference.gate_weights(gate) if isinstance(w, (Tensor, Proxy))]
        alpha = gate(into_gate(abs_mean(x), weights))
        return shrink(x, alpha, statistic=statistic, residual=residual, inplace=inplace)
    check_rows(x)
    check_gate(gate)
    require_choice("statistic", statistic, STATISTICS)
    check_residual(residual, x)
    check_batch(gate, x, "x")
    if residual is not None and residual.dtype != x.dtype:
        addend = residual.clone() if inplace else residual  # it may share the memory of x
        y = gated_shrink(x, gate, statistic=statistic, inplace=inplace)
        return _add(y, addend, inplace)
    plain = plain_gate(gate, x)
    if plain is not None and x.numel() > 0 and _operators(x).fuses(x, residual, *plain.parameters):
        return gated_autograd.gated_shrink(x, residual, plain, statistic == "sample", inplace)
    mean = abs_mean(x)
    # without autocast: the modules of a plain gate compute in the type that the operator computes in
    with nullcontext() if plain is None else reference.no_autocast(x):
        alpha = gate(mean.to(reference.gate_dtype(gate, mean.dtype)))
    check_alpha(alpha, *x.shape[:2])
    return shrink(x, alpha, statistic=statistic, residual=residual, inplace=inplace)


def batch_norm_shrink(
    z: Tensor,
    batch_norm: nn.Module,
    gate: nn.Module,
    *,
    statistic: Statistic = "channel",
    residual: Tensor | None = None,
) -> Tensor:
    r"""A BatchNorm and the shrinkage behind it, ``gated_shrink(batch_norm(z), gate)``.

    For blocks in which a normalisation follows the last convolution (post-activation). It saves a pass over memory and
    the normalised tensor:

        x = (z - mean) / sqrt(var + eps) * weight + bias
        y = gated_shrink(x, gate, statistic=statistic, residual=residual)

    One operator computes it where z is contiguous or channels_last, the gate is as in `gated_shrink`, and
    ``batch_norm`` is an ``nn.BatchNorm1d``, ``2d`` or ``3d`` for z's axes with nothing attached; statistics are those
    of the batch or the running ones, which are updated as the modules would. x is not rounded to z's type on the way.
    The backward pass keeps z and some numbers a row. Elsewhere the modules are called. Source of the gate: Zhao et al.,
    IEEE TII 2020, DOI 10.1109/TII.2019.2943898.

    Args:
        z: (N, C, \*spatial) with up to three spatial axes, float16, bfloat16, float32 or float64.
        batch_norm: the normalisation of z's channels, computed in float32 (float64 for a float64 z).
        gate: as in `gated_shrink`.
        statistic: ``"channel"``, the mean of each channel, or ``"sample"``, that of the whole sample.
        residual: a tensor of the shape of z, added in the same pass.

    Returns:
        A tensor of the shape and type of z (a residual of a wider type widens it), in its layout.

    Raises:
        TypeError: a batch_norm or gate that is no module, a gate that is a `Shrinkage`, or a type of z or residual that
            is not listed.
        ValueError: a shape, a device or ``statistic`` that does not fit, or a batch of one, or a single value a
            channel, for a normalisation over the batch.

    Examples:
        >>> z = torch.randn(8, 16, 100)
        >>> drsn_ops.batch_norm_shrink(z, torch.nn.BatchNorm1d(16), drsn_ops.Shrinkage(16).fc, residual=z).shape
        torch.Size([8, 16, 100])
    """
    if isinstance(z, Proxy) or isinstance(residual, Proxy):
        return gated_shrink(batch_norm(z), gate, statistic=statistic, residual=residual)
    check_rows(z, "z")
    check_module("batch_norm", batch_norm)
    check_gate(gate)
    require_choice("statistic", statistic, STATISTICS)
    check_residual(residual, z, "z")
    check_batch(gate, z, "z", batch_norm)
    if residual is not None and residual.dtype != z.dtype:
        return _add(batch_norm_shrink(z, batch_norm, gate, statistic=statistic), residual)
    if (z.is_contiguous() or is_channels_last(z)) and z.numel() > 0:
        norm, plain = plain_batch_norm(batch_norm, z), plain_gate(gate, z)
        if norm is not None and plain is not None:
            if _operators(z).fuses(z, residual, *norm[:2], *plain.parameters):
                return gated_autograd.batch_norm_shrink(z, residual, norm, plain, statistic == "sample")
    return gated_shrink(batch_norm(z), gate, statistic=statistic, residual=residual)


def batch_norm_relu(x: Tensor, batch_norm: nn.Module) -> Tensor:
    r"""A BatchNorm and the ReLU behind it, ``relu(batch_norm(x))``.

        y = max((x - mean) / sqrt(var + eps) * weight + bias, 0)

    One operator computes it where ``batch_norm`` is an ``nn.BatchNorm1d``, ``2d`` or ``3d`` for x's axes with nothing
    attached; statistics are those of the batch or the running ones, which are updated as the module would. With g the
    gradient of the result where y > 0 and 0 elsewhere, x_hat the normalised x, and n numbers a channel:

        d_bias = sum(g);  d_weight = sum(g * x_hat)
        dx = weight / sqrt(var + eps) * (g - (d_bias + x_hat * d_weight) / n)

    without the sums for running statistics. The backward pass keeps x and two numbers a channel, neither the
    normalised x nor the result. Any other module is called as it is, `nn.SyncBatchNorm`, subclasses and a BatchNorm
    with a hook or a replaced ``forward`` too, and the ReLU follows. Sources: BatchNorm, Ioffe and Szegedy,
    arXiv 1502.03167; its fusion with its neighbours, Jung et al., arXiv 1807.01702.

    Args:
        x: (N, C, \*spatial) with up to three spatial axes, float16, bfloat16, float32 or float64.
        batch_norm: the normalisation of x's channels, computed in float32 (float64 for a float64 x).

    Returns:
        A tensor of the shape and type of x, contiguous or, like x, channels_last. A module that is called decides
        itself.

    Raises:
        TypeError: a batch_norm that is no module, or an x of a type that is not listed.
        ValueError: an x with fewer than two or more than five axes, or a single value a channel for a normalisation
            over the batch.

    Examples:
        >>> x = torch.tensor([[[1.0, -3.0], [0.0, 4.0]]])
        >>> drsn_ops.batch_norm_relu(x, torch.nn.BatchNorm1d(2, affine=False).eval())
        tensor([[[1.0000, 0.0000],
                 [0.0000, 4.0000]]])
    """
    made = pre_activation(x, batch_norm)
    return F.relu(batch_norm(x)) if made is None else made[0]


def pre_activation(
    x: Tensor, batch_norm: nn.Module, stride: int = 1, shortcut_channels: int | None = None
) -> tuple[Tensor, Tensor | None] | None:
    """`batch_norm_relu`, padded for a convolution of this stride, and the shortcut of a residual unit.

    The shortcut keeps every stride-th position of x and has channels of zeros around x's, up to ``shortcut_channels``;
    it is None if that is. None in all is returned where the modules have to be called; nothing has been written then.
    """
    if isinstance(x, Proxy):  # a node of torch.fx takes no module
        return None
    check_rows(x)
    check_module("batch_norm", batch_norm)
    check_batch(None, x, "x", batch_norm)
    if x.numel() > 0:
        norm = plain_batch_norm(batch_norm, x)
        if norm is not None and _operators(x).fuses(x, *norm[:2]):
            return batch_norm_autograd.batch_norm_relu(x, norm, stride, shortcut_channels)
    return None
