"""What a strided residual unit does to the spatial axes, in plain PyTorch; `Spatial` of csrc/params.h."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def zeros_around(size: int, stride: int) -> tuple[int, int]:
    """How many zeros go before and behind an axis, that a convolution of width 3 keeps ceil(size / stride) positions.

    None for stride 1, whose convolution pads by itself.
    """
    if stride == 1:
        return 0, 0
    total = 2 - (size - 1) % stride
    if stride > 3:  # only here: a comparison binds a traced network to sizes of one remainder
        total = max(total, 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, stride: int) -> Tensor:
    """x with the zeros of `zeros_around` on every spatial axis."""
    if stride == 1:
        return x
    return F.pad(x, [width for size in reversed(x.shape[2:]) for width in zeros_around(size, stride)])


def shortcut_of(x: Tensor, stride: int, channels: int) -> Tensor:
    """Every stride-th position of x, d more channels of zeros around its own: d // 2 before, the others behind."""
    axes = x.dim() - 2
    kept = x[(slice(None),) * 2 + (slice(None, None, stride),) * axes]
    extra = channels - x.shape[1]
    return F.pad(kept, [0, 0] * axes + [extra // 2, extra - extra // 2]) if extra else kept
