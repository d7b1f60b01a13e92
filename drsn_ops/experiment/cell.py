"""Trains one cell: a network on signals with noise that is added once, by the paper's recipe.

Stochastic gradient descent with momentum 0.9 on cross-entropy plus the network's L2 penalty. The learning rate is
divided by 10 after two and after four fifths of the epochs. All random numbers come from the cell's own seeds, and on
the CPU one thread computes it, so that the result does not depend on what else is trained, and where.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import models
from ..arguments import as_input_error
from ..machine import settle_allocator
from ..noise import Kind, add_noise
from ..training.networks import evaluation_batch
from ..training.plan import parameters_of
from ..training.recipes import momentum
from ..training.run import repeatable
from ..training.verdict import measures
from .settings import NETWORKS, Cell, Result, Settings
from .signals import load


def build(settings: Settings, network: str, channels: int, classes: int) -> models.ShrinkageNetwork:
    """A network of this name for signals of so many channels, newly initialised."""
    try:
        return NETWORKS[network].build(channels, classes, blocks=settings.blocks)
    except ValueError as error:
        raise as_input_error(error) from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, PyTorch uses one thread: for networks this small a second one gains little."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train_cell(
    settings: Settings, cell: Cell, device: torch.device, origin: str
) -> tuple[Result, dict[str, Tensor]]:
    """Train one cell. Returns its result, and the features and the labels of its test signals."""
    data = load(settings, cell.seed)
    with one_thread(), repeatable():
        generator = torch.Generator().manual_seed(cell.noise_seed)
        noisy = add_noise(data.x, cell.snr, cast(Kind, cell.noise_kind), generator=generator)
        train, test = (
            (noisy[split].to(device), data.labels[split].to(device)) for split in (data.train, data.test)
        )
        torch.manual_seed(cell.seed)
        network = build(settings, cell.network, data.x.shape[1], len(data.classes)).to(device)
        # before the clock starts: PyTorch imports its compiler for a process's first optimiser, which takes seconds
        optimiser = momentum(network.parameters(), settings.lr)
        settle_allocator()
        start = time.perf_counter()
        fit(network, optimiser, *train, settings)
        if device.type == "cuda":  # wait for the kernels that are still running
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        features = features_of(network, test[0])
        guessed = [predict(network, seen) for seen in (features_of(network, train[0]), features)]
    train_labels, test_labels = (data.labels[split] for split in (data.train, data.test))
    seen, tested = (
        measures(labels.numpy(), predicted.numpy(), data.classes)
        for labels, predicted in zip((train_labels, test_labels), guessed, strict=True)
    )
    result = Result(
        *cell,
        seen["accuracy"],
        tested["accuracy"],
        tested["macro_f1"],
        seen["majority_share"],
        tested["majority_share"],
        len(data.recording[data.train].unique()),
        len(data.recording[data.test].unique()),
        len(train_labels),
        len(test_labels),
        seconds,
        parameters_of(network),
        origin,
    )
    return result, {"features": features.cpu(), "labels": test_labels}


def fit(
    network: models.ShrinkageNetwork,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    labels: Tensor,
    settings: Settings,
) -> None:
    """Train to the last epoch. The order of the signals comes from PyTorch's default CPU generator."""
    milestones = [math.ceil(settings.epochs * share / 5) for share in (2, 4)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones, gamma=0.1)
    network.train()
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(labels), device="cpu").to(x.device).split(settings.batch_size):
            # BatchNorm cannot train on a remainder of one
            if len(batch) > 1:
                optimiser.zero_grad()
                (F.cross_entropy(network(x[batch]), labels[batch]) + network.penalty()).backward()
                optimiser.step()
        schedule.step()


@torch.inference_mode()
def features_of(network: models.ShrinkageNetwork, x: Tensor) -> Tensor:
    """The classifier's input for each signal, (N, channels), in evaluation mode."""
    network.eval()
    seen: list[Tensor] = []
    hook = network.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with hook:
        for batch in x.split(evaluation_batch(network, x)):
            network(batch)
    return torch.cat(seen)


@torch.inference_mode()
def predict(network: models.ShrinkageNetwork, features: Tensor) -> Tensor:
    """The class that the classifier assigns each signal to, (N,), on the CPU."""
    classes: Tensor = network.classifier(features).argmax(1)
    return classes.cpu()
