"""The operators in plain PyTorch, for tracers that take a table of decompositions; the formulas are those of
`reference`, `gated_autograd` and, of the backward operators, csrc/params.h.

A decomposition returns what the operator does, in the same types and layouts. Its sums may be rounded in another order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

from .. import reference
from ..reference import Statistic, per_row
from .autograd import _count
from .gated_autograd import _update_gate, _update_input, normalised
from .masks import Layout, Planes, shrink_gradients, soft_threshold_gradients, widened
from .plain_gate import BATCH, LAYER, NONE, RMS, RUNNING, Gate, Norm

_Function = TypeVar("_Function", bound=Callable[..., Any])
_TABLE: dict[OpOverload, Callable[..., Any]] = {}


def decompositions() -> dict[OpOverload, Callable[..., Any]]:
    r"""What turns the operators of this package into plain PyTorch ones: a table for ``run_decompositions`` of an
    exported program, ``make_fx`` and ``aot_function``.

    A model that is exported and decomposed runs where drsn_ops is not installed, and every exporter that knows
    PyTorch's own operators can take it from there. It computes the same at the speed of plain operators: where drsn_ops
    is installed, do without.

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

    Returns:
        A new dictionary from each operator of ``torch.ops.drsn_ops`` on tensors to a function of the operator's own
        arguments. Sizes that a tracer follows stay symbolic.
    """
    return dict(_TABLE)


def _decomposes(operator: str) -> Callable[[_Function], _Function]:
    def register(function: _Function) -> _Function:
        _TABLE[getattr(torch.ops.drsn_ops, operator).default] = function
        return function

    return register


def _lay_out(t: Tensor, layout: Layout) -> Tensor:
    """The values of t, of the shape of ``layout``, as the kernels write them."""
    t = t.to(layout.dtype)
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if layout.channels_last else t.contiguous()


def _pack(planes: Sequence[Tensor], layout: Layout, segments: int, length: int) -> Tensor:
    """Planes in the shape of x as a mask, (segments, planes, bytes)."""
    memory = [plane.movedim(1, -1) if layout.channels_last else plane for plane in planes]
    bits = torch.stack([plane.reshape(segments, length) for plane in memory], 1).to(torch.uint8)
    size = (length + 7) // 8
    bits = F.pad(bits, [0, 8 * size - length]).reshape(segments, len(planes), size, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(-1, dtype=torch.uint8)


def _row_mask(planes: Sequence[Tensor], x: Tensor) -> Tensor:
    """The mask of abs_mean and shrink: a segment a row, or a sample where x is channels_last."""
    layout = Layout.of(x)
    n, c = x.shape[:2]
    length = math.prod(x.shape[2:])
    return (
        _pack(planes, layout, n, c * length) if layout.channels_last else _pack(planes, layout, n * c, length)
    )


def _statistic(per_sample: bool) -> Statistic:
    return "sample" if per_sample else "channel"


@_decomposes("soft_threshold")
def _soft_threshold(x: Tensor, tau: Tensor | None, value: float) -> Tensor:
    return _lay_out(reference.soft_threshold(x, value if tau is None else tau), Layout.of(x))


@_decomposes("soft_threshold_with_mask")
def _soft_threshold_with_mask(x: Tensor, tau: Tensor | None, value: float) -> tuple[Tensor, Tensor]:
    wide = widened(x)
    threshold = wide.new_full([], value) if tau is None else tau.to(wide.dtype)
    passes = wide.abs() > threshold.clamp(min=0)
    opened = threshold < 0
    planes = [passes & (opened | (wide < 0)), passes & ~opened]
    mask = _pack(planes, Layout.of(x), 1, x.numel())
    return _soft_threshold(x, tau, value), mask[0]


@_decomposes("soft_threshold_")
def _soft_threshold_in_place(x: Tensor, tau: Tensor | None, value: float, with_mask: bool) -> Tensor:
    if with_mask:
        y, mask = _soft_threshold_with_mask(x, tau, value)
    else:
        y = _soft_threshold(x, tau, value)
        mask = x.new_empty([0, (x.numel() + 7) // 8], dtype=torch.uint8)
    x.copy_(y)
    return mask


def _like_tau(dtau: Tensor, tau_shape: Sequence[int], tau_dtype: torch.dtype, layout: Layout) -> Tensor:
    """The gradient of tau, which lies in memory as x does where it has the shape of x."""
    follows = layout.channels_last and list(tau_shape) == list(layout.shape)
    return _lay_out(dtau.sum_to_size(tau_shape), Layout(tau_shape, tau_dtype, follows))


@_decomposes("soft_threshold_backward")
def _soft_threshold_backward(
    grad: Tensor,
    mask: Tensor,
    tau_shape: Sequence[int],
    tau_dtype: torch.dtype | None,
    channels_last: bool,
    need_x: bool,
) -> tuple[Tensor, Tensor]:
    layout = Layout(grad.shape, grad.dtype, channels_last)
    dx, dtau = soft_threshold_gradients(grad, mask, layout)
    dx = _lay_out(dx, layout) if need_x else grad.new_empty([0])
    if tau_dtype is None:
        return dx, grad.new_empty([0])
    return dx, _like_tau(dtau, tau_shape, tau_dtype, layout)


@_decomposes("complex_soft_threshold_backward")
def _complex_soft_threshold_backward(
    grad: Tensor, x: Tensor, tau: Tensor | None, value: float, need_x: bool, need_tau: bool
) -> tuple[Tensor, Tensor]:
    """With u = x / |x| and a = tau / |x| where active: ``dx = (1 - a) g + a u Re(conj(u) g)``."""
    layout = Layout.of(x)
    magnitude, u = x.abs(), x.sgn()
    threshold = magnitude.new_full([], value) if tau is None else tau.to(magnitude.dtype)
    active = magnitude > threshold.clamp(min=0)
    along = (u.conj() * grad).real
    share = torch.where(active, threshold.clamp(min=0) / magnitude, 0)
    dx = torch.where(active, (1 - share) * grad + share * along * u, 0)
    dtau = grad.new_empty([0])
    if need_tau and tau is not None:
        passes = active & ~(threshold < 0)
        dtau = _like_tau(torch.where(passes, -along, 0), tau.shape, tau.dtype, layout)
    return _lay_out(dx, layout) if need_x else x.new_empty([0]), dtau


@_decomposes("abs_mean")
def _abs_mean(x: Tensor, per_sample: bool) -> Tensor:
    return reference.abs_mean(x, statistic=_statistic(per_sample))


@_decomposes("abs_mean_with_mask")
def _abs_mean_with_mask(x: Tensor, per_sample: bool) -> tuple[Tensor, Tensor]:
    return _abs_mean(x, per_sample), _row_mask([x < 0, x.abs() > 0], x)


@_decomposes("abs_mean_backward")
def _abs_mean_backward(
    grad: Tensor, mask: Tensor, shape: Sequence[int], dtype: torch.dtype, channels_last: bool
) -> Tensor:
    layout = Layout(shape, dtype, channels_last)
    planes = Planes.read(mask, layout)
    return _lay_out(planes.along_sign(per_row(grad, planes.nonzero)), layout)


def _shrink_by(x: Tensor, tau: Tensor, residual: Tensor | None, layout: Layout) -> Tensor:
    """x, of the accumulator's type, by a threshold a row."""
    y = reference.soft_threshold(x, per_row(tau, x))
    return _lay_out(y if residual is None else y + residual, layout)


