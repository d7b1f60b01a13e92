"""`APReLU`: an activation whose slope below 0 a gate makes from the input, by the first author of DRSN."""

# Annotations are evaluated: torch.fx keeps those of a forward that it traces, and pickles no strings.

import math

import torch
from torch import Tensor, nn
from torch.fx.node import has_side_effect

from ..arguments import require_choice, require_positive
from ..layers import require_channels
from ..ops.checks import check_gate_batch, check_rows
from ..reference import accumulator, per_row
from .gates import NORMS, Norm, call_gate

for _name in ("per_row", "require_channels"):
    torch.fx.wrap(_name)  # see `layers`


@torch.fx.wrap
@has_side_effect
def _require_rows(x: Tensor) -> None:
    check_rows(x)


@torch.fx.wrap
def signed_means(x: Tensor) -> Tensor:
    """The means of ``min(x, 0)`` and then of ``max(x, 0)`` of each row, (N, 2 C), in float32 or wider."""
    rows = x.to(accumulator(x.dtype)).reshape(*x.shape[:2], math.prod(x.shape[2:]))
    sums = torch.cat([rows.clamp(max=0).sum(-1), rows.clamp(min=0).sum(-1)], 1)
    return sums / max(rows.shape[-1], 1)


class APReLU(nn.Module):
    """The adaptively parametric ReLU: ``y = max(x, 0) + slope * min(x, 0)``, with slopes that a gate makes from x.

        slope = sigmoid(norm(Linear(relu(norm(Linear([mean(min(x, 0)), mean(max(x, 0))]))))))

    The means are those of each channel and sample, so a slope, between 0 and 1, is one of a channel and sample. In a
    DRSN it stands where a ReLU does. It is plain PyTorch.

    Args:
        channels: C.
        reduction: the gate has max(C // reduction, 1) hidden features; C in the paper.
        norm: the gate's normalisations: ``"batch"`` (the paper), ``"layer"``, ``"rms"`` or ``"none"``. All but
            ``"batch"`` train on a batch of one.

    The gate is ``self.fc``: ``fc.0`` and ``fc.3`` are the linear layers, ``fc.1`` and ``fc.4`` the normalisations.

    Shape: x is (N, C) or (N, C, \\*spatial) with up to three spatial axes; y has x's shape and dtype: float16,
    bfloat16, float32 or float64.

    Raises:
        TypeError: an x of another type.
        ValueError: a bad argument, an x with another number of channels, or a batch of one while ``norm="batch"``
            trains.

    >>> drsn_ops.APReLU(16)(torch.randn(8, 16, 100)).shape
    torch.Size([8, 16, 100])

    Source: Zhao, Zhong, Fu, Tang, Dong and Pecht, Deep residual networks with adaptively parametric rectifier linear
    units for fault diagnosis, IEEE Transactions on Industrial Electronics, DOI 10.1109/TIE.2020.2972458, and the
    program that its first author published.
    """

    def __init__(self, channels: int, *, reduction: int = 1, norm: Norm = "batch") -> None:
        super().__init__()
        require_positive("channels", channels)
        require_positive("reduction", reduction)
        require_choice("norm", norm, tuple(NORMS))
        self.channels = channels
        self.reduction = reduction
        self.norm = norm
        hidden = max(channels // reduction, 1)
        self.fc = nn.Sequential(
            nn.Linear(2 * channels, hidden),
            NORMS[norm](hidden),
            nn.ReLU(),
            nn.Linear(hidden, channels),
            NORMS[norm](channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        require_channels(x, self.channels, "channels")
        _require_rows(x)
        if isinstance(x, Tensor):
            check_gate_batch(self.fc, x, "x")
        slope = call_gate(self.fc, x, signed_means(x))
        return torch.where(x > 0, x, x * per_row(slope, x)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.channels}, reduction={self.reduction}, norm={self.norm!r}"
