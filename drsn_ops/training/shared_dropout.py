"""A Dropout over the samples of all processes: each has its share of what one would draw for the whole batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class SharedDropout(nn.Dropout):
    """Dropout of this process's share of a batch.

    Every process draws for the samples of all and takes its own, so that the result is that of one process, and the
    generators stay the same in all: where each drew for its share alone, shares of different sizes would part them.

    Shape: x is (N, \\*); N differs between processes by at most one sample, the first ones having more.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        count = torch.tensor(len(input), device=input.device)
        dist.all_reduce(count)
        drawn = F.dropout(input.new_ones(int(count), *input.shape[1:]), self.p)
        return input * drawn.tensor_split(dist.get_world_size())[dist.get_rank()]


def share_dropouts(network: nn.Module) -> None:
    """Turn every Dropout of the network, in place, into one over the samples of all processes."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.__class__ = SharedDropout
