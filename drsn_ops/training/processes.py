"""The processes that train one network together, as torchrun starts them, and the device of each.

Each process takes its share of every batch, and all keep the same network. To rounding, they compute what one process
computes from the whole batch: its gradients, with every BatchNorm and every Dropout over all samples.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..arguments import InputError, MissingPackage, first_line
from .shared_batch_norm import share_batch_norms
from .shared_dropout import share_dropouts


@dataclass(frozen=True)
class Processes:
    """This process, of rank ``rank``, among the ``count`` that train together."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """True in the one process that prints and writes."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's share of a batch; shares differ by at most one sample."""
        return batch.tensor_split(self.count)[self.rank]

    def total(self, values: Tensor) -> Tensor:
        """The sum of the values over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def replicate(self, network: nn.Module) -> nn.Module:
        """The module to call instead of the network in training; it averages gradients over the processes.

        Parameters, statistics and their names stay those of the network. Its BatchNorms and Dropouts are replaced by
        ones over the samples of all processes.
        """
        if self.count == 1:
            return network
        device = next(network.parameters()).device
        share_dropouts(network)
        if device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        else:
            share_batch_norms(network)
        devices = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=devices)

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Barrier: if any rank raised, all ranks stop."""
        error: Exception | None = None
        try:
            yield
        except (InputError, MissingPackage, OSError) as raised:
            error = raised
        if self.count > 1:
            messages: list[Any] = [None] * self.count
            dist.all_gather_object(messages, error and str(error))
            first = next((message for message in messages if message), None)
            error = error or (first and InputError(first))
        if error:
            stop(error, self.leads)


def stop(error: Exception, leads: bool) -> NoReturn:
    """Raise the error in the leading process and exit the others without a word: it is printed once."""
    if leads:
        raise error
    time.sleep(1)  # torchrun kills all processes when one has ended, and the leader has to print first
    raise SystemExit(2)


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun's environment variables describe; without them, there is this one alone.

    Nothing may hold a replica of `Processes.replicate` when this ends.

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
        stop(error, os.environ.get("RANK", "0") == "0")
    try:
        if device == "cuda" and torch.cuda.is_available():
            torch.cuda.set_device(own_device(device))  # nccl sends from the current device
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"WORLD_SIZE is {count}, but the processes cannot be joined: {reason}") from error
    yield Processes(dist.get_rank(), count)
    # A replica that outlives its group destroys it, waiting with Python's lock in hand for a thread that may want it.
    gc.collect()
    # not in a finally: after an error the others may not answer any more, and the exit of the process is enough
    dist.destroy_process_group()


def own_device(name: str) -> str:
    """The name of this process's device: where torchrun started it, ``cuda`` is the GPU of its local rank."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if name == "cuda" and rank is not None else name


def usable_device(name: str) -> torch.device:
    """This process's device of that name, once a tensor has been made on it.

    Raises:
        InputError: no tensor can be made on it.
    """
    name = own_device(name)
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    # some backends need modules that are missing
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise InputError(f"--device {name}: cannot be used here: {first_line(error)}") from error
    return device
