"""Vibration of a simulated machine, healthy and with seven faults: a data set that is made, not downloaded.

A shaft with a gear runs in a ball bearing; `vibration` makes what an accelerometer on its housing records, in g. With
``q`` the revolutions of the shaft since the signal began, the signal is a sum of four parts:

- the shaft: ``sum_h S_h cos(2 pi h q + phi_h)``, its first three harmonics. Unbalance raises the first by a centrifugal
  force, in proportion to the speed squared; misalignment raises the second and the third.
- the gear mesh: ``sum_m G_m (1 + a(q)) cos(2 pi m (z q - b(q)) + phi_m)``, three harmonics of ``z`` teeth. The shaft
  modulates their amplitude by ``a`` and their phase by ``b``. An eccentric gear has ``a = A cos(2 pi q + phi)`` and
  ``b = 0``; a cracked tooth makes ``a`` dip and the phase lag each time it passes; wear raises the second and third
  harmonic.
- the bearing: ``sum_k A_k h(t - t_k)``, impacts on a resonance ``h(t) = exp(-zeta w t) sin(w sqrt(1 - zeta^2) t)`` of
  the housing, ``t >= 0``. They are ``(1 + slip_k) / r`` revolutions apart, where ``r`` is the characteristic ratio of
  `Bearing` and ``slip_k`` is normal with 1.5 %, so that their phase wanders. A fault of the outer race stays in the
  load zone; one of the inner race passes it with the shaft, one of a ball with the cage, and ``A_k`` follows Stribeck's
  distribution of a bearing without clearance, ``max(cos psi, 0)^(3/2)``. A ball strikes both races in turn.
- white Gaussian noise of the sensor and the surroundings.

Mesh and impacts grow with the load, as ``0.4 + 0.6 load``. The speed of each signal begins within 1 % of the nominal
one and drifts by up to 2 % of that a second. Phases and amplitudes are drawn for each signal, of the fault and of the
healthy machine alike.

Sources: bearing ratios and slip: R. B. Randall and J. Antoni, Rolling element bearing diagnostics: a tutorial, Mech.
Syst. Signal Process. 25, 2011, 485-520. Impacts in the load zone: P. D. McFadden and J. D. Smith, Model for the
vibration produced by a single point defect in a rolling element bearing, J. Sound Vib. 96, 1984, 69-82. Gear with a
crack: P. D. McFadden, Detecting fatigue cracks in gears by amplitude and phase demodulation of the meshing vibration,
J. Vib. Acoust. 108, 1986, 165-170. Wear: R. B. Randall, A new method of modeling gear faults, J. Mech. Des. 104, 1982,
259-267. There are as many classes, speeds, loads and signals as in Zhao et al., DOI 10.1109/TII.2019.2943898, whose
data are not public; which ones, and the amplitudes, are chosen here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..arguments import require_positive, require_seed

CLASSES = (
    "healthy",
    "unbalance",
    "misalignment",
    "gear wear",
    "tooth crack",
    "outer race",
    "inner race",
    "ball",
)
SPEEDS = (20.0, 30.0, 40.0)  # of the shaft, Hz
LOADS = (0.5, 0.75, 1.0)  # shares of the rated torque
TEETH = 23
# amplitudes in g, at 30 Hz and full load
SHAFT = np.array([0.35, 0.14, 0.07])
MESH = np.array([1.1, 0.45, 0.22])
BACKGROUND = 0.15
ECCENTRICITY, DIP, LAG = 0.1, 0.8, 0.25  # shares of the mesh's amplitude; the lag is one of its period
SLIP = 0.015
DAMPING = 0.05
LEAD = 0.02  # seconds of impacts before a signal begins, which still ring in it
LONGEST = 10  # seconds: the speed drifts by a fifth at most, which `impacts` allows for
CHUNK = 288  # signals made at a time: it changes memory, not signals

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bearing:
    """The geometry of a ball bearing whose outer ring stands still, and how often its parts meet.

    Args:
        balls: their number.
        ball_diameter: millimetres.
        pitch_diameter: millimetres.
        contact_angle: radians.

    The ratios are events in one revolution of the shaft, with ``d = ball_diameter / pitch_diameter * cos(angle)``.

    >>> f"{SKF_6205.outer_race:.4f} {SKF_6205.inner_race:.4f} {SKF_6205.ball:.4f} {SKF_6205.cage:.4f}"
    '3.5848 5.4152 2.3567 0.3983'
    """

    balls: int
    ball_diameter: float
    pitch_diameter: float
    contact_angle: float = 0.0

    @property
    def outer_race(self) -> float:
        """Balls over a point of the outer race, BPFO: ``balls (1 - d) / 2``."""
        return self.balls * (1 - self._ratio) / 2

    @property
    def inner_race(self) -> float:
        """Balls over a point of the inner race, BPFI: ``balls (1 + d) / 2``."""
        return self.balls * (1 + self._ratio) / 2

    @property
    def ball(self) -> float:
        """Spins of a ball, BSF: ``pitch_diameter / ball_diameter (1 - d^2) / 2``; a spot on it strikes twice a spin."""
        return self.pitch_diameter / self.ball_diameter * (1 - self._ratio**2) / 2

    @property
    def cage(self) -> float:
        """Revolutions of the cage, FTF: ``(1 - d) / 2``."""
        return (1 - self._ratio) / 2

    @property
    def _ratio(self) -> float:
        return self.ball_diameter / self.pitch_diameter * math.cos(self.contact_angle)


SKF_6205 = Bearing(balls=9, ball_diameter=7.94, pitch_diameter=39.04)


@dataclass(frozen=True)
class Defect:
    """A damaged spot of a bearing.

    Args:
        ratio: impacts a revolution of the shaft.
        passages: of the spot through the load zone a revolution of the shaft; 0 where it stays there.
        level: the height of an impact at full load, g.
        second: the height of every second impact, as a share of ``level``.
        resonance: the frequency that impacts excite, Hz.
    """

    ratio: float
    passages: float
    level: float
    second: float
    resonance: float


DEFECTS = {
    "outer race": Defect(SKF_6205.outer_race, 0, level=3.4, second=1, resonance=3000),
    "inner race": Defect(SKF_6205.inner_race, 1, level=5.2, second=1, resonance=3000),
    "ball": Defect(2 * SKF_6205.ball, SKF_6205.cage, level=4.8, second=0.6, resonance=3000),
}


class Signals(NamedTuple):
    """Signals and what they are of.

    Attributes:
        x: the signals in g, (N, 1, points), float32.
        labels: the index of each one's class in `CLASSES`, (N,), int64.
        speed: each one's nominal speed in Hz, (N,), float32.
        load: each one's load as a share of the rated torque, (N,), float32.
    """

    x: Tensor
    labels: Tensor
    speed: Tensor
    load: Tensor


def vibration(signals: int = 28_800, *, points: int = 2048, rate: float = 12_800.0, seed: int = 0) -> Signals:
    """Make ``signals`` recordings, of every class at every speed and load in turn.

    Args:
        signals: how many. 72 in a row hold each of 8 classes x 3 speeds x 3 loads once; 28,800 hold each 400 times.
        points: of each signal, at most 10 seconds, so that the speed drifts by a fifth at most.
        rate: points a second, Hz: at least 8,000, since the resonance is at 3,000.
        seed: of all that is random. Signal i does not depend on how many are made; it is the same for the same seed,
            ``points``, ``rate`` and version of NumPy.

    Returns:
        `Signals`, with a root mean square of about 1 g over the whole set.

    Raises:
        ValueError: an argument is out of range.

    >>> made = vibration(72)
    >>> made.x.shape, CLASSES[made.labels[5]], made.speed[5].item(), made.load[5].item()
    (torch.Size([72, 1, 2048]), 'outer race', 20.0, 0.5)
    """
    require_positive("signals", signals)
    require_positive("points", points)
    if not 8_000 <= rate < math.inf:
        raise ValueError(f"rate: got {rate!r}, expected a finite number of at least 8000")
    if points > LONGEST * rate:
        raise ValueError(
            f"points: got {points}, expected at most {math.floor(LONGEST * rate)}, {LONGEST} seconds at {rate:g} Hz"
        )
    require_seed(seed)
    index = np.arange(signals, dtype=np.int64)
    label, rest = index % len(CLASSES), index // len(CLASSES)
    speed = np.array(SPEEDS)[rest % len(SPEEDS)]
    load = np.array(LOADS)[rest // len(SPEEDS) % len(LOADS)]
    x = torch.empty(signals, 1, points, dtype=torch.float32, device="cpu")
    for start in range(0, signals, CHUNK):
        part = slice(start, start + CHUNK)
        generators = [np.random.default_rng((seed, i)) for i in index[part].tolist()]
        chunk = Chunk.draw(generators, label[part], speed[part], load[part])
        x[part, 0] = torch.from_numpy(record(chunk, points, rate))
    return Signals(
        x, torch.from_numpy(label), torch.from_numpy(speed).float(), torch.from_numpy(load).float()
    )


class Chunk(NamedTuple):
    """Signals that are made together, each by its own generator; the arrays are (N, 1)."""

    generators: list[np.random.Generator]
    label: Integers
    speed: Array
    drift: Array
    strength: Array

    @classmethod
    def draw(cls, generators: list[np.random.Generator], label: Integers, speed: Array, load: Array) -> Chunk:
        """Signals of these classes, nominal speeds and loads."""
        actual = speed[:, None] * uniform(generators, 0.99, 1.01, 1)
        drift = actual * uniform(generators, -0.02, 0.02, 1)
        return cls(generators, label[:, None], actual, drift, 0.4 + 0.6 * load[:, None])

    def of(self, name: str) -> tuple[npt.NDArray[np.bool_], Chunk]:
        """Which signals are of a class, (N,), and a chunk of these alone."""
        rows = self.label[:, 0] == CLASSES.index(name)
        return rows, Chunk(
            [generator for generator, chosen in zip(self.generators, rows, strict=True) if chosen],
            self.label[rows],
            self.speed[rows],
            self.drift[rows],
            self.strength[rows],
        )

    def raised(self, name: str, factor: float) -> Array:
        """``factor`` where the signal is of the class, else 1."""
        return np.where(self.label == CLASSES.index(name), factor, 1.0)


def uniform(generators: list[np.random.Generator], low: float, high: float, count: int) -> Array:
    """(N, count) values of U(low, high), each row of its own generator."""
    return np.stack([generator.uniform(low, high, count) for generator in generators])


def normal(generators: list[np.random.Generator], count: int) -> Array:
    """(N, count) values of N(0, 1), each row of its own generator."""
    return np.stack([generator.standard_normal(count) for generator in generators])


def record(chunk: Chunk, points: int, rate: float) -> Array:
    """The sum of shaft, mesh, background and bearing, (N, points)."""
    time = np.arange(points) / rate
    turns = chunk.speed * time + chunk.drift / 2 * time**2
    x = shaft(chunk, turns) + mesh(chunk, turns) + BACKGROUND * normal(chunk.generators, points)
    for name, defect in DEFECTS.items():
        rows, damaged = chunk.of(name)
        if rows.any():
            x[rows] += impacts(damaged, defect, points, rate)
    return x


def harmonics(levels: Array, turns: Array, phases: Array) -> Array:
    """``sum_h levels_h cos(2 pi (h turns + phases_h))``, h from 1."""
    x = np.zeros_like(turns)
    for h in range(levels.shape[1]):
        x += levels[:, h : h + 1] * np.cos(2 * np.pi * ((h + 1) * turns + phases[:, h : h + 1]))
    return x


def shaft(chunk: Chunk, turns: Array) -> Array:
    """The shaft's harmonics."""
    levels = SHAFT * uniform(chunk.generators, 0.75, 1.25, 3)
    levels[:, :1] *= (chunk.speed / 30) ** 2 * chunk.raised("unbalance", 3)
    levels[:, 1:] *= chunk.raised("misalignment", 3)
    return harmonics(levels, turns, uniform(chunk.generators, 0, 1, 3))


