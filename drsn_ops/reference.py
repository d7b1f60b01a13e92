"""The operators in plain PyTorch: the definition that every kernel is compared with, written to be read.

Everything here is differentiable to any order and runs on any device. In float64 it is the truth. It also runs under
``torch.func`` and forward-mode AD, in exports to ONNX, and on devices without kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

Statistic = Literal["channel", "sample"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)

REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NUMBERS = (*REAL, torch.complex64, torch.complex128)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type of statistics, thresholds and sums: float64 for float64 and complex128, else float32."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def per_row(values: Tensor, x: Tensor) -> Tensor:
    """Values of shape (N or 1, C or 1), made to broadcast over x of shape (N, C, \\*spatial)."""
    return values.reshape(values.shape + (1,) * (x.dim() - 2))


def wrong_type(name: str, value: object, allowed: str = "a tensor") -> TypeError:
    """The error for an argument of a wrong type, with a hint if it is an array of numpy."""
    kind = type(value)
    full = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    hint = f"; torch.from_numpy({name}) is a tensor" if full == "numpy.ndarray" else ""
    return TypeError(f"{name}: got {full}, expected {allowed}{hint}")


def require_number(name: str, value: object, allowed: str = "a number or a tensor") -> None:
    """Raise TypeError unless ``value`` is a real number, Python's or numpy's."""
    # the common types first: the test for Real is slower
    if not isinstance(value, (float, int, torch.SymFloat, torch.SymInt, Real)) or isinstance(value, bool):
        raise wrong_type(name, value, allowed)


def varies(value: float) -> bool:
    """True if a compiler treats this number as one that changes from call to call."""
    if isinstance(value, (torch.SymFloat, torch.SymInt)):
        return True
    if not torch.compiler.is_compiling():
        return False
    # not at the top: the package would then import sympy
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return not has_static_value(value)


def filled(shape: Sequence[int], value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``torch.full``, but a number that `varies` is added to zeros: torch.full would make it a constant."""
    if varies(value):
        return torch.zeros(shape, dtype=dtype, device=device) + value
    return torch.full(shape, value, dtype=dtype, device=device)


def gate_values(alpha: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``alpha`` of shape (N, C), (N, 1) or (C,), or a number, as a matrix of (N or 1, C or 1)."""
    if not isinstance(alpha, Tensor):
        require_number("alpha", alpha)
        return filled((1, 1), alpha, dtype, device)
    alpha = alpha.to(dtype)
    return alpha if alpha.dim() == 2 else alpha.reshape(1, -1)


def at_least_0(tau: Tensor) -> Tensor:
    """``tau.clamp(min=0)``, of a view: the ONNX exporter of PyTorch 2.11 fails at a parameter with a number."""
    return tau.view(tau.shape).clamp(min=0)


def soft_threshold(x: Tensor, tau: Tensor | float, *, inplace: bool = False) -> Tensor:
    """``sign(x) * max(|x| - tau, 0)``, with ``tau`` clamped at 0."""
    if not isinstance(x, Tensor):
        raise wrong_type("x", x)
    if not isinstance(tau, Tensor):
        require_number("tau", tau)
    wide = accumulator(x.dtype)
    source = x.clone() if inplace else x  # what autograd keeps must not be overwritten
    real = source if x.is_complex() else source.to(wide)
    threshold = at_least_0(tau.to(wide)) if isinstance(tau, Tensor) else tau
    sign = real.sgn() if x.is_complex() else real.sign()
    # relu's derivative at 0 is 0, which closes the band.
    y = (sign * (real.abs() - threshold).relu()).to(x.dtype)
    return x.copy_(y) if inplace else y


def abs_mean(x: Tensor, *, statistic: Statistic = "channel") -> Tensor:
    """Mean of ``|x|`` per channel, (N, C), or per sample, (N, 1), in float32 or wider; 0 where there is nothing."""
    if not isinstance(x, Tensor):
        raise wrong_type("x", x)
    length = math.prod(x.shape[2:])
    rows = x.to(accumulator(x.dtype)).abs().reshape(x.shape[0], x.shape[1], length)
    if statistic == "sample":
        rows = rows.reshape(x.shape[0], 1, x.shape[1] * length)
    return rows.sum(-1) / max(rows.shape[-1], 1)


def shrink(
    x: Tensor,
    alpha: Tensor | float,
    *,
    statistic: Statistic = "channel",
    residual: Tensor | None = None,
    inplace: bool = False,
    return_threshold: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``soft_threshold(x, alpha * abs_mean(x)) + residual``."""
    if inplace and isinstance(alpha, Tensor):
        alpha = alpha.clone()  # it may share the memory of x
    y, mean = shrink_and_mean(x, alpha, statistic, residual, inplace)
    return (y, gate_values(alpha, mean.dtype, x.device) * mean) if return_threshold else y


def shrink_and_mean(
    x: Tensor, alpha: Tensor | float, statistic: Statistic, residual: Tensor | None, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """`shrink`, and the abs-mean in its threshold, (N, C) or (N, 1)."""
    for name, t in (("x", x), ("residual", x if residual is None else residual)):
        if not isinstance(t, Tensor):
            raise wrong_type(name, t)
    wide = accumulator(x.dtype)
    source = (x.clone() if inplace else x).to(wide)
    mean = abs_mean(source, statistic=statistic)
    y = soft_threshold(source, per_row(gate_values(alpha, wide, x.device) * mean, x))
    if residual is not None:
        y = y + residual.to(wide)
    y = y.to(x.dtype)
    return x.copy_(y) if inplace else y, mean


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the device of x."""
    device = x.device.type
    # of these it is not asked: torch.compile of PyTorch 2.11 could not follow
    has_autocast = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if has_autocast else nullcontext()


def gate_weights(gate: torch.nn.Module) -> Iterator[object]:
    """The attributes of a gate among which are the weights that tell its type."""
    for module in gate.modules():
        yield getattr(module, "weight", None)  # in a replica it is no parameter
        yield from module._parameters.values()


def first_real(weights: Iterable[object], otherwise: torch.dtype) -> torch.dtype:
    """The type of the first tensor that has one of `REAL`; tensors of other types are only storage."""
    return next((w.dtype for w in weights if isinstance(w, Tensor) and w.dtype in REAL), otherwise)


def gate_dtype(gate: torch.nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """The type that a gate computes in."""
    return first_real(gate_weights(gate), otherwise)


def gated_shrink(
    x: Tensor,
    gate: torch.nn.Module,
    *,
    statistic: Statistic = "channel",
    residual: Tensor | None = None,
) -> Tensor:
    """``shrink(x, gate(m))``; for both statistics the gate's input ``m`` is the channel-wise abs-mean of x."""
    means = abs_mean(x)
    alpha = gate(means.to(gate_dtype(gate, means.dtype)))
    return shrink_and_mean(x, alpha, statistic, residual)[0]


def batch_norm_shrink(
    z: Tensor,
    batch_norm: torch.nn.Module,
    gate: torch.nn.Module,
    *,
    statistic: Statistic = "channel",
    residual: Tensor | None = None,
) -> Tensor:
    """``gated_shrink(batch_norm(z), gate)``."""
    if not isinstance(z, Tensor):
        raise wrong_type("z", z)
    return gated_shrink(batch_norm(z), gate, statistic=statistic, residual=residual)


def batch_norm_relu(x: Tensor, batch_norm: torch.nn.Module) -> Tensor:
    """``relu(batch_norm(x))``."""
    if not isinstance(x, Tensor):
        raise wrong_type("x", x)
    y: Tensor = batch_norm(x).relu()
    return y