@_decomposes("shrink")
def _shrink(x: Tensor, alpha: Tensor, residual: Tensor | None, per_sample: bool) -> tuple[Tensor, Tensor]:
    mean = _abs_mean(x, per_sample)
    return _shrink_by(widened(x), alpha * mean, residual, Layout.of(x)), mean


def _shrink_mask(x: Tensor, tau: Tensor) -> Tensor:
    return _row_mask(Planes.of(widened(x), per_row(tau.clamp(min=0), x)), x)


@_decomposes("shrink_with_mask")
def _shrink_with_mask(
    x: Tensor, alpha: Tensor, residual: Tensor | None, per_sample: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y, mean = _shrink(x, alpha, residual, per_sample)
    return y, mean, _shrink_mask(x, alpha * mean)


def _no_mask(x: Tensor) -> Tensor:
    return x.new_empty([0], dtype=torch.uint8)


@_decomposes("shrink_")
def _shrink_in_place(
    x: Tensor, alpha: Tensor, residual: Tensor | None, per_sample: bool, with_mask: bool
) -> tuple[Tensor, Tensor]:
    y, mean = _shrink(x, alpha, residual, per_sample)
    mask = _shrink_mask(x, alpha * mean) if with_mask else _no_mask(x)
    x.copy_(y)
    return mean, mask


@_decomposes("shrink_backward")
def _shrink_backward(
    grad: Tensor,
    grad_mean: Tensor | None,
    mask: Tensor,
    alpha: Tensor,
    mean: Tensor,
    per_sample: bool,
    channels_last: bool,
    need_x: bool,
    need_alpha: bool,
) -> tuple[Tensor, Tensor]:
    layout = Layout(grad.shape, grad.dtype, channels_last)
    count = _count(layout.shape, per_sample)
    dx, dalpha = shrink_gradients(Planes.read(mask, layout), grad, grad_mean, alpha, mean, count)
    return (
        _lay_out(dx, layout) if need_x else grad.new_empty([0]),
        dalpha if need_alpha else mean.new_empty([0]),
    )


class _WideGate(NamedTuple):
    """A gate's tensors, of the accumulator's type, as csrc/params.h describes them."""

    w1: Tensor
    b1: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    w2: Tensor
    b2: Tensor | None
    kind: int
    eps: float

    @classmethod
    def of(cls, parameters: Sequence[Tensor | None], kind: int, eps: float, dtype: torch.dtype) -> _WideGate:
        wide: Any = (None if t is None else t.to(dtype) for t in parameters)
        w1, b1, weight, bias, w2, b2 = wide
        return cls(w1, b1, weight, bias, w2, b2, kind, eps)

    @property
    def couples(self) -> bool:
        """Whether there are statistics of each feature."""
        return self.kind in (BATCH, RUNNING)

    def forward(self, mean: Tensor, running: tuple[Tensor | None, Tensor | None]) -> tuple[Tensor, Tensor]:
        """alpha, and the state that the backward pass needs."""
        h = F.linear(mean, self.w1, self.b1)
        statistics = _statistics(h, self.kind, *running, self.eps) if self.couples else h.new_empty([0])
        activation = self.activate(self.normalise(h, statistics)[0])
        alpha = F.linear(activation, self.w2, self.b2).sigmoid()
        return alpha, torch.cat([h.flatten(), alpha.flatten(), statistics.flatten()])

    def read(self, state: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the state holds: (N, H) numbers before the normalisation, alpha, and the statistics."""
        hidden, outputs = self.w1.shape[0], self.w2.shape[0]
        sizes = [samples * hidden, samples * outputs, 2 * hidden if self.couples else 0]
        h, alpha, statistics = torch.split(state, sizes)
        return h.view(samples, hidden), alpha.view(samples, outputs), statistics.view(2, -1)

    def normalise(self, h: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor | float]:
        """The normalised h, and what it was multiplied by."""
        if self.kind == NONE:
            return h, 1.0
        if self.couples:
            mean, rstd = statistics
            h = h - mean
        else:
            h = h - h.mean(1, keepdim=True) if self.kind == LAYER else h
            rstd = torch.rsqrt(h.square().mean(1, keepdim=True) + self.eps)
        return h * rstd, rstd

    def activate(self, x_hat: Tensor) -> Tensor:
        weighted = x_hat if self.weight is None else x_hat * self.weight
        return (weighted if self.bias is None else weighted + self.bias).relu()

    def backward(self, dalpha: Tensor, mean: Tensor, state: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """The gradients of the means and of the parameters."""
        h, alpha, statistics = self.read(state, mean.shape[0])
        x_hat, rstd = self.normalise(h, statistics)
        activation = self.activate(x_hat)
        dz2 = dalpha * alpha * (1 - alpha)
        dnorm = torch.where(activation <= 0, 0, dz2 @ self.w2)
        dh = dnorm if self.weight is None else dnorm * self.weight
        if self.kind in (BATCH, LAYER, RMS):
            dh = _through_statistics(dh, x_hat, [0 if self.kind == BATCH else 1], self.kind != RMS)
        dh = dh * rstd
        found = [dh.T @ mean, dh.sum(0), (dnorm * x_hat).sum(0), dnorm.sum(0), dz2.T @ activation, dz2.sum(0)]
        return dh @ self.w1, list(found)


def _statistics(
    h: Tensor, kind: int, running_mean: Tensor | None, running_var: Tensor | None, eps: float
) -> Tensor:
    """The mean and 1 / sqrt(variance + eps) of each feature of h, or the running ones, which are 0 and 1 where None."""
    if kind == BATCH:
        var, mean = torch.var_mean(h, [0, *range(2, h.dim())], correction=0)
    else:
        mean = h.new_zeros(h.shape[1]) if running_mean is None else running_mean.to(h.dtype)
        var = h.new_ones(h.shape[1]) if running_var is None else running_var.to(h.dtype)
    return torch.stack([mean, torch.rsqrt(var + eps)])


def _through_statistics(d: Tensor, x_hat: Tensor, axes: list[int], centred: bool) -> Tensor:
    """``d - average(d) - x_hat * average(d * x_hat)``: the gradient of the normalised numbers, less what statistics
    over these axes take back; without ``average(d)`` where they have no mean.
    """
    through = d - x_hat * (d * x_hat).mean(axes, keepdim=True)
    return through - d.mean(axes, keepdim=True) if centred else through


def _gated(
    x: Tensor,
    residual: Tensor | None,
    gate: _WideGate,
    running: tuple[Tensor | None, Tensor | None],
    per_sample: bool,
    layout: Layout,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result in this layout, the means, the gate's state and the thresholds of x, of the accumulator's type."""
    mean = reference.abs_mean(x)
    alpha, state = gate.forward(mean, running)
    tau = alpha * (mean.mean(1, keepdim=True) if per_sample else mean)
    return _shrink_by(x, tau, residual, layout), mean, state, tau


@_decomposes("gated_shrink_with_mask")
def _gated_shrink_with_mask(
    x: Tensor, residual: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *parameters, running_mean, running_var, kind, eps, per_sample = rest
    wide = widened(x)
    gate = _WideGate.of(parameters, kind, eps, wide.dtype)
    y, mean, state, tau = _gated(wide, residual, gate, (running_mean, running_var), per_sample, Layout.of(x))
    return y, mean, state, _shrink_mask(x, tau)


@_decomposes("gated_shrink")
def _gated_shrink(x: Tensor, residual: Tensor | None, *rest: Any) -> Tensor:
    return _gated_shrink_with_mask(x, residual, *rest)[0]


@_decomposes("gated_shrink_")
def _gated_shrink_in_place(
    x: Tensor, residual: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *gate_arguments, per_sample, inplace, with_mask = rest
    gate = Gate(*gate_arguments)
    y, mean, state, mask = _gated_shrink_with_mask(x, residual, *gate.functional, per_sample)
    if inplace:
        x.copy_(y)
        y = x.new_empty([0])
    if gate.kind == BATCH:
        _update_gate(gate, state, x.shape[0])
    return y, mean, state, mask if with_mask else _no_mask(x)


def _gated_backward(
    grad: Tensor,
    grad_mean: Tensor | None,
    planes: Planes,
    mean: Tensor,
    state: Tensor,
    gate: _WideGate,
    per_sample: bool,
) -> tuple[Tensor, list[Tensor | None]]:
    """The gradients of x, in the accumulator's type, and of the gate's parameters."""
    _, alpha, _ = gate.read(state, mean.shape[0])
    dtau = -planes.active_sums(grad)
    statistic = mean.mean(1, keepdim=True) if per_sample else mean
    dalpha = (dtau * statistic).sum_to_size(alpha.shape)
    dmean, found = gate.backward(dalpha, mean, state)
    direct = dtau * alpha
    dmean = dmean + (direct.mean(1, keepdim=True) if per_sample else direct)
    dmean = dmean if grad_mean is None else dmean + grad_mean
    return planes.combine(grad, dmean / _count(grad.shape, False)), found


def _wanted(
    found: Sequence[Tensor | None], parameters: Sequence[Tensor | None], needed: bool, like: Tensor
) -> list[Tensor]:
    """The gradients of parameters that are there; the others come back empty."""
    pairs = zip(found, parameters, strict=True)
    return [like.new_empty([0]) if t is None or d is None or not needed else d for d, t in pairs]


@_decomposes("gated_shrink_backward")
def _gated_shrink_backward(
    grad: Tensor, grad_mean: Tensor | None, mask: Tensor, mean: Tensor, state: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    *parameters, kind, eps, per_sample, channels_last, need_x, need_gate = rest
    layout = Layout(grad.shape, grad.dtype, channels_last)
    gate = _WideGate.of(parameters, kind, eps, state.dtype)
    planes = Planes.read(mask, layout)
    dx, found = _gated_backward(grad, grad_mean, planes, mean, state, gate, per_sample)
    dx = _lay_out(dx, layout) if need_x else grad.new_empty([0])
    return dx, *_wanted(found, parameters, need_gate, mean)


@_decomposes("batch_norm_shrink")
def _batch_norm_shrink(
    z: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    input_norm: int,
    input_eps: float,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *parameters, gate_mean, gate_var, kind, eps, per_sample = rest
    wide = widened(z)
    input_state = _statistics(wide, input_norm, running_mean, running_var, input_eps)
    x = _affine(wide, input_state, weight, bias)
    gate = _WideGate.of(parameters, kind, eps, wide.dtype)
    layout = Layout(z.shape, z.dtype, False)
    y, mean, state, _ = _gated(x, residual, gate, (gate_mean, gate_var), per_sample, layout)
    return y, mean, state, input_state


@_decomposes("batch_norm_shrink_")
def _batch_norm_shrink_in_place(
    z: Tensor, residual: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    norm, gate, per_sample = Norm(*rest[:8]), Gate(*rest[8:-1]), rest[-1]
    found = _batch_norm_shrink(z, residual, *norm.functional, *gate.functional, per_sample)
    _, _, state, input_state = found
    if norm.kind == BATCH:
        _update_input(norm, input_state, z.numel() // z.shape[1])
    if gate.kind == BATCH:
        _update_gate(gate, state, z.shape[0])
    return found


def _affine(z: Tensor, statistics: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """`normalised`, whatever types the parameters have."""
    parameters = (None if t is None else t.to(z.dtype) for t in (weight, bias))
    return normalised(z, statistics, *parameters)


@_decomposes("batch_norm_shrink_backward")
def _batch_norm_shrink_backward(
    grad: Tensor,
    z: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    input_norm: int,
    mean: Tensor,
    state: Tensor,
    input_state: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    *parameters, kind, eps, per_sample, need_z, need_parameters = rest
    gate = _WideGate.of(parameters, kind, eps, state.dtype)
    wide = widened(z)
    x = _affine(wide, input_state, weight, bias)
    alpha = gate.read(state, mean.shape[0])[1]
    tau = alpha * (mean.mean(1, keepdim=True) if per_sample else mean)
    dx, found = _gated_backward(grad, None, Planes.of(x, per_row(tau, x)), mean, state, gate, per_sample)
    x_hat = normalised(wide, input_state, None, None)
    axes = [0, *range(2, z.dim())]
    gradients = _wanted(
        [(dx * x_hat).sum(axes), dx.sum(axes), *found], (weight, bias, *parameters), need_parameters, mean
    )
    if not need_z:
        return grad.new_empty([0]), *gradients
    if input_norm == BATCH:
        dx = _through_statistics(dx, x_hat, axes, True)
    # back through (z - mean) * rstd * weight
    scale = input_state[1] if weight is None else input_state[1] * weight.to(wide.dtype)
    return _lay_out(dx * per_row(scale[None], dx), Layout(z.shape, z.dtype, False)), *gradients
