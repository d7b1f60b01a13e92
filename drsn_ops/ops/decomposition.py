"""The forward operators in plain PyTorch, for exporters; the formulas are those of `reference` and `gate`.

A decomposition returns what the operator does, in the same types and layouts. Its sums may be rounded in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload

from .. import reference
from ..reference import per_row
from .autograd import scope
from .gate import RUNNING, batch_norm_formula, gate_formula, running_statistics
from .library import OPS
from .masks import Layout, Planes, is_channels_last, widened
from .spatial import convolution, pad_same, shortcut_of

_Function = TypeVar("_Function", bound=Callable[..., Any])
_TABLE: dict[OpOverload, Callable[..., Any]] = {}


def decompositions() -> dict[OpOverload, Callable[..., Any]]:
    r"""A table that turns the operators of an exported program into plain PyTorch ones, for ``run_decompositions``.

    A model that is exported and decomposed runs where drsn_ops is not installed, and every exporter that knows
    PyTorch's own operators can take it from there. It computes the same at the speed of plain operators: where drsn_ops
    is installed, do without.

    Examples:
        >>> model = drsn_ops.Shrinkage(4).eval()
        >>> batch = torch.export.Dim("batch")
        >>> program = torch.export.export(model, (torch.randn(2, 4, 9),), dynamic_shapes=({0: batch},))
        >>> program = program.run_decompositions(drsn_ops.decompositions())
        >>> "drsn_ops" in program.graph_module.code
        False

    From here:

    - ``torch.export.save(program, "model.pt2")`` makes a file that ``torch.export.load`` reads without drsn_ops;
    - ``torch.onnx.export(program, f="model.onnx", dynamo=True)`` makes standard ONNX operators;
    - ``torch._inductor.aoti_compile_and_package(program)`` compiles it; without the decomposition it does so too, and
      keeps the fused operators, which the process that runs the package has to load by importing drsn_ops.

    The table holds this package's operators alone, and ``run_decompositions`` does what it is given. For core ATen
    operators add PyTorch's own: ``{**torch.export.default_decompositions(), **drsn_ops.decompositions()}``.

    The table holds what ``torch.export`` writes of a module, in training and in evaluation, with gradients or without:
    the operators of the forward pass that write into no argument. Those of the backward pass and those in place, which
    ``make_fx`` or ``aot_function`` see in a training step, stay as they are; such a graph needs drsn_ops.

    Returns:
        A new dictionary from an operator of ``torch.ops.drsn_ops`` to a function of the operator's own arguments. Sizes
        that a tracer follows stay symbolic.
    """
    return dict(_TABLE)


def _decomposes(operator: str) -> Callable[[_Function], _Function]:
    def register(function: _Function) -> _Function:
        _TABLE[getattr(OPS, operator).default] = function
        return function

    return register


def _row_mask(planes: Sequence[Tensor], x: Tensor) -> Tensor:
    """The mask of abs_mean and shrink."""
    layout = Layout.of(x)
    return layout.pack(planes, *layout.segments)


@_decomposes("soft_threshold")
def _soft_threshold(x: Tensor, tau: Tensor | None, value: float) -> Tensor:
    return Layout.of(x).lay_out(reference.soft_threshold(x, value if tau is None else tau))


@_decomposes("soft_threshold_with_mask")
def _soft_threshold_with_mask(x: Tensor, tau: Tensor | None, value: float) -> tuple[Tensor, Tensor]:
    wide = widened(x)
    threshold = wide.new_full([], value) if tau is None else tau.to(wide.dtype)
    passes = wide.abs() > threshold.clamp(min=0)
    opened = threshold < 0
    planes = [passes & (opened | (wide < 0)), passes & ~opened]
    return _soft_threshold(x, tau, value), Layout.of(x).pack(planes, 1, x.numel())[0]


@_decomposes("abs_mean")
def _abs_mean(x: Tensor, per_sample: bool) -> Tensor:
    return reference.abs_mean(x, statistic=scope(per_sample))


@_decomposes("abs_mean_with_mask")
def _abs_mean_with_mask(x: Tensor, per_sample: bool) -> tuple[Tensor, Tensor]:
    return _abs_mean(x, per_sample), _row_mask([x < 0, x.abs() > 0], x)


def _shrink_by(x: Tensor, tau: Tensor, residual: Tensor | None, layout: Layout) -> Tensor:
    """x, of the accumulator's type, by a threshold a row."""
    y = reference.soft_threshold(x, per_row(tau, x))
    return layout.lay_out(y if residual is None else y + residual)


