"""Threshold rules: what becomes of an element, given its threshold. `Shrinkage` takes each by its name.

They keep the conventions of `soft_threshold`: tau is a number >= 0 or a tensor that broadcasts to x and receives a
gradient of its own shape; a negative entry acts as 0 and gets the gradient 0; where ``|x| == tau`` an element is inside
the band; NaN in x or tau comes out as NaN; an infinite tau acts on every finite x as one above it. Arithmetic is in
float32 or wider. A complex x keeps its phase.

All but `soft` are plain PyTorch, to any order of derivatives and on any device; ``torch.compile`` fuses each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import functional, reference
from .ops.checks import check_broadcasts, check_companion, check_threshold, check_x
from .reference import NUMBERS, REAL, accumulator

__all__ = ["firm", "garrote", "group_soft_threshold", "hard", "nonnegative", "slope", "smooth", "soft"]


def _filled(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a tensor; one above the type's largest is infinite, as in a tensor that is cast."""
    return reference.filled((), math.inf if value > torch.finfo(dtype).max else value, dtype, device)


def _as_tensor(name: str, value: Tensor | float, x: Tensor, of: str = "x") -> Tensor:
    """A number, or a tensor that broadcasts to x, in the accumulator's type of x and on its device."""
    wide = accumulator(x.dtype)
    if not isinstance(value, Tensor):
        return _filled(value, wide, x.device)
    if value.dim() == 0 and value.device != x.device:
        value = value.to(x.device)
    check_companion(name, value, x, of)
    check_broadcasts(name, value, x, of)
    return value.to(wide)


def _threshold(tau: Tensor | float, x: Tensor, of: str = "x") -> Tensor:
    """tau as a tensor, at least 0."""
    if not isinstance(tau, Tensor):
        check_threshold(tau)
    return reference.at_least_0(_as_tensor("tau", tau, x, of))


def _require_between(name: str, value: float, low: float, high: float, allowed: str) -> None:
    reference.require_number(name, value, allowed)
    if not low < value < high:
        raise ValueError(f"{name}: got {value!r}, expected {allowed}")


def _widened(x: Tensor) -> Tensor:
    return x if x.is_complex() else x.to(accumulator(x.dtype))


def _magnitude(x: Tensor) -> Tensor:
    """``|x|``. That of a denormal complex number is a constant: PyTorch's derivative of it is NaN."""
    if not x.is_complex():
        return x.abs()
    magnitude = x.detach().abs()
    denormal = magnitude < torch.finfo(magnitude.dtype).tiny
    return torch.where(denormal, magnitude, torch.where(denormal, 0.0, x).abs())


def _scaled(
    x: Tensor,
    tau: Tensor,
    outside: Callable[[Tensor], Tensor],
    inside: Tensor | float = 0.0,
    size: Tensor | None = None,
) -> Tensor:
    """x times ``outside(tau / size)`` where ``size > tau``, and times ``inside`` elsewhere.

    Args:
        x: any of `NUMBERS`.
        tau: not negative, in the accumulator's type.
        outside: of the ratio, which is below 1, and NaN where tau or x is; for a ratio of 0 it is 1.
        inside: the factor in the band.
        size: ``|x|`` unless another that broadcasts to x is given.
    """
    wide = _widened(x)
    size = _magnitude(wide) if size is None else size
    band = size <= tau
    # no derivative is 0 times infinity: tau takes no part in the band, nor does a size that is infinite or denormal
    info = torch.finfo(size.dtype)
    ratio = torch.where(band, 0.0, tau) / size.clamp(info.tiny, info.max)
    return (wide * torch.where(band, inside, outside(ratio))).to(x.dtype)


def soft(x: Tensor, tau: Tensor | float) -> Tensor:
    r"""``sign(x) * max(|x| - tau, 0)``, the rule of the paper: `drsn_ops.soft_threshold`, a fused operator.

    Args:
        x: float16, bfloat16, float32, float64, complex64 or complex128, of any shape.
        tau: a number >= 0, or a real tensor that broadcasts to x.

    Returns:
        A tensor of the shape and type of x.

    Raises:
        TypeError: a type that is not listed.
        ValueError: a negative number, a tau that does not broadcast to x, or one on another device.

    Source: Donoho, De-noising by soft-thresholding, 1995, DOI 10.1109/18.382009.

    >>> drsn_ops.rules.soft(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-1.,  0.,  2.])
    """
    return functional.soft_threshold(x, tau)


