"""Which recordings of a place are read: those of some classes, and of Case Western's those at some loads."""

import argparse
from dataclasses import replace

import numpy as np
import pytest
from commands import assert_refused

from drsn_ops.__main__ import main
from drsn_ops.arguments import InputError
from drsn_ops.data.cwru_files import CWRU_LOADS, CWRU_NUMBERS, at_loads, cwru_load, load_of
from drsn_ops.data.recordings import Reading, read_labelled, read_recordings
from drsn_ops.data.signals import FileOptions
from drsn_ops.data.windows import Cutting
from drsn_ops.experiment import signals
from drsn_ops.experiment.settings import SMALL as SMALL_EXPERIMENT
from drsn_ops.training import train, verdict
from drsn_ops.training.model import load_model
from drsn_ops.training.recordings import RecordingSettings

io = pytest.importorskip("scipy.io")

SMALL = "--points 64 --blocks 3 --widths 4 8 16 --batch-size 8 --epochs 1 --test-share 0.5 --validation-share 0".split()


def write_record(path, number):
    """A file as published, of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).standard_normal((384, 1))
    io.savemat(path, {f"X{number:03d}_DE_time": values, f"X{number:03d}RPM": [[1797]]})


@pytest.fixture
def published(tmp_path):
    """Three classes of faults at all loads."""
    for number in (*range(105, 109), *range(118, 122), *range(130, 134), *range(156, 161)):
        if number != 157:
            write_record(tmp_path / "records" / f"{number}.mat", number)
    return tmp_path / "records"


@pytest.fixture
def sorted_by_class(tmp_path):
    """Three classes of two recordings."""
    for seed in range(6):
        path = tmp_path / ("good", "worn out", "bad")[seed % 3] / f"{seed}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.random.default_rng(seed).standard_normal(128))
    return tmp_path


def read(place, **options):
    return read_recordings(place, **{"points": 64, **options})


def refused(place, message, **options):
    with pytest.raises(InputError, match=message) as caught:
        read(place, **options)
    assert "\n" not in str(caught.value)


def stems(data):
    return [path.stem for path in data.files]


def test_loads_of_the_published_numbers():
    """As in the tables of the Bearing Data Center, which have a column for each load."""
    columns = (
        "97 105 118 130 144 156 169 185 197 209 222 234 246 258 3001 3005",
        "98 106 119 131 145 158 170 186 198 210 223 235 247 259 3002 3006",
        "99 107 120 132 146 159 171 187 199 211 224 236 248 260 3003 3007",
        "100 108 121 133 147 160 172 188 200 212 225 237 249 261 3004 3008",
    )
    listed = {int(number): load for load, column in enumerate(columns) for number in column.split()}
    assert listed.keys() == {number for numbers in CWRU_NUMBERS.values() for number in numbers}
    assert {number: load_of(number) for number in listed} == listed and {*listed.values()} == {*CWRU_LOADS}
    assert load_of(109) is load_of(278) is load_of(157) is None


@pytest.mark.parametrize(
    "load, names",
    [
        (0, "105 0105 105_0 IR007_0 IR007_0_105 12k_Drive_End_B014_0_185 Normal_0 97_Normal_0 97 normal_97"),
        (1, "B014_1 186_1 OR007@6_1 OR007_12_1 OR007_1 158 OR007@12_1_158 normal_1_98"),
        (2, "IR028_2 3003 OR021@3_2 OR021@3_2_248 OR021_2_248 12kHz-B014-2 OR007@3_146"),
        # the last is number 133 at 6 o'clock or number 160 at 12: one load
        (3, "IR007_3 B028_3_3008 OR007@3_3 OR014@6_3_200 200@6_3 OR007_3_133 100"),
    ],
)
def test_loads_of_names(tmp_path, load, names):
    for name in names.split():
        assert cwru_load(tmp_path / f"{name}.mat") == load


@pytest.mark.parametrize(
    "name", ["B014", "12k_Drive_End_IR007", "OR007@6", "OR007_3", "OR007@3", "normal", "IR007_6"]
)
def test_names_without_a_load(tmp_path, name):
    """A lone 3 of the outer race may be the hour."""
    with pytest.raises(
        InputError, match=f"{name}.mat: its name says no load of the motor; expected a number or a"
    ):
        cwru_load(tmp_path / f"{name}.mat")


@pytest.mark.parametrize(
    "name, message",
    [
        ("105_1", "says load 1, but number 105 is of load 0"),
        ("B014_0_186", "says load 0, but number 186 is of load 1"),
        ("OR007@6_2_133", "says load 2, but number 133 is of load 3"),
        ("normal_0_98", "says load 0, but number 98 is of load 1"),
    ],
)
def test_names_with_two_loads(tmp_path, name, message):
    with pytest.raises(InputError, match=f"{name}.mat: its name {message}"):
        cwru_load(tmp_path / f"{name}.mat")


def test_some_loads(published):
    data = read(published, loads=(3, 0), test_share=0.5)
    assert stems(data) == ["105", "108", "118", "121", "130", "133", "156", "160"]
    assert data.classes == ("inner race 0.007", "ball 0.007", "outer race 0.007")
    assert stems(read(published, loads=[1, 2])) == [*("106", "107", "119", "120", "131", "132", "158", "159")]
    assert len(read(published, loads=2, split="time").files) == 4
    assert read(published).files == read(published, loads=CWRU_LOADS).files


def test_classes_and_loads(published):
    data = read(published, classes=("outer race 0.007", "ball 0.007"), loads=(0, 1), test_share=0.5)
    # in the order of the place
    assert data.classes == ("ball 0.007", "outer race 0.007")
    assert stems(data) == ["118", "119", "130", "131", "156", "158"]
    assert set(data.train.labels.tolist()) == {0, 1}


@pytest.mark.parametrize(
    "options", [{"loads": (0, 1)}, {"classes": ("inner race 0.007", "outer race 0.007")}]
)
def test_what_is_left_out_is_not_read(published, options):
    """Nor compared: it may be damaged, another record, or there twice."""
    for name in ("120", "B007_3", "B007_2_120"):
        (published / f"{name}.mat").write_bytes(b"damaged")
    write_record(published / "121.mat", 105)
    refused(published, "120.mat")
    data = read(published, **options)
    assert not {"120", "121", "B007_3", "B007_2_120"} & {*stems(data)} and data.passed_over == ()


def test_some_classes_of_folders(sorted_by_class):
    whole = read(sorted_by_class)
    (sorted_by_class / "bad" / "5.npy").write_bytes(b"damaged")
    (sorted_by_class / "bad" / "notes.txt").write_text("")
    refused(sorted_by_class, "5.npy")
    data = read(sorted_by_class, classes=("worn out", "good"))
    assert data.classes == ("good", "worn out") and whole.classes == ("bad", "good", "worn out")
    assert [path.parent.name for path in data.files] == ["good", "good", "worn out", "worn out"]
    for part in (data.train, data.test):
        assert [data.classes[label] for label in part.labels] == [
            data.files[i].parent.name for i in part.recording
        ]
    # notes are still named
    assert [path.name for path in data.passed_over] == ["notes.txt"]


def test_some_classes_of_a_table(tmp_path):
    series = np.random.default_rng(0).standard_normal((6, 8))
    lines = [",".join(map(str, (10 - i % 3, *values))) for i, values in enumerate(series.tolist())]
    (tmp_path / "all.csv").write_text("\n".join(lines))
    data = read(tmp_path / "all.csv", classes=("10", "9"), points=8)
    assert data.classes == ("9", "10") and [path.name for path in data.files] == [
        f"all.csv:{line}" for line in (1, 2, 4, 5)
    ]
    refused(
        tmp_path / "all.csv", "--loads 0: expected none with .*, where a folder or a label says what", loads=0
    )


def test_some_loads_of_given_parts(published):
    for path in published.glob("*.mat"):
        part = published / ("test" if load_of(int(path.stem)) % 2 else "train")
        part.mkdir(exist_ok=True)
        path.rename(part / path.name)
    data = read(published, loads=(0, 1))
    assert data.split == "given" and len(data.files) == 8
    assert {data.files[i].parent.name for i in data.test.recording} == {"test"}


def test_loads_of_folders_are_refused(tmp_path):
    """Also where they hold CWRU's files: a folder's name says what they are."""
    for number in (105, 106, 118, 119):
        write_record(tmp_path / ("inner" if number < 110 else "ball") / f"{number}.mat", number)
    message = "--loads 0 1: expected none with .*, where a folder or a label says what .*ball/118.mat is; the loads of"
    refused(tmp_path, message, loads=(0, 1))
    assert len(read(tmp_path).files) == 4


def test_a_given_split_is_not_lost(tmp_path):
    """A choice that leaves nothing to test had the training folder split anew."""
    for part, load in (("train", 0), ("train", 1), ("test", 2), ("test", 3)):
        for number in (105, 118):
            write_record(tmp_path / part / f"{number + load}.mat", number + load)
    data = read(tmp_path, loads=(0, 2))
    assert data.split == "given" and stems(data) == ["105", "118", "107", "120"]
    for loads, lacking in (((0, 1), "test"), ((2, 3), "train")):
        refused(
            tmp_path, f"gives a split, of which .* leave no recordings to {lacking}; expected", loads=loads
        )
        assert read(tmp_path, loads=loads, split="recording").split == "recording"
    assert read(tmp_path / "train", loads=(0, 1)).split == "recording"


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"classes": "ball"},
            "--classes ball: there is no such class in .*; expected one or more of 'inner race 0.007', ",
        ),
        ({"classes": ("x", "ball 0.007", "y")}, "--classes x,y: there is no such class"),
        (
            {"classes": "ball 0.007"},
            "holds one class, 'ball 0.007'; expected --classes or --loads of several",
        ),
        ({"loads": 0}, "class 'inner race 0.007' has one recording, expected one to train on"),
        ({"loads": 3}, "--loads 3: expected loads of recordings in .*: 0, 1, 2$"),
        (
            {"classes": ("ball 0.007", "outer race 0.007"), "loads": 2},
            "--classes 'ball 0.007': .* no recording of it at --loads 2; expected its loads, 0, 1, or --classes",
        ),
        (
            {"classes": "outer race 0.007", "loads": 2},
            "holds one class, 'outer race 0.007'; expected --classes or",
        ),
    ],
)
def test_refused(tmp_path, options, message):
    for number in (105, 106, 107, 118, 119, 130, 131, 132):
        write_record(tmp_path / f"{number}.mat", number)
    refused(tmp_path, message, **options)


@pytest.mark.parametrize(
    "loads", [4, (0, -1), "0", "01", (0.5,), 1.0, (1.0,), True, (0, True), None, (None,), np.float64(1)]
)
def test_loads_that_are_none(published, loads):
    with pytest.raises(ValueError, match="loads: got .*, expected 0, 1, 2 or 3"):
        read(published, loads=loads)


@pytest.mark.parametrize("loads", [np.int64(1), np.array([1, 1]), iter((1,)), {1}, range(1, 2)])
def test_loads_of_any_kind(published, loads):
    """Integers of NumPy's too, in whatever can be iterated."""
    assert stems(read(published, loads=loads, split="time")) == ["106", "119", "131", "158"]


