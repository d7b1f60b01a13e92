"""Probes a shrinkage block: inputs of known magnitudes, and the threshold that the block gave each row of them.

An input is (N, C, L). A row's threshold is what its largest magnitude lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .mistakes import GARROTE, HARD, MAGNITUDE_WITHOUT_SIGN, UNKNOWN, Wrong

SAMPLES = 6
# Inputs are made so, whatever PyTorch's defaults are.
FLOAT64: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
# The abs-means that a block is probed at.
SCALES = (1e-4, 1e-2, 1.0, 1e2)
# A guard against a division by 0 may change y and tau by this much.
GUARD = 1e-6


class Measured(NamedTuple):
    """What a block did to (N, C, L) rows."""

    tau: Tensor  # (N, C), in units of x; of a row that was zeroed its largest magnitude, a lower bound
    visible: Tensor  # (N, C), whether the row has a value that is not 0 afterwards
    error: float  # the largest deviation from soft thresholding by tau, in units of the row's abs-mean


def measure(
    x: Tensor,
    y: Tensor,
    order: Tensor,
    back: Tensor | None = None,
    form: str | None = None,
    slack: float = 0.0,
) -> Measured:
    """The thresholds of x's rows.

    Args:
        x: the input, (N, C, L).
        y: the block's output.
        order: the layout of x's rows, see `layouts`.
        back: the layout of y's rows, where it is another.
        form: what y is instead of soft thresholding: ``HARD``, ``GARROTE`` or ``MAGNITUDE_WITHOUT_SIGN``.
        slack: a deviation that is no error.
    """
    magnitude, kept = take_rows(x, order).abs(), take_rows(y, order if back is None else back).abs()
    kept = _softened(form, magnitude, kept)
    largest = magnitude.argmax(-1, keepdim=True)
    tau = (magnitude - kept).gather(-1, largest)
    deviation = (kept - (magnitude - tau).clamp(min=0)).abs()
    error = (deviation - slack).clamp(min=0) / magnitude.mean(-1, keepdim=True)
    return Measured(tau.squeeze(-1), kept.gather(-1, largest).squeeze(-1) > 0, error.max().item())


def _softened(form: str | None, magnitude: Tensor, kept: Tensor) -> Tensor:
    """What soft thresholding with the same tau makes of the magnitudes that the form turned into ``kept``."""
    if form == MAGNITUDE_WITHOUT_SIGN:
        return kept / magnitude
    if form == HARD:
        return (kept - (magnitude * (kept == 0)).amax(-1, keepdim=True)) * (kept > 0)
    if form == GARROTE:
        taken = (magnitude - kept) * magnitude
        taken = torch.where(taken < -1e-6 * magnitude**2, torch.nan, taken.clamp(min=0))  # no tau adds to x
        return (magnitude - taken.sqrt()) * (kept > 0)
    return kept


class Block:
    """A block as a function of (N, C, L) float64 inputs, which it gets with their spatial axes."""

    def __init__(
        self, call: Callable[[Tensor], object], spatial: tuple[int, ...], like: Tensor, channel_dim: int = 1
    ) -> None:
        self.call = call
        self.spatial = spatial
        self.like = like
        self.channel_dim = channel_dim
        self.tolerance = 1e-4  # float32's, in a row whose largest value is 100 times its mean
        self.error = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """The block's output. Raises `Wrong` unless it is finite and has the shape of x, which is not changed."""
        given = x.to(self.like, copy=True).reshape(*x.shape[:2], *self.spatial)
        if self.channel_dim == -1:
            given = given.movedim(1, -1).contiguous()
        shape = tuple(given.shape)
        y = self.call(given)
        if not isinstance(y, Tensor):
            raise Wrong(f"returns {type(y).__name__}, expected a tensor")
        if tuple(y.shape) != shape:
            raise Wrong(f"returns shape {tuple(y.shape)} for an x of {shape}, expected the same shape")
        if not y.is_floating_point():
            raise Wrong(
                f"returns {y.dtype} for an x of {self.like.dtype}, expected a real floating-point type"
            )
        y = y.to(x).movedim(self.channel_dim, 1).reshape(x.shape)
        if not y.isfinite().all():
            word = "NaN" if y.isnan().any() else "infinite values"
            raise Wrong(
                f"returns {word} for a finite x", f"{(~y.isfinite()).double().mean():.1%} of the values"
            )
        return y

    def measure(self, x: Tensor) -> Measured:
        """The thresholds of x's rows. Raises `Wrong` unless y is soft thresholding by them."""
        measured = measure(x, self(x), torch.arange(x[0].numel(), device=x.device), slack=GUARD)
        if measured.error > self.tolerance:
            raise Wrong(UNKNOWN, deviation(measured.error))
        return measured


