"""The networks whose training steps are compared: without shrinkage, with drsn_ops, with the copied formula."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import drsn_ops
from drsn_ops import Shrinkage
from drsn_ops.benchmark.formulas import norm_mean, row_mean, strong

CLASSES = 8
SHAPES = {"paper": (128, 1, 2048), "resnet18": (64, 1, 1024)}
THRESHOLDS = {"ResNet": None, "DRSN-CW": "channel-wise", "DRSN-CS": "channel-shared"}


class FormulaShrinkage(nn.Module):
    """Another `Shrinkage` by a formula of drsn_ops.benchmark; "naive" is the one that is copied everywhere."""

    def __init__(self, ours: Shrinkage, formula: str = "naive") -> None:
        super().__init__()
        self.fc = copy.deepcopy(ours.fc)
        self.statistic = ours.statistic
        self.formula = formula

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        magnitude = x if self.formula == "strong" else x.abs()
        mean = norm_mean(x) if self.formula == "strong" else row_mean(magnitude)
        scale = self.fc(mean.flatten(1))
        mean = mean if self.statistic == "channel" else mean.mean(1, keepdim=True)
        tau = mean * scale.reshape(*scale.shape, *(1,) * (x.dim() - 2))
        if self.formula == "strong":
            y = strong(x, tau, False)
        elif self.formula == "tidy":
            y = x.sign() * torch.relu(magnitude - tau)
        else:
            sub = magnitude - tau
            y = x.sign() * torch.max(sub, sub - sub)
        return y if residual is None else y + residual


class BasicBlock(nn.Module):
    """ResNet's block with the shrinkage where public PyTorch code has it, between BatchNorm and sum.

    ``fused`` hands the BatchNorm to the operator too.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, thresholds: str | None, fused: bool
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm1d(out_channels)
        self.conv2 = nn.Conv1d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm1d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(nn.Conv1d(in_channels, out_channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm1d(out_channels))
        self.shrink = None if thresholds is None else Shrinkage(out_channels, thresholds)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True))
        shortcut = self.shortcut(x)
        if self.shrink is None:
            y = self.bn2(z) + shortcut
        elif self.fused:
            y = drsn_ops.batch_norm_shrink(
                z, self.bn2, self.shrink.fc, statistic=self.shrink.statistic, residual=shortcut
            )
        else:
            y = self.shrink(self.bn2(z), shortcut)
        return F.relu(y, inplace=True)


class ResNet18(nn.Module):
    """ResNet-18 with one spatial axis."""

    def __init__(self, thresholds: str | None, fused: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(1, 64, 7, 2, padding=3, bias=False),
            nn.BatchNorm1d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool1d(3, 2, padding=1),
        )
        self.blocks = nn.Sequential()
        channels = 64
        for width in (64, 128, 256, 512):
            self.blocks.append(BasicBlock(channels, width, 1 if width == 64 else 2, thresholds, fused))
            self.blocks.append(BasicBlock(width, width, 1, thresholds, fused))
            channels = width
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean(-1))


def variants(network: str) -> list[tuple[str, str]]:
    """Variant and provider, the plain ResNet first."""
    providers = ["drsn_ops", "naive"] if network == "paper" else ["drsn_ops", "batch_norm_shrink", "naive"]
    return [
        ("ResNet", "pytorch"),
        *((name, provider) for provider in providers for name in ("DRSN-CW", "DRSN-CS")),
    ]


def with_formula(network: nn.Module) -> None:
    """Puts the copied formula in the place of every `Shrinkage`."""
    for unit in list(network.modules()):
        ours = getattr(unit, "shrink", None)
        if isinstance(ours, Shrinkage):
            unit.shrink = FormulaShrinkage(ours)


def create(network: str, variant: str, provider: str) -> nn.Module:
    thresholds = THRESHOLDS[variant]
    if network == "paper":
        made: nn.Module = drsn_ops.models.drsn(1, CLASSES, dim=1, thresholds=thresholds)
    else:
        made = ResNet18(thresholds, fused=provider == "batch_norm_shrink")
    if provider == "naive":
        with_formula(made)
    return made


def build(network: str, variant: str, provider: str) -> nn.Module:
    """A variant; each starts with DRSN-CW's parameters wherever it has one of that name and shape."""
    states = []
    with torch.random.fork_rng(devices=[]):
        for one in ("DRSN-CW", variant):
            torch.manual_seed(0)
            made = create(network, one, provider if one == variant else "drsn_ops")
            states.append(made.state_dict())
    start, own = states
    shared = {key: start[key] for key in own if key in start and start[key].shape == own[key].shape}
    made.load_state_dict({**own, **shared})
    return made
