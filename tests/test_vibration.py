"""Simulated vibration: balanced, reproducible, each part by its formula, and each fault at its frequencies."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import drsn_ops
import drsn_ops.data.vibration as module
from drsn_ops.data.vibration import (
    CLASSES,
    DEFECTS,
    LOADS,
    LONGEST,
    SKF_6205,
    SPEEDS,
    TEETH,
    Bearing,
    Chunk,
    impacts,
    mesh,
    record,
    ring,
    shaft,
    vibration,
)

RATE = 12_800.0
POINTS = 25_600  # two seconds, for a spectrum of half a hertz


@pytest.fixture(scope="module")
def long():
    """Signals long enough for their spectra to be looked at."""
    return vibration(144, points=POINTS, seed=1)


def of(made, name, speed):
    chosen = (made.labels == CLASSES.index(name)) & (made.speed == speed)
    return made.x[chosen, 0].double()


def spectrum(x):
    return torch.fft.rfft(x * torch.hann_window(x.shape[-1], dtype=x.dtype)).abs().square().mean(0)


def envelope_spectrum(x, low=2000, high=4000):
    """Of the analytic signal in a band around the resonance."""
    coefficients = torch.fft.fft(x)
    frequency = torch.fft.fftfreq(x.shape[-1], 1 / RATE, dtype=x.dtype)
    envelope = torch.fft.ifft(coefficients * ((frequency >= low) & (frequency <= high))).abs().square()
    return spectrum(envelope - envelope.mean(-1, keepdim=True))


def around(density, frequency, tolerance=0.04):
    """The power within a tolerance of a frequency: speeds differ by 1 % and drift by 2 % a second."""
    step = RATE / POINTS
    return density[round(frequency * (1 - tolerance) / step) : round(frequency * (1 + tolerance) / step) + 1]


def peak(density, low, high):
    """The frequency of the highest value between two."""
    step = RATE / POINTS
    first = round(low / step)
    return (first + density[first : round(high / step)].argmax().item()) * step


def test_what_is_made():
    made = vibration(144)
    assert made.x.shape == (144, 1, 2048) and made.x.dtype == torch.float32
    assert made.labels.dtype == torch.int64
    for values in made[1:]:
        assert values.shape == (144,)
    combinations = zip(made.labels.tolist(), made.speed.tolist(), made.load.tolist(), strict=True)
    assert sorted(combinations) == sorted(2 * list(itertools.product(range(8), SPEEDS, LOADS)))
    assert made.x.isfinite().all()
    assert made.x.square().mean().sqrt().item() == pytest.approx(1, abs=0.15)


def test_a_signal_does_not_depend_on_the_others(monkeypatch):
    many = vibration(25)
    monkeypatch.setattr(module, "CHUNK", 10)
    for count in (1, 7, 12, 25):
        for some, all_of_them in zip(vibration(count), many, strict=True):
            assert torch.equal(some, all_of_them[:count])


def test_signals_differ():
    rows = torch.cat([vibration(count, seed=seed).x[:, 0] for count, seed in ((150, 0), (72, 1))])
    rows = rows / rows.norm(dim=1, keepdim=True)
    alike = (rows @ rows.T).fill_diagonal_(0)
    # two shafts at one speed may be similar by chance, but not equal
    assert alike.abs().max() < 0.995


def test_ratios_of_the_named_bearing():
    # Case Western Reserve University's data sheet of the SKF 6205-2RS; its last one counts both races
    ratios = SKF_6205.inner_race, SKF_6205.outer_race, SKF_6205.cage, 2 * SKF_6205.ball
    assert ratios == pytest.approx((5.4152, 3.5848, 0.39828, 4.7135), rel=2e-4)
    assert SKF_6205.inner_race + SKF_6205.outer_race == pytest.approx(SKF_6205.balls)
    # at a right angle the balls' size does not matter
    assert Bearing(8, 5, 30, math.pi / 2).outer_race == pytest.approx(4)


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("name", DEFECTS)
def test_envelope_shows_the_impacts(long, name, speed):
    density = envelope_spectrum(of(long, name, speed))
    healthy = envelope_spectrum(of(long, "healthy", speed))
    ratio = DEFECTS[name].ratio
    ratios = (SKF_6205.outer_race, SKF_6205.inner_race, 2 * SKF_6205.ball)
    assert ratio == ratios[list(DEFECTS).index(name)]
    assert max(ratios, key=lambda r: around(density, r * speed).sum()) == ratio
    assert around(density, ratio * speed).max() > 100 * around(healthy, ratio * speed).max()


@pytest.mark.parametrize(
    "name, ratio", [("inner race", 1.0), ("ball", SKF_6205.cage), ("outer race", None)], ids=str
)
def test_zone_of_load(long, name, ratio):
    """The train of impacts swells once a revolution of the shaft, of the cage, or not at all."""
    speed = 30.0
    density = envelope_spectrum(of(long, name, speed))
    train = around(density, DEFECTS[name].ratio * speed).max()
    for other in (1.0, SKF_6205.cage):
        swell = around(density, other * speed, 0.06).max()
        assert (swell > train) if other == ratio else (swell < train / 4)


def test_slip_smears_the_higher_harmonics(long):
    """Without slip, the lines of a train of impacts are as narrow at every harmonic."""
    density = envelope_spectrum(of(long, "outer race", 20.0))
    ratio = SKF_6205.outer_race * 20

    def share(harmonic):
        near = density[round((harmonic - 0.5) * ratio * 2) : round((harmonic + 0.5) * ratio * 2)]
        return (near.max() / near.sum()).item()

    assert share(8) < share(1) / 3


@pytest.mark.parametrize("speed", SPEEDS)
def test_shaft_and_mesh(long, speed):
    power = {name: spectrum(of(long, name, speed)) for name in CLASSES}

    def level(name, frequency):
        return around(power[name], frequency).sum() / around(power["healthy"], frequency).sum()

    assert peak(power["healthy"], 2.5 * speed, 6000) == pytest.approx(TEETH * speed, rel=0.04)
    for name in CLASSES:
        assert (level(name, speed) > 5) == (name == "unbalance")
        assert (level(name, 2 * speed) > 5) == (name == "misalignment")
        assert (level(name, 2 * TEETH * speed) > 3.5) == (name == "gear wear")


def test_crack_modulates_the_mesh_once_a_revolution(long):
    """The amplitude of the mesh's first harmonic dips once a revolution, and its spectrum has many sidebands."""
    speed = 40.0
    mesh = TEETH * speed
    depth, lines = {}, {}
    for name in ("tooth crack", "healthy"):
        x = of(long, name, speed)
        frequency = torch.fft.fftfreq(POINTS, 1 / RATE, dtype=x.dtype)
        band = (frequency > 0.5 * mesh) & (frequency < 1.5 * mesh)
        amplitude = torch.fft.ifft(torch.fft.fft(x) * band).abs()[:, 2000:-2000]
        depth[name] = (amplitude.amin(1) / amplitude.mean(1)).max().item()
        density = spectrum(amplitude - amplitude.mean(1, keepdim=True))
        lines[name] = density[round(2.5 * speed / RATE * 21600) : round(8 * speed / RATE * 21600)].sum()
    assert depth["tooth crack"] < 0.6 < 0.7 < depth["healthy"]
    assert lines["tooth crack"] > 3 * lines["healthy"]


