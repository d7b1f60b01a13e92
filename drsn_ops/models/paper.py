"""The networks: the two programs that DRSN was published with, the network of the paper, and those of `rsnet`.

All but the last are one `ShrinkageNetwork` of different widths; what else tells them apart is how two libraries of
their time, Keras 2.2.1 and TFLearn 0.3.2, initialise, normalise and decay.
"""

# Annotations are evaluated: torch.fx keeps those of a forward that it traces, and pickles no strings.

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..arguments import require_choice, require_positive
from ..modules import (
    BATCH_NORMS,
    CONVOLUTIONS,
    RSBU,
    Norm,
    Shrinkage,
    Thresholds,
    conv3,
    pad_same,
    relu,
    require_input,
)

torch.fx.wrap("pad_same")
torch.fx.wrap("require_input")


class ConvolutionalUnit(RSBU):
    """`RSBU` without shrinkage and without its shortcut, ``y = h``: the unit of the paper's ConvNet.

    Args, shapes and errors are those of `RSBU`, but for the gate's.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, dim: int = 1) -> None:
        super().__init__(in_channels, out_channels, stride=stride, dim=dim, thresholds=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x)


class ShrinkageNetwork(nn.Module):
    """Convolution of width 3, residual shrinkage units, BatchNorm, ReLU, mean over space, linear classifier.

    Args:
        in_channels: channels of the input.
        num_classes: the number of logits.
        dim: the number of spatial axes: 1, 2 or 3.
        stem: channels and stride of the first convolution.
        units: channels and stride of each unit.
        unit: makes a unit: `ConvolutionalUnit`, or `RSBU` with the args of its gate bound by ``partial``.
        l2: the factor of `penalty`.
        l2_classifier: whether the classifier's kernel counts in `penalty`.

    Shape: (N, in_channels, \\*spatial) to (N, num_classes), the logits: the softmax belongs to the loss.
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
    ) -> None:
        super().__init__()
        require_positive("in_channels", in_channels)
        require_positive("num_classes", num_classes)
        require_choice("dim", dim, tuple(CONVOLUTIONS))
        self.in_channels = in_channels
        self.dim = dim
        self.l2 = l2
        self.l2_classifier = l2_classifier
        channels, stride = stem
        self.stride = stride
        self.stem = conv3(dim, in_channels, channels, stride)
        self.units = nn.Sequential()
        for out_channels, step in units:
            self.units.append(unit(channels, out_channels, stride=step, dim=dim))
            channels = out_channels
        self.bn = BATCH_NORMS[dim](channels)
        self.classifier = nn.Linear(channels, num_classes)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes a pickle from before a network kept its stride, which its stem then told."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "stride" not in state:
            self.stride = self.stem.stride[0]

    def forward(self, x: Tensor) -> Tensor:
        require_input(x, self.in_channels, self.dim)
        h = self.units(self.stem(pad_same(x, self.stride)))
        h = relu(self.bn(h), self.bn)
        logits: Tensor = self.classifier(h.flatten(2).mean(-1))
        return logits

    def penalty(self) -> Tensor:
        """The L2 term of the loss: ``l2`` times the sum of squares of the convolution and linear kernels."""
        left_out = () if self.l2_classifier else tuple(self.classifier.modules())
        kernels = [layer.weight.flatten() for layer in weighted_layers(self) if layer not in left_out]
        return self.l2 * torch.cat(kernels).square().sum()


def weighted_layers(network: nn.Module) -> Iterator[_ConvNd | nn.Linear]:
    """The convolutions and linear layers of a network."""
    return (layer for layer in network.modules() if isinstance(layer, (_ConvNd, nn.Linear)))


def fan_in(kernel: Tensor) -> int:
    """The number of inputs that one output of a convolution or linear layer sees."""
    return kernel[0].numel()


def truncated_normal(kernel: Tensor, std: float) -> None:
    """Draw from a normal distribution, again where a value lies more than two ``std`` from 0."""
    nn.init.trunc_normal_(kernel, std=std, a=-2 * std, b=2 * std)


