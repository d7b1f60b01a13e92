"""Trains one cell: a network on signals with noise, by the paper's recipe: noise is added once unless asked otherwise.

Stochastic gradient descent with momentum 0.9 on cross-entropy plus the network's L2 penalty. The learning rate is
divided by 10 after two and after four fifths of the epochs. All random numbers come from the cell's own seeds, and on
the CPU one thread computes it, so that the result does not depend on what else is trained, and where.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import models
from ..arguments import as_input_error
from ..machine import settle_allocator
from ..models.adaptation import adapt_batch_norm
from ..noise import Kind, add_noise
from ..training.networks import evaluation_batch
from ..training.plan import parameters_of
from ..training.recipes import momentum
from ..training.run import repeatable
from ..training.verdict import measures
from .settings import NETWORKS, Cell, Result, Settings
from .signals import load

Trained = models.ShrinkageNetwork | models.WDCNN


def build(settings: Settings, network: str, channels: int, classes: int) -> Trained:
    """A network of this name for signals of so many channels, newly initialised."""
    build, names = NETWORKS[network][:2]
    try:
        return build(channels, classes, **{name: getattr(settings, name) for name in names})
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
    train_labels, test_labels = (data.labels[split] for split in (data.train, data.test))
    with one_thread(), repeatable():
        generator = torch.Generator().manual_seed(cell.noise_seed)
        noised = partial(add_noise, snr=cell.snr, kind=cast(Kind, cell.noise_kind), generator=generator)
        noisy = noised(data.x)
        train, test = (noisy[split].to(device) for split in (data.train, data.test))
        labels = train_labels.to(device)
        draw = (lambda: noised(data.x[data.train]).to(device)) if settings.fresh_noise else None
        torch.manual_seed(cell.seed)
        network = build(settings, cell.network, data.x.shape[1], len(data.classes)).to(device)
        # before the clock starts: PyTorch imports its compiler for a process's first optimiser, which takes seconds
        optimiser = momentum(network.parameters(), settings.lr)
        settle_allocator()
        start = time.perf_counter()
        fit(network, optimiser, epochs_of(train, settings.epochs, draw), labels, settings)
        if device.type == "cuda":  # wait for the kernels that are still running
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        seen_classes = predict(network, features_of(network, train))
        if settings.adapt_batch_norm:
            # all at once: the windows of a recording lie side by side
            adapt_batch_norm(network, test)
        features = features_of(network, test)
        guessed = seen_classes, predict(network, features)
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


def epochs_of(x: Tensor, epochs: int, draw: Callable[[], Tensor] | None) -> Iterator[Tensor]:
    """The training signals of each epoch: ``x``, and after the first what ``draw`` makes, if it is given."""
    for epoch in range(epochs):
        yield draw() if draw and epoch else x


def fit(
    network: Trained,
    optimiser: torch.optim.Optimizer,
    epochs: Iterable[Tensor],
    labels: Tensor,
    settings: Settings,
) -> None:
    """Train on the signals of each epoch. Their order comes from PyTorch's default CPU generator."""
    milestones = [math.ceil(settings.epochs * share / 5) for share in (2, 4)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones, gamma=0.1)
    network.train()
    for x in epochs:
        for batch in torch.randperm(len(labels), device="cpu").to(x.device).split(settings.batch_size):
            # BatchNorm cannot train on a remainder of one
            if len(batch) > 1:
                optimiser.zero_grad()
                (F.cross_entropy(network(x[batch]), labels[batch]) + network.penalty()).backward()
                optimiser.step()
        schedule.step()


@torch.inference_mode()
def features_of(network: Trained, x: Tensor) -> Tensor:
    """The classifier's input for each signal, (N, channels), in evaluation mode."""
    network.eval()
    seen: list[Tensor] = []
    hook = network.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with hook:
        for batch in x.split(evaluation_batch(network, x)):
            network(batch)
    return torch.cat(seen)


@torch.inference_mode()
def predict(network: Trained, features: Tensor) -> Tensor:
    """The class that the classifier assigns each signal to, (N,), on the CPU."""
    classes: Tensor = network.classifier(features).argmax(1)
    return classes.cpu()
