"""Reads recordings into windows of a training, a validation and a test split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..arguments import InputError, counted, require_choice
from .copies import Seen
from .cwru_files import CWRU_LOADS, require_record
from .places import Found, Source, chosen, find, require_both_parts
from .rates import brought_to, common_rate, is_one
from .signals import FileOptions, Signal, read_signal
from .splits import PARTS, Recording, Share, Split, Splitting
from .windows import Array, Cutting, Normalise, pieces_of, require_real


class Windows(NamedTuple):
    """Windows, (N, channels, points) of float32; for each, (N,) of int64, its class and the index of its recording."""

    x: Tensor
    labels: Tensor
    recording: Tensor


@dataclass(frozen=True)
class Reading:
    """Everything that turns a file into windows.

    Args:
        options: how files are read.
        cutting: how their values are cut.
        sampling_rate: of the windows, Hz. A file that says none has it; None is unknown, and takes these files alone.
        resample: whether a file of another rate is resampled. Else it is refused, but for CWRU's records of 48 kHz.
        unsaid_rate: of files that say none, Hz; None for that of the windows.
        channels: the names of the windows' channels in the files that were read first. Another file may have others.
    """

    options: FileOptions
    cutting: Cutting
    sampling_rate: float | None = None
    resample: bool = False
    unsaid_rate: float | None = None
    channels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.sampling_rate is not None:
            require_rate("sampling_rate", self.sampling_rate)

    def windows(self, path: Path) -> Array:
        """The windows of a file, (windows, channels, points). Raises InputError where it cannot be used."""
        return self.cutting.windows(path, self.values(path, read_signal(path, self.options)))

    def values(self, path: Path, signal: Signal) -> npt.NDArray[Any]:
        """The values of a signal at the rate of the windows."""
        if signal.rate is None:
            signal = signal._replace(rate=self.unsaid_rate)
        return brought_to(path, signal, self.sampling_rate, self.resample)

    def cut(self, values: npt.ArrayLike, rate: float | None = None, source: str = "x") -> Array:
        """The windows of an array that is one recording.

        Args:
            values: (points,) or (points, channels). (channels, points) with the layout ``"channels-first"``, and where
                it has fewer rows than columns. (windows, points) or (windows, points, channels) with ``"windows"``.
            rate: Hz; None for that of the windows.
            source: what messages call the array.

        Raises:
            ValueError: the array cannot be used, or not at this rate.
        """
        array, name, layout = np.asarray(values), Path(source), self.options.layout
        axes, shape = (2, 3), "(windows, points) or (windows, points, channels)"
        if layout != "windows":
            axes, shape = (1, 2), "(points,) or (points, channels)"
        if array.ndim not in axes or 0 in array.shape:
            raise ValueError(f"{source}: has shape {array.shape}, expected {shape}")
        if array.ndim == axes[0]:
            array = array[..., None]
        elif layout == "channels-first" or (layout == "auto" and array.shape[0] < array.shape[1]):
            array = array.T
        if rate is not None:
            require_rate("rate", rate)
            if self.sampling_rate and not self.resample and not is_one(rate, self.sampling_rate):
                raise ValueError(
                    f"rate: got {rate:g} Hz, expected {self.sampling_rate:g}; a reading with resample=True resamples"
                )
        try:
            require_real(name, array)
            held = self.values(name, Signal(array, (), rate, None))
            if held.shape[-2] < self.cutting.points and not self.cutting.pad:
                raise ValueError(
                    f"{source}: has {held.shape[-2]} points, expected at least the {self.cutting.points} of a window; "
                    "a cutting with pad=True fills it up"
                )
            return self.cutting.windows(name, held)
        except InputError as error:
            # what helps is said in flags of the command line
            raise ValueError(str(error).partition("; --")[0]) from error

    def plain(self) -> dict[str, Any]:
        """The same as plain values, which ``torch.load(weights_only=True)`` reads."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Reading:
        """The reading of these plain values."""
        parts = {"options": FileOptions(**plain["options"]), "cutting": Cutting(**plain["cutting"])}
        return cls(**{**plain, **parts})


class Recordings(NamedTuple):
    """Three splits, of which windows share no points, and what they are of.

    ``reading`` has the rate and the channels that were found out, ``split`` is how the parts came about.
    ``passed_over`` are the files that are no recordings, ``copies`` pairs of series in different parts with the same
    values.
    """

    train: Windows
    validation: Windows
    test: Windows
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    reading: Reading
    passed_over: tuple[Path, ...]
    split: Split = "recording"
    copies: tuple[tuple[Path, Path], ...] = ()


