"""RSNet-18 and RSNet-34: ResNets with shrinkage behind each block's last BatchNorm and a ReLU after the sum.

They are the networks of the public PyTorch port that most copies go back to, github.com/liguge/
Deep-Residual-Shrinkage-Networks-for-intelligent-fault-diagnosis-DRSN-. The paper's network is `models.drsn`.
"""

# Annotations are evaluated: torch.fx keeps those of a forward that it traces, and pickles no strings.

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..arguments import require_choice, require_positive
from ..layers import (
    BATCH_NORMS,
    CONVOLUTIONS,
    Layers,
    apply,
    lay_out,
    relu,
    require_input,
    through,
    through_all,
)
from ..modules import THRESHOLDS, Shrinkage, Thresholds, is_bare
from ..ops.plain_gate import is_plain
from ..reference import STATISTICS, Statistic
from ..variants.gates import Norm

torch.fx.wrap("require_input")

WIDTHS = (64, 128, 256, 512)
# The second linear layer of a gate that was built without its normalisation, under both names of the shrinkage.
SHORT_GATE = re.compile(r"(.*\.(?:shrinkage|residual_function\.5)\.fc\.)2(\.(?:weight|bias))")


def shrink_behind(norm: nn.Module, shrinkage: nn.Module, z: Tensor, residual: Tensor | None = None) -> Tensor:
    """``shrinkage(norm(z), residual)``, as one operator where the shrinkage is a `Shrinkage` without hooks.

    A hook, or another module in its place, must be called with what the norm returns. Under torch.fx both modules are
    called, since its tracer may treat the `Shrinkage` as a leaf.
    """
    traced = isinstance(z, torch.fx.Proxy)
    if is_bare(shrinkage) and not traced:
        return functional.batch_norm_shrink(
            z, norm, shrinkage.fc, statistic=shrinkage.statistic, residual=residual
        )
    x = apply(norm, z)
    y: Tensor = shrinkage(x) if residual is None else shrinkage(x, residual)
    return y


