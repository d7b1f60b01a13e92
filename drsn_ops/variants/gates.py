"""The gate of a `Shrinkage`: the small network that turns a sample's statistics into numbers between 0 and 1."""

# Annotations are evaluated: torch.fx keeps those of a forward that it traces, and pickles no strings.

from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ..functional import into_gate
from ..reference import gate_weights, no_autocast

torch.fx.wrap("into_gate")  # see `layers`

Norm = Literal["batch", "layer", "rms", "none"]
NORMS = dict(zip(get_args(Norm), (nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm, nn.Identity), strict=True))


class PooledGate(nn.Sequential):
    """The gate of ``pooling="avg+max"``: ``sigmoid(f(means) + f(maxima))``, f being all layers but the sigmoid.

    f sees both as one batch, so that a BatchNorm has the same statistics in training and in evaluation.
    """

    def forward(self, means: Tensor, maxima: Tensor) -> Tensor:  # type: ignore[override]
        *layers, sigmoid = self
        h = torch.cat([means, maxima])
        for layer in layers:
            h = layer(h)
        count = means.shape[0]  # not `chunk`, which ONNX exporters do not take with a batch of any size
        alpha: Tensor = sigmoid(h[:count] + h[count:])
        return alpha


def make_gate(
    inputs: int, hidden: int, outputs: int, norm: Norm, *, kind: type[nn.Sequential] = nn.Sequential
) -> nn.Sequential:
    """Linear, normalisation, ReLU, linear, sigmoid: always five modules, so that names do not depend on ``norm``."""
    return kind(
        nn.Linear(inputs, hidden), NORMS[norm](hidden), nn.ReLU(), nn.Linear(hidden, outputs), nn.Sigmoid()
    )


def call_gate(gate: nn.Module, x: Tensor, *statistics: Tensor) -> Tensor:
    """What the gate makes of the statistics of x, in the type of its weights, which autocast does not change."""
    weights: Any = [w for w in gate_weights(gate) if isinstance(w, (Tensor, Proxy))]
    with nullcontext() if isinstance(x, Proxy) else no_autocast(x):
        made: Tensor = gate(*(into_gate(one, weights) for one in statistics))
    return made
