"""The published recipes: which network is trained on which images, and how."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import models
from ..arguments import InputError
from ..data.fingerprint import fingerprint
from ..data.images import Dataset, augment
from ..modules import Shrinkage
from ..noise import uniform
from .plan import Plan, Samples, size

BACKENDS = ("drsn_ops", "reference")
BY_BATCH = "test (batch statistics)"  # the split beside "test"


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Adam as Keras 2.2.1 computes it, with its defaults: betas of 0.9 and 0.999, epsilon 1e-7, no decay.

    At step t, counted from 1, ``p -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon)``.
    """
    optimiser = torch.optim.Adam(parameters, lr, eps=1e-7)
    optimiser.register_step_pre_hook(correct_epsilon)
    return optimiser


def correct_epsilon(optimiser: torch.optim.Optimizer, *_: object) -> None:
    """Scale epsilon for the next step: PyTorch adds it to the bias-corrected root, Keras to the root itself."""
    for group in optimiser.param_groups:
        # all parameters of a network have taken as many steps
        state = next((optimiser.state[p] for p in group["params"] if p in optimiser.state), {"step": 0})
        step = int(state["step"]) + 1
        group["eps"] = optimiser.defaults["eps"] / math.sqrt(1 - group["betas"][1] ** step)


def momentum(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Gradient descent with TFLearn's default momentum, 0.9."""
    return torch.optim.SGD(parameters, lr, momentum=0.9)


@dataclass(frozen=True)
class Recipe:
    """What a published program trains, and how. Flags replace the numbers."""

    network: Callable[..., models.ShrinkageNetwork]
    optimiser: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
    epochs: int
    batch_size: int
    lr: float
    noise: float
    decay_steps: int | None = None
    augment: bool = False

    def learning_rate(self, start: float, step: int) -> float:
        """The rate of a step, counted from 0: ``start``, times 0.1 after every ``decay_steps``."""
        return start * 0.1 ** (step // self.decay_steps) if self.decay_steps else start


RECIPES = {
    # MNIST's recipe, for about as many steps. Without the lower rate at the end, the accuracy on the 360 test images
    # still changes by a few percent from epoch to epoch.
    "digits": Recipe(
        models.drsn_mnist, adam, epochs=180, batch_size=100, lr=1e-3, noise=0.5, decay_steps=1800
    ),
    "mnist": Recipe(models.drsn_mnist, adam, epochs=5, batch_size=100, lr=1e-3, noise=0.5),
    "cifar10": Recipe(
        models.drsn_cifar10,
        momentum,
        epochs=100,
        batch_size=100,
        lr=0.1,
        noise=0.1,
        decay_steps=20_000,
        augment=True,
    ),
}


@dataclass(frozen=True)
class Settings:
    """Everything that determines what a run computes, and the folder of its data. A checkpoint holds them.

    A ``batch_norm_momentum`` of None is that of the program's network.
    """

    data: str
    thresholds: str
    backend: str
    epochs: int
    batch_size: int
    lr: float
    noise: float
    seed: int
    data_dir: str | None = None
    fresh_noise: bool = False
    batch_norm_momentum: float | None = None
    batch_statistics: bool = False

    @property
    def name(self) -> str:
        """That of the data set."""
        return self.data

    def plan(self, data: Dataset, device: torch.device) -> Plan:
        """The program's network, optimiser and augmentation, on these images."""
        recipe, found, data = RECIPES[self.data], fingerprint(data[:2]), data.to(device)
        thresholds = None if self.thresholds == "none" else self.thresholds
        network = recipe.network(data.train.images.shape[1], thresholds=thresholds).to(device)
        for module in network.modules():
            if isinstance(module, Shrinkage):
                module.use_reference = self.backend == "reference"
            if isinstance(module, _BatchNorm) and self.batch_norm_momentum is not None:
                module.momentum = self.batch_norm_momentum
        splits = {"train": Samples(*data.train), "test": Samples(*data.test)}
        if self.batch_statistics:
            if len(data.test.labels) < 2:
                raise InputError(f"--batch-statistics: {self.data} has one test image, expected two or more")
            splits[BY_BATCH] = splits["test"]
        counts = f"{len(data.train.labels)} training and {len(data.test.labels)} test images"
        anew = ", of the training images anew in every epoch" if self.fresh_noise else ""
        given = self.batch_norm_momentum
        momentum_in_words = "" if given is None else f", BatchNorm momentum {given:g}"
        return Plan(
            network,
            recipe.optimiser(network.parameters(), self.lr),
            splits=splits,
            fingerprint=found,
            learning_rate=lambda step, _: recipe.learning_rate(self.lr, step),
            data=f"{self.data}: {counts}, noise {self.noise:g} * U(0, 1){anew}",
            what=f"{recipe.network.__name__}: thresholds {self.thresholds}, {size(network)}, "
            f"operators of {self.backend}",
            title=f"{self.data}, thresholds {self.thresholds}, seed {self.seed}",
            how=momentum_in_words,
            augment=self.augmented if recipe.augment or self.fresh_noise else None,
            mean=data.mean,
            # a pass of their own would see the training images clean
            running=self.fresh_noise,
            batch_statistics=(BY_BATCH,) if self.batch_statistics else (),
        )

    def augmented(self, images: Tensor) -> Tensor:
        """Other images of a batch's: with noise, where that is drawn anew, then mirrored and cropped by the recipe.

        Draws from PyTorch's default CPU generator, whose state a checkpoint keeps.
        """
        if self.fresh_noise:
            images = images + self.noise * uniform(images.shape, device=images.device)
        return augment(images) if RECIPES[self.data].augment else images
