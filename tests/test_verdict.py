"""The verdict on a model, its numbers by hand, and the command ``evaluate``."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import assert_refused, contents
from test_model import CLASSES, make_model
from torch import nn

from drsn_ops.__main__ import main
from drsn_ops.data.recordings import Windows, read_labelled
from drsn_ops.training import verdict
from drsn_ops.training.confusion import draw_confusion
from drsn_ops.training.model import checksums, load_model

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


class Logits(nn.Module):
    """Windows of three points are the logits themselves."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Conv1d(1, 1, 1, bias=False)
        nn.init.ones_(self.scale.weight)

    def forward(self, x):
        return self.scale(x)[:, 0]


def windows_of(*recordings):
    """Windows of recordings: each a class, and the probabilities of its windows."""
    x = [torch.tensor(rows).log()[:, None] for _, rows in recordings]
    counts = torch.tensor([len(rows) for rows in x])
    labels = torch.tensor([CLASSES.index(name) for name, _ in recordings])
    return Windows(
        torch.cat(x), labels.repeat_interleave(counts), torch.arange(len(x)).repeat_interleave(counts)
    )


A, B, C = [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]
TEST = windows_of(
    ("good", [A, A, B]),  # voted good
    ("good", [B, C]),  # a vote each, bad has the higher mean
    ("bad", [A, B]),  # a vote each, bad has the higher mean
)
FILES = (Path("a.npy"), Path("b.npy"), Path("c.npy"))


TEXT = """\
a test
of recordings

                      by window  by recording
accuracy                 42.86%        66.67%
balanced accuracy        45.00%        75.00%
macro-F1                 45.00%        66.67%
always guessing good     71.43%        66.67%

by window  precision  recall      F1  windows
good          66.67%  40.00%  50.00%        5
bad           33.33%  50.00%  40.00%        2
worse          0.00%       -       -        0

by recording  precision   recall      F1  recordings
good            100.00%   50.00%  66.67%           2
bad              50.00%  100.00%  66.67%           1
worse                 -        -       -           0

recordings (windows)  train   test
good                  1 (1)  2 (5)
bad                   1 (2)  1 (2)
worse                 2 (2)  0 (0)
all                   4 (5)  3 (7)

Trained on one recording: good, bad. The figures of such a class may not hold for others.

No test recording of: worse. The means leave them out.
"""


@pytest.fixture
def judged(tmp_path):
    model = make_model()
    model.network = Logits()
    train = windows_of(("good", [A]), ("bad", [A, A]), ("worse", [C]), ("worse", [C]))
    report = verdict.write_verdict(
        model, {"train": train, "test": TEST}, FILES, tmp_path, title="a test", data="of recordings"
    )
    return report, tmp_path


