"""The networks that the commands train, by name, their flags, and how many samples to evaluate together."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from ..arguments import count, number, require_choice
from ..variants.gates import NORMS
from ..variants.shrinkage import POOLINGS, RULES

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "drsn": models.drsn,
    "convnet": models.convnet,
    "rsnet18": models.rsnet18,
    "rsnet34": models.rsnet34,
    "wdcnn": models.wdcnn,
}
# networks with an L2 term of their own
REGULARISED = models.ShrinkageNetwork, models.WDCNN
# settings of the gates and of what they do, without effect where nothing is shrunk
GATE_FLAGS = ("norm", "reduction", "rule", "pooling")
NETWORK_FLAGS = ("thresholds", "blocks", "widths", "stem_width", "stem_stride", *GATE_FLAGS, "dropout")
MAX_WIDTH = 65_536
# of the widest activation in evaluation; for much larger ones the allocator takes fresh pages each time
EVALUATION_BYTES = 8 * 2**20


def arguments_of(name: str) -> tuple[str, ...]:
    """The names of a network's arguments.

    Raises:
        ValueError: there is no network of that name.
    """
    require_choice("network", name, tuple(NETWORKS))
    return tuple(inspect.signature(NETWORKS[name]).parameters)


def add_network_flags(add: Callable[..., Any], shown: Callable[[str], str]) -> None:
    """Add the flags of `NETWORK_FLAGS` that have the same words in every command; one that is not given is None.

    Args:
        add: of a parser or a group of flags.
        shown: says the default of a setting, given its name.
    """
    size = count(1, MAX_WIDTH)
    add(
        "--widths",
        type=size,
        nargs="+",
        metavar="CHANNELS",
        help=f"channels of each stage of units ({shown('widths')})",
    )
    add("--stem-width", type=size, metavar="POINTS", help=f"of the first convolution ({shown('stem_width')})")
    add(
        "--stem-stride",
        type=size,
        metavar="POINTS",
        help=f"of the first convolution ({shown('stem_stride')})",
    )
    add("--norm", choices=NORMS, help=f"the normalisation within the gates ({shown('norm')})")
    add(
        "--reduction",
        type=size,
        metavar="FACTOR",
        help=f"a gate has as many hidden features as channels, divided by this ({shown('reduction')})",
    )
    add("--rule", choices=RULES, help=f"what the thresholds do ({shown('rule')})")
    add("--pooling", choices=POOLINGS, help=f"what the gates get and multiply ({shown('pooling')})")
    add(
        "--dropout",
        type=number(float, 0, 0.999),
        metavar="SHARE",
        help=f"of the classifier's inputs that are 0 in training ({shown('dropout')})",
    )


def without_effect(name: str, thresholds: str) -> dict[str, str]:
    """The settings of `NETWORK_FLAGS` that a network does not take, and what is expected of each in its place.

    ``thresholds`` are ``"none"`` for the plain ResNet.
    """
    taken = arguments_of(name)
    useless = dict.fromkeys(GATE_FLAGS, "none with --thresholds none") if thresholds == "none" else {}
    return useless | {flag: f"none with --network {name}" for flag in NETWORK_FLAGS if flag not in taken}


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
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what was said of it in training
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
