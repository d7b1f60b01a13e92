"""Recognises the gates, normalisations and convolutions that may be computed without a call of their modules.

A fused operator calls no module. It may replace the modules only where calling them would run PyTorch's own code and
nothing that a user attached: no hook, no subclass (a parametrization makes one), no replaced ``forward`` of the module
or of its class.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as _module
from torch.nn.modules.batchnorm import _BatchNorm

from ..reference import accumulator
from .gate import BATCH, LAYER, NONE, RMS, RUNNING, Gate, Norm
from .library import simd

_LAYERS = (nn.Linear, nn.ReLU, nn.Linear, nn.Sigmoid)
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
# Tracers replace a plain tensor by one of the last two.
PLAIN_TENSORS = (nn.Parameter, Tensor, FakeTensor, FunctionalTensor)

# Of each stride of a convolution of width 3: the paddings behind `spatial.pad_same`, and the most channels, in and out,
# with which the operator that normalises and convolves is faster than PyTorch's convolution.
_NARROW = {1: (((1,), "same"), 16), 2: (((0,),), 16)}

Kind = TypeVar("Kind", bound=type[nn.Module])


def _unreplaced(kind: type[nn.Module], name: str) -> Callable[..., Any] | None:
    """The method that the class was written with; None if another has replaced it.

    A replacement may copy the method's names, as functools.wraps does, but it has the globals of its own module.
    """
    owner = next(base for base in kind.__mro__ if name in vars(base))
    method: Any = vars(owner)[name]
    module = sys.modules.get(owner.__module__)
    names = getattr(method, "__qualname__", None), getattr(method, "__globals__", None)
    return method if names == (f"{owner.__qualname__}.{name}", vars(module) if module else None) else None


# Calling a module runs these before its forward; the first is Module.__call__.
_CALLS = _unreplaced(nn.Module, "_wrapped_call_impl"), _unreplaced(nn.Module, "_call_impl")
_FORWARDS: dict[type[nn.Module], Callable[..., Any] | None] = {}
# A convolution's forward calls this.
_CONVOLVES = {kind: _unreplaced(kind, "_conv_forward") for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}


def watched(kind: Kind) -> Kind:
    """A class decorator: `is_plain` is False once the ``forward`` of this class is replaced."""
    _FORWARDS[kind] = _unreplaced(kind, "forward")
    return kind


_OTHERS = (nn.LayerNorm, nn.RMSNorm, nn.Identity, nn.Sequential)
for _kind in (*_LAYERS, *_BATCH_NORMS.values(), *_CONVOLVES, *_OTHERS):
    watched(_kind)


def _traces(method: Any) -> bool:
    """True for the wrapper that torch.fx, and so torch.export, puts around Module.__call__ while it traces."""
    around = getattr(method, "__wrapped__", None) is _CALLS[0]
    return around and getattr(method, "__globals__", {}).get("__name__", "").startswith("torch.fx.")


def is_plain(*modules: nn.Module) -> bool:
    """True if calling each module runs the ``forward`` of its class and nothing else."""
    call, call_impl = _CALLS
    for module in modules:
        kind, own = type(module), module.__dict__
        if (
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or "forward" in own
            or "_compiled_call_impl" in own
            or "_call_impl" in own
            or kind._call_impl is not call_impl
            or (kind.__call__ is not call and not _traces(kind.__call__))
            or _FORWARDS.get(kind, forward := kind.forward) is not forward
        ):
            return False
    return not (
        _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    )


def _all_plain(tensors: tuple[Tensor | None, ...], device: torch.device) -> bool:
    for t in tensors:
        if t is not None and (type(t) not in PLAIN_TENSORS or t.device != device):
            return False
    return True


def plain_convolution(conv: nn.Module, x: Tensor) -> bool:
    """True if calling the module on x runs PyTorch's convolution, of plain tensors, with zeros around x."""
    made: Any = conv
    return _convolves(conv) and _all_plain((x, made.weight, made.bias), x.device)


def _convolves(conv: nn.Module) -> bool:
    kind: Any = type(conv)
    if kind not in _CONVOLVES or kind._conv_forward is not _CONVOLVES[kind] or "_conv_forward" in vars(conv):
        return False
    return conv.padding_mode == "zeros" and is_plain(conv)


