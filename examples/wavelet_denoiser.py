"""Wavelet denoising with learned thresholds, against the universal threshold of PyWavelets.

Noise spreads evenly over the coefficients of an orthogonal wavelet transform, a signal fills a few large ones, so soft
thresholding takes away mostly noise. Donoho's universal threshold is sigma * sqrt(2 log n) for every coefficient of
detail, with sigma estimated from the finest band. Here each band gets a multiple of sigma of its own, learned through
the inverse transform from pairs of noisy and clean signals.

Prints the signal-to-noise ratio, in decibels, of signals that were not trained on.

Source: D. L. Donoho, "De-noising by soft-thresholding", IEEE Transactions on Information Theory, 1995,
DOI 10.1109/18.382009; the kinds of signals are those of D. L. Donoho and I. M. Johnstone, "Ideal spatial adaptation by
wavelet shrinkage", Biometrika, 1994, DOI 10.1093/biomet/81.3.425.
"""

from __future__ import annotations

import math

import numpy as np
import pywt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import drsn_ops
from drsn_ops.noise import add_noise

POINTS, LEVELS, WAVELET, SNR = 1024, 5, "sym8", 10.0
UNIVERSAL = math.sqrt(2 * math.log(POINTS))


def make_signals(count: int) -> tuple[Tensor, Tensor]:
    """Noisy and clean signals (count, POINTS), half of them steps and half sweeps, with white noise of SNR decibels."""
    t = torch.linspace(0, 1, POINTS)
    at, size = torch.rand(2, count // 2, 8, 1).unbind()
    steps = ((size - 0.5) * (t > at)).sum(1)
    sweeps = torch.sqrt(t * (1 - t)) * torch.sin(2.1 * math.pi / (t + 0.03 + 0.1 * at[:, 0]))
    clean = torch.cat([steps / steps.std(1, keepdim=True), sweeps / sweeps.std(1, keepdim=True)])
    return add_noise(clean, SNR), clean


class Wavelet(nn.Module):
    """The orthogonal transform of periodic signals: two filters of stride 2 a level."""

    filters: Tensor

    def __init__(self, name: str, levels: int) -> None:
        super().__init__()
        self.levels = levels
        wavelet = pywt.Wavelet(name)
        self.register_buffer("filters", torch.tensor([wavelet.rec_lo, wavelet.rec_hi])[:, None])
        self.margin = self.filters.shape[-1] // 2 - 1

    def forward(self, x: Tensor) -> list[Tensor]:
        """The bands of x, coarse to fine, each (N, n): `pywt.wavedec` of mode ``"periodization"``."""
        details: list[Tensor] = []
        for _ in range(self.levels):
            periodic = F.pad(x[:, None], (self.margin, self.margin), "circular")
            x, detail = F.conv1d(periodic, self.filters, stride=2).unbind(1)
            details.append(detail)
        return [x, *reversed(details)]

    def inverse(self, bands: list[Tensor]) -> Tensor:
        """The signal of these bands: `pywt.waverec`."""
        x, *details = bands
        wrap = self.filters.shape[-1] // 4  # that many coefficients reach over an end
        for detail in details:
            periodic = F.pad(torch.stack([x, detail], 1), (wrap, wrap), "circular")
            x = F.conv_transpose1d(periodic, self.filters, stride=2, padding=2 * wrap + self.margin)[:, 0]
        return x


class Denoiser(nn.Module):
    """Transform, soft thresholding of each band of detail at a multiple of the noise's sigma, inverse transform."""

    def __init__(self, wavelet: str, levels: int, multiple: float) -> None:
        super().__init__()
        self.wavelet = Wavelet(wavelet, levels)
        self.multiples = nn.Parameter(torch.full((levels,), multiple))

    def forward(self, x: Tensor) -> Tensor:
        coarse, *details = self.wavelet(x)
        # the median of |N(0, 1)| is 0.6745, and the finest band is nearly all noise
        sigma = details[-1].abs().quantile(0.5, 1, keepdim=True) / 0.6745
        taus = (multiple * sigma for multiple in self.multiples)
        return self.wavelet.inverse([coarse, *map(drsn_ops.soft_threshold, details, taus)])


def universal(x: Tensor) -> Tensor:
    """PyWavelets with the universal threshold."""
    coarse, *details = pywt.wavedec(x.numpy(), WAVELET, "periodization", LEVELS)
    sigma = np.median(np.abs(details[-1]), axis=1, keepdims=True) / 0.6745
    kept = [pywt.threshold(detail, UNIVERSAL * sigma, "soft") for detail in details]
    return torch.from_numpy(pywt.waverec([coarse, *kept], WAVELET, "periodization"))


def snr(x: Tensor, clean: Tensor) -> float:
    """The power of the signals over that of what x adds to them, in decibels."""
    return 10 * math.log10(clean.square().sum() / (x - clean).square().sum())


def main(steps: int = 150, seed: int = 0) -> dict[str, float]:
    """Learn the thresholds and compare. Returns the SNR by method, in decibels."""
    torch.manual_seed(seed)
    denoiser = Denoiser(WAVELET, LEVELS, UNIVERSAL)
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=0.05)
    for _ in range(steps):
        noisy, clean = make_signals(48)
        optimiser.zero_grad()
        F.mse_loss(denoiser(noisy), clean).backward()
        optimiser.step()

    noisy, clean = make_signals(600)
    with torch.no_grad():
        found = {"noisy": noisy, "universal": universal(noisy), "learned": denoiser(noisy)}
    results = {name: snr(x, clean) for name, x in found.items()}
    for name, value in results.items():
        print(f"{name:9} {value:5.2f} dB")
    multiples = ", ".join(f"{multiple:.2f}" for multiple in denoiser.multiples.tolist())
    print(f"thresholds in sigma: universal {UNIVERSAL:.2f}; learned, coarse to fine: {multiples}")
    return results


if __name__ == "__main__":
    main()
