"""The data sets that the networks are trained on, with the noise of the programs they were published with.

Each is read into memory once, as float32 images of (N, C, H, W) scaled to [0, 1]; uniform noise is then added
once to every image, of both splits, and stays as it is for the whole training.
"""

from __future__ import annotations

import gzip
import math
import pickle
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .noise import uniform

CLASSES = 10


class InputError(Exception):
    """What a user gave cannot be used: a file, a flag, a checkpoint. The message is one line."""


def require_seed(seed: object) -> None:
    """Raise ValueError unless ``seed`` is an integer of at least 0, as NumPy's generators want it."""
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed: got {seed!r}, expected an integer of at least 0")


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
        folder: where the files are. Digits come with scikit-learn and need none.
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
    mean = train.images.mean((0, 2, 3)) if name == "cifar10" else torch.zeros(train.images.shape[1])
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
    """MNIST, or a set made like it, from its four idx files, each plain or gzipped."""
    splits = []
    for prefix in ("train", "t10k"):
        images, labels = (
            read_idx(find_idx(folder, f"{prefix}-{kind}-ubyte"), axes)
            for kind, axes in (("images-idx3", 3), ("labels-idx1", 1))
        )
        if len(images) != len(labels):
            raise InputError(f"{folder}: {prefix} has {len(images)} images but {len(labels)} labels")
        splits.append(to_split(images[:, None], labels, folder / prefix))
    return splits[0], splits[1]


def find_idx(folder: Path, name: str) -> Path:
    """The file of this name, or the same with .gz."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(f"{folder / name}: no such file, nor {name}.gz")


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The unsigned bytes of an idx file with this many axes."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    header = 4 + 4 * axes
    # type 8 is unsigned byte
    magic = bytes([0, 0, 8, axes])
    if content[:4] != magic:
        raise InputError(
            f"{path}: not an idx file of {axes}-axis bytes: starts with {content[:4].hex()}, not {magic.hex()}"
        )
    if len(content) < header:
        raise InputError(f"{path}: cut short in its header, at {len(content)} of {header} bytes")
    shape = np.frombuffer(content, ">u4", axes, offset=4).tolist()
    if len(content) - header != math.prod(shape):
        sizes = " x ".join(map(str, shape))
        raise InputError(f"{path}: holds {len(content) - header} bytes of data where its header says {sizes}")
    values: np.ndarray = np.frombuffer(content, np.uint8, offset=header).reshape(shape)
    return values


class PlainUnpickler(pickle.Unpickler):
    """Unpickles plain values and numpy arrays; refuses every other name, so that no file can run code."""

    allowed = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a data file has no use for")
        return super().find_class(module, name)


def read_cifar10(folder: Path) -> tuple[Split, Split]:
    """CIFAR-10 from the batches of its Python version, in ``folder`` or in its ``cifar-10-batches-py``."""
    inner = folder / "cifar-10-batches-py"
    folder = inner if inner.is_dir() else folder
    batches = [read_cifar10_batch(folder / f"data_batch_{i}") for i in range(1, 6)]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    train = to_split(images, labels, folder)
    path = folder / "test_batch"
    return train, to_split(*read_cifar10_batch(path), path)


def read_cifar10_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, (N, 3, 32, 32) of unsigned bytes, and labels of one batch."""
    try:
        with path.open("rb") as file:
            batch = PlainUnpickler(file, encoding="bytes").load()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    # a damaged pickle can raise nearly anything
    except Exception as error:
        raise InputError(f"{path}: not a batch of CIFAR-10's Python version: {error}") from error
    images, labels = (batch.get(key) if isinstance(batch, dict) else None for key in (b"data", b"labels"))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise InputError(f"{path}: its 'data' is not an array of N x 3072 bytes")
    if not isinstance(labels, list) or len(labels) != len(images) or not all(type(n) is int for n in labels):
        raise InputError(f"{path}: its 'labels' is not a list of {len(images)} integers")
    return images.reshape(-1, 3, 32, 32), np.array(labels)


def to_split(images: np.ndarray, labels: np.ndarray, path: Path) -> Split:
    """Bytes to float32 in [0, 1], with the labels checked."""
    if not len(images):
        raise InputError(f"{path}: holds no images")
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise InputError(
            f"{path}: labels run from {labels.min()} to {labels.max()}, not from 0 to {CLASSES - 1}"
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
    flip = torch.rand(n).to(images.device) < 0.5
    top, left = torch.randint(0, 2 * padding + 1, (2, n, 1)).to(images.device)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    images = F.pad(torch.where(flip[:, None, None, None], images.flip(-1), images), [padding] * 4)
    samples = torch.arange(n, device=images.device)[:, None, None]
    # indices around a slice put the channels last
    return images[samples, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()