def read_recordings(
    place: str | Path,
    *,
    classes: str | Sequence[str] = (),
    loads: int | Sequence[int] = (),
    variable: str | Sequence[str] = (),
    channels: str | int | Sequence[str | int] = (),
    layout: str = "auto",
    delimiter: str | None = None,
    decimal: str | None = None,
    encoding: str | None = None,
    sampling_rate: float | None = None,
    resample: bool = False,
    points: int = 2048,
    step: int | None = None,
    normalise: Normalise = "standard",
    pad: bool = False,
    split: Split | None = None,
    test_share: float = 0.25,
    validation_share: float = 0.0,
    seed: int = 0,
) -> Recordings:
    """Read the recordings of a place, and cut them into windows of three splits.

    Args:
        place: a folder that holds, for each class, a folder of its name, in which the files may lie deeper; or a folder
            of the bearing data of Case Western Reserve University (CWRU), files under their published numbers or names,
            which tell their classes; or a folder of folders ``train`` and ``test``, perhaps ``validation`` too, each of
            which is one of these. Each file is a recording. Or a folder of UCR's tables ``NAME_TRAIN.tsv`` and
            ``NAME_TEST.tsv`` (or .txt or .csv), or one such table: each line is a label and a recording, whose name is
            ``FILE:LINE``.
        classes: the names of those to read; none for all. Files of others are not opened.
        loads: of the motor, in horsepower, 0 to 3, of CWRU's files under their published numbers or names in one
            folder: recordings at these alone are read; none for all.
        variable: of files that hold several, a name or a pattern, or several, of which the first found is read.
        channels: the names, or the numbers from 0, of the channels to read; none where there is one.
        layout: which side of an array counts the points, see `FileOptions`.
        delimiter: between the columns of text files; None finds it out, as for the next two.
        decimal: ``"."`` or ``","``.
        encoding: of text files.
        sampling_rate: of the windows, Hz; a file that says none has it. None takes the rate that the files say.
        resample: bring files that say other rates to it, or to the lowest of all.
        points: of a window. With the layout ``"windows"`` each window of a file is
            cut by itself: one of ``points`` points is taken as it is, a longer one gives several.
        step: points from one window to the next; None for windows side by side.
        normalise: what is made of each channel of a window, see `Cutting`.
        pad: fill up a recording that is shorter than a window, see `Cutting`.
        split: ``"recording"`` tests on whole recordings, ``"time"`` on the last part of each, ``"given"`` on those of
            the folder ``test``, or of files that are named after it, as ``test_1.csv`` and ``1_TEST.csv``. None is
            ``"given"`` where every file says its part, and ``"recording"`` elsewhere.
        test_share: ``"recording"``: share of the recordings of each class that are tested on, at least one, and never
            all. ``"time"``: share of the windows of each recording, at least one.
        validation_share: the same share of what is not tested on; 0 for no validation. With ``"recording"`` and
            ``"given"``, a class with one recording to train on gives the last part of that one, if it is long enough. A
            folder ``validation`` is taken whole instead.
        seed: of the choice of recordings. That of the test does not depend on ``validation_share``.

    Windows of one recording resemble each other so much that a network which was trained on some of them knows the
    others: ``"time"`` and windows of a class with one recording show less than whole recordings do. Between two parts
    of a recording, a gap of at least a window is left out, so that parts have no points in common.

    For the same reason, a recording that is there twice is refused, also in another format or precision: within the
    windows that both have, they differ by at most a thousandth of the range. Of the many short series of a table some
    are the same by chance, in published data too; those in different parts are in ``copies``.

    The baseline of CWRU, records 97 to 100, is recorded at 48 kHz, the faults mostly at 12 kHz (W. A. Smith and R. B.
    Randall, Mech. Syst. Signal Process. 64-65, 2015, 100-131). Records that are known by their number are brought to
    the lowest rate unasked: otherwise the rate itself would tell them apart. The filter, which falls from 5.2 kHz on
    and reaches -6 dB at 6 kHz, may still do so. The four loads of one published class are recordings of the same
    bearing: a test on them does not show what a network makes of a bearing that it has not seen.

    Files of other endings than `SUFFIXES`, and notes (README, LICENSE and the like; .txt and .xlsx beside recordings of
    another ending, if it is one, or fewer than these, or named as these are) are passed over, and hidden files
    are not looked at.

    Returns:
        `Recordings`, the same for the same files and arguments.

    Raises:
        ValueError: a bad argument.
        InputError: nothing to read, one class alone, or a class with one recording; a file that cannot be read, is
            shorter than a window, or than its parts with the split ``"time"``, has other channels or another rate than
            the others, or whose values are not finite in float32 or lose their differences there; a recording that is
            there twice; a class or load to choose that there is none of, or loads of other recordings.
        ImportError: a package is missing that reads such files, which the extra ``files`` brings.
    """
    classes, loads = names("classes", classes), numbers(loads)
    splitting = Splitting(split, test_share, validation_share, seed, points)
    splitting.check()
    chosen_names = names("variable", variable), names("channels", channels)
    options = FileOptions(*chosen_names, layout, delimiter, decimal, encoding)
    reading = Reading(options, Cutting(points, step, normalise, pad), sampling_rate, resample)
    every = find(Path(place), options)
    found = chosen(every, place, classes, loads)
    if split is None:
        require_both_parts(every, found, place)
    if found.sources[0].line is not None and (options.variable or options.channels or layout != "auto"):
        raise InputError(
            f"{found.sources[0].path}: a table, whose lines are recordings of one channel; expected no --variable, "
            "--channels or --layout"
        )
    if len(found.classes) < 2:
        several = "--classes or --loads of several" if classes or loads else "a folder for each of several"
        raise InputError(f"{place}: holds one class, {found.classes[0]!r}; expected {several}")
    paths = tuple(source.name for source in found.sources)
    signals = read_all(found.sources, options)
    rate = common_rate(paths, signals, sampling_rate, resample)
    reading = replace(reading, sampling_rate=rate, channels=channels_of(signals))
    windows, recordings = cut_all(found, paths, signals, reading)
    how, shares = splitting.shares(str(place), recordings, found.classes)
    copies = copies_of(found.sources, windows, shares)
    train, validation, test = (join(shares[part], windows, recordings) for part in PARTS)
    return Recordings(train, validation, test, found.classes, paths, reading, found.passed_over, how, copies)


