"""Whether a gate is the plain network that the fused operators compute, and what it is made of if so.

A fused operator calls none of the gate's modules. It may stand in for them only where calling them would run PyTorch's
own code and nothing that a user attached: no hook, no subclass (a parametrization makes one), no replaced ``forward``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as _module
from torch.nn.modules.batchnorm import _BatchNorm

from .reference import accumulator

# NormKind of csrc/params.h
NONE, LAYER, RMS, BATCH, RUNNING = range(5)

_LAYERS = (nn.Linear, nn.ReLU, nn.Linear, nn.Sigmoid)
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
# The last two are what tracers put in place of a plain tensor.
_PLAIN_TENSORS = (nn.Parameter, Tensor, FakeTensor, FunctionalTensor)


class Norm(NamedTuple):
    """A normalisation as the operators take it; a negative momentum averages over all batches."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    batches: Tensor | None
    momentum: float
    kind: int
    eps: float

    @property
    def functional(self) -> tuple[Any, ...]:
        """The arguments of an operator that writes no statistics."""
        return *self[:4], *self[6:]


class Gate(NamedTuple):
    """``sigmoid(w2 relu(norm(w1 m + b1)) + b2)`` as the operators take it."""

    w1: Tensor
    b1: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    w2: Tensor
    b2: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    batches: Tensor | None
    momentum: float
    kind: int
    eps: float

    @property
    def parameters(self) -> tuple[Tensor | None, ...]:
        return self[:6]

    @property
    def functional(self) -> tuple[Any, ...]:
        """The arguments of an operator that writes no statistics."""
        return *self[:8], *self[10:]


def is_plain(*modules: nn.Module) -> bool:
    """Whether calling each module runs its class's ``forward`` and nothing else."""
    for module in modules:
        own = module.__dict__
        if (
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or "forward" in own
        ):
            return False
    return not (
        _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    )


def _fits(t: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> bool:
    return t is None or (
        type(t) in _PLAIN_TENSORS and t.shape == shape and t.dtype == dtype and t.device == device
    )


def uses_batch(module: nn.Module) -> bool:
    """Whether calling the module runs PyTorch's BatchNorm over the statistics of the batch, by the rule of its own."""
    if not isinstance(module, _BatchNorm) or type(module).forward is not _BatchNorm.forward:
        return False
    return module.training or (module.running_mean is None and module.running_var is None)


def _batch_norm(norm: _BatchNorm) -> Norm | None:
    """What ``forward`` of PyTorch's BatchNorm would do; None for what the kernels do not."""
    buffers = norm._buffers
    mean, var, batches = buffers["running_mean"], buffers["running_var"], None
    momentum = 0.0
    kind = BATCH if norm.training or (mean is None and var is None) else RUNNING
    if norm.training:
        if norm.track_running_stats:
            batches = buffers["num_batches_tracked"]
            if norm.momentum is None:
                momentum = 0.0 if batches is None else -1.0
            elif isinstance(norm.momentum, (int, float)) and norm.momentum >= 0:
                momentum = norm.momentum
            else:
                return None
        else:
            mean = var = None
    if (mean is None) != (var is None) or (batches is not None and type(batches) not in _PLAIN_TENSORS):
        return None
    weight, bias = norm._parameters["weight"], norm._parameters["bias"]
    return Norm(weight, bias, mean, var, batches, momentum, kind, norm.eps)


def _gate_norm(norm: nn.Module, features: int, wide: torch.dtype) -> Norm | None:
    if type(norm) is nn.BatchNorm1d:
        return _batch_norm(norm)
    if type(norm) is nn.Identity:
        return Norm(None, None, None, None, None, 0.0, NONE, 0.0)
    if type(norm) is nn.LayerNorm and norm.normalized_shape == (features,):
        weight, bias = norm._parameters["weight"], norm._parameters["bias"]
        return Norm(weight, bias, None, None, None, 0.0, LAYER, norm.eps)
    if type(norm) is nn.RMSNorm and norm.normalized_shape == (features,):
        eps = torch.finfo(wide).eps if norm.eps is None else norm.eps
        return Norm(norm._parameters["weight"], None, None, None, None, 0.0, RMS, eps)
    return None


def plain_batch_norm(norm: nn.Module, z: Tensor) -> Norm | None:
    """What a fused operator needs to normalise z as this module would; None where the module has to be called."""
    if type(norm) is not _BATCH_NORMS[z.dim()] or not is_plain(norm):
        return None
    try:
        found = _batch_norm(norm)
    except KeyError:  # a parameter or buffer became something else
        return None
    if found is None or norm.num_features != z.shape[1]:
        return None
    tensors = [t for t in found[:4] if t is not None]
    shape, device = (norm.num_features,), z.device
    dtype = tensors[0].dtype if tensors else z.dtype
    if dtype not in (z.dtype, accumulator(z.dtype)) or not all(
        _fits(t, shape, dtype, device) for t in tensors
    ):
        return None
    return found


def plain_gate(gate: nn.Module, x: Tensor) -> Gate | None:
    """What a fused operator needs to compute this gate for x; None where its modules have to be called."""
    if type(gate) is not nn.Sequential or len(gate._modules) != 5:
        return None
    first, norm, relu, last, sigmoid = gate._modules.values()
    if (type(first), type(relu), type(last), type(sigmoid)) != _LAYERS:
        return None
    if not is_plain(gate, first, norm, relu, last, sigmoid):
        return None
    try:
        w1, b1 = first._parameters["weight"], first._parameters["bias"]
        w2, b2 = last._parameters["weight"], last._parameters["bias"]
        if w1 is None or w2 is None:
            return None
        wide = accumulator(x.dtype)
        hidden, channels = w1.shape
        outputs, dtype = w2.shape[0], w1.dtype
        found = _gate_norm(norm, hidden, wide)
    except (KeyError, ValueError):  # a parameter or buffer became something else
        return None
    if found is None or dtype not in (wide, x.dtype):
        return None
    # Of a size that a tracer follows, every comparison is a guard, but not one within a tuple.
    if channels != x.shape[1] or hidden == 0 or (outputs != 1 and outputs != channels):
        return None
    weight, bias, mean, var, batches, momentum, kind, eps = found
    device, features = x.device, (hidden,)
    if (
        _fits(w1, (hidden, channels), dtype, device)
        and _fits(b1, features, dtype, device)
        and _fits(weight, features, dtype, device)
        and _fits(bias, features, dtype, device)
        and _fits(w2, (outputs, hidden), dtype, device)
        and _fits(b2, (outputs,), dtype, device)
        and _fits(mean, features, dtype, device)
        and _fits(var, features, dtype, device)
    ):
        return Gate(w1, b1, weight, bias, w2, b2, mean, var, batches, momentum, kind, eps)
    return None