def test_numbers_by_hand(judged):
    report, _ = judged
    by_window, by_recording = report["by_window"], report["by_recording"]
    assert by_window["confusion"] == [[2, 2, 1], [1, 1, 0], [0, 0, 0]]
    assert by_recording["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert by_window["accuracy"] == pytest.approx(3 / 7)
    assert by_window["balanced_accuracy"] == pytest.approx((2 / 5 + 1 / 2) / 2)
    assert by_window["macro_f1"] == pytest.approx((0.5 + 0.4) / 2)
    assert (by_window["majority_class"], by_window["majority_share"]) == ("good", pytest.approx(5 / 7))
    assert by_recording["accuracy"] == pytest.approx(2 / 3)
    assert by_recording["balanced_accuracy"] == pytest.approx(3 / 4)
    assert by_recording["macro_f1"] == pytest.approx(2 / 3)
    good, bad, worse = by_window["classes"].values()
    assert good == pytest.approx({"precision": 2 / 3, "recall": 2 / 5, "f1": 1 / 2, "support": 5})
    assert bad == pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5, "support": 2})
    # predicted once, and never there
    assert worse == {"precision": 0.0, "recall": None, "f1": None, "support": 0}
    assert by_recording["classes"]["worse"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    assert report["splits"]["train"]["classes"]["worse"] == {"recordings": 2, "windows": 2}
    assert {name: report["splits"]["test"][name] for name in ("recordings", "windows")} == {
        "recordings": 3,
        "windows": 7,
    }


def test_files(judged):
    report, folder = judged

    def refuse(constant):
        raise AssertionError(constant)

    assert sorted(path.name for path in folder.iterdir()) == [
        "confusion.csv",
        "confusion.png",
        "predictions.csv",
        "report.json",
        "report.txt",
    ]
    found = json.loads((folder / "report.json").read_text(), parse_constant=refuse)
    assert found == json.loads(json.dumps(report))
    assert (found["title"], found["data"]) == ("a test", "of recordings") and found["classes"] == [*CLASSES]
    assert (folder / "report.txt").read_text() == TEXT
    with (folder / "confusion.csv").open() as file:
        assert list(csv.reader(file)) == [
            ["true \\ predicted", *CLASSES],
            ["good", "2", "2", "1"],
            ["bad", "1", "1", "0"],
            ["worse", "0", "0", "0"],
        ]
    with (folder / "predictions.csv").open() as file:
        head, *rows = csv.reader(file)
    assert head == ["file", "window", "true", "predicted", *CLASSES] and len(rows) == 7
    assert rows[2] == ["a.npy", "2", "good", "bad", "0.100000", "0.800000", "0.100000"]
    assert rows[4] == ["b.npy", "1", "good", "worse", "0.250000", "0.250000", "0.500000"]
    assert (folder / "confusion.png").read_bytes().startswith(b"\x89PNG")


def size_of(path):
    """Width and height of a .png file."""
    head = path.read_bytes()[16:24]
    return int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")


def test_the_picture_grows(tmp_path):
    sizes = []
    for classes in (["a", "$_$"], [f"a class of a long name, {i}" for i in range(2)], list("abcdefghij")):
        draw_confusion(np.eye(len(classes), dtype=int).tolist(), classes, "title", tmp_path / "picture.png")
        sizes.append(size_of(tmp_path / "picture.png"))
    few, long, many = sizes
    assert few[0] < long[0] and few[1] < long[1]
    assert few[0] < many[0] and few[1] < many[1]


def test_names_in_any_script_and_of_any_bytes(judged, monkeypatch, recwarn):
    _, folder = judged
    names = ("良好", "轴承故障", os.fsdecode(b"\xff"))
    model = make_model()
    model.network, model.classes = Logits(), names
    title = f"of {names[2]}"
    verdict.write_verdict(model, {"test": TEST}, [Path(names[2]), *FILES[1:]], folder, title=title)
    assert [str(warning.message) for warning in recwarn] == []
    assert json.loads((folder / "report.json").read_text("utf-8"))["title"] == title
    for name in ("report.txt", "confusion.csv", "predictions.csv"):
        content = (folder / name).read_bytes()
        assert b"\xff" in content and "轴承故障".encode() in content


@pytest.fixture
def folder(alone_in):
    """A model, and recordings of two of its classes; of the three, one was trained on."""
    for name, count in (("good", 2), ("worse", 1)):
        (alone_in / "data" / name).mkdir(parents=True)
        for i in range(count):
            values = np.random.default_rng((i, len(name))).standard_normal(100) + 4
            np.save(alone_in / "data" / name / f"{i}.npy", values)
    model = make_model()
    windows = read_labelled("data", model.reading, CLASSES, 1).windows
    model.trained_on = (*checksums(windows)[1:2], 12345)
    model.save("model.pt")
    return alone_in


def evaluate(*flags):
    return main(["evaluate", *map(str, flags)])


def test_evaluate(folder, capsys):
    before = contents(folder)
    assert evaluate("model.pt", "--data", "data") == 0
    printed = capsys.readouterr().out
    assert contents(folder) == before
    assert "The model was trained on 1 of these 3 recordings: what follows flatters it.\n" in printed
    assert "No test recording of: bad." in printed
    assert evaluate("model.pt", "--data", "data", "--output-dir", "out") == 0
    assert capsys.readouterr().out.startswith(printed)
    assert (folder / "out" / "report.txt").read_text() == printed
    report = json.loads((folder / "out" / "report.json").read_text())
    assert (
        report["test_recordings_trained_on"] == 1 and report["by_window"]["classes"]["good"]["support"] == 6
    )


def test_evaluate_in_noise(folder):
    def rows(name, *flags):
        assert evaluate("model.pt", "--data", "data", "--output-dir", name, *flags) == 0
        return (folder / name / "predictions.csv").read_text()

    plain, noisy = rows("plain"), rows("noisy", "--snr", -5)
    assert plain != noisy == rows("same", "--snr", -5, "--noise-kind", "gaussian", "--seed", 0)
    assert noisy != rows("seed", "--snr", -5, "--seed", 1) and noisy != rows(
        "kind", "--snr", -5, "--noise-kind", "pink"
    )
    text = (folder / "noisy" / "report.txt").read_text()
    assert text.startswith(
        "model.pt on data, gaussian noise at -5 dB\n3 recordings, in windows of 32 points at 1000 Hz\n"
    )
    report = json.loads((folder / "noisy" / "report.json").read_text())
    assert report["test_recordings_trained_on"] == 1


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--seed", 1], "--seed 1: expected --snr with it"),
        (["--noise-kind", "pink"], "--noise-kind pink: expected --snr with it"),
        (["--snr", "nan"], "must be a number from -100 to 130, got 'nan'"),
        (["--data", "nowhere"], "nowhere: no such folder or file"),
        (["--data", "nowhere", "--output-dir", "data"], "--output-dir data: not an empty folder"),
        (["--output-dir", "data"], "--output-dir data: not an empty folder"),
        (["--device", "nowhere"], "--device nowhere: cannot be used here"),
        (["--channels", "3"], "data/good/0.npy: has no channel '3' (--channels), but 1 channel, 0"),
        (
            ["--data", "two", "--channels", "0,1"],
            "two/good/0.npy: has 2 channels, the model takes 1; --channels",
        ),
    ],
)
def test_evaluate_refuses(folder, flags, message, capsys):
    (folder / "two" / "good").mkdir(parents=True)
    np.save("two/good/0.npy", np.random.default_rng(0).standard_normal((100, 2)))
    assert_refused(evaluate, ["model.pt", "--data", "data", *flags], message, folder, capsys)