def deviation(error: float) -> str:
    return f"y deviates by up to {error:.2g} of mean|x| from soft thresholding with one threshold a channel"


def share(tau: Tensor, mean: Tensor) -> Tensor:
    """tau / mean, where what a guard puts tau below 0 or above the mean does not count."""
    within = tau.clamp(min=0).minimum(mean)
    return (within + F.softshrink(tau - within, GUARD)) / mean


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference."""
    return (a - b).abs().max().item()


class Rows:
    """Positive (N, C, L) rows whose magnitudes are spread evenly from nearly 0 to nearly twice their mean."""

    def __init__(self, channels: int, length: int, device: torch.device) -> None:
        self.shape = (SAMPLES, channels, length)
        self.generator = torch.Generator().manual_seed(0)
        self.device = device
        self.scales = torch.linspace(1, 1.5, SAMPLES, **FLOAT64).to(device)[:, None, None]
        self.base = self.shuffled(self.spread()) * self.scales

    def spread(self) -> Tensor:
        return torch.linspace(0.05, 1.95, self.shape[-1], **FLOAT64)

    def ranks(self) -> Tensor:
        """A random order of each row's positions."""
        ranks = torch.rand(self.shape, generator=self.generator, dtype=torch.float32, device="cpu")
        return ranks.argsort(-1).to(self.device)

    def shuffled(self, values: Tensor) -> Tensor:
        """Rows of the same L values in random orders."""
        return values.to(self.device)[self.ranks()]

    def peaked(self) -> Tensor:
        """Rows of mean 1 with half of the sum in few values, so that a threshold far above the mean still shows."""
        values = self.spread()
        # as many as let float32 tell what the largest value lost
        few = 1 + len(values) // 300
        values[-few:] = values[:-few].sum() / few
        return self.shuffled(values / values.mean())

    def signed(self, magnitude: Tensor) -> Tensor:
        """Rows of the same mean|x|, a random quarter of them negative, scaled so that mean(x) is half of mean|x|."""
        turned = (self.ranks() < self.shape[-1] // 4).double()
        parts = ((0.75, 1 - turned), (-0.25, turned))
        total = magnitude.sum(-1, keepdim=True)
        rows = [s * magnitude * p * total / (magnitude * p).sum(-1, keepdim=True) for s, p in parts]
        return rows[0] + rows[1]

    def uneven(self) -> Tensor:
        """The base with a factor for each row, near enough to 1 that the sample's mean zeroes no row."""
        factors = 0.75 + 0.5 * torch.rand(self.shape[:2], generator=self.generator, **FLOAT64)
        return self.base * factors.to(self.device)[..., None]


def layouts(channels: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """The ways to take C rows from a sample's memory, the right one first, each as an order of its elements."""
    index = torch.arange(channels * length, device=device)
    return {
        "channels": index,
        "rows of (C, L) memory read as (L, C)": index.reshape(length, channels).T.flatten(),
        "rows of (L, C) memory read as (C, L)": index.reshape(channels, length).T.flatten(),
    }


def take_rows(x: Tensor, order: Tensor) -> Tensor:
    """The rows of x in this layout."""
    return x.flatten(1)[:, order].reshape(x.shape)


def put_rows(rows: Tensor, order: Tensor) -> Tensor:
    """The x whose rows in this layout are these."""
    x = torch.empty_like(rows).flatten(1)
    return x.scatter(1, order.expand(len(x), -1), rows.flatten(1)).reshape(rows.shape)


def gathered(x: Tensor, order: Tensor) -> Tensor:
    """x with each channel's values sorted by the row of the layout that their positions belong to."""
    channels, length = x.shape[1:]
    row = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=x.device) // length)
    positions = row.reshape(channels, length).argsort(stable=True, dim=-1)
    return torch.empty_like(x).scatter(-1, positions.expand_as(x), x.sort(-1).values)
