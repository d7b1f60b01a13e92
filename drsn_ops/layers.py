"""The plain layers around the operators: their memory layout, padding as TensorFlow pads, ReLUs in place, checks."""

# Annotations are evaluated: torch.fx keeps those of a forward that it traces, and pickles no strings.

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import has_side_effect
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from . import functional
from .ops import residual_unit, spatial
from .ops.autograd import fuses
from .ops.plain_gate import PLAIN_TENSORS, is_plain, plain_convolution, watched
from .reference import wrong_type

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


# torch.fx traces without shapes. A function that reads a shape becomes one node, by `torch.fx.wrap` here and in each
# file that calls it; `has_side_effect` keeps a check, whose result nobody uses, from being removed as dead code.


@torch.fx.wrap
@has_side_effect
def require_input(x: Tensor, channels: int, dim: int) -> None:
    """Raise TypeError or ValueError unless ``x`` is a batch of ``channels`` channels with ``dim`` spatial axes."""
    if not isinstance(x, Tensor):
        raise wrong_type("x", x)
    if x.dim() != dim + 2 or x.shape[1] != channels:
        axes = "".join(f", L{i + 1}" for i in range(dim))
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (N, {channels}{axes})")


@torch.fx.wrap
@has_side_effect
def require_channels(x: Tensor, channels: int, name: str) -> None:
    """Raise TypeError or ValueError unless axis 1 of ``x`` has ``channels`` entries, called ``name``."""
    if not isinstance(x, Tensor):
        raise wrong_type("x", x)
    if x.dim() < 2 or x.shape[1] != channels:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected {channels} {name} on axis 1")


@torch.fx.wrap
def along_channels(values: Tensor, x: Tensor) -> Tensor:
    """Values of shape (C,), made to broadcast over x of shape (N, C, \\*spatial)."""
    return values.reshape(-1, *(1,) * (x.dim() - 2))


@torch.fx.wrap
def pad_same(x: Tensor, stride: int) -> Tensor:
    """x with the zeros that `conv3` of this stride needs to be what TensorFlow calls "same".

    Of n positions the convolution then keeps ceil(n / stride). Stride 1 needs no zeros here: the convolution itself
    pads by one. For stride 2 an even axis gets its one zero at the end; ``padding=1`` would put one in front too, and
    so move every window by one position.
    """
    if stride > 1 and is_strided(x):  # a padding of one axis would not keep that
        return F.pad(x.unsqueeze(2), [*spatial.same_padding(x.shape[2:], stride), 0, 0]).squeeze(2)
    return spatial.pad_same(x, stride)


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


# What torch.compiler.assume_constant_result sets; that would import the compiler with the package.
_has_onednn._dynamo_marked_constant = True  # type: ignore[attr-defined]


def lay_out(x: Tensor) -> Tensor:
    """A network's input in the layout in which all that follows is fastest. No other place decides on a layout.

    On the CPU that is channels_last, where oneDNN convolves: of other layouts it reorders every input, weight and
    output. Elsewhere, in exports and traces too, it is what comes in. So is a single channel in torch.compile: only
    the strides of an axis of one tell its layouts apart, and inductor does not keep these. And so are bfloat16 and
    autocast with two axes or three: where one is short, oneDNN's gradient of a weight is wrong and written past its
    end, in channels_last for any channels, else for multiples of 16.
    """
    if (
        type(x) not in PLAIN_TENSORS
        or not (x.is_cpu and x.dtype in (torch.float32, torch.bfloat16) and x.is_contiguous())
        or not fuses(x)
        or torch.compiler.is_exporting()
        or (x.shape[1] == 1 and torch.compiler.is_compiling())
        or (x.dim() > 3 and (x.dtype is torch.bfloat16 or torch.is_autocast_enabled("cpu")))
        or not _has_onednn()
    ):
        return x
    n, c, *sizes = x.shape
    # A view if there is one channel: then strides alone tell the layouts apart, and those of the last axis become 1.
    return x.movedim(1, -1).reshape(-1).view(n, *sizes, c).movedim(-1, 1)


def is_strided(x: Tensor) -> bool:
    """True if x has one spatial axis and the strides of channels_last, as a convolution of two axes tells them."""
    if type(x) not in PLAIN_TENSORS or x.dim() != 3:
        return False
    _, channels, length = x.shape
    # a trace of torch.jit is for inputs of any strides
    if channels == 1 if torch.compiler.is_compiling() else torch._C._is_tracing():
        return False
    return length > 1 and x.stride(1) == 1 and x.stride(2) == channels


def _of_image(first: int, last: int | Iterable[int]) -> tuple[int, ...]:
    """A convolution's number for its only axis, which may be set to an int, and one for an axis before that."""
    return (first, last) if isinstance(last, int) else (first, *last)


def as_image(conv: nn.Module, x: Tensor) -> Tensor:
    """What a plain ``conv`` makes of an x with one spatial axis, as (N, C, 1, L), without a copy of a strided x."""
    one: Any = conv
    padding = one.padding if isinstance(one.padding, str) else _of_image(0, one.padding)
    stride, dilation = _of_image(1, one.stride), _of_image(1, one.dilation)
    return F.conv2d(
        x.unsqueeze(2), one.weight.unflatten(2, (1, -1)), one.bias, stride, padding, dilation, one.groups
    )


