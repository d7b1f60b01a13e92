"""Reads CIFAR-10 from the pickled batches of its Python version, in a folder or in their archive."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from ..arguments import InputError, first_line
from .images import Split, to_split
from .plain_pickle import loads, unsigned_bytes

TRAIN_BATCHES = [f"data_batch_{i}" for i in range(1, 6)]
BATCHES = [*TRAIN_BATCHES, "test_batch"]
# bytes; a published batch has 31 MB
LARGEST_BATCH = 2**28


def read_cifar10(place: Path) -> tuple[Split, Split]:
    """The two splits.

    Args:
        place: the folder of the batches, the one around its ``cifar-10-batches-py``, one that holds the archive
            ``cifar-10-python.tar.gz``, or an archive of any name.
    """
    archive = place if place.is_file() else place / "cifar-10-python.tar.gz"
    inner = place / "cifar-10-batches-py"
    folder = inner if inner.is_dir() else place
    packed = archive.is_file() and not any((folder / name).is_file() for name in BATCHES)
    where = archive if packed else folder
    try:
        found = dict(members(archive) if packed else files(folder))
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{where}: cannot be read: {first_line(error)}") from error
    for name in BATCHES:
        if name not in found:
            raise InputError(
                f"{where / name}: no such file; expected {BATCHES[0]} to 5 and {BATCHES[-1]} in the folder or in its "
                "cifar-10-batches-py, or cifar-10-python.tar.gz in it or in its place"
            )
    images, labels = (np.concatenate(parts) for parts in zip(*(found[n] for n in TRAIN_BATCHES), strict=True))
    path = where / BATCHES[-1]
    return to_split(images, labels, where, where), to_split(*found[BATCHES[-1]], path, path)


def files(folder: Path) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """The batches in a folder."""
    for name in BATCHES:
        if (folder / name).is_file():
            yield name, read_batch((folder / name).read_bytes(), folder / name)


def members(archive: Path) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """The batches in an archive, in its order. Nothing is unpacked, and no path in it is followed."""
    # a stream is decompressed once
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            path = archive / PurePosixPath(member.name).name
            if path.name not in BATCHES or not member.isreg() or member.issparse():
                continue
            if member.size > LARGEST_BATCH:
                raise InputError(f"{path}: of {member.size} bytes, expected at most {LARGEST_BATCH}")
            if file := tar.extractfile(member):
                yield path.name, read_batch(file.read(), path)


def read_batch(content: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, (N, 3, 32, 32) of unsigned bytes, and labels of one batch."""
    try:
        batch = loads(content)
        images, labels = (batch.get(key) if isinstance(batch, dict) else None for key in (b"data", b"labels"))
        images = unsigned_bytes(images)
    # a damaged pickle can raise nearly anything
    except Exception as error:
        raise InputError(f"{path}: not a batch of CIFAR-10's Python version: {first_line(error)}") from error
    if images is None or images.ndim != 2 or images.shape[1] != 3072:
        raise InputError(f"{path}: its 'data' is not an array of N x 3072 bytes")
    if (
        not isinstance(labels, list)
        or len(labels) != len(images)
        or not all(type(n) is int and abs(n) < 2**31 for n in labels)
    ):
        raise InputError(f"{path}: its 'labels' is not a list of {len(images)} integers of 32 bits")
    return images.reshape(-1, 3, 32, 32), np.array(labels)
