"""What an experiment trains and how, and the files of its folder.

settings.json     written once; an experiment that is resumed has the same settings
cells/NAME.json   the result of one cell, written when it is trained
cells/NAME.pt     the features of the cells that the t-SNE shows, written before their result
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from .. import models
from ..arguments import InputError, as_flag
from ..data import recordings
from ..files import replacing, save_tensors
from ..noise import KINDS

FORMAT = "drsn_ops.experiment 1"
RECORDINGS: dict[str, Callable[..., recordings.Recordings]] = {
    "cwru": recordings.cwru,
    "folder": recordings.folder,
}
DATA = ("vibration", *RECORDINGS)


class Network(NamedTuple):
    """How a network is built, and the paper's accuracies of it."""

    build: Callable[..., models.ShrinkageNetwork]
    train: str
    test: str


# accuracies in percent, over the noises of -5 to 5 dB: table III
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
        """The cell in the names of its files."""
        # without a type, the format has as many digits as tell the ratio from any other
        return f"{self.network}_{self.noise}_{self.snr:+}dB_{self.seed}"

    @property
    def noise_seed(self) -> int:
        """The seed of the noise: another one for every noise, and the same one for every network."""
        return zlib.crc32(f"{self.noise} {self.snr} {self.seed}".encode())


@dataclass(frozen=True)
class Settings:
    """All that decides what an experiment computes.

    ``folds``: a share of 1 / folds of the made signals is tested on, and seed k tests on fold k modulo folds.
    ``num_signals`` is None where the data are recordings, and ``data_dir`` where they are not; ``column`` is that of
    a folder's files, its number from 0 or its name, and None where they have one only.
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
        """The cells that the t-SNE shows: the first noise, the middle ratio or that above it, the first seed.

        The choice is ours: which noise and ratio the paper's own figure shows is not known here.
        """
        snr = sorted(self.snr)[len(self.snr) // 2]
        return [Cell(network, self.noise[0], snr, 0) for network in self.networks]


# the paper's recipe; ten seeds over ten folds are its ten-fold cross-validation
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
# the signals are few and the epochs many, so that what is compared is not how fast the networks learn
SMALL = Settings(
    data="vibration",
    data_dir=None,
    column=None,
    num_signals=1080,
    points=1024,
    blocks=6,
    epochs=40,
    batch_size=32,
    lr=0.1,
    folds=3,
    networks=FULL.networks,
    noise=FULL.noise,
    snr=(-5.0, 5.0),
    seeds=3,
)
PRESETS = {"small": SMALL, "full": FULL}


class Result(NamedTuple):
    """What came out of one cell.

    Accuracies are of the network in evaluation mode, on the noisy signals; ``seconds`` are those of its training alone,
    and ``origin`` tells of the machine and the versions, see `schedule.origin_of`.
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

    An experiment that is resumed has its own settings, but for the folder of the recordings, which may have moved.

    Raises:
        InputError: it has others.
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


def save_settings(settings: Settings, fingerprint: Sequence[float], folder: Path) -> None:
    """Begin an experiment in a folder, with what tells its signals from others, or note where its recordings are."""
    (folder / "cells").mkdir(exist_ok=True)
    values = {"format": FORMAT, **asdict(settings), "fingerprint": fingerprint}
    write_json(values, folder / "settings.json")


def read_fingerprint(folder: Path) -> list[float] | None:
    """What tells the experiment's signals from others, which earlier versions did not write."""
    fingerprint = read_json(folder / "settings.json").get("fingerprint")
    return fingerprint if fits(fingerprint, tuple[float, ...]) else None


def read_settings(folder: Path) -> Settings:
    """The settings that `save_settings` wrote."""
    path = folder / "settings.json"
    values = read_json(path)
    values.pop("fingerprint", None)
    if values.pop("format", None) != FORMAT:
        raise InputError(f"{path}: not the settings of an experiment of this program")
    if fit(values, Settings):
        lists: dict[str, Any] = {name: tuple(v) for name, v in values.items() if isinstance(v, list)}
        settings = Settings(**{**values, **lists})
        if settings.data in DATA and {*settings.networks} <= {*NETWORKS} and {*settings.noise} <= {*KINDS}:
            return settings
    raise InputError(f"{path}: not the settings of an experiment of this version")


def fit(values: Mapping[str, Any], record: type) -> bool:
    """Whether values from JSON are those of a record, each of the type that the record's annotations say."""
    kinds = get_type_hints(record)
    return values.keys() == kinds.keys() and all(fits(values[name], kind) for name, kind in kinds.items())


def fits(value: object, kind: Any) -> bool:
    """Whether a value from JSON is of an annotated type; a tuple comes as a list, and has something in it."""
    parts = get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, list) and bool(value) and all(fits(item, parts[0]) for item in value)
    return any(fits(value, part) for part in parts) if parts else type(value) is kind


def result_path(folder: Path, cell: Cell) -> Path:
    """Where the result of a cell is."""
    return folder / "cells" / f"{cell.name}.json"


def features_path(folder: Path, cell: Cell) -> Path:
    """Where the features of a cell are that is shown."""
    return result_path(folder, cell).with_suffix(".pt")


def save_result(result: Result, folder: Path) -> None:
    """Write the result of a cell, which is then done."""
    write_json(result._asdict(), result_path(folder, result.cell))


def read_results(folder: Path, settings: Settings) -> list[Result]:
    """The results of the cells that are done. One with a file that is damaged, or of another cell, is not."""
    shown = settings.shown()
    cells = (c for c in settings.cells() if c not in shown or read_features(folder, c) is not None)
    return [result for cell in cells if (result := read_result(folder, cell))]


def read_result(folder: Path, cell: Cell) -> Result | None:
    """What `save_result` wrote of this cell, if it did and the file is whole."""
    try:
        values = read_json(result_path(folder, cell))
    except InputError:
        return None
    result = Result(**values) if fit(values, Result) else None
    return result if result and result.cell == cell else None


def save_features(features: Mapping[str, Tensor], folder: Path, cell: Cell) -> None:
    """Write the features and labels of a cell that is shown."""
    save_tensors(features, features_path(folder, cell))


def read_features(folder: Path, cell: Cell) -> dict[str, Tensor] | None:
    """What `save_features` wrote of this cell, if it did and the file is whole."""
    try:
        features: dict[str, Tensor] = torch.load(features_path(folder, cell), weights_only=True)
    # a damaged file can raise nearly anything
    except Exception:
        return None
    return features


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Replace a file of values by name."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: damaged: no values by name")
    return values
