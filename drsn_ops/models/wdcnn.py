"""WDCNN, the convolutional network with a wide first kernel that is a usual peer of DRSN on vibration signals."""

# Annotations are evaluated: torch.fx keeps those of a forward that it traces, and pickles no strings.

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import has_side_effect

from ..arguments import require_positive
from ..layers import pre_activation
from ..reference import wrong_type
from .initialisation import as_tflearn
from .paper import l2_term, pad_stem

WIDTHS = (16, 32, 64, 64, 64)
FIRST_WIDTH, FIRST_STRIDE = 64, 16
HIDDEN = 100
# of fewer, the last pooling gets fewer than two positions
LEAST_POINTS = 1009

torch.fx.wrap("pad_stem")  # see `layers`


@torch.fx.wrap
@has_side_effect
def _require_signals(x: Tensor, channels: int, points: int) -> None:
    if not isinstance(x, Tensor):
        raise wrong_type("x", x)
    if x.dim() != 3 or x.shape[1:] != (channels, points):
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (N, {channels}, {points})")


class WDCNN(nn.Module):
    """The network of `wdcnn`: five convolutions with BatchNorm, ReLU and max pooling, two linear layers.

    Args:
        in_channels: channels of the signal.
        num_classes: the number of logits.
        points: of a signal, at least 1009.

    Shape: (N, in_channels, points) to logits (N, num_classes).

    Raises:
        TypeError: an x that is no tensor.
        ValueError: a bad argument, or an x of another shape.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, *, points: int = 2048) -> None:
        super().__init__()
        require_positive("in_channels", in_channels)
        require_positive("num_classes", num_classes)
        if not isinstance(points, int) or isinstance(points, bool) or points < LEAST_POINTS:
            raise ValueError(f"points: got {points!r}, expected an integer of at least {LEAST_POINTS}")
        self.in_channels = in_channels
        self.points = points
        first, *others = WIDTHS
        self.convolutions = nn.ModuleList([nn.Conv1d(in_channels, first, FIRST_WIDTH, FIRST_STRIDE)])
        length, width = -(-points // FIRST_STRIDE) // 2, first
        for i, channels in enumerate(others, start=1):
            padding = 0 if i == len(others) else 1
            self.convolutions.append(nn.Conv1d(width, channels, 3, padding=padding))
            length, width = (length - 2 + 2 * padding) // 2, channels
        self.batch_norms = nn.ModuleList(nn.BatchNorm1d(channels) for channels in WIDTHS)
        self.hidden = nn.Linear(width * length, HIDDEN)
        self.classifier = nn.Linear(HIDDEN, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        _require_signals(x, self.in_channels, self.points)
        h = pad_stem(x, FIRST_STRIDE, FIRST_WIDTH)
        for convolution, batch_norm in zip(self.convolutions, self.batch_norms, strict=True):
            h = F.max_pool1d(pre_activation(batch_norm, convolution(h))[0], 2)
        logits: Tensor = self.classifier(F.relu(self.hidden(h.flatten(1))))
        return logits

    def penalty(self) -> Tensor:
        """The L2 term of the loss, a scalar: 0.5e-4 times the sum of squares of all kernels but the classifier's."""
        return l2_term(self, 0.5e-4, self.classifier.modules())


def wdcnn(in_channels: int = 1, num_classes: int = 10, *, points: int = 2048) -> WDCNN:
    """WDCNN, the deep convolutional network with wide first-layer kernels, for vibration signals.

    | layer | kernel, stride | output, of 2048 points | of 1024 |
    | --- | --- | --- | --- |
    | convolution, padded | 64, 16 | 16 x 128 | 16 x 64 |
    | max pooling | 2, 2 | 16 x 64 | 16 x 32 |
    | convolution, padded | 3, 1 | 32 x 64 | 32 x 32 |
    | max pooling | 2, 2 | 32 x 32 | 32 x 16 |
    | convolution, padded | 3, 1 | 64 x 32 | 64 x 16 |
    | max pooling | 2, 2 | 64 x 16 | 64 x 8 |
    | convolution, padded | 3, 1 | 64 x 16 | 64 x 8 |
    | max pooling | 2, 2 | 64 x 8 | 64 x 4 |
    | convolution | 3, 1 | 64 x 6 | 64 x 2 |
    | max pooling | 2, 2 | 64 x 3 | 64 x 1 |
    | linear, ReLU | | 100 | 100 |
    | ``classifier`` | | ``num_classes`` | ``num_classes`` |

    Behind each convolution are a BatchNorm and a ReLU. The first is padded as TensorFlow's "same" does, so that of n
    points ceil(n / 16) positions stay: by 24 zeros on either side where 16 divides n.

    The paper's table could not be read here, only its abstract. The sizes are those on which public ports in Keras and
    PyTorch agree that name the paper. They differ in whether the last convolution is padded, which is not so here and
    gives the 192 features of 2048 points that most have, and in a BatchNorm or dropout behind the hidden layer, of
    which there is none here. First weights and L2 are those of `drsn`, so that one recipe trains both: the paper's are
    not known here. The AdaBN that the paper goes on with is `drsn_ops.adapt_batch_norm`.

    Args:
        in_channels: channels of the signal.
        num_classes: the number of logits.
        points: of a signal, at least 1009. It gives the hidden layer its inputs, so that a network takes no other.

    Shape: (N, in_channels, points) to logits (N, num_classes). The paper has signals of 1 x 2048.

    Raises:
        TypeError: an x that is no tensor.
        ValueError: a bad argument, or an x of another shape.

    >>> network = drsn_ops.models.wdcnn(points=1024)
    >>> network(torch.randn(2, 1, 1024)).shape
    torch.Size([2, 10])

    Source: Zhang, Peng, Li, Chen and Zhang, A new deep learning model for fault diagnosis with good anti-noise and
    domain adaptation ability on raw vibration signals, Sensors 17(2), 2017, 425, DOI 10.3390/s17020425.
    """
    network = WDCNN(in_channels, num_classes, points=points)
    as_tflearn(network)
    return network
