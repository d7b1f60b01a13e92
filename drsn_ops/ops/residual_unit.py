"""Parts of a residual unit of few channels, or all of it, by one operator: on the CPU, with one spatial axis.

x has the strides of channels_last. A result is None where more operators have to be called; nothing has been written
then. `plain_gate` decides which modules come here.
"""

from __future__ import annotations

from torch import Tensor, nn

from .autograd import fuses, wants_grad
from .batch_norm_autograd import batch_norm_relu
from .gate import BATCH
from .library import OPS
from .plain_gate import narrow_convolution, plain_batch_norm, plain_gate

_MOST = 32768  # elements of a sample: ResidualUnit::kMostOfSample of csrc/params.h


def activated_convolution(
    x: Tensor, batch_norm: nn.Module, conv: nn.Module, stride: int = 1, shortcut_channels: int | None = None
) -> tuple[Tensor, Tensor | None] | None:
    """What ``conv`` makes of `functional.pre_activation`, as a new tensor, and the shortcut."""
    narrow = narrow_convolution(conv, x, stride)
    if narrow is None or x.numel() == 0:
        return None
    norm = plain_batch_norm(batch_norm, x)
    if norm is None or not fuses(x, *norm[:2], *narrow):
        return None
    return batch_norm_relu(x, norm, stride, shortcut_channels, narrow)


def evaluated_unit(
    x: Tensor,
    batch_norms: tuple[nn.Module, nn.Module],
    convs: tuple[nn.Module, nn.Module],
    stride: int,
    channels: int,
    gate: nn.Module,
    per_sample: bool,
) -> Tensor | None:
    """Both halves of the unit, the shrinkage and the sum with the shortcut, without a gradient or batch statistics.

    ``channels`` are those of the shortcut, which has to fit.
    """
    conv1 = narrow_convolution(convs[0], x, stride)
    if conv1 is None or wants_grad(x, *conv1):  # the others are not looked at where these say so
        return None
    conv2 = narrow_convolution(convs[1], x, 1)
    if conv2 is None or conv2[0].shape[0] != channels or x.numel() == 0:
        return None
    length = (x.shape[2] + stride - 1) // stride
    if length * channels > _MOST:
        return None
    norm1, norm2 = (plain_batch_norm(norm, x) for norm in batch_norms)
    plain = plain_gate(gate, conv2[0])  # of a tensor with the result's channels on axis 1
    if norm1 is None or norm2 is None or plain is None or BATCH in (norm1.kind, norm2.kind, plain.kind):
        return None
    others = *norm1[:2], *norm2[:2], *conv2, *plain.parameters
    if wants_grad(*others) or not fuses(x, *conv1, *others):
        return None
    first, second = (*norm1[:4], norm1.eps, *conv1), (*norm2[:4], norm2.eps, *conv2)
    y: Tensor = OPS.residual_unit.default(x, *first, *second, stride, *plain.functional, per_sample)
    return y