# where in its interval each draw of a chunk made by hand lies: phases are 0.3, factors 0.75 + 0.5 * 0.3
SHARE = 0.3
DRAWN = 0.75 + 0.5 * SHARE
TIME = np.arange(512) / RATE


@pytest.fixture
def by_hand(monkeypatch):
    """Makes a chunk of one signal of a class with known draws: uniform ones at `SHARE`, normal ones 1."""

    def constant(generators, value, count):
        return np.full((len(generators), count), value)

    monkeypatch.setattr(module, "uniform", lambda g, low, high, n: constant(g, low + SHARE * (high - low), n))
    monkeypatch.setattr(module, "normal", lambda g, n: constant(g, 1.0, n))

    def make(name, speed=30.0, drift=0.0, strength=1.0):
        values = (np.array([[value]]) for value in (CLASSES.index(name), speed, drift, strength))
        return Chunk([np.random.default_rng(0)], *values)

    return make


def cosine(turns):
    return np.cos(2 * np.pi * (turns + SHARE))


def exactly(made, expected):
    np.testing.assert_allclose(made[0], expected, rtol=1e-10, atol=1e-12)


def test_draw():
    """Speeds fill 1 % around the nominal one, drifts 2 % of it a second, independently; the load gives the strength."""
    n = 1000
    generators = [np.random.default_rng(i) for i in range(n)]
    load = np.resize(LOADS, n)
    chunk = Chunk.draw(generators, np.zeros(n, np.int64), np.full(n, 40.0), load)
    assert all(values.shape == (n, 1) for values in chunk[1:])
    for share, width in ((chunk.speed / 40 - 1, 0.01), (chunk.drift / chunk.speed, 0.02)):
        assert -width <= share.min() < -0.99 * width and 0.99 * width < share.max() <= width
        assert share.std() == pytest.approx(width / math.sqrt(3), rel=0.03)
    assert abs(np.corrcoef(chunk.speed[:, 0], chunk.drift[:, 0])[0, 1]) < 0.06
    assert chunk.strength[:3, 0].tolist() == pytest.approx([0.7, 0.85, 1.0])


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("name", ["healthy", "unbalance", "misalignment", "tooth crack"])
def test_shaft_formula(by_hand, name, speed):
    """Unbalance is a centrifugal force, in proportion to the speed squared; the load does not change the shaft."""
    turns = speed * TIME
    first = 0.35 * (speed / 30) ** 2 * (3 if name == "unbalance" else 1)
    others = 3 if name == "misalignment" else 1
    expected = first * cosine(turns) + others * (0.14 * cosine(2 * turns) + 0.07 * cosine(3 * turns))
    exactly(shaft(by_hand(name, speed, strength=0.7), turns[None]), DRAWN * expected)


