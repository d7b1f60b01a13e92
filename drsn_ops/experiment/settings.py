"""What an experiment trains and how, and the files of its folder.

settings.json     written once; an experiment that is resumed has the same settings
cells/NAME.json   the result of one cell, written when it is trained
cells/NAME.pt     the features of the cells that the t-SNE shows
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ..data import InputError
from ..train import replacing

FORMAT = "drsn_ops.experiment 1"
NETWORKS = ("ConvNet", "ResNet", "DRSN-CS", "DRSN-CW")


class Cell(NamedTuple):
    """One network, trained and tested at one noise."""

    network: str
    noise: str
    snr: float
    seed: int

    @property
    def name(self) -> str:
        """The cell in the names of its files."""
        return f"{self.network}_{self.noise}_{self.snr:+g}dB_{self.seed}"

    @property
    def noise_seed(self) -> int:
        """The seed of the noise: another one for every noise, and the same one for every network."""
        return zlib.crc32(f"{self.noise} {self.snr:g} {self.seed}".encode())


@dataclass(frozen=True)
class Settings:
    """All that decides what an experiment computes.

    ``folds``: a share of 1 / folds of the made signals is tested on, and seed k tests on fold k modulo folds.
    ``num_signals`` is None where the data are recordings, and ``data_dir`` where they are not.
    """

    data: str
    data_dir: str | None
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
        """The cells that the t-SNE shows: the first noise, the middle ratio, the first seed."""
        snr = sorted(self.snr)[len(self.snr) // 2]
        return [Cell(network, self.noise[0], snr, 0) for network in self.networks]


# the paper's recipe; ten seeds over ten folds are its ten-fold cross-validation
FULL = Settings(
    data="vibration",
    data_dir=None,
    num_signals=28_800,
    points=2048,
    blocks=12,
    epochs=100,
    batch_size=128,
    lr=0.1,
    folds=10,
    networks=NETWORKS,
    noise=("gaussian", "laplacian", "pink"),
    snr=tuple(float(decibels) for decibels in range(-5, 6)),
    seeds=10,
)
SMALL = Settings(
    data="vibration",
    data_dir=None,
    num_signals=2160,
    points=1024,
    blocks=6,
    epochs=10,
    batch_size=32,
    lr=0.1,
    folds=3,
    networks=NETWORKS,
    noise=FULL.noise,
    snr=(-5.0, 0.0, 5.0),
    seeds=3,
)
PRESETS = {"small": SMALL, "full": FULL}


class Result(NamedTuple):
    """What came out of one cell. Accuracies are of the network in evaluation mode, on the noisy signals."""

    network: str
    noise: str
    snr: float
    seed: int
    train_accuracy: float
    test_accuracy: float
    seconds: float
    parameters: int

    @property
    def cell(self) -> Cell:
        """The cell that this is the result of."""
        return Cell(*self[:4])


def settings_of(
    flags: Mapping[str, Any], preset: str | None, saved: Settings | None, folder: Path | None
) -> Settings:
    """Each setting from its flag, or else from the preset or, without one, from the experiment that is resumed."""
    base = PRESETS[preset or "small"] if saved is None or preset else saved
    values = {**asdict(base), **{name: flag for name, flag in flags.items() if flag is not None}}
    if values["data"] != "vibration" and flags.get("num_signals") is None:
        values["num_signals"] = None
    settings = Settings(**values)
    for field in fields(Settings):
        ours, theirs = getattr(settings, field.name), getattr(saved or settings, field.name)
        if ours != theirs:
            flag = "--" + field.name.replace("_", "-")
            raise InputError(
                f"{folder}: an experiment of {flag} {as_flag(theirs)}, not of {flag} {as_flag(ours)}"
            )
    return settings


def as_flag(value: object) -> str:
    """A setting as it is written on the command line."""
    if isinstance(value, tuple):
        return " ".join(map(as_flag, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def save_settings(settings: Settings, folder: Path) -> None:
    """Begin an experiment in a folder."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    write_json({"format": FORMAT, **asdict(settings)}, folder / "settings.json")


def read_settings(folder: Path) -> Settings:
    """What `save_settings` wrote."""
    path = folder / "settings.json"
    values = read_json(path)
    if values.pop("format", None) != FORMAT:
        raise InputError(f"{path}: not the settings of an experiment of this program")
    try:
        lists: dict[str, Any] = {name: tuple(v) for name, v in values.items() if isinstance(v, list)}
        return Settings(**{**values, **lists})
    except TypeError as error:
        raise InputError(f"{path}: not the settings of an experiment of this version") from error


def result_path(folder: Path, cell: Cell) -> Path:
    """Where the result of a cell is."""
    return folder / "cells" / f"{cell.name}.json"


def save_result(result: Result, folder: Path) -> None:
    """Write the result of a cell, which is then done."""
    write_json(result._asdict(), result_path(folder, result.cell))


def read_results(folder: Path, cells: Iterable[Cell]) -> list[Result]:
    """The results of those of the cells that are done."""
    results = []
    for cell in cells:
        path = result_path(folder, cell)
        if path.exists():
            values = read_json(path)
            if values.keys() != set(Result._fields) or Result(**values).cell != cell:
                raise InputError(f"{path}: not the result of this cell; without the file it is trained again")
            results.append(Result(**values))
    return results


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
