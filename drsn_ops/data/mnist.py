"""Reads MNIST, or a data set made like it, from idx files."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np

from ..arguments import InputError
from .images import Split, to_split


def read_mnist(folder: Path) -> tuple[Split, Split]:
    """The two splits from four idx files, in ``folder``, its ``raw`` or its ``MNIST/raw``."""
    places = [folder, folder / "raw", folder / "MNIST" / "raw"]
    # all four from one place: those of another may be of another set
    place = next((place for place in places if idx_names(place, "train-images-idx3")), folder)
    splits = []
    for prefix in ("train", "t10k"):
        paths = [find_idx(place, f"{prefix}-{kind}") for kind in ("images-idx3", "labels-idx1")]
        images, labels = (read_idx(path, axes) for path, axes in zip(paths, (3, 1), strict=True))
        if len(images) != len(labels):
            raise InputError(f"{paths[1]}: {prefix} has {len(images)} images but {len(labels)} labels")
        splits.append(to_split(images[:, None], labels, *paths))
    return splits[0], splits[1]


def idx_names(folder: Path, name: str) -> list[Path]:
    """The existing files among the names of an idx file: as published or with a dot, each with or without .gz."""
    names = [
        f"{stem}-ubyte{suffix}" for stem in (name, name.replace("-idx", ".idx")) for suffix in ("", ".gz")
    ]
    return [folder / name for name in names if (folder / name).is_file()]


def find_idx(folder: Path, name: str) -> Path:
    """The first of `idx_names`."""
    for path in idx_names(folder, name):
        return path
    dotted = name.replace("-idx", ".idx")
    raise InputError(
        f"{folder / name}-ubyte: no such file, nor {name}-ubyte.gz, nor {dotted}-ubyte with or without .gz; "
        "expected the four idx files in the folder, in its raw or in its MNIST/raw"
    )


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The unsigned bytes of an idx file with this many axes."""
    header = 4 + 4 * axes
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(header)
            # type 8 is unsigned byte
            magic = bytes([0, 0, 8, axes])
            if start[:4] != magic:
                raise InputError(
                    f"{path}: not an idx file of {axes}-axis bytes: "
                    f"starts with {start[:4].hex() or 'nothing'}, not {magic.hex()}"
                )
            if len(start) < header:
                raise InputError(f"{path}: cut short in its header, at {len(start)} of {header} bytes")
            # the header is checked against the size of the data before memory is allocated for it
            held = file.seek(0, io.SEEK_END) - header
            shape = np.frombuffer(start, ">u4", axes, offset=4).tolist()
            if held != math.prod(shape):
                sizes = " x ".join(map(str, shape))
                raise InputError(f"{path}: holds {held} bytes of data where its header says {sizes}")
            file.seek(header)
            values: np.ndarray = np.frombuffer(file.read(held), np.uint8).reshape(shape)
            return values
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
