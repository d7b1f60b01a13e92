"""The two programs that DRSN was published with, in Keras for MNIST and in TFLearn for CIFAR-10, layer for layer."""

from functools import partial

from ..modules import RSBU, Thresholds
from ..variants.gates import Norm
from .initialisation import as_keras, as_tflearn
from .paper import ShrinkageNetwork


def drsn_mnist(
    in_channels: int = 1,
    num_classes: int = 10,
    *,
    thresholds: Thresholds | None = "channel-wise",
    reduction: int = 1,
    norm: Norm = "batch",
) -> ShrinkageNetwork:
    """The Keras program for MNIST, layer for layer: one unit of 8 channels with stride 2.

    | the program | here |
    | --- | --- |
    | ``Conv2D(8, 3, 'same', he_normal, l2(1e-4))`` | ``stem``, bias 0; he_normal is truncated, of variance 2 / fan-in |
    | ``residual_shrinkage_block(net, 1, 8, True)`` | ``units.0``: `RSBU`, 8 to 8 channels, stride 2 |
    | ``BatchNormalization()`` | eps 1e-3; momentum 0.99 is PyTorch's 0.01 |
    | ``Conv2D(.., strides=(2, 2), padding='same')`` | 28 columns get their one zero at the end |
    | ``abs``, ``GlobalAveragePooling2D`` | `abs_mean`, the gate's input |
    | ``Dense(8, he_normal, l2)`` | ``fc.0``: width C, that is ``reduction=1`` |
    | ``BatchNormalization``, ``relu`` | ``fc.1``, ``fc.2`` |
    | ``Dense(8, 'sigmoid', l2)`` | ``fc.3``, ``fc.4``; the default glorot_uniform |
    | ``multiply``, ``subtract`` twice, ``maximum``, ``multiply`` by the sign | `shrink` |
    | ``AveragePooling2D((1, 1), strides=(2, 2))`` | ``x[..., ::2, ::2]`` |
    | ``pad_backend`` | not needed: 8 channels stay 8 |
    | ``add([residual, identity])`` | the residual of `shrink`, in the same pass |
    | ``BatchNormalization``, ``relu``, ``GlobalAveragePooling2D`` | ``bn``, ReLU, mean over space |
    | ``Dense(10, 'softmax', he_normal, l2(1e-4))`` | ``classifier``; the softmax is in the loss |
    | ``kernel_regularizer=l2(1e-4)`` | ``penalty()``: 1e-4 * sum(w^2) over every kernel, no bias |

    Some copies of the program lack lines. This is its author's: ``downsample_strides`` of the block is 2 by default;
    both convolutions of the block and the gate's first layer have ``l2(1e-4)``. A block of several units would
    subsample in each; only blocks of one unit occur.

    Args:
        in_channels: channels of the image; 1 in the program.
        num_classes: the number of logits; 10 in the program.
        thresholds: ``"channel-wise"`` (the program), ``"channel-shared"``, or None for the plain residual unit.
        reduction: of the gate, see `Shrinkage`.
        norm: of the gate, see `Shrinkage`. With ``"batch"`` the network does not train on a batch of one.

    Shape: (N, in_channels, H, W) to logits (N, num_classes). The program has 28 x 28; any size works.

    Raises:
        ValueError: a bad argument.

    Source: github.com/zhao62/Deep-Residual-Shrinkage-Networks, DRSN_Keras.py.
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
    as_keras(network)
    return network


def drsn_cifar10(
    in_channels: int = 3,
    num_classes: int = 10,
    *,
    thresholds: Thresholds | None = "channel-wise",
    reduction: int = 4,
    norm: Norm = "batch",
) -> ShrinkageNetwork:
    """The TFLearn program for CIFAR-10, layer for layer: three units of 16, 32 and 32 channels.

    | the program | here |
    | --- | --- |
    | ``conv_2d(net, 16, 3, regularizer='L2')`` | ``stem``, bias 0; uniform_scaling, within sqrt(3 / fan-in) |
    | ``residual_shrinkage_block(net, 1, 16)`` | ``units.0``: `RSBU`, 16 to 16 channels |
    | ``residual_shrinkage_block(net, 1, 32, True)`` | ``units.1``: 16 to 32 channels, stride 2 |
    | ``residual_shrinkage_block(net, 1, 32, True)`` | ``units.2``: 32 to 32 channels, stride 2 |
    | ``batch_normalization`` | eps 1e-5; decay 0.9 is momentum 0.1; gamma from N(1, 0.002), beta 0 |
    | ``conv_2d(.., 'same', bias, 'variance_scaling')`` | normal of sqrt(1.3 * 2 / fan-in), cut at two of them |
    | ``reduce_mean(tf.abs(residual))`` over both axes | `abs_mean`, the gate's input |
    | ``fully_connected(abs_mean, out_channels//4)`` | ``fc.0``: ``reduction=4``, variance_scaling |
    | ``batch_normalization``, ``relu`` | ``fc.1``, ``fc.2`` |
    | ``fully_connected(scales, out_channels)``, ``sigmoid`` | ``fc.3``, ``fc.4``, variance_scaling |
    | ``multiply(abs_mean, ..)``, ``sign * maximum`` | `shrink` |
    | ``avg_pool_2d(identity, 1, ..)`` | ``x[..., ::2, ::2]`` |
    | ``tf.pad(.., [ch, ch])`` or ``[ch, ch+1]`` | d channels of zeros: d // 2 before, d - d // 2 after |
    | ``residual + identity`` | the residual of `shrink`, in the same pass |
    | ``batch_normalization``, ``relu``, ``global_avg_pool`` | ``bn``, ReLU, mean over space |
    | ``fully_connected(net, 10, activation='softmax')`` | ``classifier``: truncated normal of 0.02; no softmax, no L2 |
    | ``regularizer='L2', weight_decay=0.0001`` | ``penalty()``: 0.5e-4 * sum(w^2), as TFLearn halves |

    Some copies of the program lack lines. This is its author's: the pooling's stride is ``downsample_strides``; the two
    ``tf.pad`` are for an even and an odd number of channels to add. Running variances differ by n / (n - 1): PyTorch's
    are unbiased, TFLearn's are not.

    Args:
        in_channels: channels of the image; 3 in the program.
        num_classes: the number of logits; 10 in the program.
        thresholds: ``"channel-wise"`` (the program), ``"channel-shared"``, or None for plain residual units.
        reduction: of the gates, see `Shrinkage`; 4 in the program.
        norm: of the gates, see `Shrinkage`. With ``"batch"`` the network does not train on a batch of one.

    Shape: (N, in_channels, H, W) to logits (N, num_classes). The program has 32 x 32; any size works.

    Raises:
        ValueError: a bad argument.

    Source: github.com/zhao62/Deep-Residual-Shrinkage-Networks, DRSN_TFLearn.py.
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
    as_tflearn(network)
    return network