class RSNetBlock(nn.Module):
    """``relu(shrink(h) + shortcut(x))``, h being x after convolution, BatchNorm, ReLU, convolution and BatchNorm.

    The convolutions have width 3 and no biases. The shortcut is a convolution of width 1 and a BatchNorm where the
    shape changes, else x. The shrinkage has two names, ``shrinkage`` and ``residual_function.5``, and two entries in a
    state_dict, as in the port.

    Args:
        in_channels: channels of x.
        out_channels: channels of y.
        stride: of the first convolution and the shortcut, on every spatial axis.
        dim: the number of spatial axes: 1, 2 or 3.
        thresholds: ``"channel-wise"``, ``"channel-shared"``, or None for the plain residual block.
        statistic: the scope of the abs-mean, see `Shrinkage`.
        reduction: of the gate, see `Shrinkage`.
        norm: of the gate, see `Shrinkage`.

    Shape: x is (N, in_channels, \\*spatial); y has ``out_channels`` channels and ceil(n / stride) of n positions.

    Raises:
        ValueError: a bad argument, or an x of another rank or number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        dim: int = 1,
        thresholds: Thresholds | None = "channel-wise",
        statistic: Statistic | None = None,
        reduction: int = 1,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        require_positive("in_channels", in_channels)
        require_positive("out_channels", out_channels)
        require_positive("stride", stride)
        require_choice("dim", dim, tuple(CONVOLUTIONS))
        require_choice("thresholds", thresholds, (*THRESHOLDS, None))
        require_choice("statistic", statistic, (*STATISTICS, None))
        self.in_channels = in_channels
        self.dim = dim
        conv, batch_norm = CONVOLUTIONS[dim], BATCH_NORMS[dim]
        self.shrinkage = (
            None
            if thresholds is None
            else Shrinkage(out_channels, thresholds, statistic=statistic, reduction=reduction, norm=norm)
        )
        self.residual_function = Layers(
            conv(in_channels, out_channels, 3, stride, padding=1, bias=False),
            batch_norm(out_channels),
            nn.ReLU(),
            conv(out_channels, out_channels, 3, padding=1, bias=False),
            batch_norm(out_channels),
        )
        if self.shrinkage is not None:
            self.residual_function.append(self.shrinkage)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(conv(in_channels, out_channels, 1, stride, bias=False))
            self.shortcut.append(batch_norm(out_channels))

    def __setattr__(self, name: str, value: Any) -> None:
        """What replaces the shrinkage gets both of its names."""
        super().__setattr__(name, value)
        branch = getattr(self, "residual_function", None) if name == "shrinkage" else None
        if isinstance(branch, nn.Sequential) and len(branch) > 5:
            if value is None:
                del branch[5]
            else:
                branch[5] = value

    def forward(self, x: Tensor) -> Tensor:
        require_input(x, self.in_channels, self.dim)
        branch, shrinkage = self.residual_function, self.shrinkage
        layers = list(branch) if type(branch) in (Layers, nn.Sequential) and is_plain(branch) else []
        if shrinkage is None or len(layers) != 6 or layers[5] is not shrinkage:
            y = through_all(branch, x) + through_all(self.shortcut, x)
            return F.relu(y, inplace=isinstance(y, Tensor))
        # not the Sequential itself, so that the shrinkage adds the shortcut in the same pass
        z = through(layers[:4], x)
        return relu(shrink_behind(layers[4], shrinkage, z, through_all(self.shortcut, x)), shrinkage)


class RSNet(nn.Module):
    """Convolution of width 3, BatchNorm, ReLU, four stages of `RSNetBlock`, mean over space, linear classifier.

    Args:
        in_channels: channels of the input.
        num_classes: the number of logits.
        blocks: the number of blocks of each stage. Stages have 64, 128, 256 and 512 channels, and all but the first
            halve each axis.
        dim: the number of spatial axes: 1, 2 or 3.
        thresholds: ``"channel-wise"``, ``"channel-shared"``, or None for the plain ResNet.
        statistic: the scope of the abs-means, see `Shrinkage`.
        reduction: of the gates, see `Shrinkage`.
        norm: of the gates, see `Shrinkage`.

    Names and shapes in the state_dict are the port's for ``dim=1``, ``reduction=1`` and channel-wise thresholds. With
    ``norm="none"``, ``load_state_dict`` also takes gates that were built without their normalisation, whose second
    linear layer is called ``fc.2`` instead of ``fc.3``.

    Shape: (N, in_channels, \\*spatial), any length, to logits (N, num_classes).

    Raises:
        ValueError: a bad argument, or an x of another rank or number of channels.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 4,
        *,
        blocks: Sequence[int],
        dim: int = 1,
        thresholds: Thresholds | None = "channel-wise",
        statistic: Statistic | None = None,
        reduction: int = 1,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        require_positive("in_channels", in_channels)
        require_positive("num_classes", num_classes)
        require_choice("dim", dim, tuple(CONVOLUTIONS))
        if len(blocks) != len(WIDTHS):
            raise ValueError(f"blocks: got {tuple(blocks)}, expected {len(WIDTHS)} numbers, one a stage")
        for count in blocks:
            require_positive("blocks", count)
        self.in_channels = in_channels
        self.dim = dim
        channels = WIDTHS[0]
        self.conv1 = Layers(
            CONVOLUTIONS[dim](in_channels, channels, 3, padding=1, bias=False),
            BATCH_NORMS[dim](channels),
            nn.ReLU(),
        )
        for stage, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True), start=2):
            layers = nn.Sequential()
            for i in range(count):
                layers.append(
                    RSNetBlock(
                        channels,
                        width,
                        stride=2 if stage > 2 and i == 0 else 1,
                        dim=dim,
                        thresholds=thresholds,
                        statistic=statistic,
                        reduction=reduction,
                        norm=norm,
                    )
                )
                channels = width
            self.add_module(f"conv{stage}_x", layers)
        self.fc = nn.Linear(channels, num_classes)
        self.register_load_state_dict_pre_hook(lengthen_gates)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        require_input(x, self.in_channels, self.dim)
        h = lay_out(self.conv1(lay_out(x)))  # twice as in `ShrinkageNetwork`
        for stage in range(2, 2 + len(WIDTHS)):
            h = self.get_submodule(f"conv{stage}_x")(h)
        logits: Tensor = self.fc(h.flatten(2).mean(-1))
        return logits


