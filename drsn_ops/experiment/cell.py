"""The training of one cell: a network on signals with noise that is added once, by the paper's recipe.

Stochastic gradient descent with momentum 0.9 on cross-entropy and the network's L2 penalty; the learning rate is
divided by 10 after two and after four fifths of the epochs. All that is random comes from the cell's own seeds, and
on the CPU one thread computes it, so that a cell has the same result wherever and beside whatever it is trained.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import models
from ..arguments import InputError
from ..data.vibration import CLASSES, vibration
from ..noise import Kind, add_noise
from ..training.recipes import momentum
from ..training.run import evaluation_batch, repeatable
from .settings import NETWORKS, RECORDINGS, Cell, Result, Settings


class Data(NamedTuple):
    """Signals without noise, (N, 1, points), their classes, (N,), and the indices of the two splits."""

    x: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    train: Tensor
    test: Tensor


@lru_cache(maxsize=1)
def simulated(signals: int, points: int) -> tuple[Tensor, Tensor]:
    """The made signals and their classes, the same ones for every seed."""
    try:
        made = vibration(signals, points=points)
    except ValueError as error:
        raise InputError(f"--{error}") from error
    return made.x, made.labels


@lru_cache(maxsize=1)
def load(settings: Settings, seed: int) -> Data:
    """The data of one seed: a fold of the simulated signals to test on, or whole recordings.

    Raises:
        InputError: settings that do not go together, or files that cannot be used.
    """
    if settings.column is not None and settings.data != "folder":
        raise InputError(f"--column: got {settings.column}, expected none with --data {settings.data}")
    return load_simulated(settings, seed) if settings.data == "vibration" else load_recordings(settings, seed)


def load_simulated(settings: Settings, seed: int) -> Data:
    """The fold of this seed to test on, the others to train on; each has as many signals of each class."""
    from sklearn.model_selection import StratifiedKFold

    if settings.data_dir is not None:
        raise InputError(f"--data-dir: got {settings.data_dir}, expected none with --data vibration")
    least = len(CLASSES) * settings.folds
    if settings.num_signals is None or settings.num_signals < least:
        raise InputError(f"--num-signals: got {settings.num_signals}, expected at least {least}")
    x, labels = simulated(settings.num_signals, settings.points)
    folds = StratifiedKFold(settings.folds, shuffle=True, random_state=0).split(labels, labels)
    train, test = map(torch.from_numpy, list(folds)[seed % settings.folds])
    return Data(x, labels, CLASSES, train, test)


def load_recordings(settings: Settings, seed: int) -> Data:
    """Windows of a quarter of the recordings to test on, drawn anew by each seed.

    Each window is less its mean: an offset of the sensor tells nothing, yet its power would count as the signal's.
    """
    if settings.data_dir is None:
        raise InputError(f"--data {settings.data} needs the folder that holds its files: --data-dir")
    if settings.num_signals is not None:
        raise InputError(
            f"--num-signals: got {settings.num_signals}, expected none with --data {settings.data}"
        )
    chosen = {"column": settings.column} if settings.data == "folder" else {}
    read = RECORDINGS[settings.data]
    train, test, classes, _ = read(
        settings.data_dir, points=settings.points, normalise="mean", seed=seed, **chosen
    )
    x = torch.cat([train.x, test.x])
    if (x == x[..., :1]).all(-1).any():
        raise InputError(
            f"{settings.data_dir}: has a window of {settings.points} points that are all the same"
        )
    indices = torch.arange(len(x), device="cpu").split([len(train.x), len(test.x)])
    return Data(x, torch.cat([train.labels, test.labels]), classes, *indices)


def build(settings: Settings, network: str, classes: int) -> models.ShrinkageNetwork:
    """A network of this name, with new parameters."""
    try:
        return NETWORKS[network].build(1, classes, blocks=settings.blocks)
    except ValueError as error:
        raise InputError(f"--{error}") from error


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on a single thread, which such small networks keep busy and a second one hardly speeds up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train_cell(
    settings: Settings, cell: Cell, device: torch.device, origin: str
) -> tuple[Result, dict[str, Tensor]]:
    """Train one cell. Returns its result, and the features and labels of its test signals."""
    data = load(settings, cell.seed)
    with one_thread(), repeatable():
        generator = torch.Generator().manual_seed(cell.noise_seed)
        noisy = add_noise(data.x, cell.snr, cast(Kind, cell.noise), generator=generator)
        train, test = (
            (noisy[split].to(device), data.labels[split].to(device)) for split in (data.train, data.test)
        )
        torch.manual_seed(cell.seed)
        network = build(settings, cell.network, len(data.classes)).to(device)
        start = time.perf_counter()
        fit(network, *train, settings)
        if device.type == "cuda":  # which still computes what it has been given
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        features = features_of(network, test[0])
        result = Result(
            *cell,
            accuracy(network, features_of(network, train[0]), train[1]),
            accuracy(network, features, test[1]),
            seconds,
            sum(parameter.numel() for parameter in network.parameters()),
            origin,
        )
    return result, {"features": features.cpu(), "labels": test[1].cpu()}


def fit(network: models.ShrinkageNetwork, x: Tensor, labels: Tensor, settings: Settings) -> None:
    """Train to the last epoch, in an order drawn from PyTorch's default CPU generator."""
    optimiser = momentum(network.parameters(), settings.lr)
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
    """What the classifier sees of each signal, (N, channels), in evaluation mode."""
    network.eval()
    seen: list[Tensor] = []
    hook = network.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with hook:
        for batch in x.split(evaluation_batch(network, x)):
            network(batch)
    return torch.cat(seen)


@torch.inference_mode()
def accuracy(network: models.ShrinkageNetwork, features: Tensor, labels: Tensor) -> float:
    """The share of signals that the classifier tells right by their features."""
    right = network.classifier(features).argmax(1) == labels
    return int(right.sum()) / len(labels)