@pytest.mark.parametrize("strength", [0.7, 1.0])
@pytest.mark.parametrize("name", ["healthy", "gear wear", "tooth crack", "ball"])
def test_mesh_formula(by_hand, name, strength):
    """``sum_m G_m (1 + a(q)) cos(2 pi m (z q - b(q)) + phi_m)``."""
    turns = 40 * TIME
    a, b = 0.1 * DRAWN * cosine(turns), 0.0
    if name == "tooth crack":
        passage = np.exp(-0.5 * (((turns + SHARE) % 1 - 0.5) * 23 / 1.5) ** 2)
        a, b = a - 0.8 * DRAWN * passage, 0.25 * DRAWN * passage
    wear = 2.5 if name == "gear wear" else 1
    levels = (1.1, 0.45 * wear, 0.22 * wear)
    waves = sum(level * cosine(m * (23 * turns - b)) for m, level in enumerate(levels, 1))
    exactly(mesh(by_hand(name, 40.0, strength=strength), turns[None]), DRAWN * strength * (1 + a) * waves)


@pytest.mark.parametrize("strength", [0.7, 1.0])
@pytest.mark.parametrize(
    "name, passages, second, level",
    [("outer race", 0, 1, 3.4), ("inner race", 1, 1, 5.2), ("ball", SKF_6205.cage, 0.6, 4.8)],
)
def test_impacts_formula(by_hand, monkeypatch, name, passages, second, level, strength):
    """When impacts strike, how high they are, and what they excite."""
    monkeypatch.setattr(module, "ring", lambda *arguments: arguments)
    speed, drift, ratio = 30.0, -0.6, DEFECTS[name].ratio
    chunk = by_hand(name, speed, drift, strength)
    struck, heights, resonance, points, rate = impacts(chunk, DEFECTS[name], 2048, RATE)
    assert (points, rate) == (2048, RATE)
    # the first 0.02 seconds early and after a share of a gap; the slip makes each gap 1.5 % longer
    turns = (SHARE + 1.015 * np.arange(1, len(struck[0]) + 1)) / ratio - 0.02 * speed
    exactly(speed * struck + drift / 2 * struck**2, turns)
    assert turns[0] < 0 and struck[0, -1] > 2048 / RATE
    zone = np.maximum(cosine(passages * turns), 0) ** 1.5 if passages else 1
    spread = DRAWN * (0.9 + 0.2 * SHARE)
    exactly(heights, level * strength * spread * np.resize([1, second], len(turns)) * zone)
    # of the housing, whatever strikes it
    exactly(resonance, [3000 * (0.97 + 0.06 * SHARE)])