def apply(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` in the layout of x, which PyTorch's convolution and BatchNorm of one axis would not keep."""
    if is_strided(x):
        if type(layer) is nn.Conv1d and plain_convolution(layer, x):
            return as_image(layer, x).squeeze(2)
        if type(layer) is nn.BatchNorm1d and is_plain(layer):
            lines = x.movedim(1, -1)
            y: Tensor = layer(lines.flatten(0, 1))
            return y.view(lines.shape).movedim(-1, 1)
    y = layer(x)
    return y


def leaves_unseen(conv: nn.Module, x: Tensor, *others: Tensor) -> bool:
    """True if nobody but the caller sees what ``conv`` makes of x, and kernels may overwrite it."""
    plain = type(x) in PLAIN_TENSORS and plain_convolution(conv, x)
    return plain and fuses(x, *others) and is_unwatched()


def is_unwatched() -> bool:
    """True if nobody but the caller sees what an operator of this package returns: no compiler, no mode."""
    return not torch.compiler.is_compiling() and not _in_mode()


def _in_mode() -> bool:
    """True where a mode sees what every operation returns and may keep it, as selective checkpoints do."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._is_torch_function_mode_enabled()


def conv3(dim: int, in_channels: int, out_channels: int, stride: int = 1) -> _ConvNd:
    """A convolution of width 3 over ``dim`` spatial axes, whose input is to go through `pad_same`."""
    return CONVOLUTIONS[dim](in_channels, out_channels, 3, stride, padding=1 if stride == 1 else 0)


Kind = TypeVar("Kind", bound=type[nn.Module])
_MAKERS: set[type[nn.Module]] = {*BATCH_NORMS.values(), nn.SyncBatchNorm}


def returns_new(kind: Kind) -> Kind:
    """A class decorator: the module returns a new tensor and does not keep it."""
    _MAKERS.add(kind)
    return kind


def unseen(y: Tensor, maker: nn.Module | None) -> bool:
    """True if y may be overwritten: ``maker`` returned it new, and no hook, wrapper, mode or tracer has seen it."""
    made = isinstance(y, Tensor) and type(maker) in _MAKERS and maker is not None and is_plain(maker)
    return made and (torch.compiler.is_compiling() or not _in_mode())


def relu(y: Tensor, maker: nn.Module) -> Tensor:
    """The ReLU of what ``maker`` returned, in place where y is `unseen`."""
    return F.relu(y, inplace=unseen(y, maker))


def pre_activation(
    batch_norm: nn.Module, x: Tensor, stride: int = 1, shortcut_channels: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """The ReLU of ``batch_norm(x)``, with the zeros that `conv3` of this stride needs.

    With it comes the shortcut of a residual unit, if ``shortcut_channels`` are asked for and one operator makes both.
    """
    made = functional.pre_activation(x, batch_norm, stride, shortcut_channels)
    if made is not None:
        return made
    y = apply(batch_norm, x)
    # `apply` may return a view, and PyTorch's backward through a view that was overwritten copies
    return pad_same(F.relu(y, inplace=unseen(y, batch_norm) and not is_strided(x)), stride), None


def activated_convolution(
    batch_norm: nn.Module, conv: nn.Module, x: Tensor, stride: int = 1, shortcut_channels: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """What ``conv`` makes of the `pre_activation` of x, and the shortcut that comes with it."""
    if is_strided(x):
        made = residual_unit.activated_convolution(x, batch_norm, conv, stride, shortcut_channels)
        if made is not None:
            return made
    y, shortcut = pre_activation(batch_norm, x, stride, shortcut_channels)
    return apply(conv, y), shortcut


def through(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """x through the layers, one after the other, in the layout of x; a ReLU overwrites an input that is `unseen`.

    A BatchNorm and the ReLU behind it are one operator where both are plain.
    """
    maker: nn.Module | None = None
    rest = list(layers)
    while rest:
        layer = rest.pop(0)
        if isinstance(layer, _BatchNorm) and rest and _is_relu(rest[0]):
            made = functional.pre_activation(x, layer)
            if made is not None:
                x, maker = made[0], rest.pop(0)
                continue
        x = F.relu(x, inplace=True) if _is_relu(layer) and unseen(x, maker) else apply(layer, x)
        maker = layer
    return x


def _is_relu(layer: nn.Module) -> bool:
    return type(layer) is nn.ReLU and is_plain(layer)


def through_all(layers: nn.Module, x: Tensor) -> Tensor:
    """``layers(x)``, by `through` where they are a plain Sequential."""
    if type(layers) in (Layers, nn.Sequential) and is_plain(layers):
        return through(layers, x)  # type: ignore[arg-type]
    y: Tensor = layers(x)
    return y


@watched
class Layers(nn.Sequential):
    """A Sequential whose forward is `through`: ``ReLU(inplace=True)`` would overwrite what a hook has kept."""

    def forward(self, x: Tensor) -> Tensor:
        return through(self, x)
