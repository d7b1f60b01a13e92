"""The network of the paper, as DRSN-CW, DRSN-CS and plain ResNet, and the ConvNet that the paper compares it with."""

# Annotations are evaluated: torch.fx keeps those of a forward that it traces, and pickles no strings.

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import require_choice, require_positive
from ..layers import BATCH_NORMS, CONVOLUTIONS, apply, conv3, lay_out, pad_same, pre_activation, require_input
from ..modules import RSBU, Thresholds
from ..ops import spatial
from ..reference import require_number
from ..variants.gates import Norm
from ..variants.shrinkage import Pooling, Rule, RuleFunction
from .initialisation import as_tflearn, weighted_layers

torch.fx.wrap("pad_same")
torch.fx.wrap("require_input")


@torch.fx.wrap
def pad_stem(x: Tensor, stride: int, width: int) -> Tensor:
    """x with the zeros that a first convolution of another width than 3 needs to be what TensorFlow calls "same"."""
    return spatial.pad_same(x, stride, width)


class ConvolutionalUnit(RSBU):
    """The unit of the paper's ConvNet: `RSBU` without shrinkage and without shortcut, ``y = h``.

    Args:
        in_channels: channels of x.
        out_channels: channels of y, at least ``in_channels``.
        stride: of the first convolution, on every spatial axis.
        dim: the number of spatial axes: 1, 2 or 3.

    Shapes and errors are those of `RSBU`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, dim: int = 1) -> None:
        super().__init__(in_channels, out_channels, stride=stride, dim=dim, thresholds=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x)


class ShrinkageNetwork(nn.Module):
    """Convolution, residual shrinkage units, BatchNorm, ReLU, mean over space, dropout, linear classifier.

    Args:
        in_channels: channels of the input.
        num_classes: the number of logits.
        dim: the number of spatial axes: 1, 2 or 3.
        stem: channels and stride of the first convolution.
        units: channels and stride of each unit.
        unit: makes a unit: `ConvolutionalUnit`, or `RSBU` with the args of its gate bound by ``partial``.
        l2: the factor of ``penalty()``.
        l2_classifier: whether the classifier's kernel counts in ``penalty()``.
        stem_width: of the first convolution, on every axis.
        dropout: the share of the classifier's inputs that are 0 in training, drawn anew each time.

    Shape: (N, in_channels, \\*spatial) to (N, num_classes), the logits; the softmax belongs to the loss.

    Raises:
        ValueError: a bad argument, or an x of another rank or number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        dim: int,
        stem: tuple[int, int],
        units: Sequence[tuple[int, int]],
        unit: Callable[..., RSBU],
        l2: float = 0.0,
        l2_classifier: bool = True,
        stem_width: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_positive("in_channels", in_channels)
        require_positive("num_classes", num_classes)
        require_choice("dim", dim, tuple(CONVOLUTIONS))
        require_positive("stem_width", stem_width)
        require_number("dropout", dropout, "a number from 0 to less than 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: got {dropout!r}, expected a number from 0 to less than 1")
        self.in_channels = in_channels
        self.dim = dim
        self.l2 = l2
        self.l2_classifier = l2_classifier
        channels, stride = stem
        self.stride = stride
        self.stem_width = stem_width
        self.stem = (
            conv3(dim, in_channels, channels, stride)
            if stem_width == 3
            else CONVOLUTIONS[dim](
                in_channels, channels, stem_width, stride, padding="same" if stride == 1 else 0
            )
        )
        self.units = nn.Sequential()
        for out_channels, step in units:
            self.units.append(unit(channels, out_channels, stride=step, dim=dim))
            channels = out_channels
        self.bn = BATCH_NORMS[dim](channels)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.classifier = nn.Linear(channels, num_classes)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes a pickle from before networks had a ``stride``, which was the stem's, and what came after that."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "stride" not in state:
            self.stride = self.stem.stride[0]
        if "stem_width" not in state:
            self.stem_width, self.dropout = 3, None

    def forward(self, x: Tensor) -> Tensor:
        require_input(x, self.in_channels, self.dim)
        wide = self.stem_width != 3
        padded = pad_stem(x, self.stride, self.stem_width) if wide else pad_same(x, self.stride)
        h = apply(self.stem, lay_out(padded))
        # once more for what is compiled: an input of one channel is left as it is there
        h = self.units(lay_out(h))
        y, _ = pre_activation(self.bn, h)
        features = y.flatten(2).mean(-1)
        logits: Tensor = self.classifier(features if self.dropout is None else self.dropout(features))
        return logits

    def penalty(self) -> Tensor:
        """The L2 term of the loss, a scalar: ``l2`` times the sum of squares of the convolution and linear kernels."""
        return l2_term(self, self.l2, [] if self.l2_classifier else self.classifier.modules())


def l2_term(network: nn.Module, factor: float, left_out: Iterable[nn.Module]) -> Tensor:
    """``factor`` times the sum of squares of the convolution and linear kernels but those of the layers left out."""
    others = {*left_out}
    kernels = [layer.weight.flatten() for layer in weighted_layers(network) if layer not in others]
    return factor * torch.cat(kernels).square().sum()