def draw_kernels(network: nn.Module, std: Callable[[int], float]) -> None:
    """Truncated normal kernels, with ``std`` a function of fan-in, and biases of 0."""
    for layer in weighted_layers(network):
        truncated_normal(layer.weight, std(fan_in(layer.weight)))
        nn.init.zeros_(layer.get_parameter("bias"))


def as_keras(network: ShrinkageNetwork) -> ShrinkageNetwork:
    """Initialise and normalise as the Keras program does."""
    # he_normal; the constant is the standard deviation that truncation at 2 leaves of 1
    draw_kernels(network, lambda n: math.sqrt(2 / n) / 0.87962566103423978)
    for module in network.modules():
        if isinstance(module, Shrinkage):
            nn.init.xavier_uniform_(module.fc.get_parameter("3.weight"))
        elif isinstance(module, _BatchNorm):
            module.eps, module.momentum = 1e-3, 0.01
    return network


def as_tflearn(network: ShrinkageNetwork) -> ShrinkageNetwork:
    """Initialise and normalise as the TFLearn programs do."""
    # variance_scaling: TensorFlow 1 makes up for the truncation with 1.3
    draw_kernels(network, lambda n: math.sqrt(1.3 * 2 / n))
    bound = math.sqrt(3 / fan_in(network.stem.weight))
    nn.init.uniform_(network.stem.weight, -bound, bound)
    truncated_normal(network.classifier.weight, 0.02)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eps, module.momentum = 1e-5, 0.1
            nn.init.normal_(module.weight, 1.0, 0.002)
    return network


def drsn_mnist(
    in_channels: int = 1,
    num_classes: int = 10,
    *,
    thresholds: Thresholds | None = "channel-wise",
    reduction: int = 1,
    norm: Norm = "batch",
) -> ShrinkageNetwork:
    """The Keras program for MNIST, layer for layer: one unit of 8 channels with stride 2.

    =======================================================  ==============================================
    the program                                              here
    =======================================================  ==============================================
    ``Conv2D(8, 3, 'same', he_normal, l2(1e-4))``            ``stem``, bias 0; he_normal is a truncated
                                                             normal of variance 2 / fan-in
    ``residual_shrinkage_block(net, 1, 8, True)``            ``units.0``: `RSBU`, 8 to 8 channels, stride 2
    ``BatchNormalization()``                                 eps 1e-3; momentum 0.99 is PyTorch's 0.01
    ``Conv2D(.., strides=(2, 2), padding='same')``           28 columns get one zero at the end, `pad_same`
    ``abs``, ``GlobalAveragePooling2D``                      `abs_mean`, the gate's input
    ``Dense(8, he_normal, l2)``                              ``fc.0``: width C, that is ``reduction=1``
    ``BatchNormalization``, ``relu``                         ``fc.1``, ``fc.2``
    ``Dense(8, 'sigmoid', l2)``                              ``fc.3``, ``fc.4``; the default glorot_uniform
    ``multiply([abs_mean, scales])``, ``subtract`` twice,    `shrink`; ``maximum([sub, sub - sub])`` is
    ``maximum``, ``multiply`` by the sign                    max(|x| - tau, 0)
    ``AveragePooling2D((1, 1), strides=(2, 2))``             ``x[..., ::2, ::2]``
    ``pad_backend``                                          not needed: 8 channels stay 8
    ``add([residual, identity])``                            the residual of `shrink`, in the same pass
    ``BatchNormalization``, ``relu``,                        ``bn``, ReLU, mean over space
    ``GlobalAveragePooling2D``
    ``Dense(10, 'softmax', he_normal, l2(1e-4))``            ``classifier``; the softmax is in the loss
    ``kernel_regularizer=l2(1e-4)``                          `penalty`: 1e-4 * sum(w^2) over every kernel,
                                                             no bias
    =======================================================  ==============================================

    Copies of the program are about with lines missing. Read here, as in its author's repository: the block's
    ``downsample_strides`` is 2 by default; both convolutions of the block and the gate's first layer carry
    ``l2(1e-4)``. A block of several units would subsample in each; only blocks of one unit occur.

    Args:
        in_channels, num_classes: 1 and 10 in the program.
        thresholds, reduction, norm: of the gate, see `RSBU`; by default it is the program's. With ``norm="batch"``
            it does not train on a batch of one.

    Shape: (N, in_channels, H, W) to logits (N, num_classes). The program has 28 x 28; any size works.
    """
    network = ShrinkageNetwork(
        in_channels,
        num_classes,
        dim=2,
        stem=(8, 1),
        units=[(8, 2)],
        unit=partial(RSBU, thresholds=thresholds, reduction=reduction, norm=norm),
        l2=1e-4,
    )
    return as_keras(network)


