"""The files of an experiment's folder.

settings.json     written at the start, and again when the experiment grows
cells/NAME.json   the result of one cell, written when it is trained
cells/NAME.pt     the features of the cells that the t-SNE shows, written before their result
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from .. import __version__
from ..arguments import InputError
from ..files import replacing, save_tensors
from ..noise import KINDS
from .settings import NETWORKS, Cell, Result, Settings

FORMAT = "drsn_ops.experiment 3"
CELLS = "cells"


def save_settings(settings: Settings, fingerprint: Sequence[float], folder: Path) -> None:
    """Write the settings and the signals' fingerprint: of an experiment that is resumed too, which may have grown."""
    values = {"format": FORMAT, **asdict(settings), "fingerprint": fingerprint}
    write_json(values, folder / "settings.json")


def make_room(folder: Path) -> None:
    """Make the folder of the cells' files, after the settings: a folder with these can be resumed."""
    (folder / CELLS).mkdir(exist_ok=True)


def read_fingerprint(folder: Path) -> list[float]:
    """The fingerprint of the experiment's signals."""
    path = folder / "settings.json"
    fingerprint: list[float] | None = read_json(path).get("fingerprint")
    if fingerprint is None or not fits(fingerprint, tuple[float, ...]):
        raise InputError(f"{path}: not the settings of an experiment of this version")
    return fingerprint


def read_settings(folder: Path) -> Settings:
    """Read the settings that `save_settings` wrote."""
    path = folder / "settings.json"
    values = read_json(path)
    values.pop("fingerprint", None)
    name, _, version = str(values.pop("format", None)).rpartition(" ")
    ours, _, expected = FORMAT.rpartition(" ")
    if name != ours:
        raise InputError(f"{path}: not the settings of an experiment of this program")
    if version != expected:
        raise InputError(
            f"{path}: an experiment in format {version} of drsn_ops; this version, {__version__}, goes on with format "
            f"{expected} only: begin a new one"
        )
    if fit(values, Settings):
        lists: dict[str, Any] = {name: tuple(v) for name, v in values.items() if isinstance(v, list)}
        settings = Settings(**{**values, **lists})
        if {*settings.networks} <= {*NETWORKS} and {*settings.noise_kind} <= {*KINDS}:
            return settings
    raise InputError(f"{path}: not the settings of an experiment of this version")


def fit(values: Mapping[str, Any], record: type) -> bool:
    """True if values from JSON are those of a record, each of the type in the record's annotations."""
    kinds = get_type_hints(record)
    return values.keys() == kinds.keys() and all(fits(values[name], kind) for name, kind in kinds.items())


def fits(value: object, kind: Any) -> bool:
    """True if a value from JSON is of an annotated type. A tuple comes as a list, and is not empty."""
    parts = get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, list) and bool(value) and all(fits(item, parts[0]) for item in value)
    return any(fits(value, part) for part in parts) if parts else type(value) is kind


def result_path(folder: Path, cell: Cell) -> Path:
    """The path of a cell's result."""
    return folder / CELLS / f"{cell.name}.json"


def features_path(folder: Path, cell: Cell) -> Path:
    """The path of a cell's features, which are kept if it is shown."""
    return result_path(folder, cell).with_suffix(".pt")


def save_result(result: Result, folder: Path) -> None:
    """Write the result of a cell: the cell is then done."""
    write_json(result._asdict(), result_path(folder, result.cell))


def read_results(folder: Path, settings: Settings) -> list[Result]:
    """The results of the cells that are done. A cell with a damaged file, or that of another cell, is not."""
    shown = settings.shown()
    cells = (c for c in settings.cells() if c not in shown or read_features(folder, c) is not None)
    return [result for cell in cells if (result := read_result(folder, cell))]


def read_result(folder: Path, cell: Cell) -> Result | None:
    """Read what `save_result` wrote for this cell, or None if the file is missing or damaged."""
    try:
        values = read_json(result_path(folder, cell))
    except InputError:
        return None
    result = Result(**values) if fit(values, Result) else None
    return result if result and result.cell == cell else None


def save_features(features: Mapping[str, Tensor], folder: Path, cell: Cell) -> None:
    """Write the features and the labels of a cell that is shown."""
    save_tensors(features, features_path(folder, cell))


def read_features(folder: Path, cell: Cell) -> dict[str, Tensor] | None:
    """Read what `save_features` wrote for this cell, or None if the file is missing or damaged."""
    try:
        features: dict[str, Tensor] = torch.load(features_path(folder, cell), weights_only=True)
    # a damaged file can raise nearly anything
    except Exception:
        return None
    return features


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Replace a JSON file with an object of these values."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: damaged: no values by name")
    return values
