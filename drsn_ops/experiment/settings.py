"""What an experiment trains and how: its networks, its grid of cells, and its presets."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from .. import models
from ..arguments import InputError, as_flag

DATA = ("vibration", "cwru", "folder")


class Network(NamedTuple):
    """How a network is built, and its accuracies in the paper."""

    build: Callable[..., models.ShrinkageNetwork]
    train: str
    test: str


# table III: accuracies in percent over noises of -5 to 5 dB
NETWORKS = {
    "ConvNet": Network(models.convnet, "82.06 ± 4.29", "77.62 ± 4.22"),
    "ResNet": Network(partial(models.drsn, thresholds=None), "91.96 ± 1.05", "86.25 ± 1.34"),
    "DRSN-CS": Network(partial(models.drsn, thresholds="channel-shared"), "93.61 ± 0.98", "88.55 ± 1.02"),
    "DRSN-CW": Network(partial(models.drsn, thresholds="channel-wise"), "94.84 ± 0.55", "89.57 ± 0.87"),
}


class Cell(NamedTuple):
    """One network, trained and tested at one noise."""

    network: str
    noise: str
    snr: float
    seed: int

    @property
    def name(self) -> str:
        """The cell's name in its files' names."""
        # without a presentation type, a float is formatted with as many digits as distinguish it from any other
        return f"{self.network}_{self.noise}_{self.snr:+}dB_{self.seed}"

    @property
    def noise_seed(self) -> int:
        """The seed of the noise: different for every noise, and the same for every network."""
        return zlib.crc32(f"{self.noise} {self.snr} {self.seed}".encode())


@dataclass(frozen=True)
class Settings:
    """Everything that determines what an experiment computes.

    ``folds``: 1 / folds of the simulated signals are test signals; seed k tests on fold k modulo folds.
    ``num_signals`` is None for recordings, ``data_dir`` is None for simulated signals. ``column`` selects a column of
    a folder's files, by its number from 0 or its name; None if they have one column.
    """

    data: str
    data_dir: str | None
    column: str | None
    num_signals: int | None
    points: int
    blocks: int
    epochs: int
    batch_size: int
    lr: float
    folds: int
    networks: tuple[str, ...]
    noise: tuple[str, ...]
    snr: tuple[float, ...]
    seeds: int

    def cells(self) -> list[Cell]:
        """The grid, seed by seed."""
        grid = product(range(self.seeds), self.noise, self.snr, self.networks)
        return [Cell(network, noise, snr, seed) for seed, noise, snr, network in grid]

    def shown(self) -> list[Cell]:
        """The cells that the t-SNE shows: the first noise, the middle ratio (the upper of two), the first seed.

        The paper does not say which noise and ratio its figure shows.
        """
        snr = sorted(self.snr)[len(self.snr) // 2]
        return [Cell(network, self.noise[0], snr, 0) for network in self.networks]


# The paper's recipe. Ten seeds over ten folds are its ten-fold cross-validation.
FULL = Settings(
    data="vibration",
    data_dir=None,
    column=None,
    num_signals=28_800,
    points=2048,
    blocks=12,
    epochs=100,
    batch_size=128,
    lr=0.1,
    folds=10,
    networks=tuple(NETWORKS),
    noise=("gaussian", "laplacian", "pink"),
    snr=tuple(float(decibels) for decibels in range(-5, 6)),
    seeds=10,
)
# Few signals and many epochs: the networks are compared by what they learn, not by how fast.
SMALL = replace(
    FULL, num_signals=1080, points=1024, blocks=6, epochs=40, batch_size=32, folds=3, snr=(-5.0, 5.0), seeds=3
)
PRESETS = {"small": SMALL, "full": FULL}


class Result(NamedTuple):
    """The result of one cell.

    Accuracies are those of the network in evaluation mode, on the noisy signals. ``seconds`` is the time of its
    training alone, ``origin`` names the machine and the versions, see `schedule.origin_of`.
    """

    network: str
    noise: str
    snr: float
    seed: int
    train_accuracy: float
    test_accuracy: float
    seconds: float
    parameters: int
    origin: str

    @property
    def cell(self) -> Cell:
        """The cell that this is the result of."""
        return Cell(*self[:4])


def settings_of(
    flags: Mapping[str, Any], preset: str | None, saved: Settings | None, folder: Path | None
) -> Settings:
    """Each setting from its flag, or else from the preset or, without one, from the experiment that is resumed.

    Raises:
        InputError: the experiment that is resumed has other settings. Only the folder of its recordings may differ:
            it may have moved.
    """
    base = PRESETS[preset or "small"] if saved is None or preset else saved
    values = {**asdict(base), **{name: flag for name, flag in flags.items() if flag is not None}}
    if values["data"] != "vibration" and flags.get("num_signals") is None:
        values["num_signals"] = None
    settings = Settings(**values)
    for field in fields(Settings):
        ours, theirs = getattr(settings, field.name), getattr(saved or settings, field.name)
        if ours != theirs and field.name != "data_dir":
            flag = "--" + field.name.replace("_", "-")
            raise InputError(
                f"{folder}: an experiment of {flag} {as_flag(theirs)}, not of {flag} {as_flag(ours)}"
            )
    return settings
