"""Splits of recordings: by recording, in time and as given, with validation; no point is in two parts."""

from collections import Counter

import numpy as np
import pytest
import torch

from drsn_ops.arguments import InputError
from drsn_ops.data.recordings import read_recordings
from drsn_ops.data.splits import PARTS

POINTS = 10


def write(path, number, windows):
    """A recording of which every value says where it is: 100,000 times its number, and its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, 100_000.0 * number + np.arange(windows * POINTS))


@pytest.fixture
def folder(tmp_path):
    """Recordings of twenty windows: eight of class ``few``, of class ``many`` twenty-four."""
    for number in range(32):
        label, i = ("few", number) if number < 8 else ("many", number - 8)
        write(tmp_path / label / f"{i:02}.npy", number, 20)
    return tmp_path


def read(place, **options):
    return read_recordings(place, **{"points": POINTS, "normalise": "none", **options})


def parts_of(data):
    return {part: getattr(data, part) for part in PARTS}


def recordings_in(windows, label=None):
    held = windows.recording if label is None else windows.recording[windows.labels == label]
    return set(held.tolist())


def places_in(windows):
    """The places of the points in each recording that a part has."""
    found = {}
    for window, i in zip(windows.x[:, 0].tolist(), windows.recording.tolist(), strict=True):
        # the number of a recording is its index
        assert {int(value // 100_000) for value in window} == {i}
        found.setdefault(i, []).append([int(value % 100_000) for value in window])
    return found


def assert_apart(data, gap=POINTS):
    """No point is in two parts, and parts of one recording lie ``gap`` points apart."""
    places = {part: places_in(windows) for part, windows in parts_of(data).items()}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for i in set(places[first]) & set(places[second]):
            assert max(map(max, places[first][i])) + gap < min(map(min, places[second][i]))


@pytest.mark.parametrize(
    "validation, expected", [(0, (0, 0)), (0.1, (1, 2)), (0.25, (2, 4)), (0.99, (5, 17))]
)
def test_whole_recordings(folder, validation, expected):
    data = read(folder, validation_share=validation)
    assert data.split == "recording" and data.classes == ("few", "many")
    held = {part: recordings_in(windows) for part, windows in parts_of(data).items()}
    assert sum(map(len, held.values())) == 32 and set().union(*held.values()) == set(range(32))
    for label, (tested, validated) in enumerate(zip((2, 6), expected, strict=True)):
        assert len(recordings_in(data.test, label)) == tested
        assert len(recordings_in(data.validation, label)) == validated
    assert sum(len(windows.x) for windows in parts_of(data).values()) == 32 * 20
    # validation takes nothing from the test
    assert recordings_in(data.test) == recordings_in(read(folder).test)


def test_nothing_to_validate_on_is_empty_and_of_the_same_shape(folder):
    empty = read(folder).validation
    assert empty.x.shape == (0, 1, POINTS) and empty.x.dtype == torch.float32
    assert len(empty.labels) == len(empty.recording) == 0 and empty.labels.dtype == torch.int64


def test_the_seed_selects_those_to_validate_on(folder):
    chosen = [recordings_in(read(folder, validation_share=0.3, seed=seed).validation) for seed in range(5)]
    assert len(set(map(frozenset, chosen))) == 5
    assert chosen[3] == recordings_in(read(folder, validation_share=0.3, seed=3).validation)


def test_the_same_recordings_as_ever_are_tested(folder):
    """NumPy's permutation, seeded by the seed and the class: results that are compared have one test."""
    assert recordings_in(read(folder).test) == {
        *np.random.default_rng((0, 0)).permutation(8)[:2].tolist(),
        *(8 + np.random.default_rng((0, 1)).permutation(24)[:6]).tolist(),
    }


