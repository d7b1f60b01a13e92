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
        zeros: Tensor = share_of_zeros(input, self.p)
        return input * zeros


# compiled, it would warn of a size that other processes decide
@torch.compiler.disable  # type: ignore[untyped-decorator]
def share_of_zeros(x: Tensor, p: float) -> Tensor:
    """What this process's samples are multiplied with: 0 with probability p, else 1 / (1 - p)."""
    count = torch.tensor(len(x), device=x.device)
    dist.all_reduce(count)
    drawn = F.dropout(x.new_ones(int(count), *x.shape[1:]), p)
    return drawn.tensor_split(dist.get_world_size())[dist.get_rank()]


def share_dropouts(network: nn.Module) -> None:
    """Turn every Dropout of the network, in place, into one over the samples of all processes."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.__class__ = SharedDropout