def hard(x: Tensor, tau: Tensor | float) -> Tensor:
    r"""x where ``|x| > tau``, and 0 elsewhere.

    Its derivative by tau is 0 everywhere: a tau that requires gradients gets zeros, and does not learn. PyWavelets'
    hard rule also keeps x where ``|x| == tau``.

    Args:
        x: float16, bfloat16, float32, float64, complex64 or complex128, of any shape.
        tau: a number >= 0, or a real tensor that broadcasts to x.

    Returns:
        A tensor of the shape and type of x.

    Raises:
        TypeError: a type that is not listed.
        ValueError: a negative number, a tau that does not broadcast to x, or one on another device.

    Source: Donoho and Johnstone, Ideal spatial adaptation by wavelet shrinkage, 1994, DOI 10.1093/biomet/81.3.425.

    >>> drsn_ops.rules.hard(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-2.,  0.,  3.])
    """
    if has_torch_function_variadic(x, tau):
        return handle_torch_function(hard, (x, tau), x, tau)
    check_x(x, NUMBERS)
    # the ratio carries a NaN of tau, and a gradient of 0
    return _scaled(x, _threshold(tau, x), lambda ratio: torch.where(ratio.isnan(), ratio, 1.0))


def garrote(x: Tensor, tau: Tensor | float) -> Tensor:
    r"""``x - tau^2 / x`` where ``|x| > tau``, and 0 elsewhere: the non-negative garrote.

    It takes less off large values than the soft rule. Of a complex x, ``|x|`` loses ``tau^2 / |x|``.

    Args:
        x: float16, bfloat16, float32, float64, complex64 or complex128, of any shape.
        tau: a number >= 0, or a real tensor that broadcasts to x.

    Returns:
        A tensor of the shape and type of x.

    Raises:
        TypeError: a type that is not listed.
        ValueError: a negative number, a tau that does not broadcast to x, or one on another device.

    Source: Gao, Wavelet shrinkage denoising using the non-negative garrote, 1998, DOI 10.1080/10618600.1998.10474789.

    >>> drsn_ops.rules.garrote(torch.tensor([-2.0, 0.5, 4.0]), 1.0)
    tensor([-1.5000,  0.0000,  3.7500])
    """
    if has_torch_function_variadic(x, tau):
        return handle_torch_function(garrote, (x, tau), x, tau)
    check_x(x, NUMBERS)
    return _scaled(x, _threshold(tau, x), lambda ratio: (1 - ratio) * (1 + ratio))


def firm(x: Tensor, tau: Tensor | float, *, ratio: float = 2.0) -> Tensor:
    r"""0 up to tau, x from ``ratio * tau`` on, and linear between: the firm or semi-soft rule.

    Between, ``y = sign(x) * (|x| - tau) * ratio / (ratio - 1)``. It is `pywt.threshold_firm` with ``value_low=tau`` and
    ``value_high=ratio * tau``. At ``|x| == ratio * tau`` the derivatives are those of x, 1 and 0.

    Args:
        x: float16, bfloat16, float32, float64, complex64 or complex128, of any shape.
        tau: a number >= 0, or a real tensor that broadcasts to x.
        ratio: a finite number above 1; near 1 the rule is the hard one, and for large numbers the soft one.

    Returns:
        A tensor of the shape and type of x.

    Raises:
        TypeError: a type that is not listed.
        ValueError: a negative number, a tau that does not broadcast to x or is on another device, or a bad ``ratio``.

    Source: Gao and Bruce, WaveShrink with firm shrinkage, Statistica Sinica 7, 1997, 855-874.

    >>> drsn_ops.rules.firm(torch.tensor([-1.5, 0.5, 3.0]), 1.0)
    tensor([-1.0000,  0.0000,  3.0000])
    """
    if has_torch_function_variadic(x, tau):
        return handle_torch_function(firm, (x, tau), x, tau, ratio=ratio)
    check_x(x, NUMBERS)
    _require_between("ratio", ratio, 1, math.inf, "a finite number above 1")
    steep = ratio / (ratio - 1)
    return _scaled(x, _threshold(tau, x), lambda q: torch.where(ratio * q <= 1, 1.0, steep * (1 - q)))