def test_a_model_that_was_trained_in_noise(folder, capsys):
    model = load_model("model.pt")
    model.snr, model.noise_kind = -5.0, "pink"
    model.save("noisy.pt")
    (folder / "data" / "good" / "notes.txt").write_text("")
    assert evaluate("noisy.pt", "--data", "data") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].endswith(
        "Hz, without noise; the model was trained in pink noise at -5 dB, which --snr adds"
    )
    assert err == "passed over, as no recordings: data/good/notes.txt\n"
    assert evaluate("noisy.pt", "--data", "data", "--snr", 3) == 0
    assert "was trained in" not in capsys.readouterr().out


@pytest.mark.parametrize("value", [0, 3])
def test_noise_has_no_ratio_to_a_constant_window(folder, value, capsys):
    np.save("data/good/silent.npy", np.full(64, value))
    message = "good/silent.npy: has a window of 32 points that are all the same, to which noise has no ratio"
    assert_refused(evaluate, ["model.pt", "--data", "data", "--snr", 3], message, folder, capsys)
    assert evaluate("model.pt", "--data", "data") == 0


def test_noise_beyond_float32(folder, capsys):
    model = load_model("model.pt")
    model.reading = replace(model.reading, cutting=replace(model.reading.cutting, normalise="none"))
    model.save("plain.pt")
    np.save("data/good/0.npy", np.random.default_rng(0).standard_normal(64) * 1e35)
    message = "--snr: got -100 dB, of which the sum in sample 0 is beyond the range"
    assert_refused(evaluate, ["plain.pt", "--data", "data", "--snr", -100], message, folder, capsys)


def test_a_class_that_the_model_does_not_know(folder, capsys):
    (folder / "data" / "worse").rename(folder / "data" / "worst")
    message = "is of class 'worst', as its name, folder or label says; expected one of 'good', 'bad', 'worse'"
    assert_refused(evaluate, ["model.pt", "--data", "data", "--output-dir", "out"], message, folder, capsys)