def drsn_cifar10(
    in_channels: int = 3,
    num_classes: int = 10,
    *,
    thresholds: Thresholds | None = "channel-wise",
    reduction: int = 4,
    norm: Norm = "batch",
) -> ShrinkageNetwork:
    """The TFLearn program for CIFAR-10, layer for layer: three units of 16, 32 and 32 channels.

    =======================================================  ==============================================
    the program                                              here
    =======================================================  ==============================================
    ``conv_2d(net, 16, 3, regularizer='L2')``                ``stem``, bias 0; TFLearn's default
                                                             uniform_scaling: within sqrt(3 / fan-in)
    ``residual_shrinkage_block(net, 1, 16)``                 ``units.0``: `RSBU`, 16 to 16 channels
    ``residual_shrinkage_block(net, 1, 32, True)``           ``units.1``: 16 to 32 channels, stride 2
    ``residual_shrinkage_block(net, 1, 32, True)``           ``units.2``: 32 to 32 channels, stride 2
    ``batch_normalization``                                  eps 1e-5; decay 0.9 is PyTorch's momentum 0.1;
                                                             gamma is drawn from N(1, 0.002), beta is 0
    ``conv_2d(.., 'same', bias, 'variance_scaling')``        truncated normal of sqrt(1.3 * 2 / fan-in)
                                                             before the cut at two of them
    ``reduce_mean(tf.abs(residual))`` over both axes         `abs_mean`, the gate's input
    ``fully_connected(abs_mean, out_channels//4)``           ``fc.0``: ``reduction=4``, variance_scaling
    ``batch_normalization``, ``relu``                        ``fc.1``, ``fc.2``
    ``fully_connected(scales, out_channels)``, ``sigmoid``   ``fc.3``, ``fc.4``, variance_scaling
    ``multiply(abs_mean, ..)``, ``sign * maximum``           `shrink`
    ``avg_pool_2d(identity, 1, ..)``                         ``x[..., ::2, ::2]``
    ``tf.pad(.., [ch, ch])`` or ``[ch, ch+1]``               channels of zeros: d // 2 before, d - d // 2
                                                             after
    ``residual + identity``                                  the residual of `shrink`, in the same pass
    ``batch_normalization``, ``relu``,                       ``bn``, ReLU, mean over space
    ``global_avg_pool``
    ``fully_connected(net, 10, activation='softmax')``       ``classifier``: truncated normal of 0.02, no
                                                             L2; the softmax is in the loss
    ``regularizer='L2', weight_decay=0.0001``                `penalty`: TFLearn halves, so 0.5e-4 *
                                                             sum(w^2) over all kernels but the classifier's
    =======================================================  ==============================================

    Copies of the program are about with lines missing. Read here, as in its author's repository: the pooling's
    stride is ``downsample_strides``; the two ``tf.pad`` are the even and the odd case of the channels to add.
    Running variances differ by n / (n - 1): PyTorch's are unbiased, TFLearn's are not.

    Args:
        in_channels, num_classes: 3 and 10 in the program.
        thresholds, reduction, norm: of the gates, see `RSBU`; by default they are the program's. With
            ``norm="batch"`` they do not train on a batch of one.

    Shape: (N, in_channels, H, W) to logits (N, num_classes). The program has 32 x 32; any size works.
    """
    network = ShrinkageNetwork(
        in_channels,
        num_classes,
        dim=2,
        stem=(16, 1),
        units=[(16, 1), (32, 2), (32, 2)],
        unit=partial(RSBU, thresholds=thresholds, reduction=reduction, norm=norm),
        l2=0.5e-4,
        l2_classifier=False,
    )
    return as_tflearn(network)


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
) -> ShrinkageNetwork:
    """The network of the paper's table II: a convolution with stride 2, then stages that halve the length.

    Args:
        in_channels: channels of the signal.
        num_classes: the number of logits.
        dim: the number of spatial axes: 1, 2 or 3.
        thresholds: ``"channel-wise"`` (DRSN-CW), ``"channel-shared"`` (DRSN-CS), or None, the plain ResNet.
        blocks: residual units in all, as many in each stage: 12 in the paper, which also tries 6 and 9.
        widths: channels of each stage. The first unit of a stage has stride 2.
        reduction, norm: of the gates, see `Shrinkage`. ``norm="layer"`` leaves nothing of a gate with one hidden
            feature, which is what a stage has where ``width // reduction`` is 0 or 1.

    Initialisation and L2 are those of `drsn_cifar10`, whose library the paper's own program uses.

    Shape: (N, in_channels, \\*spatial) to logits (N, num_classes). The paper has signals of 1 x 2048.

    Raises:
        ValueError: a bad argument, ``blocks`` that is not a multiple of the number of stages among them.

    Source: Zhao et al., DOI 10.1109/TII.2019.2943898, table II.
    """
    return paper_network(
        in_channels,
        num_classes,
        dim=dim,
        blocks=blocks,
        widths=widths,
        unit=partial(RSBU, thresholds=thresholds, reduction=reduction, norm=norm),
    )


