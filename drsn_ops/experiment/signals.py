"""The signals of one seed: simulated ones, or windows of recordings, and which of them to test on."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..arguments import InputError, as_input_error, flagged
from ..data.flags import SIMULATED
from ..data.recordings import Windows, read_recordings, require_power
from ..data.vibration import CHUNK, CLASSES, vibration
from ..data.windows import Cutting, Normalise
from .settings import Settings


class Data(NamedTuple):
    """Signals without noise, (N, channels, points), and the indices of the two splits.

    ``labels`` and ``recording``, (N,), are each one's class and the number of its recording. Of recordings, ``split``
    is how the splits came about, ``passed_over`` are files that are none, ``copies`` pairs of series in both splits,
    and ``validation`` is how many windows a given split keeps apart: nothing here is chosen by them.
    """

    x: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    train: Tensor
    test: Tensor
    recording: Tensor
    split: str | None = None
    passed_over: tuple[Path, ...] = ()
    copies: tuple[tuple[Path, Path], ...] = ()
    validation: int = 0


@lru_cache(maxsize=1)
def simulated(signals: int, points: int, normalise: str) -> tuple[Tensor, Tensor]:
    """The simulated signals and their classes, the same for every seed."""
    try:
        made = vibration(signals, points=points)
    except ValueError as error:
        raise as_input_error(error) from error
    cutting = Cutting(points, None, cast(Normalise, normalise))
    # in parts: in between, the values are in float64
    parts = (cutting.windows(Path(SIMULATED), part.movedim(1, 2).numpy()) for part in made.x.split(CHUNK))
    return torch.cat([torch.from_numpy(part) for part in parts]), made.labels


@lru_cache(maxsize=1)
def load(settings: Settings, seed: int) -> Data:
    """The data of one seed. A fold of the simulated signals is tested on, or some of the recordings.

    Raises:
        InputError: settings that contradict each other, or files that cannot be used.
    """
    return load_simulated(settings, seed) if settings.simulated else load_recordings(settings, seed)


def load_simulated(settings: Settings, seed: int) -> Data:
    """Test on the fold of this seed, train on the others. Every fold has equally many signals of each class."""
    from sklearn.model_selection import StratifiedKFold

    for name, value in settings.reading.items():
        raise InputError(f"{flagged(name, value)}: expected none with --data {SIMULATED}, which has no files")
    least = len(CLASSES) * settings.folds
    if settings.num_signals is None or settings.num_signals < least:
        raise InputError(f"--num-signals: got {settings.num_signals}, expected at least {least}")
    x, labels = simulated(settings.num_signals, settings.points, settings.normalise)
    folds = StratifiedKFold(settings.folds, shuffle=True, random_state=0).split(labels, labels)
    train, test = map(torch.from_numpy, list(folds)[seed % settings.folds])
    return Data(x, labels, CLASSES, train, test, torch.arange(len(x), device="cpu"))


def load_recordings(settings: Settings, seed: int) -> Data:
    """Test on the part of the recordings that the seed selects, or that the way of splitting does."""
    if settings.num_signals is not None:
        raise InputError(
            f"--num-signals: got {settings.num_signals}, expected none with --data {settings.data}"
        )
    try:
        read = read_recordings(
            settings.data,
            points=settings.points,
            normalise=cast(Normalise, settings.normalise),
            seed=seed,
            **settings.reading,
        )
    except ValueError as error:
        raise as_input_error(error) from error
    if read.split == "given" and settings.test_share is not None:
        raise InputError(
            f"{flagged('test_share', settings.test_share)}: expected none with {settings.data}, where the split is "
            "given"
        )
    x, labels, recording = (torch.cat(pair) for pair in zip(read.train, read.test, strict=True))
    require_power(Windows(x, labels, recording), read.files)
    train, test = torch.arange(len(x), device="cpu").split([len(read.train.x), len(read.test.x)])
    found = (read.split, read.passed_over, read.copies, len(read.validation.x))
    return Data(x, labels, read.classes, train, test, recording, *found)
