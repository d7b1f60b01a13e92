"""Decides which windows of which recordings are trained on, validated on and tested on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from ..arguments import InputError, counted, require_choice, require_seed

Split = Literal["recording", "time", "given"]
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)


class Recording(NamedTuple):
    """What a split depends on: the name of a recording, the index of its class, its part if one is given, its windows.

    ``starts`` are the first points of these.
    """

    name: str
    label: int
    given: Part | None
    starts: npt.NDArray[np.int64]


class Share(NamedTuple):
    """The windows of a recording that a part has: the index of the recording, and a slice of its windows."""

    recording: int
    windows: slice


Shares = dict[Part, list[Share]]


class Splitting(NamedTuple):
    """How recordings are split, see `read_recordings`. Between two parts of one is a gap of a window, ``points``."""

    how: Split | None
    test_share: float
    validation_share: float
    seed: int
    points: int

    def check(self) -> None:
        """Raise ValueError where an argument is bad."""
        if self.how is not None:
            require_choice("split", self.how, get_args(Split))
        if not 0 < self.test_share < 1:
            raise ValueError(f"test_share: got {self.test_share!r}, expected a number between 0 and 1")
        if not 0 <= self.validation_share < 1:
            raise ValueError(
                f"validation_share: got {self.validation_share!r}, expected 0 or a number between 0 and 1"
            )
        require_seed(self.seed)

    def shares(
        self, place: str, recordings: Sequence[Recording], classes: Sequence[str]
    ) -> tuple[Split, Shares]:
        """How the recordings are split, and the windows of each part, in the order of the recordings.

        Raises:
            InputError: recordings that cannot be split so.
        """
        given = is_given(recordings)
        how: Split = self.how or ("given" if given else "recording")
        if how == "given" and not given:
            raise InputError(f"{place}: {missing(recordings)}; expected train and test for --split given")
        if how == "time":
            shares = self.by_time(recordings)
        else:
            tested = (
                [i for i, recording in enumerate(recordings) if recording.given == "test"]
                if how == "given"
                else self.chosen(place, recordings, classes)
            )
            shares = self.by_recording(recordings, tested, classes, how == "given")
        if self.validation_share and not shares["validation"]:
            raise InputError(
                f"{place}: no training recording is long enough to give a part to validation; expected shorter windows "
                "(--points), more recordings, or --validation-share 0"
            )
        used = {part: {recordings[i].label for i, _ in held} for part, held in shares.items()}
        untrained = (used["validation"] | used["test"]) - used["train"]
        if untrained:
            raise InputError(f"{place}: class {classes[min(untrained)]!r} has no recording to train on")
        return how, shares

    def chosen(self, place: str, recordings: Sequence[Recording], classes: Sequence[str]) -> list[int]:
        """The recordings to test on: a share of each class's."""
        tested: list[int] = []
        for label, name in enumerate(classes):
            members = self.shuffled(recordings, label)
            if len(members) < 2:
                raise InputError(
                    f"{place}: class {name!r} has one recording, expected one to train on and one to test; "
                    "--split time divides each recording"
                )
            tested += members[: part_of(len(members), self.test_share)]
        return tested

    def shuffled(self, recordings: Sequence[Recording], label: int) -> list[int]:
        """The recordings of a class, in an order of its own."""
        members = [i for i, recording in enumerate(recordings) if recording.label == label]
        order: list[int] = np.random.default_rng((self.seed, label)).permutation(members).tolist()
        return order

    def by_recording(
        self, recordings: Sequence[Recording], tested: list[int], classes: Sequence[str], given: bool
    ) -> Shares:
        """These whole recordings for the test, and of the others some for validation."""
        parts: dict[int, Part] = {i: "test" for i in tested}
        halved: set[int] = set()
        if given:
            parts |= {i: "validation" for i, r in enumerate(recordings) if r.given == "validation"}
        if self.validation_share and "validation" not in parts.values():
            for label in range(len(classes)):
                rest = [i for i in self.shuffled(recordings, label) if i not in parts]
                if len(rest) == 1:
                    halved.add(rest[0])
                elif rest:
                    parts |= {i: "validation" for i in rest[: part_of(len(rest), self.validation_share)]}
        shares: Shares = {part: [] for part in PARTS}
        for i, recording in enumerate(recordings):
            whole = slice(0, len(recording.starts))
            head, tail = self.cut(recording.starts, self.validation_share) if i in halved else (whole, None)
            if tail is None or head.stop == 0:
                shares[parts.get(i, "train")].append(Share(i, whole))
            else:
                shares["train"].append(Share(i, head))
                shares["validation"].append(Share(i, tail))
        return shares

    def by_time(self, recordings: Sequence[Recording]) -> Shares:
        """The last part of each recording for the test, and of what is before it the last part for validation."""
        shares: Shares = {part: [] for part in PARTS}
        for i, recording in enumerate(recordings):
            starts = recording.starts
            head, tail = self.cut(starts, self.test_share)
            shares["test"].append(Share(i, tail))
            if self.validation_share and head.stop:
                head, tail = self.cut(starts[head], self.validation_share)
                shares["validation"].append(Share(i, tail))
            if head.stop == 0:
                parts = "three parts and two gaps" if self.validation_share else "two parts and a gap"
                count = f"{counted(len(starts), 'window')} of {self.points} points"
                raise InputError(
                    f"{recording.name}: has {count}, too few for {parts} of a window; expected shorter windows "
                    "(--points), or --split recording"
                )
            shares["train"].append(Share(i, head))
        return shares

    def cut(self, starts: npt.NDArray[np.int64], share: float) -> tuple[slice, slice]:
        """The last ``share`` of these windows, at least one; before it, those that end a window or more earlier."""
        count = max(round(share * len(starts)), 1)
        head = np.searchsorted(starts, starts[-count] - 2 * self.points, side="right")
        return slice(0, int(head)), slice(len(starts) - count, len(starts))


def part_of(count: int, share: float) -> int:
    """A share of ``count`` recordings: at least one, and never all."""
    return min(max(round(share * count), 1), count - 1)


def is_given(recordings: Sequence[Recording]) -> bool:
    """Whether each recording says its part, and there are some to train on and some to test."""
    found = {recording.given for recording in recordings}
    return None not in found and {"train", "test"} <= found


def missing(recordings: Sequence[Recording]) -> str:
    """Why the recordings are not given a split, in words."""
    for recording in recordings:
        if recording.given is None:
            return f"{recording.name} is in neither a folder nor a file that is named after a part"
    return "holds recordings of " + " and ".join(sorted({str(recording.given) for recording in recordings}))