@pytest.mark.parametrize("name", ["healthy", "outer race", "inner race", "ball"])
def test_record_is_the_sum_of_its_parts(by_hand, name):
    """With the revolutions ``speed t + drift / 2 t^2``, and a background of 0.15 g."""
    speed, drift, time = 40.0, 0.8, np.arange(4096) / RATE
    chunk = by_hand(name, speed, drift)
    turns = (speed * time + drift / 2 * time**2)[None]
    expected = shaft(chunk, turns) + mesh(chunk, turns) + 0.15
    if name in DEFECTS:
        expected += impacts(chunk, DEFECTS[name], len(time), RATE)
    exactly(record(chunk, len(time), RATE), expected[0])


@pytest.mark.parametrize("name", DEFECTS)
@pytest.mark.parametrize("speed", [0.99 * min(SPEEDS), 1.01 * max(SPEEDS)])
@pytest.mark.parametrize("drift", [-0.02, 0.02])
def test_impacts_of_the_longest_signals(monkeypatch, name, speed, drift):
    """They go on to the end of the signal, at the speeds and drifts where they are the fewest and the most."""
    monkeypatch.setattr(module, "ring", lambda struck, *_: struck)
    values = (np.array([[value]]) for value in (CLASSES.index(name), speed, drift * speed, 1.0))
    chunk = Chunk([np.random.default_rng(0)], *values)
    with np.errstate(all="raise"):
        struck = impacts(chunk, DEFECTS[name], round(LONGEST * RATE), RATE)
    assert (np.diff(struck) > 0).all() and struck[0, 0] < 0 and struck[0, -1] > LONGEST


def test_ring():
    """Against the sum of the oscillator's responses, evaluated one by one."""
    rng = np.random.default_rng(0)
    struck = np.sort(rng.uniform(-0.002, 0.02, (3, 9)), axis=1)
    heights = rng.normal(size=(3, 9))
    resonance = np.array([[2900.0], [3000.0], [3100.0]])
    since = np.arange(200)[None, :, None] / RATE - struck[:, None]
    damping, angular = 0.05, 2 * np.pi * resonance[:, :, None]
    response = np.exp(-damping * angular * since) * np.sin(np.sqrt(1 - damping**2) * angular * since)
    expected = (heights[:, None] * np.where(since >= 0, response, 0)).sum(-1)
    np.testing.assert_allclose(ring(struck, heights, resonance, 200, RATE), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"signals": 0}, "signals: got 0, expected an integer of at least 1"),
        ({"points": 2.5}, "points: got 2.5, expected an integer of at least 1"),
        ({"points": 128_001}, "points: got 128001, expected at most 128000, 10 seconds at 12800 Hz"),
        (
            {"points": 80_001, "rate": 8000},
            "points: got 80001, expected at most 80000, 10 seconds at 8000 Hz",
        ),
        ({"rate": 7999.0}, "rate: got 7999.0, expected a finite number of at least 8000"),
        ({"rate": math.inf}, "rate: got inf"),
        ({"rate": math.nan}, "rate: got nan"),
        ({"seed": -1}, "seed: got -1, expected an integer of at least 0"),
        ({"seed": 0.5}, "seed: got 0.5, expected an integer of at least 0"),
        ({"seed": True}, "seed: got True, expected an integer of at least 0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        vibration(**{"signals": 1, **options})


def test_the_door_leads_to_the_machine():
    script = "import drsn_ops\nassert 'vibration' not in vars(drsn_ops)\ndrsn_ops.vibration.SKF_6205"
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="module 'drsn_ops' has no attribute 'vibrations'"):
        drsn_ops.vibrations()
