"""Splits of labelled images, and their augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import InputError

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


def to_split(images: np.ndarray, labels: np.ndarray, images_path: Path, labels_path: Path) -> Split:
    """Bytes as float32 in [0, 1], with checked labels.

    Raises:
        InputError: no images, or a label outside the classes.
    """
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
    """Mirror each image with probability one half, pad it with zeros, and crop it at random to its own size.

    Draws from PyTorch's default CPU generator, whatever the images' device. The program for CIFAR-10 mirrors; some
    copies of it have lost that line.
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