def test_loads_in_words():
    assert [at_loads(loads) for loads in ((), (2,), (3, 1, 3))] == ["", " at load 2", " at loads 1, 3"]


def test_choices_for_an_evaluation(published):
    reading, classes = (
        Reading(FileOptions(), Cutting(64, None, "none"), 12_000.0),
        ("ball 0.007", "inner race 0.007"),
    )
    with pytest.raises(InputError, match="is of class 'outer race 0.007'.*; --classes leaves others out"):
        read_labelled(published, reading, classes, 1)
    windows, files, _ = read_labelled(published, reading, classes, 1, only=classes, loads=(2,))
    assert [path.stem for path in files] == ["107", "120"]
    assert windows.labels.unique().tolist() == [0, 1]


def run(command, *flags):
    return main([command, *map(str, flags)])


@pytest.fixture
def trained(published, alone_in, monkeypatch):
    """A folder with records, and a model that was trained on some of them."""
    for package in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(package)
    monkeypatch.setattr(train, "draw_curve", lambda *_: None)
    monkeypatch.setattr(verdict, "draw_confusion", lambda counts, classes, title, path: path.touch())
    chosen = ["--classes", "inner race 0.007,ball 0.007", "--loads", 0, 1]
    assert run("train", "--data", "records", *SMALL, *chosen, "--output-dir", "out") == 0
    return alone_in


