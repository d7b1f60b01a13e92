"""A Deep Residual Shrinkage Network on arrays of one's own, in ten lines.

The arrays are made here; any x of shape (N, channels, length) with classes of shape (N,) takes their place. Each signal
is a train of impacts that ring at the frequency of its class, at random times, in white noise of the same power.

Prints the share of signals, none of them trained on, whose class is found.

Source of the network: M. Zhao et al., "Deep Residual Shrinkage Networks for Fault Diagnosis", IEEE Transactions on
Industrial Informatics, 2020, DOI 10.1109/TII.2019.2943898.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

import drsn_ops

POINTS, IMPACTS = 256, 6
FREQUENCIES = np.array([0.10, 0.13, 0.16, 0.19])  # of the classes, in turns a sample
Array = npt.NDArray[np.generic]


def make_arrays(count: int, seed: int) -> tuple[Array, Array]:
    """Signals (count, 1, POINTS) of float32 and their classes (count,)."""
    random = np.random.default_rng(seed)
    classes = np.arange(count) % len(FREQUENCIES)
    since = np.arange(POINTS) - random.uniform(-50, POINTS, (count, IMPACTS, 1))
    turns = FREQUENCIES[classes, None, None] * since
    ringing = np.where(since >= 0, np.exp(-0.05 * since.clip(0)) * np.sin(2 * np.pi * turns), 0)
    signals = ringing.sum(1, keepdims=True)
    signals /= signals.std(-1, keepdims=True)
    return (signals + random.normal(size=signals.shape)).astype(np.float32), classes


def train(x: Array, classes: Array, epochs: int) -> torch.nn.Module:
    """A network trained on the arrays: the ten lines."""
    signals, labels = torch.from_numpy(x), torch.from_numpy(classes)
    network = drsn_ops.models.drsn(x.shape[1], num_classes=int(classes.max()) + 1, blocks=3)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(epochs):
        for batch in torch.randperm(len(signals)).split(64):
            loss = F.cross_entropy(network(signals[batch]), labels[batch]) + network.penalty()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval()


@torch.inference_mode()
def classify(network: torch.nn.Module, x: Array) -> Array:
    """The class that the network finds for each signal."""
    found: Array = network(torch.from_numpy(x)).argmax(1).numpy()
    return found


def main(epochs: int = 15, seed: int = 0) -> float:
    """Train and test. Returns the accuracy."""
    torch.manual_seed(seed)
    network = train(*make_arrays(1024, seed), epochs)
    x, classes = make_arrays(1000, seed + 1_000_000)
    accuracy = float((classify(network, x) == classes).mean())
    print(f"accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
