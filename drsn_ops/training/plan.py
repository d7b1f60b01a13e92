"""What a run trains: a network, how each of its steps is made, and the samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..arguments import counted

Precision = Literal["bf16", "fp16"]


class Samples(NamedTuple):
    """Samples, (N, channels, \\*spatial) of float32, and their classes, (N,) of int64."""

    x: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Plan:
    """What a run trains, on the run's device.

    Args:
        network: newly initialised.
        optimiser: of its parameters.
        splits: by name, ``"train"`` first. All are evaluated after each epoch.
        fingerprint: of the data.
        learning_rate: of a step, counted from 0, among the steps of all epochs.
        data: a line that says what the samples are.
        what: a line that says what the network is.
        how: what else there is to say of the training, after the learning rate.
        title: of the curve.
        augment: makes other samples of a batch's, anew in each step.
        mean: what is subtracted from the samples, after the augmentation.
        weights: of the classes in the loss, (classes,).
        precision: of the network in training, by autocast; None is that of its parameters.
        running: the results of ``"train"`` are means over the epoch's steps, not of a pass of their own.
        batch_statistics: the splits that are evaluated with the statistics of each batch, of as many samples as a
            training batch has, instead of the running ones.
        keeps_best: keep the weights of the epoch with the lowest validation loss, or of the last one where there is no
            split ``"validation"``.
        patience: epochs without a lower validation loss after which the run ends.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    splits: dict[str, Samples]
    fingerprint: list[float]
    learning_rate: Callable[[int, int], float]
    data: str
    what: str
    title: str
    how: str = ""
    augment: Callable[[Tensor], Tensor] | None = None
    mean: Tensor | None = None
    weights: Tensor | None = None
    precision: Precision | None = None
    running: bool = False
    batch_statistics: tuple[str, ...] = ()
    keeps_best: bool = False
    patience: int | None = None


class Planner(Protocol):
    """The settings of a run, a frozen dataclass: they hold all that determines the result, and make the plan."""

    # properties, since the fields of frozen dataclasses cannot be set
    @property
    def name(self) -> str:
        """Of the run's folder in ``runs``."""

    @property
    def epochs(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def lr(self) -> float: ...

    @property
    def seed(self) -> int: ...

    def plan(self, data: Any, device: torch.device) -> Plan:
        """The plan for this data. Random numbers come from PyTorch's default generator."""


def parameters_of(network: nn.Module) -> int:
    """How many parameters the network has."""
    return sum(parameter.numel() for parameter in network.parameters())


def size(network: nn.Module) -> str:
    """The same in words."""
    return counted(parameters_of(network), "parameter")