def lengthen_gates(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Renames the second linear layer of gates that were built without normalisation: ``fc.2`` to ``fc.3``."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        if found := SHORT_GATE.fullmatch(key):
            state_dict[f"{found[1]}3{found[2]}"] = state_dict.pop(key)


def rsnet18(
    in_channels: int = 1,
    num_classes: int = 4,
    *,
    dim: int = 1,
    thresholds: Thresholds | None = "channel-wise",
    statistic: Statistic | None = None,
    reduction: int = 1,
    norm: Norm = "batch",
) -> RSNet:
    """The public PyTorch port's network of 18 layers: eight blocks of 64 to 512 channels, with its checkpoints' names.

    | the port | here |
    | --- | --- |
    | ``DRSN-CW.py``, since the end of 2021 | ``rsnet18()`` |
    | the same since 2023, its gate without BatchNorm | ``rsnet18(norm="none")`` |
    | ``DRSN-CS.py``: the sample's mean with a gate as wide as the channels | ``rsnet18(statistic="sample")`` |
    | the paper's DRSN-CS, one threshold a sample | ``rsnet18(thresholds="channel-shared")`` |
    | the ResNet without shrinkage | ``rsnet18(thresholds=None)`` |

    A checkpoint does not tell which of the two means it was trained with, and before the end of 2021 the port's two
    files held each other's: try both on a few labelled signals.

    Args:
        in_channels: channels of the input.
        num_classes: the number of logits.
        dim: the number of spatial axes: 1, 2 or 3.
        thresholds: ``"channel-wise"``, ``"channel-shared"``, or None for the plain ResNet.
        statistic: the scope of the abs-means, see `Shrinkage`.
        reduction: of the gates, see `Shrinkage`.
        norm: of the gates, see `Shrinkage`.

    Shape: (N, in_channels, \\*spatial), any length, to logits (N, num_classes).

    Raises:
        ValueError: a bad argument.

    >>> network = drsn_ops.models.rsnet18(in_channels=1, num_classes=4)
    >>> network(torch.randn(2, 1, 100)).shape
    torch.Size([2, 4])

    Sources: Zhao et al., DOI 10.1109/TII.2019.2943898, for the shrinkage; He et al., DOI 10.1109/CVPR.2016.90, for the
    ResNet; github.com/liguge/Deep-Residual-Shrinkage-Networks-for-intelligent-fault-diagnosis-DRSN- for the names.
    """
    return RSNet(
        in_channels,
        num_classes,
        blocks=(2, 2, 2, 2),
        dim=dim,
        thresholds=thresholds,
        statistic=statistic,
        reduction=reduction,
        norm=norm,
    )


def rsnet34(
    in_channels: int = 1,
    num_classes: int = 4,
    *,
    dim: int = 1,
    thresholds: Thresholds | None = "channel-wise",
    statistic: Statistic | None = None,
    reduction: int = 1,
    norm: Norm = "batch",
) -> RSNet:
    """`rsnet18` with 34 layers: 3, 4, 6 and 3 blocks instead of two each. Arguments as there."""
    return RSNet(
        in_channels,
        num_classes,
        blocks=(3, 4, 6, 3),
        dim=dim,
        thresholds=thresholds,
        statistic=statistic,
        reduction=reduction,
        norm=norm,
    )
