"""The data sets that the networks are trained on, with the noise of the programs they were published with.

Each is read into memory once, as float32 images of (N, C, H, W) scaled to [0, 1]; uniform noise is then added
once to every image, of both splits, and stays as it is for the whole training.
"""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import InputError, first_line
from ..noise import uniform
from .plain_pickle import loads, unsigned_bytes

CLASSES = 10


class Split(NamedTuple):
    """Images, (N, C, H, W) of float32, and their classes, (N,) of int64."""

    images: Tensor
    labels: Tensor


class Dataset(NamedTuple):
    """A training and a test split, and the (C, 1, 1) channel means to subtract from what the network sees."""

    train: Split
    test: Split
    mean: Tensor

    def to(self, device: torch.device) -> Dataset:
        """The same data on ``device``."""
        train, test = (Split(s.images.to(device), s.labels.to(device)) for s in (self.train, self.test))
        return Dataset(train, test, self.mean.to(device))


def load(name: str, folder: str | Path | None, *, noise: float, seed: int) -> Dataset:
    """Read a data set and add ``noise * U(0, 1)`` to every value of both splits.

    Args:
        name: ``"digits"``, ``"mnist"`` or ``"cifar10"``.
        folder: where the files are, as published, as torchvision leaves them, or CIFAR-10's archive. Digits come with
            scikit-learn and need none.
        noise: the width of the noise: 0.5 in the MNIST program, 0.1 in the CIFAR-10 program.
        seed: of the noise. The splits do not depend on it.

    CIFAR-10's mean is that of the noisy training images, per channel: its program's feature-wise zero centring,
    one of the lines that copies of it have lost. It is 0 for the others.

    Raises:
        InputError: a missing or damaged file.
    """
    if name == "digits":
        train, test = read_digits()
    elif folder is None:
        raise InputError(f"{name} needs the folder that holds its files: --data-dir")
    else:
        train, test = (read_mnist if name == "mnist" else read_cifar10)(Path(folder))
    generator = torch.Generator().manual_seed(seed)
    for split in (train, test):
        split.images.add_(uniform(split.images.shape, generator=generator), alpha=noise)
    channels = train.images.shape[1]
    mean = train.images.mean((0, 2, 3)) if name == "cifar10" else train.images.new_zeros(channels)
    return Dataset(train, test, mean[:, None, None])


def read_digits() -> tuple[Split, Split]:
    """Scikit-learn's 1797 handwritten digits, 8 x 8: 1437 to train on and 360 to test, always the same ones."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    parts = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, parts)
    return Split(train_images, train_labels), Split(test_images, test_labels)


def read_mnist(folder: Path) -> tuple[Split, Split]:
    """MNIST, or a set made like it, from its four idx files: in ``folder``, its ``raw`` or its ``MNIST/raw``."""
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
    """The files there are of those that an idx file goes by: as published, or with a dot, and either with .gz."""
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
            # what the file holds is counted before room is made for what its header says
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


TRAIN_BATCHES = [f"data_batch_{i}" for i in range(1, 6)]
BATCHES = [*TRAIN_BATCHES, "test_batch"]
# bytes; a batch as it is published has 31 MB
LARGEST_BATCH = 2**28


def read_cifar10(place: Path) -> tuple[Split, Split]:
    """CIFAR-10 from the batches of its Python version, in a folder, its ``cifar-10-batches-py`` or the archive of it.

    Args:
        place: that folder, the one around it, or the archive, ``cifar-10-python.tar.gz`` in a folder or of any name.
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
    """Each batch that is in a folder."""
    for name in BATCHES:
        if (folder / name).is_file():
            yield name, read_cifar10_batch((folder / name).read_bytes(), folder / name)


def members(archive: Path) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Each batch that is in an archive, in its order; nothing is unpacked, and no path in it is followed."""
    # as a stream, which is decompressed once
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            path = archive / PurePosixPath(member.name).name
            if path.name not in BATCHES or not member.isreg() or member.issparse():
                continue
            if member.size > LARGEST_BATCH:
                raise InputError(f"{path}: of {member.size} bytes, expected at most {LARGEST_BATCH}")
            if file := tar.extractfile(member):
                yield path.name, read_cifar10_batch(file.read(), path)


def read_cifar10_batch(content: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
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


def to_split(images: np.ndarray, labels: np.ndarray, images_path: Path, labels_path: Path) -> Split:
    """Bytes to float32 in [0, 1], with the labels checked."""
    if not images.size:
        raise InputError(f"{images_path}: holds no images")
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise InputError(
            f"{labels_path}: labels run from {labels.min()} to {labels.max()}, not from 0 to {CLASSES - 1}"
        )
    return Split(
        torch.from_numpy(images.astype(np.float32)).div_(255), torch.from_numpy(labels.astype(np.int64))
    )


def augment(images: Tensor, padding: int = 4) -> Tensor:
    """Mirror each image with a chance of one half, and crop it at random out of itself in a border of zeros.

    Draws from PyTorch's default CPU generator, whatever the images' device. The mirroring is another line that
    copies of the program for CIFAR-10 have lost.
    """
    n, _, height, width = images.shape
    flip = torch.rand(n, dtype=torch.float32, device="cpu").to(images.device) < 0.5
    top, left = torch.randint(0, 2 * padding + 1, (2, n, 1), device="cpu").to(images.device)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    images = F.pad(torch.where(flip[:, None, None, None], images.flip(-1), images), [padding] * 4)
    samples = torch.arange(n, device=images.device)[:, None, None]
    # indices around a slice put the channels last
    return images[samples, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()
