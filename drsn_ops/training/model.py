"""A trained network with all that is needed to use it: its classes, and how a file becomes the windows it takes."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..arguments import InputError, counted, first_line
from ..data.recordings import Reading, Windows, constant, require_channels
from ..files import save_tensors
from ..ops.library import build_info
from .ahead import read_ahead
from .networks import evaluation_batch, rebuild
from .storage import MODEL, read_saved

Array = npt.NDArray[np.float32]


class Prediction(NamedTuple):
    """What a model makes of a recording.

    ``label`` is the class that most windows vote for; among classes with as many votes, that of the highest mean
    probability. ``probability`` is the mean of this class's over the windows, ``share`` the share of the windows that
    voted for it. ``probabilities``, (windows, classes), has them all.
    """

    label: str
    probability: float
    share: float
    probabilities: Tensor


def vote(probabilities: Tensor) -> tuple[int, float, float]:
    """The index of the class of a recording, its mean probability and its share of votes; see `Prediction`."""
    mean = probabilities.mean(0)
    votes = probabilities.argmax(1).bincount(minlength=len(mean))
    label = int(mean.where(votes == votes.max(), -torch.inf).argmax())
    return label, mean[label].item(), votes[label].item() / len(probabilities)


@dataclass
class Model:
    """A trained network and how to use it.

    Args:
        network: takes windows, (N, channels, points), and returns logits, (N, classes).
        name: that of the function in `models` which built it.
        arguments: its arguments, plain values.
        classes: the names of the classes, in the order of the logits.
        reading: how a recording becomes windows.
        trained_on: the `checksums` of the recordings that it was trained and validated on.
        snr: of the windows that it was trained on, in dB, where noise was added to them.
        noise_kind: the kind of this noise.
        version: of drsn_ops when it was trained.
    """

    network: nn.Module
    name: str
    arguments: dict[str, Any]
    classes: tuple[str, ...]
    reading: Reading
    trained_on: tuple[int, ...] = ()
    snr: float | None = None
    noise_kind: str | None = None
    version: str = field(default_factory=lambda: str(build_info()["version"]))

    def save(self, path: str | Path) -> None:
        """Replace a file with this model; `load_model` reads it, and so does ``torch.load(weights_only=True)``."""
        values = {
            "format": MODEL.format,
            "network": self.name,
            "arguments": self.arguments,
            "state_dict": {name: value.cpu() for name, value in self.network.state_dict().items()},
            "classes": self.classes,
            "reading": self.reading.plain(),
            "trained_on": self.trained_on,
            "snr": self.snr,
            "noise_kind": self.noise_kind,
            "version": self.version,
        }
        save_tensors(values, Path(path))

    def probabilities(self, x: Tensor) -> Tensor:
        """The probability of each class, (N, classes) on the CPU, for windows x, (N, channels, points).

        The network is put into evaluation mode, and takes them in batches on its own device.
        """
        self.network.eval()
        device = next(self.network.parameters()).device
        batches = x.split(evaluation_batch(self.network, x))
        with torch.no_grad():
            return torch.cat([self.network(batch.to(device)).softmax(1).cpu() for batch in batches])

    def predict(self, values: npt.ArrayLike, *, rate: float | None = None) -> Prediction:
        """The class of one recording.

        Args:
            values: of the recording, as they were recorded: (points,), or (points, channels) with the model's channels,
                in its order.
            rate: in Hz; None takes that of the recordings which the model was trained on.

        Raises:
            ValueError: values that are no such recording, too short, or at another rate.
        """
        windows = self.reading.cut(values, rate)
        if windows.shape[1] != self.channels:
            raise ValueError(f"x: has {counted(windows.shape[1], 'channel')}, expected {self.channels}")
        return self._decide(self.probabilities(torch.from_numpy(windows)))

    def predict_files(
        self, paths: str | Path | Iterable[str | Path], *, jobs: int | None = None
    ) -> Iterator[tuple[Path, Prediction | InputError]]:
        """The class of each recording, in the order given; an InputError where a file cannot be used.

        Args:
            paths: of the files, or of one. What is read ahead and predicted together is bounded, however many
                there are.
            jobs: how many files are read at the same time; None for as many as there are processors.

        Raises:
            ValueError: a bad ``jobs``.
            ImportError: a package is missing that reads such files, which the extra ``files`` brings.
        """
        paths = [paths] if isinstance(paths, str | Path) else paths
        group: list[tuple[Path, Array | InputError]] = []
        waiting = 0
        for path, windows in read_ahead(self._windows, map(Path, paths), jobs):
            group.append((path, windows))
            if not isinstance(windows, InputError):
                waiting += len(windows)
                if waiting >= evaluation_batch(self.network, torch.from_numpy(windows)):
                    yield from self._decide_all(group)
                    group, waiting = [], 0
        yield from self._decide_all(group)

    def _windows(self, path: Path) -> Array:
        """The windows of a file, (windows, channels, points). Raises InputError where it cannot be used."""
        windows = self.reading.windows(path)
        require_channels(path, windows, self.channels)
        return windows

    @property
    def channels(self) -> int:
        """How many channels the network takes."""
        return int(self.arguments["in_channels"])

    def _decide(self, probabilities: Tensor) -> Prediction:
        """The prediction from those of a recording's windows."""
        label, probability, share = vote(probabilities)
        return Prediction(self.classes[label], probability, share, probabilities)

    def _decide_all(
        self, group: list[tuple[Path, Array | InputError]]
    ) -> Iterator[tuple[Path, Prediction | InputError]]:
        """The predictions of several recordings, whose windows go through the network together."""
        read = [windows for _, windows in group if not isinstance(windows, InputError)]
        if read:
            predicted = iter(
                self.probabilities(torch.from_numpy(np.concatenate(read))).split([*map(len, read)])
            )
        for path, windows in group:
            yield path, windows if isinstance(windows, InputError) else self._decide(next(predicted))


def load_model(path: str | PathLike[str], device: torch.device | str = "cpu") -> Model:
    """Read what `Model.save` wrote; see `drsn_ops.load_model`."""
    path = Path(path)
    values = read_saved(path, MODEL)
    try:
        model = Model(
            rebuild(values["network"], values["arguments"], values["state_dict"]),
            values["network"],
            values["arguments"],
            tuple(values["classes"]),
            Reading.of(values["reading"]),
            tuple(values["trained_on"]),
            values["snr"],
            values["noise_kind"],
            values["version"],
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: not a model of this version: {first_line(error)}") from error
    model.network.to(device).eval()
    return model


def cells_of(probabilities: Sequence[float], classes: Sequence[str]) -> list[str]:
    """The predicted class of a window and the probability of each class, for a table."""
    label = classes[probabilities.index(max(probabilities))]
    return [label, *(f"{share:.6f}" for share in probabilities)]


def checksums(windows: Windows) -> tuple[int, ...]:
    """A checksum of the first window of each recording, in the order of the windows.

    Windows that are constant do not count: all silent ones are alike.
    """
    first: dict[int, int] = {}
    silent = constant(windows.x).tolist()
    for i, recording in enumerate(windows.recording.tolist()):
        if not silent[i]:
            first.setdefault(recording, i)
    return tuple(zlib.crc32(windows.x[i].cpu().numpy().tobytes()) for i in first.values())
