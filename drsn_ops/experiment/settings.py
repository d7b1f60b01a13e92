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
from ..arguments import InputError, flagged
from ..data.flags import FLAGS, SIMULATED
from ..modules import Thresholds
from ..training.networks import GATE_FLAGS, NETWORK_FLAGS

PLAIN = "ResNet"  # the network without shrinkage, with which the others are compared
# Settings that an experiment can have more of when it is resumed: no cell that is trained depends on them.
GROWING = ("networks", "noise_kind", "snr", "seeds")
# settings of the networks with and without gates
STAGES = tuple(name for name in NETWORK_FLAGS if name not in ("thresholds", *GATE_FLAGS))


class Network(NamedTuple):
    """How a network is built, of which settings, and its accuracies in the paper."""

    build: Callable[..., models.ShrinkageNetwork | models.WDCNN]
    settings: tuple[str, ...]
    train: str = "-"
    test: str = "-"


def drsn(thresholds: Thresholds | None, train: str, test: str) -> Network:
    """The paper's network with these thresholds."""
    gates = () if thresholds is None else GATE_FLAGS
    return Network(partial(models.drsn, thresholds=thresholds), (*STAGES, *gates), train, test)


# table III: accuracies in percent over noises of -5 to 5 dB
OF_THE_PAPER = {
    "ConvNet": Network(models.convnet, STAGES, "82.06 ± 4.29", "77.62 ± 4.22"),
    PLAIN: drsn(None, "91.96 ± 1.05", "86.25 ± 1.34"),
    "DRSN-CS": drsn("channel-shared", "93.61 ± 0.98", "88.55 ± 1.02"),
    "DRSN-CW": drsn("channel-wise", "94.84 ± 0.55", "89.57 ± 0.87"),
}
NETWORKS = {**OF_THE_PAPER, "WDCNN": Network(models.wdcnn, ("points",))}


class Cell(NamedTuple):
    """One network, trained and tested at one noise."""

    network: str
    noise_kind: str
    snr: float
    seed: int

    @property
    def name(self) -> str:
        """The cell's name in its files' names."""
        # without a presentation type, a float is formatted with as many digits as distinguish it from any other
        return f"{self.network}_{self.noise_kind}_{self.snr:+}dB_{self.seed}"

    @property
    def noise_seed(self) -> int:
        """The seed of the noise: different for every noise, and the same for every network."""
        return zlib.crc32(f"{self.noise_kind} {self.snr} {self.seed}".encode())