def smooth(x: Tensor, tau: Tensor | float, *, width: float = 0.03) -> Tensor:
    r"""``x + (sqrt((x - tau)^2 + width^2) - sqrt((x + tau)^2 + width^2)) / 2``: soft with rounded corners.

    It has derivatives of any order, and the threshold gets a gradient inside the band too. It is 0 at 0 alone. For a
    complex x the formula is that of ``|x|``.

    Args:
        x: float16, bfloat16, float32, float64, complex64 or complex128, of any shape.
        tau: a number >= 0, or a real tensor that broadcasts to x.
        width: of the corners, in units of x, a finite number above 0.

    Returns:
        A tensor of the shape and type of x.

    Raises:
        TypeError: a type that is not listed.
        ValueError: a negative number, a tau that does not broadcast to x or is on another device, or a bad ``width``.

    Source: Zhang, Thresholding neural network for adaptive noise reduction, 2001, DOI 10.1109/72.925559.

    >>> drsn_ops.rules.smooth(torch.tensor([-2.0, 0.0, 3.0]), 1.0, width=1e-3)
    tensor([-1.0000,  0.0000,  2.0000])
    """
    if has_torch_function_variadic(x, tau):
        return handle_torch_function(smooth, (x, tau), x, tau, width=width)
    check_x(x, NUMBERS)
    _require_between("width", width, 0, math.inf, "a finite number above 0")
    wide = _widened(x)
    # even in x, so that a real x needs no magnitude, which has no third derivative at 0
    half = (_magnitude(wide) if wide.is_complex() else wide) / 2
    info = torch.finfo(half.dtype)
    # an infinite tau is the largest number, so that the ratio below is 1
    tau = _threshold(tau, x).clamp(max=info.max)
    corner = _filled(width / 2, half.dtype, x.device).clamp(min=info.tiny)
    # the difference of two square roots, without cancellation: -4 |x| tau over their sum
    half_sum = torch.hypot(half - tau / 2, corner) + torch.hypot(half + tau / 2, corner)
    return (wide * (1 - tau / half_sum)).to(x.dtype)


def slope(x: Tensor, tau: Tensor | float, *, slope: Tensor | float = 0.1) -> Tensor:
    r"""``slope * x`` inside the band, and ``x - sign(x) * (1 - slope) * tau`` outside: a leaky soft rule.

    With slope 0 it is the soft rule, with slope 1 the identity. What is inside the band still passes a gradient.

    Args:
        x: float16, bfloat16, float32, float64, complex64 or complex128, of any shape.
        tau: a number >= 0, or a real tensor that broadcasts to x.
        slope: a number from 0 to 1, or a real tensor that broadcasts to x and receives a gradient of its own shape.

    Returns:
        A tensor of the shape and type of x.

    Raises:
        TypeError: a type that is not listed.
        ValueError: a number out of range, or a tensor that does not broadcast to x or is on another device.

    Source: the thresholds with a slope of Zhang, Li and Chen, Deep residual shrinkage networks with self-adaptive slope
    thresholding for fault diagnosis, CMMNO 2021; as a leak in the band it is that of leaky ReLUs.

    >>> drsn_ops.rules.slope(torch.tensor([-2.0, 0.5, 3.0]), 1.0, slope=0.5)
    tensor([-1.5000,  0.2500,  2.5000])
    """
    if has_torch_function_variadic(x, tau, slope):
        return handle_torch_function(_slope, (x, tau, slope), x, tau, slope=slope)
    check_x(x, NUMBERS)
    if not isinstance(slope, Tensor):
        reference.require_number("slope", slope)
        if not 0 <= slope <= 1:
            raise ValueError(f"slope: got {slope!r}, expected a number from 0 to 1")
    leak = _as_tensor("slope", slope, x)
    return _scaled(x, _threshold(tau, x), lambda ratio: 1 - (1 - leak) * ratio, inside=leak)


