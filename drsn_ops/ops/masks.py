"""What a mask tells of each element, in plain PyTorch: for second derivatives, transforms and exporters.

The format and the formulas are those of csrc/shrinkage_math.h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import accumulator, per_row


def is_channels_last(x: Tensor) -> bool:
    """Whether x lies in memory as (N, *spatial, C) and not as (N, C, *spatial)."""
    return x.dim() > 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


class Layout(NamedTuple):
    """What of x a backward pass needs besides the mask."""

    shape: Sequence[int]
    dtype: torch.dtype
    channels_last: bool

    @classmethod
    def of(cls, x: Tensor) -> Layout:
        return cls(x.shape, x.dtype, is_channels_last(x))

    def empty(self, like: Tensor) -> Tensor:
        """A tensor as the kernels allocate it."""
        if not self.channels_last:
            return like.new_empty(self.shape, dtype=self.dtype)
        memory = [self.shape[0], *self.shape[2:], self.shape[1]]
        return like.new_empty(memory, dtype=self.dtype).movedim(-1, 1)

    def planes(self, mask: Tensor) -> list[Tensor]:
        """The planes of a mask, as booleans in the shape of x."""
        bits = (mask.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=mask.device)) & 1
        bits = bits.flatten(-2) > 0
        segments = mask.shape[0] if mask.dim() == 3 else 1  # soft_threshold's mask is one
        length = math.prod(self.shape) // max(segments, 1)
        memory = [self.shape[0], *self.shape[2:], self.shape[1]] if self.channels_last else self.shape
        planes = [plane.reshape(memory) for plane in bits[..., :length].unbind(-2)]
        return [plane.movedim(-1, 1) for plane in planes] if self.channels_last else planes


def widened(x: Tensor) -> Tensor:
    """x in the accumulator's type."""
    return x.to(accumulator(x.dtype))


class Planes(NamedTuple):
    """Where x has a sign, which, and where it is above its threshold.

    What a mask leaves out is 0, not 0 times a number that may be infinite or NaN.
    """

    negative: Tensor
    nonzero: Tensor
    active: Tensor

    @classmethod
    def of(cls, x: Tensor, tau: Tensor) -> Planes:
        magnitude = x.abs()
        return cls(x < 0, magnitude > 0, magnitude > tau)

    @classmethod
    def read(cls, mask: Tensor, layout: Layout) -> Planes:
        """From a mask of shrink, or of abs_mean, in which nothing is active."""
        negative, nonzero, *rest = layout.planes(mask)
        return cls(negative, nonzero, rest[0] if rest else torch.zeros_like(nonzero))

    def along_sign(self, t: Tensor) -> Tensor:
        """``sign(x) * t``."""
        return torch.where(self.nonzero, torch.where(self.negative, -t, t), 0)

    def pass_active(self, t: Tensor) -> Tensor:
        return torch.where(self.active, t, 0)

    def combine(self, grad: Tensor, v: Tensor) -> Tensor:
        """``active * grad + sign * v`` of the type of v, one v a row."""
        return self.pass_active(grad.to(v.dtype)) + self.along_sign(per_row(v, self.active))

    def active_sums(self, grad: Tensor) -> Tensor:
        """The sums over each row, (N, C), of ``active * sign * grad``."""
        return self.pass_active(self.along_sign(widened(grad))).unsqueeze(-1).flatten(2).sum(-1)


def soft_threshold_gradients(grad: Tensor, mask: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The gradients of x and, of the accumulator's type and each element, of tau."""
    negative, active = layout.planes(mask)
    dtau = -Planes(negative, active, active).along_sign(widened(grad))
    return torch.where(negative | active, grad, 0), dtau  # negative alone: open


def shrink_gradients(
    planes: Planes, grad: Tensor, grad_mean: Tensor | None, alpha: Tensor, mean: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The gradients of x, of the accumulator's type, and of alpha; ``count`` elements make a mean."""
    dtau = torch.where(alpha * mean < 0, 0, -planes.active_sums(grad))
    dmean = (dtau * alpha).sum_to_size(mean.shape)
    dmean = dmean if grad_mean is None else dmean + grad_mean
    return planes.combine(grad, dmean / count), (dtau * mean).sum_to_size(alpha.shape)
