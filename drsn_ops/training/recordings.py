"""Training on recordings: its settings, the windows that they ask for, and the plan of a run on these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..arguments import InputError, as_flag, as_input_error, counted
from ..data.cwru_files import at_loads
from ..data.fingerprint import fingerprint
from ..data.flags import FLAGS, SIMULATED
from ..data.recordings import Reading, Recordings, Windows, join, read_recordings, require_power
from ..data.signals import FileOptions
from ..data.splits import PARTS, Recording, Split, Splitting
from ..data.vibration import CLASSES, vibration
from ..data.windows import Cutting, Normalise
from ..noise import Kind, add_noise
from ..variants.gates import Norm
from ..variants.shrinkage import Pooling, Rule
from .model import checksums
from .networks import NETWORK_FLAGS, REGULARISED, arguments_of, build
from .plan import Plan, Precision, Samples, size

SIMULATED_RATE = 12_800.0
# of a network that has no L2 term of its own, times the learning rate; twice the factor of the others' term
WEIGHT_DECAY = 1e-4
Schedule = Literal["step", "cosine"]
ClassWeights = Literal["balanced", "none"]


class Loaded(NamedTuple):
    """The recordings as they are trained on, with noise, and the checksums of all but the tested ones, without."""

    recordings: Recordings
    trained_on: tuple[int, ...]


@dataclass(frozen=True)
class RecordingSettings:
    """Everything that determines what a run on recordings computes. A checkpoint holds them.

    ``data`` is the path of the recordings, or ``"vibration"``, of which there are ``num_signals``. A ``step`` of None
    is half a window, see `read_recordings` for the other fields of that kind. ``epochs`` and ``batch_size`` of 0 depend
    on the number of windows, see `sized`.
    """

    data: str
    network: str = "drsn"
    thresholds: str = "channel-wise"
    blocks: int = 6
    widths: tuple[int, ...] = (8, 16, 32)
    stem_width: int = 3
    stem_stride: int = 2
    norm: Norm = "batch"
    reduction: int = 1
    rule: Rule = "soft"
    pooling: Pooling = "avg"
    dropout: float = 0.0
    epochs: int = 0
    batch_size: int = 0
    lr: float = 0.05
    schedule: Schedule = "cosine"
    patience: int | None = None
    class_weights: ClassWeights = "balanced"
    amp: Precision | None = None
    seed: int = 0
    points: int = 2048
    step: int | None = None
    normalise: Normalise = "standard"
    pad: bool = False
    split: Split | None = None
    test_share: float = 0.25
    validation_share: float = 0.2
    snr: float | None = None
    noise_kind: Kind = "gaussian"
    fresh_noise: bool = False
    num_signals: int = 1440
    classes: tuple[str, ...] = ()
    loads: tuple[int, ...] = ()
    variable: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    layout: str = "auto"
    delimiter: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    sampling_rate: float | None = None
    resample: bool = False

    @property
    def name(self) -> str:
        """That of the folder."""
        return Path(self.data).name or "recordings"

    def sized(self, windows: int) -> RecordingSettings:
        """The settings with the batch size and the epochs, where they are 0, for this many windows to train on.

        A batch has a 32nd of them, at least 16 and at most 64. The epochs are 20, or as many as make 1200 steps, at
        most 200: a network that sees few windows needs as many steps as any other.
        """
        batch_size = self.batch_size or min(max(windows // 32, 16), 64)
        epochs = self.epochs or min(max(math.ceil(1200 / max(windows // batch_size, 1)), 20), 200)
        return replace(self, batch_size=batch_size, epochs=epochs)

    def load(self) -> Loaded:
        """Read or simulate the recordings, and add the noise.

        Raises:
            InputError: they cannot be used so.
        """
        try:
            found = self.simulated() if self.data == SIMULATED else self.read()
            trained_on = (*checksums(found.train), *checksums(found.validation))
            found = found if self.snr is None else self.noisy(found)
        except ValueError as error:
            raise as_input_error(error) from error
        return Loaded(found, trained_on)

    def read(self) -> Recordings:
        """The recordings of a folder."""
        asked = {name: getattr(self, name) for name in (*FLAGS, "points", "validation_share", "seed")}
        return read_recordings(self.data, **{**asked, "step": self.step or max(self.points // 2, 1)})

    def simulated(self) -> Recordings:
        """Recordings of the simulated machine, of one window each."""
        least = len(CLASSES) * (3 if self.validation_share else 2)
        if self.num_signals < least:
            raise InputError(
                f"--num-signals {self.num_signals}: expected at least {least}, one of each class for each split"
            )
        made = vibration(self.num_signals, points=self.points, rate=SIMULATED_RATE)
        cutting = Cutting(self.points, None, self.normalise)
        files = tuple(Path(SIMULATED, str(i)) for i in range(self.num_signals))
        windows = [cutting.windows(path, x[0].numpy()) for path, x in zip(files, made.x, strict=True)]
        start = np.zeros(1, np.int64)
        recordings = [
            Recording(str(path), label, None, start)
            for path, label in zip(files, made.labels.tolist(), strict=True)
        ]
        splitting = Splitting("recording", self.test_share, self.validation_share, self.seed, self.points)
        how, shares = splitting.shares(SIMULATED, recordings, CLASSES)
        train, validation, test = (join(shares[part], windows, recordings) for part in PARTS)
        reading = Reading(FileOptions(), cutting, SIMULATED_RATE)
        return Recordings(train, validation, test, CLASSES, files, reading, (), how)

    def noisy(self, found: Recordings) -> Recordings:
        """The recordings with noise at the ratio of the settings, drawn once for each window.

        With ``fresh_noise`` the windows to train on stay clean, for the noise of `renoised`; the other parts have the
        same noise either way.
        """
        generator = torch.Generator().manual_seed(self.seed)
        noisy: dict[str, Any] = {}
        for part, windows in parts_of(found).items():
            require_power(windows, found.files)
            x = add_noise(windows.x, cast(float, self.snr), self.noise_kind, generator=generator)
            if part != "train" or not self.fresh_noise:
                noisy[part] = windows._replace(x=x)
        return found._replace(**noisy)

    def renoised(self, x: Tensor) -> Tensor:
        """A batch of windows with new noise, from PyTorch's default CPU generator, whose state a checkpoint keeps."""
        return add_noise(x, cast(float, self.snr), self.noise_kind)

    def arguments(self, found: Recordings) -> dict[str, Any]:
        """The network's arguments, plain values."""
        wanted: dict[str, Any] = {
            "in_channels": found.train.x.shape[1],
            "num_classes": len(found.classes),
            **{name: getattr(self, name) for name in NETWORK_FLAGS},
            "thresholds": None if self.thresholds == "none" else self.thresholds,
            "widths": list(self.widths),
            "points": self.points,
        }
        taken = arguments_of(self.network)
        return {name: value for name, value in wanted.items() if name in taken}

    def plan(self, data: Loaded, device: torch.device) -> Plan:
        """SGD with momentum 0.9 on the windows, with the network's L2 term or, where it has none, weight decay."""
        found, arguments = data.recordings, self.arguments(data.recordings)
        if len(found.train.labels) < 2:
            raise InputError(f"{self.data}: has one window to train on, expected two or more")
        try:
            network = build(self.network, arguments).to(device)
        except ValueError as error:
            raise as_input_error(error) from error
        samples = {part: Samples(windows.x, windows.labels) for part, windows in parts_of(found).items()}
        # the test split is for the report alone
        splits = {
            part: Samples(*(t.to(device) for t in own)) for part, own in samples.items() if part != "test"
        }
        if self.patience and "validation" not in splits:
            raise InputError(
                f"--patience {self.patience}: expected a validation part, which --validation-share gives"
            )
        weights = (
            balanced(found.train.labels, len(found.classes)) if self.class_weights == "balanced" else None
        )
        named = self.describe_network(arguments)
        return Plan(
            network,
            optimiser(network, self.lr),
            splits=splits,
            fingerprint=fingerprint(samples.values()),
            learning_rate=self.learning_rate,
            data=self.describe(found),
            what=f"{named}: {size(network)}",
            title=f"{self.name}: {named}, seed {self.seed}",
            how=self.describe_training(),
            augment=self.renoised if self.fresh_noise else None,
            weights=None if weights is None else weights.to(splits["train"].x),
            precision=self.amp,
            running=True,
            keeps_best=True,
            patience=self.patience,
        )

    def describe_network(self, arguments: Mapping[str, Any]) -> str:
        """The network by name, with its thresholds and what else is not as usual, but for its size."""
        named = [
            f", {name.replace('_', ' ')} {as_flag(getattr(self, name))}"
            for name in NETWORK_FLAGS
            if name in arguments
            and (name == "thresholds" or getattr(self, name) != getattr(RecordingSettings, name))
            and name not in ("blocks", "widths")
        ]
        return "".join([self.network, *named])

    def describe_training(self) -> str:
        """What else there is to say of the training."""
        weights = "" if self.class_weights == "none" else f", {self.class_weights} class weights"
        return f" ({self.schedule}){weights}{f', {self.amp}' if self.amp else ''}"

    def learning_rate(self, step: int, steps: int) -> float:
        """The rate of a step, counted from 0, of ``steps``.

        ``"step"`` divides it by 10 after two and after four fifths of them, as the paper does; ``"cosine"`` lowers it
        along half a period to 0.
        """
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * step / steps)) / 2
        passed = (5 * step >= 2 * steps) + (5 * step >= 4 * steps)
        return self.lr * 0.1**passed

    def describe(self, found: Recordings) -> str:
        """What is trained on, in a line."""
        known = found.reading.sampling_rate
        rate = " at a rate that no file says (--sampling-rate)" if known is None else f" at {known:g} Hz"
        counts = ", ".join(f"{len(windows.labels)} {part}" for part, windows in parts_of(found).items())
        noise = "" if self.snr is None else f", {self.noise_kind} noise at {as_flag(self.snr)} dB"
        anew = ", of the training windows anew in every epoch" if self.fresh_noise else ""
        return (
            f"{self.data}: {counted(len(found.files), 'recording')} of {len(found.classes)} classes"
            f"{at_loads(self.loads)}, in windows of {self.points} points{rate}, split by {found.split}: "
            f"{counts}{noise}{anew}"
        )


def parts_of(found: Recordings) -> dict[str, Windows]:
    """The splits that have windows."""
    parts = {"train": found.train, "validation": found.validation, "test": found.test}
    return {part: windows for part, windows in parts.items() if len(windows.labels)}


def optimiser(network: nn.Module, lr: float) -> torch.optim.SGD:
    """Gradient descent with momentum 0.9."""
    decay = 0.0 if isinstance(network, REGULARISED) else WEIGHT_DECAY
    return torch.optim.SGD(network.parameters(), lr, momentum=0.9, weight_decay=decay)


def balanced(labels: Tensor, classes: int) -> Tensor:
    """Weights by which every class has the same share of the loss: N / (classes * count), or 0 without samples."""
    counts = labels.bincount(minlength=classes)
    weights = len(labels) / (classes * counts.clamp(min=1))
    return torch.where(counts > 0, weights, 0.0)
