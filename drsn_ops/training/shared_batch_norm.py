"""A BatchNorm over the samples of all processes, for the CPU, where ``nn.SyncBatchNorm`` does not train."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm

from ..ops.gate import update_running_statistics
from ..reference import accumulator, per_row


class AllReduce(Function):
    """The sum over all processes of a tensor; its gradient is summed over them too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return all_reduce(grad)


def all_reduce(values: Tensor) -> Tensor:
    """`AllReduce`, typed."""
    total: Tensor = AllReduce.apply(values)  # type: ignore[no-untyped-call]
    return total


class SharedBatchNorm(_BatchNorm):
    """BatchNorm over the samples of all processes.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` with the mean and the biased variance of each channel over
    the samples and positions of all processes. The variance is computed from centred values. A process may have no
    samples. Parameters, buffers, the update of the running statistics and evaluation are those of ``nn.BatchNorm1d``.

    Shape: x is (N, C, \\*spatial) of a floating-point type; N may differ between processes.

    Raises:
        ValueError: x has fewer than two axes or another number of channels, or all processes together have only one
            value a channel.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(
                f"x: got shape {tuple(input.shape)}, expected (N, {self.num_features}, *spatial)"
            )

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        x = input.to(accumulator(input.dtype))
        axes = [axis for axis in range(x.dim()) if axis != 1]
        sums = x.sum(axes, dtype=torch.float64)
        *_, count = total = all_reduce(torch.cat([sums, sums.new_tensor([x.numel() // x.shape[1]])]))
        if count <= 1:
            raise ValueError(f"x: got {count:g} values a channel in all processes, expected more in training")
        mean = total[:-1] / count
        centred = x - per_row(mean[None].to(x.dtype), x)
        var = all_reduce(centred.square().sum(axes, dtype=torch.float64)) / count
        if self.training and self.track_running_stats:
            momentum = -1.0 if self.momentum is None else self.momentum
            unbiased = var * (count / (count - 1))
            update_running_statistics(
                self.running_mean, self.running_var, self.num_batches_tracked, momentum, mean, unbiased
            )
        scale = (var + self.eps).rsqrt().to(x.dtype)
        y = centred * per_row((scale if self.weight is None else scale * self.weight)[None], x)
        return (y if self.bias is None else y + per_row(self.bias[None], x)).to(input.dtype)


def share_batch_norms(network: nn.Module) -> None:
    """Turn every BatchNorm of the network, in place, into one over the samples of all processes."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SharedBatchNorm