def drsn(
    in_channels: int = 1,
    num_classes: int = 8,
    *,
    dim: int = 1,
    thresholds: Thresholds | None = "channel-wise",
    blocks: int = 12,
    widths: Sequence[int] = (4, 8, 16),
    reduction: int = 1,
    norm: Norm = "batch",
    rule: Rule | RuleFunction = "soft",
    pooling: Pooling = "avg",
    stem_width: int = 3,
    stem_stride: int = 2,
    dropout: float = 0.0,
) -> ShrinkageNetwork:
    """The network of the paper's table II: a convolution with stride 2, then stages that halve the length.

    Args:
        in_channels: channels of the signal.
        num_classes: the number of logits.
        dim: the number of spatial axes: 1, 2 or 3.
        thresholds: ``"channel-wise"`` (DRSN-CW), ``"channel-shared"`` (DRSN-CS), or None, the plain ResNet.
        blocks: residual units in all, as many in each stage: 12 in the paper, which also tries 6 and 9.
        widths: channels of each stage, at least those of the one before. The first unit of a stage has stride 2.
        reduction: of the gates, see `Shrinkage`.
        norm: of the gates, see `Shrinkage`. ``"layer"`` leaves nothing of a gate with one hidden feature, which a
            stage has where ``width // reduction`` is 0 or 1.
        rule: of the shrinkages, see `Shrinkage`; each gets a copy of its own of one that is a module.
        pooling: of the shrinkages, see `Shrinkage`.
        stem_width: of the first convolution; 3 in the paper. 64 with a stride of 8 or 16 is the wide kernel of WDCNN,
            with which 1D-WDRSN begins.
        stem_stride: of the first convolution; 2 in the paper.
        dropout: the share of the classifier's inputs that are 0 in training; the paper has none.

    Initialisation and L2 are those of `drsn_cifar10`, whose library the paper's own program uses.

    Shape: (N, in_channels, \\*spatial) to logits (N, num_classes). The paper has signals of 1 x 2048.

    Raises:
        ValueError: a bad argument, such as ``blocks`` that is not a multiple of the number of stages.

    Sources: Zhao et al., DOI 10.1109/TII.2019.2943898, table II; the wide kernel, Zhang et al., DOI 10.3390/s17020425,
    and, in a DRSN, Yang et al., DOI 10.1155/2020/8880960; dropout, Srivastava et al., JMLR 15, 2014, 1929-1958.
    """

    def unit(*channels: int, **options: int) -> RSBU:
        own = copy.deepcopy(rule) if isinstance(rule, nn.Module) else rule
        return RSBU(
            *channels,
            **options,
            thresholds=thresholds,
            reduction=reduction,
            norm=norm,
            rule=own,
            pooling=pooling,
        )

    return _stages(
        in_channels,
        num_classes,
        dim=dim,
        blocks=blocks,
        widths=widths,
        unit=unit,
        stem_width=stem_width,
        stem_stride=stem_stride,
        dropout=dropout,
    )


def convnet(
    in_channels: int = 1,
    num_classes: int = 8,
    *,
    dim: int = 1,
    blocks: int = 12,
    widths: Sequence[int] = (4, 8, 16),
    stem_width: int = 3,
    stem_stride: int = 2,
    dropout: float = 0.0,
) -> ShrinkageNetwork:
    """The ConvNet that the paper compares with: `drsn` layer for layer, without shrinkage and without shortcuts.

    It has as many parameters as the plain ResNet, since a shortcut has none.

    Args:
        in_channels: channels of the signal.
        num_classes: the number of logits.
        dim: the number of spatial axes: 1, 2 or 3.
        blocks: units in all, as in `drsn`.
        widths: channels of each stage, as in `drsn`.
        stem_width: of the first convolution, as in `drsn`.
        stem_stride: of the first convolution, as in `drsn`.
        dropout: before the classifier, as in `drsn`.

    Shape: (N, in_channels, \\*spatial) to logits (N, num_classes).

    Raises:
        ValueError: as `drsn`.

    >>> drsn_ops.models.convnet()(torch.randn(2, 1, 2048)).shape
    torch.Size([2, 8])

    Source: Zhao et al., DOI 10.1109/TII.2019.2943898, section IV.
    """
    return _stages(
        in_channels,
        num_classes,
        dim=dim,
        blocks=blocks,
        widths=widths,
        unit=ConvolutionalUnit,
        stem_width=stem_width,
        stem_stride=stem_stride,
        dropout=dropout,
    )


def _stages(
    in_channels: int,
    num_classes: int,
    *,
    dim: int,
    blocks: int,
    widths: Sequence[int],
    unit: Callable[..., RSBU],
    stem_width: int,
    stem_stride: int,
    dropout: float,
) -> ShrinkageNetwork:
    """A network of stages with as many units each, which begin with stride 2."""
    require_positive("blocks", blocks)
    require_positive("stem_stride", stem_stride)
    if not isinstance(widths, Sequence):
        raise ValueError(f"widths: got {widths!r}, expected a sequence of integers, one a stage")
    for width in widths:
        require_positive("widths", width)
    if list(widths) != sorted(widths):
        raise ValueError(f"widths: got {tuple(widths)}, expected none that is less than the one before")
    if not widths or blocks % len(widths):
        raise ValueError(f"blocks: got {blocks}, expected a multiple of the number of widths, {len(widths)}")
    network = ShrinkageNetwork(
        in_channels,
        num_classes,
        dim=dim,
        stem=(widths[0], stem_stride),
        units=[(width, 1 if i else 2) for width in widths for i in range(blocks // len(widths))],
        unit=unit,
        l2=0.5e-4,
        l2_classifier=False,
        stem_width=stem_width,
        dropout=dropout,
    )
    as_tflearn(network)
    return network