def narrow_convolution(conv: nn.Module, x: Tensor, stride: int) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a convolution of few channels, as the operator takes them that normalises before it.

    x, with one spatial axis, is plain and has the strides of channels_last. None if PyTorch has to convolve: where its
    convolution is as fast, on instruction sets without kernels, in an export, which may run elsewhere, in autocast.
    """
    if type(conv) is not nn.Conv1d or stride not in _NARROW or x.dtype is not torch.float32:
        return None
    paddings, most = _NARROW[stride]
    parameters: Any = conv._parameters
    try:
        weight, bias = parameters["weight"], parameters["bias"]
        out, channels, width = weight.shape
    except (AttributeError, KeyError, ValueError):  # a parameter was replaced
        return None
    if (
        out > most
        or channels > most
        or width != 3
        or not x.is_cpu
        or simd == "default"
        or conv.stride != (stride,)
        or conv.padding not in paddings
        or conv.dilation != (1,)
        or conv.groups != 1
        or weight.dtype is not torch.float32
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_exporting()
        or not _convolves(conv)
        or not _all_plain((weight, bias), x.device)
    ):
        return None
    return weight, bias


def uses_batch(module: nn.Module) -> bool:
    """True if calling the module runs PyTorch's BatchNorm with the statistics of the batch."""
    if not isinstance(module, _BatchNorm) or type(module).forward is not _FORWARDS[nn.BatchNorm1d]:
        return False
    return module.training or (module.running_mean is None and module.running_var is None)


def _batch_norm(norm: _BatchNorm) -> Norm | None:
    """PyTorch's BatchNorm as its ``forward`` would compute it; None if the kernels do not compute that."""
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
    if (mean is None) != (var is None) or (batches is not None and batches.dtype != torch.int64):
        return None
    weight, bias = norm._parameters["weight"], norm._parameters["bias"]
    return Norm(weight, bias, mean, var, batches, momentum, kind, norm.eps)


def _gate_norm(norm: Any, features: int, x: Tensor) -> Norm | None:
    kind = type(norm)
    if kind is nn.BatchNorm1d:
        return _batch_norm(norm)
    if kind is nn.Identity:
        return Norm(None, None, None, None, None, 0.0, NONE, 0.0)
    if kind not in (nn.LayerNorm, nn.RMSNorm) or norm.normalized_shape != (features,):
        return None
    weight, eps = norm._parameters["weight"], norm.eps
    if kind is nn.LayerNorm:
        return Norm(weight, norm._parameters["bias"], None, None, None, 0.0, LAYER, eps)
    eps = torch.finfo(accumulator(x.dtype)).eps if eps is None else eps
    return Norm(weight, None, None, None, None, 0.0, RMS, eps)


def plain_batch_norm(norm: nn.Module, z: Tensor) -> Norm | None:
    """This normalisation of z as a fused operator takes it; None if the module has to be called."""
    if type(norm) is not _BATCH_NORMS[z.dim()] or not is_plain(norm):
        return None
    try:
        found = _batch_norm(norm)
    except KeyError:  # a parameter or buffer was replaced
        return None
    return found if found is not None and _all_plain(found[:5], z.device) else None


def plain_gate(gate: nn.Module, x: Tensor) -> Gate | None:
    """This gate for x as a fused operator takes it; None if its modules have to be called.

    The operator checks the rest, for which calling the modules would fail too.
    """
    if type(gate) is not nn.Sequential or len(gate._modules) != 5:
        return None
    layers: Any = tuple(gate._modules.values())
    first, norm, relu, last, sigmoid = layers
    if (type(first), type(relu), type(last), type(sigmoid)) != _LAYERS or not is_plain(gate, *layers):
        return None
    try:
        w1, b1 = first._parameters["weight"], first._parameters["bias"]
        w2, b2 = last._parameters["weight"], last._parameters["bias"]
        hidden, channels = w1.shape
        outputs, _ = w2.shape
        found = _gate_norm(norm, hidden, x)
    except (AttributeError, KeyError, ValueError):  # a parameter or buffer was replaced
        return None
    # One comparison a size: a tracer makes a guard of each, but of none within a tuple.
    if found is None or hidden == 0 or channels != x.shape[1] or (outputs != 1 and outputs != channels):
        return None
    made = Gate(w1, b1, found.weight, found.bias, w2, b2, *found[2:])
    return made if _all_plain(made[:9], x.device) else None
