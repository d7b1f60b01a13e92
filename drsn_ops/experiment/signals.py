"""The signals of one seed: simulated ones, or windows of recordings, and which of them to test on."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import InputError
from ..data.recordings import read_recordings
from ..data.vibration import CLASSES, vibration
from .settings import Settings


class Data(NamedTuple):
    """Signals without noise, (N, 1, points), their classes, (N,), and the indices of the two splits."""

    x: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    train: Tensor
    test: Tensor


@lru_cache(maxsize=1)
def simulated(signals: int, points: int) -> tuple[Tensor, Tensor]:
    """The simulated signals and their classes, the same for every seed."""
    try:
        made = vibration(signals, points=points)
    except ValueError as error:
        raise InputError(f"--{error}") from error
    return made.x, made.labels


@lru_cache(maxsize=1)
def load(settings: Settings, seed: int) -> Data:
    """The data of one seed. A fold of the simulated signals is tested on, or some whole recordings.

    Raises:
        InputError: settings that contradict each other, or files that cannot be used.
    """
    if settings.column is not None and settings.data != "folder":
        raise InputError(f"--column: got {settings.column}, expected none with --data {settings.data}")
    return load_simulated(settings, seed) if settings.data == "vibration" else load_recordings(settings, seed)


def load_simulated(settings: Settings, seed: int) -> Data:
    """Test on the fold of this seed, train on the others. Every fold has equally many signals of each class."""
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
    """Test on the windows of a quarter of the recordings, which the seed selects.

    Each window is taken less its mean: the sensor's offset carries no information, but would add to the power that the
    noise is scaled to.
    """
    if settings.data_dir is None:
        raise InputError(f"--data {settings.data} needs the folder that holds its files: --data-dir")
    if settings.num_signals is not None:
        raise InputError(
            f"--num-signals: got {settings.num_signals}, expected none with --data {settings.data}"
        )
    data = read_recordings(
        settings.data_dir,
        channels=() if settings.column is None else (settings.column,),
        points=settings.points,
        normalise="mean",
        seed=seed,
    )
    train, test = data.train, data.test
    x = torch.cat([train.x, test.x])
    if (x == x[..., :1]).all(-1).any():
        raise InputError(
            f"{settings.data_dir}: has a window of {settings.points} points that are all the same"
        )
    indices = torch.arange(len(x), device="cpu").split([len(train.x), len(test.x)])
    return Data(x, torch.cat([train.labels, test.labels]), data.classes, *indices)
