"""What a strided residual unit does to the spatial axes, in plain PyTorch; `Spatial` of csrc/params.h."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def same_padding(sizes: Sequence[int], stride: int, width: int = 3) -> list[int]:
    """The zeros around axes of these sizes of which a convolution is to keep ceil(size / stride) positions.

    As ``F.pad`` takes them, the last axis first. None for stride 1, whose convolution pads by itself.
    """
    widths = []
    for size in reversed(sizes):
        total = width - 1 - (size - 1) % stride if stride > 1 else 0
        if stride > width:  # only here: a comparison binds a traced network to sizes of one remainder
            total = max(total, 0)
        widths += [total // 2, total - total // 2]
    return widths


def pad_same(x: Tensor, stride: int, width: int = 3) -> Tensor:
    """x with the zeros of `same_padding` around it."""
    return x if stride == 1 else F.pad(x, same_padding(x.shape[2:], stride, width))


def convolution(x: Tensor, stride: int, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of width 3 along one axis of what `pad_same` returned."""
    return F.conv1d(x, weight, bias, stride, padding=1 if stride == 1 else 0)


def shortcut_of(x: Tensor, stride: int, channels: int) -> Tensor:
    """Every stride-th position of x, d more channels of zeros around its own: d // 2 before, the others behind."""
    axes = x.dim() - 2
    kept = x[(slice(None),) * 2 + (slice(None, None, stride),) * axes]
    extra = channels - x.shape[1]
    return F.pad(kept, [0, 0] * axes + [extra // 2, extra - extra // 2]) if extra else kept
