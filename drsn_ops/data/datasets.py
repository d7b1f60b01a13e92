"""The data sets that the published networks are trained on, with the noise of their programs.

Each is read into memory once, as float32 images of (N, C, H, W) scaled to [0, 1]. Uniform noise is added once to every
image of both splits, and does not change during the training, unless the training draws its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..arguments import InputError, require_packages
from ..noise import uniform
from .cifar10 import read_cifar10
from .images import Dataset, Split
from .mnist import read_mnist

# which files are read, and where they come from
SOURCES = {
    "mnist": "they are train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, with or without .gz, as torchvision.datasets.MNIST(DIR, download=True) fetches them",
    "cifar10": "cifar-10-python.tar.gz of www.cs.toronto.edu/~kriz/cifar.html, or its folder cifar-10-batches-py",
}


def load(
    name: str, folder: str | Path | None, *, noise: float, seed: int, fresh_noise: bool = False
) -> Dataset:
    """Read a data set and add ``noise * U(0, 1)`` to every value of both splits.

    Args:
        name: ``"digits"``, ``"mnist"`` or ``"cifar10"``.
        folder: where the files are, as published, as torchvision leaves them, or CIFAR-10's archive. Digits come with
            scikit-learn and need none.
        noise: the width of the noise: 0.5 in the MNIST program, 0.1 in the CIFAR-10 program.
        seed: of the noise. The splits do not depend on it.
        fresh_noise: leave the training images clean, for noise that the training draws; the test images have the same
            noise either way.

    CIFAR-10's mean is that of the noisy training images, per channel: the feature-wise zero centring of its program,
    which some copies of it have lost; with ``fresh_noise`` it is the expected one. It is 0 for the others.

    Raises:
        InputError: a missing or damaged file.
    """
    if name == "digits":
        train, test = read_digits()
    elif folder is None:
        raise InputError(f"{name} needs the folder that holds its files: --data-dir; {SOURCES[name]}")
    else:
        train, test = (read_mnist if name == "mnist" else read_cifar10)(Path(folder))
    generator = torch.Generator().manual_seed(seed)
    for split in (train, test):
        drawn = uniform(split.images.shape, generator=generator)
        if split is test or not fresh_noise:
            split.images.add_(drawn, alpha=noise)
    channels = train.images.shape[1]
    mean = train.images.mean((0, 2, 3)) if name == "cifar10" else train.images.new_zeros(channels)
    if name == "cifar10" and fresh_noise:
        mean += noise / 2
    return Dataset(train, test, mean[:, None, None])


def read_digits() -> tuple[Split, Split]:
    """Scikit-learn's 1797 handwritten digits, 8 x 8: 1437 to train on and 360 to test, always the same ones."""
    require_packages("reading the digits", "train", "sklearn")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    arrays = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, arrays)
    return Split(train_images, train_labels), Split(test_images, test_labels)