def test_a_model_of_some_loads_on_others(trained, capsys):
    assert (
        ": 4 recordings of 2 classes at loads 0, 1, in windows of"
        in (trained / "out" / "report.txt").read_text()
    )
    assert load_model("out/model.pt").classes == ("inner race 0.007", "ball 0.007")
    capsys.readouterr()
    flags = ["out/model.pt", "--data", "records", "--loads", 2, 3, "--classes", "ball 0.007", "--classes"]
    assert run("evaluate", *flags, "inner race 0.007") == 0
    out = capsys.readouterr().out
    assert "\n4 recordings at loads 2, 3, in windows of 64 points at 12000 Hz\n" in out
    assert "The model was trained on 0 of these 4 recordings." in out
    assert run("evaluate", "out/model.pt", "--data", "records", "--classes", "ball 0.007", "--loads", 1) == 0
    assert "\n1 recording at load 1, in windows of" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--loads", 2, 3], "132.mat: is of class 'outer race 0.007'"),
        (
            ["--classes", "ball"],
            "--classes ball: there is no such class in records; expected one or more of 'inner",
        ),
        (["--loads", 4], "argument --loads: must be an integer from 0 to 3, got '4'"),
    ],
)
def test_evaluate_refuses(trained, flags, message, capsys):
    given = ["out/model.pt", "--data", "records", "--output-dir", "new", *flags]
    assert_refused(lambda *f: run("evaluate", *f), given, message, trained, capsys)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--loads", 2], "a checkpoint of --loads 0 1, not of --loads 2"),
        (
            ["--classes", "ball 0.007"],
            "a checkpoint of --classes 'inner race 0.007,ball 0.007', not of --classes 'ball 0.007'",
        ),
    ],
)
def test_resuming_with_another_choice(trained, flags, message, capsys):
    given = ["--resume", "out/checkpoint.pt", "--epochs", 2, *flags]
    assert_refused(lambda *f: run("train", *f), given, message, trained, capsys)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["records", "--classes", "ball"], "--classes ball: there is no such class in"),
        (
            ["records", "--classes", "ball 0.007"],
            "holds one class, 'ball 0.007'; expected --classes or --loads of",
        ),
        (["vibration", "--loads", 0], "--loads 0: expected none with --data vibration"),
        (["vibration", "--classes", "a,b"], "--classes a,b: expected none with --data vibration"),
        (["digits", "--loads", 0, 1], "--loads 0 1: expected none with --data digits"),
        (["digits", "--classes", "0"], "--classes 0: expected none with --data digits"),
    ],
)
def test_train_refuses(published, alone_in, flags, message, capsys):
    assert_refused(lambda *f: run("train", "--data", *f), flags, message, alone_in, capsys)


def test_settings_of_the_flags(alone_in):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    (alone_in / "rec").mkdir()
    args = parser.parse_args("--data rec --classes a,b --loads 1 0".split())
    assert train.settings_of(args, None) == RecordingSettings(
        str(alone_in / "rec"), classes=("a", "b"), loads=(1, 0)
    )


def test_an_experiment_of_a_choice(published):
    settings = replace(
        SMALL_EXPERIMENT,
        data=str(published),
        num_signals=None,
        points=64,
        classes=("ball 0.007", "outer race 0.007"),
    )
    assert len(signals.load(settings, 0).recording.unique()) == 12
    data = signals.load(replace(settings, loads=(1, 2)), 0)
    assert data.classes == settings.classes and len(data.recording.unique()) == 6
