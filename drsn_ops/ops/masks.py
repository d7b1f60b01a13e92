"""Packs and decodes masks in plain PyTorch, for second derivatives, transforms and exporters.

The format and the formulas are those of csrc/shrinkage_math.h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference import accumulator, per_row


def is_channels_last(x: Tensor) -> bool:
    """True if x lies in memory as (N, *spatial, C)."""
    return x.dim() > 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


class Layout(NamedTuple):
    """What a backward pass needs to know of x besides the mask."""

    shape: Sequence[int]
    dtype: torch.dtype
    channels_last: bool

    @classmethod
    def of(cls, x: Tensor) -> Layout:
        return cls(x.shape, x.dtype, is_channels_last(x))

    @property
    def memory(self) -> Sequence[int]:
        """The sizes of x in the order of memory."""
        return [self.shape[0], *self.shape[2:], self.shape[1]] if self.channels_last else self.shape

    def to_memory(self, t: Tensor) -> Tensor:
        """t, which has the axes of x, with its axes in the order of memory."""
        return t.movedim(1, -1) if self.channels_last else t

    def from_memory(self, t: Tensor) -> Tensor:
        """The inverse of `to_memory`."""
        return t.movedim(-1, 1) if self.channels_last else t

    def empty(self, like: Tensor) -> Tensor:
        """A tensor as the kernels allocate it."""
        return self.from_memory(like.new_empty(self.memory, dtype=self.dtype))

    def lay_out(self, t: Tensor) -> Tensor:
        """The values of t, which has the shape of x, as the kernels write them."""
        return self.from_memory(self.to_memory(t.to(self.dtype)).contiguous())

    @property
    def segments(self) -> tuple[int, int]:
        """The number of segments of a mask of rows, and the elements of each: a row, or a channels_last sample."""
        n, c, *spatial = self.shape
        length = math.prod(spatial)
        return (n, c * length) if self.channels_last else (n * c, length)

    def pack(self, planes: Sequence[Tensor], segments: int, length: int) -> Tensor:
        """The mask, (segments, planes, bytes), of planes that are booleans in the shape of x."""
        bits = torch.stack([self.to_memory(plane).reshape(segments, length) for plane in planes], 1).to(
            torch.uint8
        )
        size = (length + 7) // 8
        bits = F.pad(bits, [0, 8 * size - length]).reshape(segments, len(planes), size, 8)
        return (bits << _bit_positions(bits)).sum(-1, dtype=torch.uint8)

    def planes(self, mask: Tensor) -> list[Tensor]:
        """The planes of a mask, as booleans in the shape of x."""
        bits = ((mask.unsqueeze(-1) >> _bit_positions(mask)) & 1).flatten(-2) > 0
        segments = mask.shape[0] if mask.dim() == 3 else 1  # soft_threshold's mask is one segment
        length = math.prod(self.shape) // max(segments, 1)
        return [self.from_memory(plane.reshape(self.memory)) for plane in bits[..., :length].unbind(-2)]


def _bit_positions(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)


def widened(x: Tensor) -> Tensor:
    """x in the accumulator's type."""
    return x.to(accumulator(x.dtype))


class Planes(NamedTuple):
    """Where x is negative, where it is not 0, and where ``|x|`` is above the threshold.

    Elements outside a plane become 0; they are not multiplied by 0, since they may be infinite or NaN.
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
        """Decodes a mask of shrink, or of abs_mean, in which no element is active."""
        negative, nonzero, *rest = layout.planes(mask)
        return cls(negative, nonzero, rest[0] if rest else torch.zeros_like(nonzero))

    def along_sign(self, t: Tensor) -> Tensor:
        """``sign(x) * t``."""
        return torch.where(self.nonzero, torch.where(self.negative, -t, t), 0)

    def where_active(self, t: Tensor) -> Tensor:
        return torch.where(self.active, t, 0)

    def combine(self, grad: Tensor, share: Tensor) -> Tensor:
        """``active * grad + sign * share`` in the type of ``share``, which has one number per row."""
        return self.where_active(grad.to(share.dtype)) + self.along_sign(per_row(share, self.active))

    def active_sums(self, grad: Tensor) -> Tensor:
        """The sum over each row of ``active * sign * grad``, (N, C)."""
        return self.where_active(self.along_sign(widened(grad))).unsqueeze(-1).flatten(2).sum(-1)


def soft_threshold_gradients(grad: Tensor, mask: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The gradient of x, and that of tau for each element, in the accumulator's type."""
    negative, active = layout.planes(mask)
    dtau = -Planes(negative, active, active).along_sign(widened(grad))
    return torch.where(negative | active, grad, 0), dtau  # negative alone: tau < 0 acted as 0


def shrink_gradients(
    planes: Planes, grad: Tensor, grad_mean: Tensor | None, alpha: Tensor, mean: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The gradients of x, in the accumulator's type, and of alpha; a mean is over ``count`` elements."""
    dtau = torch.where(alpha * mean < 0, 0, -planes.active_sums(grad))
    dmean = (dtau * alpha).sum_to_size(mean.shape)
    dmean = dmean if grad_mean is None else dmean + grad_mean
    return planes.combine(grad, dmean / count), (dtau * mean).sum_to_size(alpha.shape)