_slope = slope  # its argument has the same name


def nonnegative(x: Tensor, tau: Tensor | float) -> Tensor:
    r"""``max(x - tau, 0)``, the soft rule for features that are not negative: a ReLU with a threshold.

    Args:
        x: float16, bfloat16, float32 or float64, of any shape.
        tau: a number >= 0, or a real tensor that broadcasts to x.

    Returns:
        A tensor of the shape and type of x.

    Raises:
        TypeError: a type that is not listed.
        ValueError: a negative number, a tau that does not broadcast to x, or one on another device.

    Source: the proximal operator of the l1 norm of non-negative features, as in Parikh and Boyd, Proximal algorithms,
    2014, DOI 10.1561/2400000003.

    >>> drsn_ops.rules.nonnegative(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([0., 0., 2.])
    """
    if has_torch_function_variadic(x, tau):
        return handle_torch_function(nonnegative, (x, tau), x, tau)
    check_x(x, REAL)
    return (_widened(x) - _threshold(tau, x)).relu().to(x.dtype)


def _norms(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Euclidean norms along axes, of x over its largest magnitude, so that no square is infinite or lost."""
    parts = torch.view_as_real(x) if x.is_complex() else x
    axes = tuple(axis % x.dim() for axis in axes) + ((x.dim(),) if x.is_complex() else ())
    if x.numel() == 0:
        return parts.abs().sum(axes, keepdim=True)
    # a constant: the norm does not depend on it
    largest = parts.detach().abs().amax(axes, keepdim=True)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    norms = torch.linalg.vector_norm(parts / scale, dim=axes, keepdim=True) * scale
    return norms.squeeze(-1) if x.is_complex() else norms


def group_soft_threshold(x: Tensor, tau: Tensor | float, dim: int | Sequence[int]) -> Tensor:
    r"""Soft thresholding of groups: ``y = x * max(1 - tau / norm, 0)``, ``norm`` that of x along ``dim``.

    A group keeps its direction, loses tau of its Euclidean norm, and is 0 where the norm is at most tau. It is the
    proximal operator of tau times the sum of the norms. A group of one is `soft_threshold`, and one of a real and an
    imaginary part is `soft_threshold` of complex numbers. Where the norm is at most tau, and so where all of a group is
    0, the derivatives by x and by tau are 0. NaN anywhere in a group or its tau makes all of it NaN. It is plain
    PyTorch, to any order of derivatives.

    Args:
        x: float16, bfloat16, float32, float64, complex64 or complex128, of any shape with ``dim``. Arithmetic is in
            float32, or in float64 for the wide types.
        tau: a number >= 0, or a real tensor that broadcasts to the norms, which have x's shape with 1 at ``dim``. It
            receives a gradient of its own shape; a negative entry acts as 0 and gets the gradient 0.
        dim: the axis, or the axes, along which elements are one group.

    Returns:
        A tensor of the shape and type of x.

    Raises:
        TypeError: a type that is not listed.
        ValueError: a negative number, a tau that does not broadcast to the norms or is on another device, or axes that
            x does not have.

    Source: Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006,
    DOI 10.1111/j.1467-9868.2005.00532.x; Bach et al., DOI 10.1561/2200000015, section 3.3.

    Examples:
        >>> x = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> drsn_ops.group_soft_threshold(x, 2.5, dim=1)
        tensor([[1.5000, 2.0000],
                [0.0000, 0.0000]])
    """
    if has_torch_function_variadic(x, tau):
        return handle_torch_function(group_soft_threshold, (x, tau), x, tau, dim)
    check_x(x, NUMBERS)
    axes = tuple(dim) if isinstance(dim, Sequence) else (dim,)
    known = [axis % x.dim() for axis in axes if type(axis) is int and -x.dim() <= axis < x.dim()]
    if not axes or len(set(known)) < len(axes):
        raise ValueError(f"dim: got {dim!r}, expected different axes of x, of shape {tuple(x.shape)}")
    norms = _norms(_widened(x), axes)
    return _scaled(x, _threshold(tau, norms, "the norms"), lambda ratio: 1 - ratio, size=norms)
