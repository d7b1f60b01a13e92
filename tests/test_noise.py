"""Noise: its distribution and spectrum, and the exact ratio at which it is added."""

import math

import numpy as np
import pytest
import torch

from drsn_ops import data, noise
from drsn_ops.noise import KINDS, add_noise

DRAW = {kind: getattr(noise, kind) for kind in KINDS}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def signals(n=6, points=512, dtype=torch.float32):
    """Sines of another amplitude each."""
    x = torch.sin(torch.arange(points) * 0.1) * torch.logspace(-2, 2, n)[:, None, None]
    return x.to(dtype)


@pytest.mark.parametrize(
    "kind, mean, power, kurtosis",
    [
        ("gaussian", 0, 1, 3),
        ("laplacian", 0, 1, 6),
        ("pink", 0, 1, 3),
        ("uniform", 1 / 2, 1 / 3, 9 / 5),
        # 3 (0.99 (1/2)^2 + 0.01 (1/2 + 50)^2)
        ("impulsive", 0, 1, 77.25),
    ],
)
def test_moments(kind, mean, power, kurtosis):
    values = DRAW[kind]((2000, 1, 1024), generator=generator())
    assert values.shape == (2000, 1, 1024) and values.dtype == torch.float32
    values = values.double()
    assert values.mean().item() == pytest.approx(mean, abs=0.005)
    assert values.square().mean().item() == pytest.approx(power, rel=0.02)
    centred = values - mean
    measured = (centred**4).mean() / centred.square().mean() ** 2
    assert measured.item() == pytest.approx(kurtosis, rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_no_noise(kind, default):
    """Scales of impulses had been rounded to it."""
    expected, x = DRAW[kind]((3, 1000), generator=generator()), signals(3, 1000)
    added = add_noise(x, 0.0, kind, generator=generator())
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        assert torch.equal(DRAW[kind]((3, 1000), generator=generator()), expected)
        assert torch.equal(add_noise(x, 0.0, kind, generator=generator()), added)
    finally:
        torch.set_default_dtype(before)


def slope(kind, points=4096):
    """The exponent of the averaged periodogram over two decades of frequency, by least squares."""
    spectrum = torch.fft.rfft(DRAW[kind]((600, points), generator=generator()).double())
    density = spectrum.abs().square().mean(0)
    k = torch.arange(10, 1001).double()
    design = torch.stack([k.log(), torch.ones_like(k)], dim=1)
    return torch.linalg.lstsq(design, density[10:1001].log()[:, None]).solution[0].item()


@pytest.mark.parametrize(
    "kind, exponent", [("gaussian", 0), ("laplacian", 0), ("pink", -1), ("uniform", 0), ("impulsive", 0)]
)
def test_slope_of_the_spectrum(kind, exponent):
    assert slope(kind) == pytest.approx(exponent, abs=0.02)


@pytest.mark.parametrize("points", [2, 3, 8, 255])
def test_pink_of_any_length(points):
    values = noise.pink((4000, points), generator=generator()).double()
    assert values.shape == (4000, points)
    assert values.mean(-1).abs().max() < 1e-6
    assert values.square().mean().item() == pytest.approx(1, rel=0.05)


def test_pink_rows_are_independent():
    values = noise.pink((2, 3, 4096), generator=generator()).flatten(0, 1).double()
    # a row of 1/f has few independent values: its lowest frequencies hold much of its power
    assert (torch.corrcoef(values) - torch.eye(6)).abs().max() < 0.5


def test_rate_of_impulses():
    """The share of points beyond a magnitude: few of the background's, most of the impulses'."""
    values = noise.impulsive((1000, 1024), generator=generator()).abs()
    for magnitude in (2.5, 5, 10, 20):
        background, impulses = (math.erfc(magnitude / math.sqrt(2 * power)) for power in (0.5, 50.5))
        expected = 0.99 * background + 0.01 * impulses
        # within three standard deviations of a binomial count
        deviation = 3 * math.sqrt(expected / values.numel())
        assert (values > magnitude).double().mean().item() == pytest.approx(expected, abs=deviation)


def test_impulses_are_independent():
    """Of each other along a row and from row to row, and of their sign."""
    values = noise.impulsive((1000, 1024), generator=generator())
    struck = (values.abs() > 5).double() * values.sign()
    for indicator in (struck, struck.abs()):
        own = indicator - indicator.mean()
        for first, second in ((own[:, 1:], own[:, :-1]), (own[1:], own[:-1])):
            assert (first * second).mean().abs() < 0.005 * own.square().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_noise_of_a_seed(kind):
    first, again, other = (DRAW[kind]((3, 1, 64), generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(1)
    assert torch.equal(DRAW[kind]((3, 1, 64)), first)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_exact_ratio(kind, dtype, tolerance):
    x = signals(dtype=dtype)
    before = x.clone()
    for wanted in (-5, 0.5, torch.linspace(-20, 40, len(x))):
        noisy = add_noise(x, wanted, kind, generator=generator())
        assert noisy.dtype == dtype and noisy.shape == x.shape
        measured = 10 * torch.log10(
            x.double().square().mean((1, 2)) / (noisy.double() - x.double()).square().mean((1, 2))
        )
        expected = torch.as_tensor(wanted, dtype=torch.float64).expand(len(x))
        torch.testing.assert_close(measured, expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(noise.snr(x, noisy), measured, rtol=0, atol=1e-9)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_are_rounded_once(dtype):
    x = signals(dtype=dtype)
    noisy = add_noise(x, 3, generator=generator())
    assert noisy.dtype == dtype
    assert torch.equal(noisy, add_noise(x.float(), 3, generator=generator()).to(dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_added_noise_is_the_noise_drawn(kind):
    x = signals().double()
    added = add_noise(x, 0, kind, generator=generator()) - x
    drawn = DRAW[kind](x.shape, generator=generator()).double()
    scale = (added / drawn)[drawn != 0].reshape(len(x), -1)
    torch.testing.assert_close(scale, scale[:, :1].expand_as(scale), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(5, 7), (5, 2, 3, 4), (0, 1, 9)])
def test_shapes(shape):
    x = torch.rand(shape) + 1
    noisy = add_noise(x, 10.0, "pink")
    assert noisy.shape == shape
    assert noise.snr(x, noisy).tolist() == pytest.approx([10.0] * shape[0], abs=1e-5)


@pytest.mark.parametrize(
    "dtype, decibels", [(torch.float32, 130), (torch.float16, 55), (torch.bfloat16, 35)], ids=str
)
def test_limit_of_the_ratio(dtype, decibels):
    x = torch.randn(6, 1, 2048, generator=generator(1)).to(dtype)
    measured = noise.snr(x, add_noise(x, decibels, generator=generator()))
    assert (measured - decibels).abs().max() < 0.1
    assert torch.equal(add_noise(x, 400, generator=generator()), x)


@pytest.mark.parametrize(
    "dtype, decibels, got",
    [
        (torch.float16, -5, "-5"),
        (torch.float32, -800, "-800"),
        (torch.float64, torch.tensor([9.0, -7000.0]), "-7000"),
    ],
    ids=str,
)
def test_a_sum_beyond_the_range(dtype, decibels, got):
    x = torch.tensor([1.0, 6e4], dtype=dtype)[:, None].expand(2, 512)
    first = 0 if got == "-800" else 1
    with pytest.raises(
        ValueError,
        match=f"snr: got {got} dB, of which the sum in sample {first} is beyond the range of {dtype}",
    ):
        add_noise(x, decibels, generator=generator())


def test_noise_of_the_data_sets():
    """The training images' first, then the test images', from one generator."""
    pytest.importorskip("sklearn")
    clean, noisy = (data.load("digits", None, noise=level, seed=3) for level in (0, 0.5))
    source = generator(3)
    for before, after in ((clean.train, noisy.train), (clean.test, noisy.test)):
        drawn = noise.uniform(before.images.shape, generator=source)
        assert torch.equal(after.images, before.images + 0.5 * drawn)


def test_on_the_device(device):
    x = signals().to(device)
    for kind in KINDS:
        noisy = add_noise(x, -5, kind, generator=generator())
        assert noisy.device == x.device
        torch.testing.assert_close(noisy.cpu(), add_noise(x.cpu(), -5, kind, generator=generator()))
        assert torch.equal(
            DRAW[kind]((2, 8), generator=generator(), device=device).cpu(),
            DRAW[kind]((2, 8), generator=generator()),
        )


def test_a_generator_of_the_device(device):
    drawn = noise.pink((4, 1, 64), generator=torch.Generator(device).manual_seed(0))
    assert drawn.device == device or drawn.device.type == device.type


def test_snr_without_noise_or_signal():
    x = torch.tensor([[1.0, -1.0], [0.0, 0.0], [0.0, 0.0]])
    noisy = torch.tensor([[1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    measured = noise.snr(x, noisy).tolist()
    assert measured[:2] == [math.inf, -math.inf] and math.isnan(measured[2])


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"kind": "white"},
            "kind: got 'white', expected 'gaussian', 'laplacian', 'pink', 'uniform' or 'impulsive'",
        ),
        ({"snr": math.nan}, "snr: got nan, expected finite decibels"),
        ({"snr": math.inf}, "snr: got inf, expected finite decibels"),
        ({"snr": torch.zeros(2)}, r"snr: got shape \(2,\), expected a number or \(6,\)"),
        ({"snr": torch.zeros(6, 1)}, r"snr: got shape \(6, 1\), expected a number or \(6,\)"),
        ({"x": torch.ones(4)}, r"x: got shape \(4,\), expected \(N, \.\.\.\) with at least two axes"),
        ({"x": torch.tensor([[1.0], [0.0]])}, "x: got power 0 in sample 1, expected a finite power above 0"),
        ({"x": torch.tensor([[math.inf], [1.0]])}, "x: got power inf in sample 0"),
        ({"x": torch.tensor([[math.nan, 1.0]])}, "x: got power nan in sample 0"),
        ({"x": torch.ones(2, 0)}, "x: got power nan in sample 0"),
        ({"x": torch.ones(2, 1), "kind": "pink"}, r"x: got shape \(2, 1\), expected at least 2 points"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        add_noise(**{"x": signals(), "snr": 0.0, **options})


@pytest.mark.parametrize(
    "x, got",
    [
        (torch.ones(2, 3, dtype=torch.int64), "a tensor of"),
        ([[1.0]], "list"),
        (np.ones((2, 3)), "numpy.ndarray"),
    ],
)
def test_wrong_types(x, got):
    with pytest.raises(TypeError, match=f"x: got {got}.*, expected a tensor of a real floating-point type"):
        add_noise(x, 0.0)
    with pytest.raises(TypeError, match=f"noisy: got {got}"):
        noise.snr(torch.ones(2, 3), x)


def test_snr_that_is_no_number():
    with pytest.raises(TypeError, match="snr: got str, expected a number or a tensor"):
        add_noise(signals(), "loud")


def test_errors_of_pink_and_snr():
    with pytest.raises(ValueError, match=r"shape: got shape \(3, 1\), expected at least 2 points"):
        noise.pink((3, 1))
    with pytest.raises(ValueError, match=r"noisy: got shape \(2, 4\), expected \(2, 3\), that of x"):
        noise.snr(torch.ones(2, 3), torch.ones(2, 4))
