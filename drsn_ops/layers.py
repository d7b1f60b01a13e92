"""The plain layers around the operators: convolutions padded as TensorFlow pads, ReLUs in place, checks of shapes."""

# Annotations are evaluated: torch.fx keeps those of a forward that it traces, and pickles no strings.

from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import has_side_effect
from torch.nn.modules.conv import _ConvNd

from .ops.plain_gate import is_plain, watched
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
    if stride == 1:
        return x
    widths: list[int] = []
    for size in reversed(x.shape[2:]):
        total = 2 - (size - 1) % stride
        if stride > 3:  # only here: a comparison binds a traced network to sizes of one remainder
            total = max(total, 0)
        widths += [total // 2, total - total // 2]
    return F.pad(x, widths)


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
    """True if y may be overwritten: ``maker`` returned it new, and no hook, wrapper or tracer has seen it."""
    return isinstance(y, Tensor) and type(maker) in _MAKERS and maker is not None and is_plain(maker)


def relu(y: Tensor, maker: nn.Module) -> Tensor:
    """The ReLU of what ``maker`` returned, in place where y is `unseen`."""
    return F.relu(y, inplace=unseen(y, maker))


def through(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """x through the layers, one after the other; a ReLU is applied in place where its input is `unseen`."""
    maker = None
    for layer in layers:
        if type(layer) is nn.ReLU and is_plain(layer) and unseen(x, maker):
            x = F.relu(x, inplace=True)
        else:
            x = layer(x)
        maker = layer
    return x


@watched
class Layers(nn.Sequential):
    """A Sequential whose forward is `through`: ``ReLU(inplace=True)`` would overwrite what a hook has kept."""

    def forward(self, x: Tensor) -> Tensor:
        return through(self, x)
