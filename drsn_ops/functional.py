"""The functions that users call: arguments are checked here, before anything is computed or written."""

from __future__ import annotations

from numbers import Real
from typing import Literal, overload

import torch
from torch import Tensor

from . import autograd, reference
from .reference import accumulator

Statistic = Literal["channel", "sample"]

_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COMPLEX = (torch.complex64, torch.complex128)


def _check_x(x: Tensor, dtypes: tuple[torch.dtype, ...] = _REAL) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: got {type(x).__name__}, expected a tensor")
    if x.dtype not in dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"x: got a tensor of {x.dtype}, expected one of {names}")


def _check_rows(x: Tensor) -> None:
    _check_x(x)
    if not 2 <= x.dim() <= 5:
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, expected (N, C, *spatial) with up to three spatial axes"
        )


def _check_statistic(statistic: str) -> None:
    if statistic not in ("channel", "sample"):
        raise ValueError(f"statistic: got {statistic!r}, expected 'channel' or 'sample'")


def _check_companion(name: str, t: Tensor, x: Tensor) -> None:
    """A second tensor has a real floating type and lies on the device of x."""
    if t.dtype not in _REAL:
        raise TypeError(f"{name}: got a tensor of {t.dtype}, expected a real floating-point type")
    if t.device != x.device:
        raise ValueError(f"{name}: got a tensor on {t.device}, expected {x.device}, the device of x")


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
        inplace: write the result into x.

    Returns:
        A tensor of the shape and type of x, contiguous or, like x, channels_last; x itself where ``inplace``.

    Raises:
        TypeError: a type that is not listed.
        ValueError: a negative number, a tau that does not broadcast to x, or one on another device.

    >>> x = torch.tensor([-2.0, -0.5, 0.5, 3.0])
    >>> drsn_ops.soft_threshold(x, 1.0)
    tensor([-1., -0.,  0.,  2.])
    """
    _check_x(x, _REAL + _COMPLEX)
    if not isinstance(tau, Tensor):
        if not isinstance(tau, Real) or isinstance(tau, bool):
            raise TypeError(f"tau: got {type(tau).__name__}, expected a number or a tensor")
        if tau < 0:
            raise ValueError(f"tau: got {tau}, expected a number >= 0")
        return autograd.soft_threshold(x, None, float(tau), inplace)
    if tau.dim() == 0 and tau.device != x.device:
        tau = tau.to(x.device)
    _check_companion("tau", tau, x)
    # Ranks are compared before sizes: of a symbolic size every comparison is a guard.
    if tau.dim() != x.dim() or tau.shape != x.shape:
        pairs = zip(reversed(tau.shape), reversed(x.shape), strict=False)
        if tau.dim() > x.dim() or any(t != 1 and t != s for t, s in pairs):
            raise ValueError(
                f"tau: got shape {tuple(tau.shape)}, expected one that broadcasts to x, {tuple(x.shape)}"
            )
    wide = accumulator(x.dtype)
    if tau.dtype != wide and tau.dtype != x.dtype:
        tau = tau.to(wide)
    return autograd.soft_threshold(x, tau, 0.0, inplace)


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

    >>> drsn_ops.abs_mean(torch.tensor([[[1.0, -3.0], [0.0, 4.0]]]))
    tensor([[2., 2.]])
    """
    _check_rows(x)
    _check_statistic(statistic)
    return autograd.abs_mean(x, statistic == "sample")


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
    result and ``active = |x| > tau``::

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
        inplace: write the result, the sum where there is a residual, into x.
        return_threshold: return ``(result, tau)``; tau = alpha * mean is (N, C), or (N, 1) where neither depends on
            the channel, float64 for float64, else float32.

    Returns:
        A tensor of the shape and type of x (a residual of a wider type widens it), contiguous or, like x,
        channels_last; x itself where ``inplace``.

    Raises:
        TypeError: x, alpha or residual has a type that is not listed.
        ValueError: a shape, a device or ``statistic`` that does not fit.

    >>> x = torch.tensor([[[1.0, -3.0], [0.0, 4.0]]])
    >>> drsn_ops.shrink(x, 0.5)
    tensor([[[ 0., -2.],
             [ 0.,  3.]]])
    """
    _check_rows(x)
    _check_statistic(statistic)
    wide = accumulator(x.dtype)
    n, c = x.shape[:2]
    if isinstance(alpha, Tensor):
        _check_companion("alpha", alpha, x)
        allowed = ((c,),) if alpha.dim() == 1 else ((n, c), (n, 1))
        if alpha.dim() not in (1, 2) or alpha.shape not in allowed:
            raise ValueError(
                f"alpha: got shape {tuple(alpha.shape)}, expected ({n}, {c}), ({n}, 1) or ({c},)"
            )
    elif not isinstance(alpha, Real) or isinstance(alpha, bool):
        raise TypeError(f"alpha: got {type(alpha).__name__}, expected a number or a tensor")
    gate = reference.gate_values(alpha, wide, x.device)
    fused = residual
    if residual is not None:
        if not isinstance(residual, Tensor):
            raise TypeError(f"residual: got {type(residual).__name__}, expected a tensor")
        _check_companion("residual", residual, x)
        if residual.shape != x.shape:
            raise ValueError(
                f"residual: got shape {tuple(residual.shape)}, expected {tuple(x.shape)}, that of x"
            )
        fused = residual if residual.dtype == x.dtype else None
    y, mean = autograd.shrink(x, gate, fused, statistic == "sample", inplace)
    if residual is not None and fused is None:
        y = y.add_(residual) if inplace else y + residual
    return (y, gate * mean) if return_threshold else y