def convnet(
    in_channels: int = 1,
    num_classes: int = 8,
    *,
    dim: int = 1,
    blocks: int = 12,
    widths: Sequence[int] = (4, 8, 16),
) -> ShrinkageNetwork:
    """The ConvNet that the paper compares with: `drsn` layer for layer, without shrinkage and without shortcuts.

    Args and shapes are those of `drsn`. It has as many parameters as the plain ResNet: a shortcut has none.

    Raises:
        ValueError: as `drsn`.

    >>> drsn_ops.models.convnet()(torch.randn(2, 1, 2048)).shape
    torch.Size([2, 8])

    Source: Zhao et al., DOI 10.1109/TII.2019.2943898, section IV.
    """
    return paper_network(
        in_channels,
        num_classes,
        dim=dim,
        blocks=blocks,
        widths=widths,
        unit=ConvolutionalUnit,
    )


def paper_network(
    in_channels: int,
    num_classes: int,
    *,
    dim: int,
    blocks: int,
    widths: Sequence[int],
    unit: Callable[..., RSBU],
) -> ShrinkageNetwork:
    """What `drsn` and `convnet` have in common."""
    require_positive("blocks", blocks)
    if not isinstance(widths, Sequence):
        raise ValueError(f"widths: got {widths!r}, expected a sequence of integers, one a stage")
    for width in widths:
        require_positive("widths", width)
    if not widths or blocks % len(widths):
        raise ValueError(f"blocks: got {blocks}, expected a multiple of the number of widths, {len(widths)}")
    network = ShrinkageNetwork(
        in_channels,
        num_classes,
        dim=dim,
        stem=(widths[0], 2),
        units=[(width, 1 if i else 2) for width in widths for i in range(blocks // len(widths))],
        unit=unit,
        l2=0.5e-4,
        l2_classifier=False,
    )
    return as_tflearn(network)