def _shrink_mask(x: Tensor, tau: Tensor) -> Tensor:
    return _row_mask(Planes.of(widened(x), per_row(tau.clamp(min=0), x)), x)


@_decomposes("shrink")
def _shrink(x: Tensor, alpha: Tensor, residual: Tensor | None, per_sample: bool) -> Tensor:
    return _shrink_by(widened(x), alpha * _abs_mean(x, per_sample), residual, Layout.of(x))


@_decomposes("shrink_with_mask")
def _shrink_with_mask(
    x: Tensor, alpha: Tensor, residual: Tensor | None, per_sample: bool
) -> tuple[Tensor, Tensor, Tensor]:
    mean = _abs_mean(x, per_sample)
    tau = alpha * mean
    return _shrink_by(widened(x), tau, residual, Layout.of(x)), mean, _shrink_mask(x, tau)


def _gate(x: Tensor, rest: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The means of x, of the accumulator's type, the gate's state, and the thresholds."""
    *parameters, running_mean, running_var, kind, eps, per_sample = rest
    mean = reference.abs_mean(x)
    running = None
    if kind == RUNNING:
        running = running_statistics(running_mean, running_var, parameters[0].shape[0], eps, mean)
    alpha, hidden, statistics = gate_formula(mean, parameters, kind, eps, running)
    state = torch.cat([t.flatten() for t in (hidden, alpha, statistics) if t is not None])
    return mean, state, alpha * (mean.mean(1, keepdim=True) if per_sample else mean)


@_decomposes("gated_shrink_with_mask")
def _gated_shrink_with_mask(
    x: Tensor, residual: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = widened(x)
    mean, state, tau = _gate(wide, rest)
    return _shrink_by(wide, tau, residual, Layout.of(x)), mean, state, _shrink_mask(x, tau)


@_decomposes("gated_shrink")
def _gated_shrink(x: Tensor, residual: Tensor | None, *rest: Any) -> Tensor:
    # no mask is made and thrown away: its size would tie the program to lengths above or below a byte's
    wide = widened(x)
    return _shrink_by(wide, _gate(wide, rest)[2], residual, Layout.of(x))


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    kind: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The normalised x, of the accumulator's type, and the statistics."""
    running = None
    if kind == RUNNING:
        running = running_statistics(running_mean, running_var, x.shape[1], eps, widened(x))
    return batch_norm_formula(x, weight, bias, kind, eps, running)


@_decomposes("batch_norm_relu")
def _batch_norm_relu(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *norm, stride, shortcut_channels = rest
    normal, statistics = _batch_norm(x, *norm)

    def laid_out(t: Tensor) -> Tensor:
        return Layout(t.shape, x.dtype, is_channels_last(x)).lay_out(t)

    y = laid_out(pad_same(normal.relu(), stride))
    shortcut = laid_out(shortcut_of(x, stride, shortcut_channels)) if shortcut_channels else x.new_empty([0])
    return y, shortcut, statistics


@_decomposes("batch_norm_relu_conv")
def _batch_norm_relu_conv(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *norm, weight, bias, stride, shortcut_channels = rest
    y, shortcut, statistics = _batch_norm_relu(x, *norm, stride, shortcut_channels)
    results = convolution(y, stride, weight, bias), shortcut
    y, shortcut = (Layout(t.shape, x.dtype, t.dim() > 1).lay_out(t) for t in results)
    return y, shortcut, statistics


@_decomposes("residual_unit")
def _residual_unit(x: Tensor, *rest: Any) -> Tensor:
    norm1, conv1, norm2, conv2, (stride, *gate) = rest[:5], rest[5:7], rest[7:12], rest[12:14], rest[14:]
    channels = conv2[0].shape[0]
    h, shortcut, _ = _batch_norm_relu_conv(x, *norm1[:4], RUNNING, norm1[4], *conv1, stride, channels)
    y, _, _ = _batch_norm_relu_conv(h, *norm2[:4], RUNNING, norm2[4], *conv2, 1, 0)
    return _gated_shrink(y, shortcut, *gate)


@_decomposes("batch_norm_shrink")
def _batch_norm_shrink(
    z: Tensor, residual: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, statistics = _batch_norm(z, *rest[:6])
    mean, state, tau = _gate(x, rest[6:])
    return _shrink_by(x, tau, residual, Layout.of(z)), mean, state, statistics
