"""The networks whose steps are compared: those of drsn_ops, and their twins of the modules of torch.nn alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drsn_ops import RSBU, Shrinkage, models
from drsn_ops.benchmark.formulas import row_mean

CLASSES = 8
SHAPES = {
    "paper": (128, 1, 2048),
    "wide": (64, 1, 1024),
    "resnet18": (64, 1, 1024),
    "cifar10": (128, 3, 32, 32),
}
LAYOUTS = {"cifar10": ("contiguous", "channels_last")}  # of the input, and of the weights of PyTorch's twin
THRESHOLDS = {"ResNet": None, "DRSN-CW": "channel-wise", "DRSN-CS": "channel-shared"}
PLAIN = ("ResNet", "pytorch")
OWN = ("ResNet", "drsn_ops")


class CopiedShrinkage(nn.Module):
    """Another `Shrinkage` by the formula that is copied everywhere."""

    def __init__(self, ours: Shrinkage) -> None:
        super().__init__()
        self.fc = copy.deepcopy(ours.fc)
        self.statistic = ours.statistic

    def forward(self, x: Tensor) -> Tensor:
        magnitude = x.abs()
        mean = row_mean(magnitude)
        scale = self.fc(mean.flatten(1))
        mean = mean if self.statistic == "channel" else mean.mean(1, keepdim=True)
        sub = magnitude - mean * scale.reshape(*scale.shape, *(1,) * (x.dim() - 2))
        return x.sign() * torch.max(sub, sub - sub)


class PlainSum(nn.Module):
    """What the twins of both kinds of blocks share: the sum, behind the copied formula where ours has a `Shrinkage`."""

    def __init__(self, layers: Iterable[nn.Module], shrinkage: Shrinkage | None) -> None:
        super().__init__()
        self.bn1, self.conv1, self.bn2, self.conv2 = map(copy.deepcopy, layers)
        self.shrink = None if shrinkage is None else CopiedShrinkage(shrinkage)

    def add(self, h: Tensor, shortcut: Tensor) -> Tensor:
        if self.shrink is not None:
            h = self.shrink(h)
        h += shortcut
        return h


class PlainUnit(PlainSum):
    """The twin of an `RSBU`, for axes of even length."""

    def __init__(self, ours: RSBU) -> None:
        super().__init__((ours.bn1, ours.conv1, ours.bn2, ours.conv2), ours.shrink)
        self.stride, self.dim = ours.stride, ours.dim
        self.extra = ours.out_channels - ours.in_channels

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(x), inplace=True)
        if self.stride > 1:
            h = F.pad(h, (0, 1) * self.dim)
            x = x[(..., *[slice(None, None, self.stride)] * self.dim)]
        if self.extra:
            x = F.pad(x, (*(0, 0) * self.dim, self.extra // 2, self.extra - self.extra // 2))
        h = F.relu(self.bn2(self.conv1(h)), inplace=True)
        return self.add(self.conv2(h), x)


class PlainNetwork(nn.Module):
    """The twin of a network of `RSBU` units."""

    def __init__(self, ours: models.ShrinkageNetwork) -> None:
        super().__init__()
        self.padding = (0, 1) * ours.dim * (ours.stride > 1)
        self.stem, self.bn, self.classifier = map(copy.deepcopy, (ours.stem, ours.bn, ours.classifier))
        self.units = nn.Sequential(*(PlainUnit(unit) for unit in ours.units))

    def forward(self, x: Tensor) -> Tensor:
        h = self.units(self.stem(F.pad(x, self.padding) if self.padding else x))
        return self.classifier(F.relu(self.bn(h), inplace=True).flatten(2).mean(-1))


class PlainBlock(PlainSum):
    """The twin of an `RSNetBlock`."""

    def __init__(self, ours: models.RSNetBlock) -> None:
        conv1, bn1, _, conv2, bn2 = ours.residual_function[:5]
        super().__init__((bn1, conv1, bn2, conv2), ours.shrinkage)
        self.shortcut = copy.deepcopy(ours.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.add(self.bn2(self.conv2(h)), self.shortcut(x)), inplace=True)


class PlainRSNet(nn.Module):
    """The twin of an `RSNet`."""

    def __init__(self, ours: models.RSNet) -> None:
        super().__init__()
        conv, bn, _, *rest = copy.deepcopy(ours.conv1)
        self.stem = nn.Sequential(conv, bn, nn.ReLU(inplace=True), *rest)
        blocks = [module for module in ours.modules() if isinstance(module, models.RSNetBlock)]
        self.blocks = nn.Sequential(*map(PlainBlock, blocks))
        self.classifier = copy.deepcopy(ours.fc)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean(-1))


def variants(network: str) -> list[tuple[str, str]]:
    """Variant and provider, PyTorch's plain ResNet first; of the paper's network also the copied formula."""
    ours = [(variant, "drsn_ops") for variant in THRESHOLDS]
    return [PLAIN, *ours, *[("DRSN-CW", "pytorch")] * (network == "paper")]


def create(network: str, variant: str) -> nn.Module:
    """One of drsn_ops; the network of 18 layers has ImageNet's stem, which halves the length twice."""
    thresholds = THRESHOLDS[variant]
    if network == "cifar10":
        return models.drsn_cifar10(3, CLASSES, thresholds=thresholds)
    if network == "resnet18":
        made = models.rsnet18(1, CLASSES, thresholds=thresholds)
        made.conv1[0] = nn.Conv1d(1, 64, 7, 2, padding=3, bias=False)
        made.conv1.append(nn.MaxPool1d(3, 2, padding=1))
        return made
    widths = (4, 8, 16) if network == "paper" else (64, 128, 256)
    return models.drsn(1, CLASSES, widths=widths, thresholds=thresholds)


def build(network: str, variant: str, provider: str) -> nn.Module:
    """A variant; each starts with DRSN-CW's parameters wherever it has one of that name and shape."""
    states = []
    with torch.random.fork_rng(devices=[]):
        for one in ("DRSN-CW", variant):
            torch.manual_seed(0)
            made = create(network, one)
            states.append(made.state_dict())
    start, own = states
    shared = {key: start[key] for key in own if key in start and start[key].shape == own[key].shape}
    made.load_state_dict({**own, **shared})
    if provider == "drsn_ops":
        return made
    return PlainRSNet(made) if network == "resnet18" else PlainNetwork(made)