class Labelled(NamedTuple):
    """The windows of recordings of known classes, their files, and the files that are no recordings."""

    windows: Windows
    files: tuple[Path, ...]
    passed_over: tuple[Path, ...]


def read_labelled(
    place: str | Path,
    reading: Reading,
    classes: Sequence[str],
    channels: int,
    *,
    only: Sequence[str] = (),
    loads: Sequence[int] = (),
) -> Labelled:
    """Read the recordings of a place as ``reading`` says.

    Args:
        place: as for `read_recordings`; one class is enough.
        reading: that of a model.
        classes: those that there may be.
        channels: the number that each recording must have.
        only: the classes to read, ``classes`` of `read_recordings`.
        loads: as for `read_recordings`.

    Raises:
        InputError: as `read_recordings`, or a recording of another class or number of channels.
    """
    found = chosen(find(Path(place), reading.options), place, only, loads)
    for source in found.sources:
        if source.label not in classes:
            raise InputError(
                f"{source.name}: is of class {source.label!r}, as its name, folder or label says; expected one of "
                f"{', '.join(map(repr, classes))}; --classes leaves others out"
            )
    found = found._replace(classes=tuple(classes))
    paths = tuple(source.name for source in found.sources)
    windows, recordings = cut_all(found, paths, read_all(found.sources, reading.options), reading)
    for path, own in zip(paths, windows, strict=True):
        require_channels(path, own, channels)
    shares = [Share(i, slice(0, len(recording.starts))) for i, recording in enumerate(recordings)]
    return Labelled(join(shares, windows, recordings), paths, found.passed_over)


def require_channels(path: Path, windows: Array, expected: int) -> None:
    """Raise InputError unless the windows of a file have as many channels as a model takes."""
    if windows.shape[1] != expected:
        raise InputError(
            f"{path}: has {counted(windows.shape[1], 'channel')}, the model takes {expected}; --channels chooses them"
        )


def require_power(windows: Windows, files: Sequence[Path]) -> None:
    """Raise InputError where a window is constant: noise has no ratio to it."""
    flat = constant(windows.x)
    if flat.any():
        raise InputError(
            f"{files[int(windows.recording[flat][0])]}: has a window of {windows.x.shape[-1]} points that are all the "
            "same, to which noise has no ratio; expected recordings without such a part, or longer windows"
        )


def require_rate(name: str, rate: object) -> None:
    """Raise ValueError unless ``rate`` is one in Hz."""
    if not (isinstance(rate, int | float | np.integer | np.floating) and 0 < rate < math.inf):
        raise ValueError(f"{name}: got {rate!r}, expected a positive number of Hz, or None")


def constant(x: Tensor) -> Tensor:
    """Which of the windows, (N, channels, points), are constant in every channel, (N,)."""
    return (x == x[..., :1]).flatten(1).all(1)