def test_one_recording_to_train_on_gives_its_last_part(tmp_path):
    for number in range(4):
        write(tmp_path / "ab"[number // 2] / f"{number}.npy", number, 20)
    data = read(tmp_path, validation_share=0.2)
    assert_apart(data)
    trained, validated = places_in(data.train), places_in(data.validation)
    assert set(trained) == set(validated) and len(trained) == 2
    for i, windows in validated.items():
        # four of twenty, and before them a gap of one
        assert [window[0] for window in windows] == [160, 170, 180, 190]
        assert [window[0] for window in trained[i]] == list(range(0, 150, 10))


def test_one_short_recording_to_train_on_stays_whole(tmp_path):
    for number, windows in enumerate((20, 20, 2, 2)):
        write(tmp_path / "ab"[number // 2] / f"{number}.npy", number, windows)
    data = read(tmp_path, validation_share=0.2)
    assert set(data.validation.labels.tolist()) == {0}
    assert Counter(data.train.labels.tolist())[1] == 2
    for name in ("a/0.npy", "a/1.npy"):
        (tmp_path / name).unlink()
    write(tmp_path / "a" / "0.npy", 0, 2)
    write(tmp_path / "a" / "1.npy", 1, 1)
    with pytest.raises(InputError, match="no training recording is long enough .* --validation-share 0"):
        read(tmp_path, validation_share=0.2)


@pytest.mark.parametrize("step, gap", [(None, 10), (3, 10), (25, 10)])
def test_in_time(folder, step, gap):
    data = read(folder, split="time", step=step, validation_share=0.25, test_share=0.2)
    assert data.split == "time"
    assert_apart(data, gap)
    for windows in parts_of(data).values():
        assert recordings_in(windows) == set(range(32))
    places = {part: places_in(windows)[5] for part, windows in parts_of(data).items()}
    # of 191 points that a window may begin at
    first = range(0, 191, step or POINTS)
    tested = round(0.2 * len(first))
    left = [at for at in first if at + 2 * POINTS <= first[-tested]]
    validated = round(0.25 * len(left))
    expected = {
        "test": list(first[-tested:]),
        "validation": left[-validated:],
        "train": [at for at in left if at + 2 * POINTS <= left[-validated]],
    }
    assert {part: [window[0] for window in held] for part, held in places.items()} == expected


def test_in_time_without_validation(folder):
    data = read(folder, split="time")
    places = places_in(data.train)[0], places_in(data.test)[0]
    # five of twenty, after a gap of one
    assert [window[0] for window in places[0]] == list(range(0, 140, 10))
    assert [window[0] for window in places[1]] == list(range(150, 200, 10))
    assert len(data.validation.x) == 0


def test_windows_in_time(folder):
    """Files that are windows already are split as the recording that was cut into them."""
    expected = read(folder, split="time", validation_share=0.2)
    for path in folder.rglob("*.npy"):
        np.save(path, np.load(path).reshape(-1, POINTS))
    found = read(folder, split="time", validation_share=0.2, layout="windows")
    for part in PARTS:
        assert all(map(torch.equal, getattr(found, part), getattr(expected, part)))


def test_in_time_of_classes_with_one_recording(tmp_path):
    for number, label in enumerate("abc"):
        write(tmp_path / label / "0.npy", number, 5)
    with pytest.raises(InputError, match="class 'a' has one recording, expected .*; --split time divides"):
        read(tmp_path)
    data = read(tmp_path, split="time", validation_share=0.2)
    assert [data.train.labels.tolist(), data.validation.labels.tolist()] == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    "windows, validation, parts",
    [
        (2, 0, "two parts and a gap"),
        (4, 0.1, "three parts and two gaps"),
        (1, 0.1, "three parts and two gaps"),
    ],
)
def test_too_short_for_parts_in_time(folder, windows, validation, parts):
    write(folder / "many" / "03.npy", 11, windows)
    message = (
        f"many/03.npy: has {windows} windows? of 10 points, too few for {parts} of a window; expected shorter"
    )
    with pytest.raises(InputError, match=message):
        read(folder, split="time", validation_share=validation)
    write(folder / "many" / "03.npy", 11, windows + 1 if windows > 1 else 5)
    read(folder, split="time", validation_share=validation)


@pytest.mark.parametrize("split", [None, "given"])
def test_given_folders(tmp_path, split):
    for number in range(12):
        part, label = ("train", "train", "test")[number // 4], "ab"[number % 2]
        write(tmp_path / part / label / f"{number}.npy", number, 3)
    order = [int(path.stem) for path in read(tmp_path, split=split).files]
    data = read(tmp_path, split=split, validation_share=0.3)
    assert data.split == "given"
    held = {part: {order[i] for i in set(w.recording.tolist())} for part, w in parts_of(data).items()}
    assert held["test"] == {8, 9, 10, 11}
    assert held["train"] | held["validation"] == set(range(8)) and not held["train"] & held["validation"]
    # one of four of each class
    assert {number % 2 for number in held["validation"]} == {0, 1} and len(held["validation"]) == 2
    # another way to split may be chosen
    assert len(set(read(tmp_path, split="recording", test_share=0.5).test.recording.tolist())) == 6


def test_a_given_validation_is_taken_whole(tmp_path):
    for number in range(12):
        part, label = ("train", "Validation", "test")[number // 4], "ab"[number % 2]
        write(tmp_path / part / label / f"{number}.npy", number, 3)
    for share in (0, 0.5):
        data = read(tmp_path, validation_share=share)
        assert {int(data.files[i].stem) for i in data.validation.recording.tolist()} == {4, 5, 6, 7}
        assert len(data.train.x) == 4 * 3


@pytest.mark.parametrize("name", ["{part}_{i}.npy", "{i}_{upper}.npy", "{part}/{i}.npy", "x/{upper}-{i}.npy"])
def test_parts_in_the_names_of_files(tmp_path, name):
    for number in range(12):
        part = "test" if number % 3 == 0 else "train"
        path = name.format(part=part, upper=part.upper(), i=number)
        write(tmp_path / "ab"[number % 2] / path, number, 3)
    data = read(tmp_path)
    assert data.split == "given"
    tested = {data.files[i].name for i in data.test.recording.tolist()}
    assert len(tested) == 4 and len(set(data.train.recording.tolist())) == 8
    numbers = {int(value // 100_000) for value in data.test.x.flatten().tolist()}
    assert numbers == {0, 3, 6, 9}


def test_names_that_only_look_like_parts(folder):
    """Measurements are called tests, and some words begin with these."""
    for path in sorted((folder / "few").iterdir()):
        path.rename(path.with_name(f"test_{path.name}"))
    for path in sorted((folder / "many").iterdir()):
        path.rename(path.with_name(f"trainer{path.name}"))
    assert read(folder).split == "recording"
    with pytest.raises(
        InputError, match="many/trainer00.npy is in neither a folder nor a file that is named after"
    ):
        read(folder, split="given")
    for i, path in enumerate(sorted((folder / "many").iterdir())):
        path.rename(path.with_name(f"train_{path.name}" if i else "idle.npy"))
    # one says no part
    assert read(folder).split == "recording"
    for path in sorted((folder / "many").iterdir()):
        path.rename(path.with_name(f"test_{path.name}"))
    assert read(folder).split == "recording"
    with pytest.raises(
        InputError, match="holds recordings of test; expected train and test for --split given"
    ):
        read(folder, split="given")


@pytest.mark.parametrize("alone", ["test", "validation"])
def test_a_class_that_is_tested_or_validated_on_alone(tmp_path, alone):
    for number in range(8):
        part, label = ("train", "test", "validation", alone)[number // 2], "abc"[number % 2 + number // 7]
        write(tmp_path / part / label / f"{number}.npy", number, 3)
    with pytest.raises(InputError, match="class 'c' has no recording to train on"):
        read(tmp_path)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_copy_in_another_given_part(tmp_path, part):
    for number in range(12):
        folder, label = ("train", "validation", "test")[number // 4], "ab"[number % 2]
        write(tmp_path / folder / label / f"{number}.npy", number, 3)
    write(tmp_path / part / "a" / "copy.npy", 8, 3)
    with pytest.raises(InputError, match="(copy|8).npy: holds the values of .*(copy|8).npy; expected each"):
        read(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "half"}, "split: got 'half', expected 'recording', 'time' or 'given'"),
        ({"validation_share": -0.1}, "validation_share: got -0.1, expected 0 or a number between 0 and 1"),
        ({"validation_share": 1}, "validation_share: got 1, expected 0 or a number between 0 and 1"),
        ({"test_share": 0}, "test_share: got 0, expected a number between 0 and 1"),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "not looked at", **options)
