"""The networks that the commands train, by name, and how many samples of them to evaluate together."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from ..arguments import require_choice

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "drsn": models.drsn,
    "convnet": models.convnet,
    "rsnet18": models.rsnet18,
    "rsnet34": models.rsnet34,
}
# of the widest activation in evaluation; for much larger ones the allocator takes fresh pages each time
EVALUATION_BYTES = 8 * 2**20


def arguments_of(name: str) -> tuple[str, ...]:
    """The names of a network's arguments.

    Raises:
        ValueError: there is no network of that name.
    """
    require_choice("network", name, tuple(NETWORKS))
    return tuple(inspect.signature(NETWORKS[name]).parameters)


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A new network.

    Args:
        name: one of `NETWORKS`.
        arguments: those of the function of that name in `models`: plain values, as a file keeps them.

    Raises:
        ValueError: another name, or an argument that the network does not take.
    """
    taken = arguments_of(name)
    for argument in arguments:
        if argument not in taken:
            raise ValueError(f"{argument}: got {arguments[argument]!r}, expected none with network {name!r}")
    return NETWORKS[name](**arguments)


def rebuild(name: str, arguments: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """A network of `build` with these weights, of their type and where they are; no random numbers are taken.

    Raises:
        ValueError: as `build`.
        RuntimeError: the weights are those of another network.
    """
    # not on the meta device, for which PyTorch imports its compiler, a second of work
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        network = build(name, arguments)
    network.load_state_dict(weights, assign=True)
    return network


def evaluation_batch(network: nn.Module, x: Tensor) -> int:
    """How many samples of ``x``, (N, C, \\*spatial), to evaluate together.

    The first convolution's output is the widest activation of the networks in `models`; it takes at most
    `EVALUATION_BYTES`.
    """
    stem = next(
        module for module in network.modules() if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    )
    sample = x[0, 0].numel() * x.element_size() * stem.out_channels
    return max(EVALUATION_BYTES * math.prod(stem.stride) // sample, 1)