def names(argument: str, given: str | int | Sequence[str | int]) -> tuple[str, ...]:
    """Several names, or one; numbers in digits. ValueError, which names the argument, where one is neither."""
    return tuple(str(one) for one in several(argument, given, (str, int, np.integer), "a name, or several"))


def numbers(loads: int | Sequence[int]) -> tuple[int, ...]:
    """Several loads, or one; ValueError where one is none of `CWRU_LOADS`."""
    given = several("loads", loads, (int, np.integer), "0, 1, 2 or 3, or several")
    for load in given:
        require_choice("loads", load, CWRU_LOADS)
    return tuple(int(load) for load in given)


def several(argument: str, given: Any, kinds: tuple[type, ...], expected: str) -> tuple[Any, ...]:
    """What is given, or the one thing; ValueError unless all are of these kinds."""
    alone = isinstance(given, str | bytes) or not isinstance(given, Iterable)
    found = (given,) if alone else tuple(given)
    # True is an integer
    if not all(isinstance(one, kinds) and not isinstance(one, bool) for one in found):
        raise ValueError(f"{argument}: got {given!r}, expected {expected}")
    return found


def channels_of(signals: Sequence[Signal]) -> tuple[str, ...]:
    """What these signals call their channels: numbers where they differ."""
    first = signals[0].channels
    same = all(signal.channels == first for signal in signals)
    return first if same else tuple(map(str, range(len(first))))


def read_all(sources: Sequence[Source], options: FileOptions) -> list[Signal]:
    """Read every file; a published record in two files, or one of another name, is refused."""
    signals = []
    records: dict[int, Path] = {}
    for source in sources:
        if source.values is not None:
            signals.append(Signal(source.values[:, None], ("0",), None, None))
            continue
        signal = read_signal(source.path, options)
        if source.published:
            require_record(source.path, signal.record)
        if signal.record is not None and records.setdefault(signal.record, source.path) != source.path:
            raise InputError(
                f"{source.path}: holds record {signal.record}, as does {records[signal.record]}; "
                "expected each recording once"
            )
        signals.append(signal)
    return signals


def cut_all(
    found: Found, paths: Sequence[Path], signals: list[Signal], reading: Reading
) -> tuple[list[Array], list[Recording]]:
    """The windows of every signal. Each signal is let go as soon as it is cut."""
    values = [reading.values(path, signal) for path, signal in zip(paths, signals, strict=True)]
    signals.clear()
    lengths = [pieces_of(held).shape[1] for held in values]
    shortest = lengths.index(min(lengths))
    cutting = reading.cutting
    if lengths[shortest] < cutting.points and not cutting.pad:
        raise InputError(
            f"{paths[shortest]}: has {lengths[shortest]} points, fewer than a window of {cutting.points} "
            f"has; --points {lengths[shortest]} or less fits all files, and --pad fills short ones up"
        )
    windows, recordings = [], []
    for i, (path, source) in enumerate(zip(paths, found.sources, strict=True)):
        windows.append(cutting.windows(path, values[i]))
        starts = cutting.starts(values[i])
        recordings.append(Recording(str(path), found.classes.index(source.label), source.part, starts))
        values[i] = np.empty(0)
    return windows, recordings


def copies_of(
    sources: Sequence[Source], windows: Sequence[Array], shares: Mapping[Any, list[Share]]
) -> tuple[tuple[Path, Path], ...]:
    """Lines of tables with the same values, but for those in one part; InputError where a file is there twice."""
    parts: dict[int, set[Any]] = {}
    for part, held in shares.items():
        for share in held:
            parts.setdefault(share.recording, set()).add(part)
    found, seen = [], Seen()
    for i, source in enumerate(sources):
        for copied in seen.add(windows[i]):
            if source.line is None:
                raise InputError(
                    f"{source.name}: holds the values of {sources[copied].name}; expected each recording "
                    "once: remove one of them"
                )
            if len(parts[i] | parts[copied]) > 1:
                found.append((sources[copied].name, source.name))
                break
    return tuple(found)


def join(shares: Sequence[Share], windows: Sequence[Array], recordings: Sequence[Recording]) -> Windows:
    """One part from the windows of each of its recordings."""
    held = [windows[i][part] for i, part in shares]
    counts = torch.tensor([len(part) for part in held], dtype=torch.int64, device="cpu")
    labels = torch.tensor([recordings[i].label for i, _ in shares], dtype=torch.int64, device="cpu")
    indices = torch.tensor([i for i, _ in shares], dtype=torch.int64, device="cpu")
    x = np.concatenate(held) if held else windows[0][:0].copy()
    return Windows(torch.from_numpy(x), labels.repeat_interleave(counts), indices.repeat_interleave(counts))