@dataclass(frozen=True)
class Settings:
    """Everything that determines what an experiment computes.

    Args:
        data: ``"vibration"``, the simulated machine, or the absolute path of recordings.
        num_signals: how many signals are simulated; None for recordings.
        normalise: of each window and channel, before the noise.
        folds: 1 / folds of the simulated signals are test signals; seed k tests on fold k modulo folds.
        shown_snr: the ratio that the t-SNE shows, the same when the experiment has grown; None for the middle one.
        fresh_noise: the noise of the training signals is drawn anew in every epoch; that of the test signals is not.
        adapt_batch_norm: before the test, take the statistics of every BatchNorm from the test signals, without their
            labels, see `drsn_ops.adapt_batch_norm`.

    ``blocks``, and those from ``widths`` to ``dropout``, are of the networks that have them, see `drsn_ops.models`. The
    others from ``variable`` on are those of `drsn_ops.data.read_recordings`, None where it has its own default.
    """

    data: str
    num_signals: int | None
    points: int
    normalise: str
    blocks: int
    epochs: int
    batch_size: int
    lr: float
    folds: int
    networks: tuple[str, ...]
    noise_kind: tuple[str, ...]
    snr: tuple[float, ...]
    seeds: int
    shown_snr: float | None = None
    variable: tuple[str, ...] | None = None
    channels: tuple[str, ...] | None = None
    layout: str | None = None
    delimiter: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    sampling_rate: float | None = None
    resample: bool | None = None
    pad: bool | None = None
    step: int | None = None
    split: str | None = None
    test_share: float | None = None
    classes: tuple[str, ...] | None = None
    loads: tuple[int, ...] | None = None
    widths: tuple[int, ...] = (4, 8, 16)
    stem_width: int = 3
    stem_stride: int = 2
    reduction: int = 1
    norm: str = "batch"
    rule: str = "soft"
    pooling: str = "avg"
    dropout: float = 0.0
    fresh_noise: bool = False
    adapt_batch_norm: bool = False

    @property
    def simulated(self) -> bool:
        """Whether the signals are the simulated machine's."""
        return self.data == SIMULATED

    @property
    def reading(self) -> dict[str, Any]:
        """How recordings are read, beside ``points`` and ``normalise``: what was asked for."""
        asked = {name: getattr(self, name) for name in FLAGS if name != "normalise"}
        return {name: value for name, value in asked.items() if value is not None}

    def cells(self) -> list[Cell]:
        """The grid, seed by seed."""
        grid = product(range(self.seeds), self.noise_kind, self.snr, self.networks)
        return [Cell(network, kind, snr, seed) for seed, kind, snr, network in grid]

    def shown(self) -> list[Cell]:
        """The cells that the t-SNE shows: the first kind of noise, the first seed, the middle ratio (the upper of two).

        The paper does not say which noise and ratio its figure shows.
        """
        middle = sorted(self.snr)[len(self.snr) // 2] if self.shown_snr is None else self.shown_snr
        return [Cell(network, self.noise_kind[0], middle, 0) for network in self.networks]


# The paper's recipe. Ten seeds over ten folds are its ten-fold cross-validation.
FULL = Settings(
    data=SIMULATED,
    num_signals=28_800,
    points=2048,
    normalise="standard",
    blocks=12,
    epochs=100,
    batch_size=128,
    lr=0.1,
    folds=10,
    networks=tuple(OF_THE_PAPER),
    noise_kind=("gaussian", "laplacian", "pink"),
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

    Accuracies and the macro-F1, the mean of the classes' F1, are those of the network in evaluation mode, on the noisy
    signals, from 0 to 1. ``majority`` is the share of the largest class: what a constant answer reaches. A
    simulated signal counts as a recording of one window. ``seconds`` is the time of the training alone, ``origin``
    names the machine and the versions, see `schedule.origin_of`.
    """

    network: str
    noise_kind: str
    snr: float
    seed: int
    train_accuracy: float
    test_accuracy: float
    test_macro_f1: float
    train_majority: float
    test_majority: float
    train_recordings: int
    test_recordings: int
    train_windows: int
    test_windows: int
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
        InputError: the experiment that is resumed has other settings. It may have grown, see `GROWING`, and the folder
            of its recordings may have moved.
    """
    base = PRESETS[preset or "small"] if saved is None or preset else saved
    values = {**asdict(base), **{name: flag for name, flag in flags.items() if flag is not None}}
    if values["data"] != SIMULATED and flags.get("num_signals") is None:
        values["num_signals"] = None
    asked = Settings(**values)
    return grown(saved, asked, folder) if saved else replace(asked, shown_snr=asked.shown()[0].snr)


def grown(saved: Settings, asked: Settings, folder: Path | None) -> Settings:
    """The settings of an experiment that is resumed: what it had in the order it had it, and then what is new."""
    changes: dict[str, Any] = {"data": asked.data}
    for name in (field.name for field in fields(Settings) if field.name != "shown_snr"):
        ours, theirs = getattr(asked, name), getattr(saved, name)
        moved = name == "data" and not asked.simulated and not saved.simulated
        if ours == theirs or moved or (name == "split" and ours is None):
            continue
        refusal = f"{folder}: an experiment of {flagged(name, theirs)}, not of {flagged(name, ours)}"
        if name not in GROWING:
            raise InputError(refusal)
        if name == "seeds":
            fewer = ours < theirs
            changes[name] = ours
        else:
            fewer = not {*theirs} <= {*ours}
            changes[name] = (*theirs, *(item for item in ours if item not in theirs))
        if fewer:
            raise InputError(f"{refusal}: it can get more when it is resumed, not fewer")
    return replace(saved, **changes)
