"""Training by several processes, which torchrun starts: each takes its share of every batch, and all keep the same
network. What they compute is, to rounding, what one process computes of the whole batch: gradients are those of its
loss, and every BatchNorm normalises over all of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm

from ..arguments import InputError, first_line
from ..reference import accumulator, per_row


@dataclass(frozen=True)
class Processes:
    """This process, the ``rank``-th, among the ``count`` that train together."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one process that prints and writes."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch; parts differ by one sample at most."""
        return batch.tensor_split(self.count)[self.rank]

    def total(self, values: Tensor) -> Tensor:
        """The sum of the values over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def replicate(self, network: nn.Module) -> nn.Module:
        """What to call in place of the network in training, so that gradients come back averaged over processes.

        The network itself remains the owner of its parameters and statistics, under its own names. Its BatchNorms now
        see all processes' samples.
        """
        if self.count == 1:
            return network
        device = next(network.parameters()).device
        if device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        else:
            share_batch_norms(network)
        devices = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=devices)

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Lets no process go on before all have come, nor one whose fellow could not: what one has raised stops all."""
        error: Exception | None = None
        try:
            yield
        except (InputError, OSError) as raised:
            error = raised
        if self.count > 1:
            messages: list[Any] = [None] * self.count
            dist.all_gather_object(messages, error and str(error))
            first = next((message for message in messages if message), None)
            error = error or (first and InputError(first))
        if error:
            _stop(error, self.leads)


def _stop(error: Exception, leads: bool) -> NoReturn:
    """Raises the error in the leading process and ends the others in silence: it is said once."""
    if leads:
        raise error
    time.sleep(1)  # torchrun ends all when one has ended, and the leader has to speak
    raise SystemExit(2)


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """The processes that torchrun's environment variables tell of, joined; without them, this one alone.

    Raises:
        InputError: they cannot be joined, or would share a GPU.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not (size.isdecimal() and int(size) >= 1):
        raise InputError(f"WORLD_SIZE: got {size!r}, expected the number of processes, as torchrun sets it")
    count = int(size)
    if count == 1:
        yield Processes()
        return
    if device.startswith("cuda:"):
        error = InputError(
            f"--device {device}: got one GPU for {count} processes, expected cuda, each its own"
        )
        _stop(error, os.environ.get("RANK", "0") == "0")
    try:
        if device == "cuda" and torch.cuda.is_available():
            torch.cuda.set_device(device_of(device))  # where nccl keeps what it sends
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"WORLD_SIZE is {count}, but the processes cannot be joined: {reason}") from error
    yield Processes(dist.get_rank(), count)
    # After an error the others may not answer any more; the end of the process is then the end of the group.
    dist.destroy_process_group()


def device_of(device: str) -> str:
    """The device of this name, each process its own where it is ``cuda``."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if device == "cuda" and rank is not None else device


class AllReduce(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return all_reduce(grad)


def all_reduce(values: Tensor) -> Tensor:
    """The sum over all processes, whose derivative is summed too."""
    total: Tensor = AllReduce.apply(values)  # type: ignore[no-untyped-call]
    return total


class SharedBatchNorm(_BatchNorm):
    """A BatchNorm over the batch of all processes, for the CPU, on which ``nn.SyncBatchNorm`` refuses to train.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` with the mean and the biased variance of each channel over
    the samples and positions of all processes; the variance is that of centred values. A process may have no samples.
    The running statistics follow as in ``nn.BatchNorm1d``: with the unbiased variance. In evaluation it is
    ``nn.BatchNorm1d``, which also has its parameters and buffers.

    Shape: x is (N, C, \\*spatial) of a floating-point type; N may differ between processes.

    Raises:
        ValueError: x has fewer than two axes or another number of channels, or there is one value a channel in all.
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
            self._follow(mean, var * (count / (count - 1)))
        scale = (var + self.eps).rsqrt().to(x.dtype)
        y = centred * per_row((scale if self.weight is None else scale * self.weight)[None], x)
        return (y if self.bias is None else y + per_row(self.bias[None], x)).to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        """Moves the running statistics towards those of the batch; without a momentum, to the mean over all batches."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        step = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        for running, new in ((self.running_mean, mean), (self.running_var, var)):
            running.mul_(1 - step).add_(new.to(running.dtype), alpha=step)


def share_batch_norms(network: nn.Module) -> None:
    """Makes every BatchNorm of the network normalise over all processes' samples, from now on and in place."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SharedBatchNorm