def mesh(chunk: Chunk, turns: Array) -> Array:
    """The gear's harmonics, with the modulation of its eccentricity and of a cracked tooth."""
    levels = MESH * uniform(chunk.generators, 0.75, 1.25, 3) * chunk.strength
    levels[:, 1:] *= chunk.raised("gear wear", 2.5)
    scale = uniform(chunk.generators, 0.75, 1.25, 3)
    phase = uniform(chunk.generators, 0, 1, 5)
    amplitude = 1 + ECCENTRICITY * scale[:, :1] * np.cos(2 * np.pi * (turns + phase[:, :1]))
    lag = np.zeros_like(turns)
    rows, cracked = chunk.of("tooth crack")
    # revolutions from the nearest passage of the tooth, which shows over about three teeth
    away = (turns[rows] + phase[rows, 1:2]) % 1 - 0.5
    passage = np.exp(-0.5 * (away * TEETH / 1.5) ** 2)
    amplitude[rows] -= DIP * scale[rows, 1:2] * passage
    lag[rows] = LAG * scale[rows, 2:] * passage
    return amplitude * harmonics(levels, TEETH * turns - lag, phase[:, 2:])


def impacts(chunk: Chunk, defect: Defect, points: int, rate: float) -> Array:
    """The impacts of a damaged bearing."""
    revolutions = 1.02 * max(SPEEDS) * (points / rate + LEAD)
    # a tenth and 8 more than at the highest speed, for the drift and the slip
    count = math.ceil(1.1 * revolutions * defect.ratio) + 8
    gaps = (1 + SLIP * normal(chunk.generators, count)) / defect.ratio
    begin = uniform(chunk.generators, 0, 1, 1) / defect.ratio - LEAD * chunk.speed
    turns = begin + np.cumsum(gaps, axis=1)
    # the time of these turns: the root of a quadratic, in the form without cancellation
    struck = 2 * turns / (chunk.speed + np.sqrt(chunk.speed**2 + 2 * chunk.drift * turns))
    level = defect.level * chunk.strength * uniform(chunk.generators, 0.75, 1.25, 1)
    heights = level * uniform(chunk.generators, 0.9, 1.1, count)
    heights[:, 1::2] *= defect.second
    angle = 2 * np.pi * (defect.passages * turns + uniform(chunk.generators, 0, 1, 1))
    if defect.passages:
        heights *= np.maximum(np.cos(angle), 0) ** 1.5
    resonance = defect.resonance * uniform(chunk.generators, 0.97, 1.03, 1)
    return ring(struck, heights, resonance, points, rate)


def ring(struck: Array, heights: Array, resonance: Array, points: int, rate: float) -> Array:
    """``sum_k heights_k h(n / rate - struck_k)``, (N, points), where h is the response of a damped oscillator.

    h is the imaginary part of ``exp(pole t)``, so one factor takes the sum of all responses from a point to the next.
    An impact enters at the first point after it, with the phase it then has: its time is not rounded.
    """
    pole = 2 * np.pi * resonance * (-DAMPING + 1j * math.sqrt(1 - DAMPING**2))
    first = np.maximum(np.ceil(struck * rate), 0).astype(np.int64)
    entering = heights * np.exp(pole * (first / rate - struck))
    rows, impacts = np.nonzero(first < points)
    state = np.zeros((points, len(struck)), dtype=np.complex128)
    np.add.at(state, (first[rows, impacts], rows), entering[rows, impacts])
    factor = np.exp(pole / rate)[:, 0]
    for before, after in zip(state[:-1], state[1:], strict=True):
        after += factor * before
    return np.ascontiguousarray(state.imag.T)
