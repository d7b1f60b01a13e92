"""Noise at an exact signal-to-noise ratio, as the networks are tested with: `add_noise`, and the noises by themselves.

The paper adds white Gaussian, Laplacian and pink noise of -5 to 5 dB to each raw signal, once, before the training
(Zhao et al., DOI 10.1109/TII.2019.2943898, section IV). The programs for images, published with it, add uniform noise.
Impulsive noise is none of theirs.

Noise is drawn in float32 on the generator's device, the CPU where none is given, and then moved: one seed gives one
noise on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .arguments import require_choice
from .reference import accumulator, wrong_type

__all__ = ["KINDS", "Kind", "add_noise", "gaussian", "impulsive", "laplacian", "pink", "snr", "uniform"]

Kind = Literal["gaussian", "laplacian", "pink", "uniform", "impulsive"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# of `impulsive`: the share of the points that have an impulse, and that of the power which is in impulses
_IMPULSE_RATE, _IMPULSE_POWER = 0.01, 0.5

_FLOATING = "a tensor of a real floating-point type"

Device = torch.device | str | None


def __dir__() -> list[str]:
    return __all__


def gaussian(
    shape: Sequence[int], *, generator: torch.Generator | None = None, device: Device = None
) -> Tensor:
    """White noise of N(0, 1), float32: a flat spectrum, mean 0 and power 1.

    Args:
        shape: of the noise.
        generator: the source of random numbers; None is PyTorch's default CPU generator.
        device: of the noise; None leaves it on the generator's device.
    """
    return torch.randn(shape, generator=generator, **_source(generator)).to(device)


def laplacian(
    shape: Sequence[int], *, generator: torch.Generator | None = None, device: Device = None
) -> Tensor:
    """White noise of density ``exp(-sqrt(2) |n|) / sqrt(2)``, float32: mean 0 and power 1, heavier tails than N(0, 1).

    It is the difference of two standard exponential variables, divided by ``sqrt(2)``.

    Args:
        shape: of the noise.
        generator: the source of random numbers; None is PyTorch's default CPU generator.
        device: of the noise; None leaves it on the generator's device.

    Source: S. Kotz, T. Kozubowski, K. Podgorski, The Laplace Distribution and Generalizations, 2001, section 2.2.
    """
    pair = torch.empty(2, *shape, **_source(generator)).exponential_(generator=generator)
    return ((pair[0] - pair[1]) / math.sqrt(2)).to(device)


def pink(shape: Sequence[int], *, generator: torch.Generator | None = None, device: Device = None) -> Tensor:
    """Gaussian noise whose power spectral density is ``1 / f`` along the last axis, float32: mean 0, expected power 1.

    It is white noise whose Fourier coefficient k is divided by ``sqrt(k)`` and whose mean is removed. The last axis is
    one period of the noise; along it the mean is exactly 0, while the power is 1 on average only. What lies side by
    side on the other axes is independent.

    Args:
        shape: of the noise.
        generator: the source of random numbers; None is PyTorch's default CPU generator.
        device: of the noise; None leaves it on the generator's device.

    Raises:
        ValueError: the last axis has less than 2 points, so no frequency but 0.

    Source: J. Timmer and M. Koenig, On generating power law noise, Astronomy and Astrophysics 300, 1995, 707-710.
    """
    _require_points("shape", shape)
    points = shape[-1]
    frequency = torch.arange(points // 2 + 1, dtype=torch.float64, device="cpu")
    weight = torch.where(frequency > 0, frequency.clamp(min=1).rsqrt(), 0)
    # each frequency counts twice, with its negative one; 0 and, where points is even, the last have none
    power = 2 * weight.square().sum() - (weight[-1].square() if points % 2 == 0 else 0)
    weight = (weight * (points / power).sqrt()).to(**_source(generator))
    white = gaussian(shape, generator=generator)
    if not white.numel():  # some Fourier transforms raise
        return white.to(device)
    noise: Tensor = torch.fft.irfft(torch.fft.rfft(white) * weight, n=points)
    return noise.to(device)


def uniform(
    shape: Sequence[int], *, generator: torch.Generator | None = None, device: Device = None
) -> Tensor:
    """Noise of U(0, 1), float32, as the programs for MNIST and CIFAR-10 add it: mean 1/2 and power 1/3.

    Args:
        shape: of the noise.
        generator: the source of random numbers; None is PyTorch's default CPU generator.
        device: of the noise; None leaves it on the generator's device.
    """
    return torch.rand(shape, generator=generator, **_source(generator)).to(device)


def impulsive(
    shape: Sequence[int], *, generator: torch.Generator | None = None, device: Device = None
) -> Tensor:
    """White Bernoulli-Gaussian noise, float32: mean 0 and expected power 1, half of it in rare impulses.

    Each point is ``w + b * g``: a background ``w`` of N(0, 1/2) and, where ``b`` is 1, which it is with probability
    0.01, an impulse ``g`` of N(0, 50), all independent. Impulses thus have half of the power, and a point with one has
    101 times the variance of a point without. The kurtosis is 77.25; that of N(0, 1) is 3. How many impulses fall
    into a row is random, and so the power of a short row varies much.

    Args:
        shape: of the noise.
        generator: the source of random numbers; None is PyTorch's default CPU generator.
        device: of the noise; None leaves it on the generator's device.

    Source of the model: M. Ghosh, Analysis of the effect of impulse noise on multicarrier and single carrier QAM
    systems, IEEE Trans. Commun. 44, 1996, 145-147. The two numbers are this package's: that both parts have equal
    power is so in the contaminated normal distribution of J. W. Tukey (1960), where a tenth of the points has three
    times the standard deviation; a hundredth is chosen for impulses that are rare and stand out, ten in 1024 points.
    """
    white = gaussian(shape, generator=generator)
    struck = torch.rand(shape, generator=generator, **_source(generator)) < _IMPULSE_RATE
    background = 1 - _IMPULSE_POWER
    # a sum of independent Gaussians is one of the summed variances
    high = white * math.sqrt(background + _IMPULSE_POWER / _IMPULSE_RATE)
    return torch.where(struck, high, white * math.sqrt(background)).to(device)


_DRAW: dict[str, Callable[..., Tensor]] = dict(
    zip(KINDS, (gaussian, laplacian, pink, uniform, impulsive), strict=True)
)


def add_noise(
    x: Tensor, snr: float | Tensor, kind: Kind = "gaussian", *, generator: torch.Generator | None = None
) -> Tensor:
    """``x + s * noise``, where ``s`` makes ``10 log10(mean(x^2) / mean((s * noise)^2))`` of each sample equal ``snr``.

    Args:
        x: signals of shape (N, ...), of any real floating-point dtype, on any device.
        snr: decibels: a number, or a tensor of shape (N,) with one for each sample.
        kind: ``"gaussian"``, ``"laplacian"``, ``"pink"``, along the last axis, ``"uniform"``, whose power includes
            its mean of 1/2, or ``"impulsive"``.
        generator: the source of random numbers; None is PyTorch's default CPU generator.

    Returns:
        A new tensor of the shape, dtype and device of ``x``. The powers are measured in each sample, so the ratio is
        exact up to the rounding of the sum to the dtype of ``x``: within 0.1 dB up to about 130 dB in float32, 55 in
        float16 and 35 in bfloat16. Far above that the noise is smaller than the rounding, and ``x`` comes back.

    Raises:
        TypeError: ``x`` is not a real floating-point tensor; ``snr`` is neither a number nor a tensor.
        ValueError: a sample of ``x`` is empty, not finite or 0 everywhere, so that it has no power; the sum is beyond
            the range of its dtype; a bad ``snr`` or ``kind``.

    >>> x = torch.sin(torch.arange(2048.0)).expand(3, 1, -1)
    >>> noisy = add_noise(x, torch.tensor([-5.0, 2.0, 5.0]), "pink", generator=torch.Generator().manual_seed(0))
    >>> [f"{decibels:.3f}" for decibels in snr(x, noisy)]
    ['-5.000', '2.000', '5.000']
    """
    require_choice("kind", kind, KINDS)
    _require_signals("x", x)
    if kind == "pink":
        _require_points("x", x.shape)
    if not isinstance(snr, (Real, Tensor)):
        raise wrong_type("snr", snr, "a number or a tensor")
    decibels = torch.as_tensor(snr, dtype=torch.float64, device=x.device)
    if decibels.dim() and decibels.shape != x.shape[:1]:
        raise ValueError(f"snr: got shape {tuple(decibels.shape)}, expected a number or ({x.shape[0]},)")
    if not decibels.isfinite().all():
        raise ValueError(f"snr: got {snr}, expected finite decibels")
    signal = _power(x)
    unusable = ~(signal.isfinite() & (signal > 0))
    if unusable.any():
        first = int(unusable.nonzero()[0])
        raise ValueError(f"x: got power {signal[first]:g} in sample {first}, expected a finite power above 0")
    noise = _DRAW[kind](x.shape, generator=generator, device=x.device)
    scale = (signal / _power(noise) * 10 ** (-decibels / 10)).sqrt()
    wide = accumulator(x.dtype)
    scale = scale.to(wide).reshape(-1, *[1] * (x.dim() - 1))
    noisy = (x.to(wide) + scale * noise).to(x.dtype)
    beyond = ~noisy.flatten(1).isfinite().all(1)
    if beyond.any():
        first = int(beyond.nonzero()[0])
        at = decibels.expand(len(x))[first]
        raise ValueError(
            f"snr: got {at:g} dB, of which the sum in sample {first} is beyond the range of {x.dtype}"
        )
    return noisy


def snr(x: Tensor, noisy: Tensor) -> Tensor:
    """The signal-to-noise ratio of each sample in decibels, ``10 log10(mean(x^2) / mean((noisy - x)^2))``.

    Args:
        x: signals of shape (N, ...), of any real floating-point dtype.
        noisy: the same with noise.

    Returns:
        A float64 tensor of shape (N,): inf where there is no noise, -inf where there is no signal, NaN where there is
        neither.

    Raises:
        TypeError: an argument is not a real floating-point tensor.
        ValueError: the shapes differ, or have less than two axes.
    """
    _require_signals("x", x)
    _require_signals("noisy", noisy)
    if noisy.shape != x.shape:
        raise ValueError(f"noisy: got shape {tuple(noisy.shape)}, expected {tuple(x.shape)}, that of x")
    return 10 * (_power(x) / _power(noisy.double() - x.double())).log10()


def _source(generator: torch.Generator | None) -> dict[str, Any]:
    """The device and dtype that numbers are drawn with, whatever PyTorch's defaults are."""
    return {"device": "cpu" if generator is None else generator.device, "dtype": torch.float32}


def _power(x: Tensor) -> Tensor:
    """The mean square of each sample, (N,), float64."""
    rows = x.flatten(1)
    norm: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norm.square() / rows.shape[1]


def _require_signals(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise wrong_type(name, x, _FLOATING)
    if not x.is_floating_point():
        raise TypeError(f"{name}: got a tensor of {x.dtype}, expected {_FLOATING}")
    if x.dim() < 2:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected (N, ...) with at least two axes")


def _require_points(name: str, shape: Sequence[int]) -> None:
    if not shape or shape[-1] < 2:
        raise ValueError(
            f"{name}: got shape {tuple(shape)}, expected at least 2 points along the last axis for pink noise"
        )
