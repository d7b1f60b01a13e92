"""The command ``predict``: its lines, its file, its exit status, and what its flags change."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import assert_refused, environment
from test_model import CLASSES, READING, make_model

from drsn_ops.__main__ import main
from drsn_ops.data.recordings import read_recordings
from drsn_ops.training.model import Model, load_model


@pytest.fixture
def folder(alone_in):
    """A model, and recordings of 1 to 3 windows in two folders."""
    make_model().save("model.pt")
    (alone_in / "data" / "inner").mkdir(parents=True)
    for i, name in enumerate(("b.npy", "a.npy", "inner/long name.npy", ".hidden.npy")):
        np.save(alone_in / "data" / name, np.random.default_rng(i).standard_normal(32 * (i + 1) + 5))
    (alone_in / "data" / "inner" / "notes.md").write_text("notes")
    return alone_in


def predict(*flags):
    return main(["predict", *map(str, flags)])


def test_a_line_a_recording(folder, capsys):
    assert predict("model.pt", "data") == 0
    out, err = capsys.readouterr()
    assert err == "passed over, as no recordings: data/inner/notes.md\n"
    model = load_model("model.pt")
    paths = ["data/a.npy", "data/b.npy", "data/inner/long name.npy"]
    lines = out.splitlines()
    assert len({line.index("probability") for line in lines}) == 1
    for path, line in zip(paths, lines, strict=True):
        found = model.predict(np.load(path))
        windows = len(found.probabilities)
        words = [path, found.label, f"probability {found.probability:.3f}"]
        assert re.split(r"  +", line)[:3] == words
        assert line.endswith(f" {found.share:.0%} of {windows} window{'s' * (windows > 1)}")


def test_every_window(folder):
    assert predict("model.pt", "data/b.npy", "data/inner", "--output", "windows.csv") == 0
    model = load_model("model.pt")
    with open("windows.csv") as file:
        head, *rows = csv.reader(file)
    assert head == ["file", "window", "predicted", *CLASSES]
    assert [row[:2] for row in rows] == [["data/b.npy", "0"]] + [
        ["data/inner/long name.npy", str(i)] for i in range(3)
    ]
    probabilities = torch.tensor([[float(cell) for cell in row[3:]] for row in rows])
    torch.testing.assert_close(
        probabilities[1:],
        model.predict(np.load("data/inner/long name.npy")).probabilities,
        atol=1e-6,
        rtol=0,
    )
    assert [row[2] for row in rows] == [CLASSES[i] for i in probabilities.argmax(1)]


def test_a_recording_that_cannot_be_read(folder, capsys):
    """It has a line on stderr, and the others are predicted."""
    (folder / "data" / "a.npy").write_text("text")
    (folder / "data" / "inner" / "notes.md").unlink()
    assert predict("model.pt", "data", "missing.npy", "--output", "windows.csv", "--jobs", 3) == 1
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == ["data/b.npy", "data/inner/long name.npy"]
    assert [line.split(": ")[:2] for line in err.splitlines()] == [
        ["drsn_ops predict", "data/a.npy"],
        ["drsn_ops predict", "missing.npy"],
    ]
    with open("windows.csv") as file:
        assert len(list(file)) == 5


@pytest.mark.parametrize(
    "flags, message",
    [
        (["empty"], "empty: holds no recordings, which end in .mat, "),
        (["data", "--sampling-rate", 0], "--sampling-rate: must be a number from 1e-06 to 1e+12, got '0'"),
        (["data", "--jobs", 0], "--jobs: must be an integer from 1 to 1024, got '0'"),
        (
            ["data", "--output", "nowhere/windows.csv"],
            "--output nowhere/windows.csv: its folder does not exist",
        ),
        (
            ["data", "--output", "model.pt"],
            "--output model.pt: is model.pt, which is read; expected another file",
        ),
        (["data", "--output", "link"], "--output link: is data/b.npy, which is read; expected another file"),
        (["data", "--device", "nowhere"], "--device nowhere: cannot be used here"),
        ([], "the following arguments are required: FILE|FOLDER"),
    ],
)
def test_refused(folder, flags, message, capsys):
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("data/b.npy")
    assert_refused(predict, ["model.pt", *flags], message, folder, capsys)


def test_what_is_no_model(folder, capsys):
    assert_refused(predict, ["data/a.npy", "data"], "data/a.npy: damaged, or not a model", folder, capsys)


def test_rates(folder, capsys):
    """``--sampling-rate`` is that of files that say none: they are refused, or brought to the model's on demand."""
    assert predict("model.pt", "data/b.npy", "--sampling-rate", 1000.5) == 0
    assert predict("model.pt", "data/b.npy", "--sampling-rate", 2000) == 1
    assert "is sampled at 2000 Hz, not at 1000; --resample brings it there" in capsys.readouterr().err
    # 37 points at 2 kHz are 19 at 1 kHz
    assert predict("model.pt", "data/b.npy", "--sampling-rate", 2000, "--resample") == 1
    assert "b.npy: has 19 points" in capsys.readouterr().err
    assert predict("model.pt", "data/b.npy", "--sampling-rate", 2000, "--resample", "--pad") == 0
    assert capsys.readouterr().out.endswith(" 100% of 1 window\n")
    model = make_model()
    model.reading = READING.__class__(READING.options, READING.cutting)
    model.save("unknown.pt")
    assert predict("unknown.pt", "data/b.npy", "--sampling-rate", 2000) == 2
    assert "--sampling-rate 2000: expected none with this model" in capsys.readouterr().err


def test_channels(folder, capsys):
    values = np.random.default_rng(0).standard_normal((64, 3))
    np.save("three.npy", values)
    assert predict("model.pt", "three.npy") == 1
    assert predict("model.pt", "three.npy", "--channels", "0,1") == 1
    assert "three.npy: has 2 channels, the model takes 1; --channels chooses them" in capsys.readouterr().err
    assert predict("model.pt", "three.npy", "--channels", 2) == 0
    found = make_model().predict(values[:, 2])
    assert f"probability {found.probability:.3f}" in capsys.readouterr().out


def test_an_interrupted_table_is_not_written(folder, monkeypatch, capsys):
    def interrupted(self, paths, jobs):
        yield from list(original(self, paths))[:1]
        raise KeyboardInterrupt

    original = Model.predict_files
    monkeypatch.setattr(Model, "predict_files", interrupted)
    assert predict("model.pt", "data", "--output", "windows.csv") == 130
    assert capsys.readouterr().out.startswith("data/a.npy")
    assert not any(path.name.startswith((".windows", "windows")) for path in folder.iterdir())


def values_of(path):
    """Others for each name."""
    return np.random.default_rng([*path.name.encode()]).standard_normal(40)


def write_text(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(repr, values_of(path).tolist())))


def test_the_recordings_that_train_takes(folder, capsys):
    """A class of text files is none of notes beside those of another class; what is passed over is named."""
    for name in (
        "train/a/0.txt",
        "train/a/1.txt",
        "test/a/2.txt",
        "train/b/monday/notes on it.txt",
        "list.txt",
    ):
        write_text(folder / "both" / name)
    for name in ("train/b/0.npy", "test/b/1.npy"):
        (folder / "both" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / "both" / name, values_of(Path(name)))
    write_text(folder / "both" / "train" / "b" / "monday" / "sensor.txt")
    assert predict("model.pt", "both") == 0
    out, err = capsys.readouterr()
    taken = [line.partition("  ")[0] for line in out.splitlines()]
    found = read_recordings("both", points=32)
    assert sorted(taken) == sorted(map(str, found.files)) and len(taken) == 5
    assert err == "passed over, as no recordings: both/list.txt and 2 others\n"
    assert predict("model.pt", "both/train/a") == 0


def test_a_table_of_labelled_series_is_for_evaluate(folder, capsys):
    series = np.random.default_rng(0).standard_normal((6, 41))
    np.savetxt("Toy_TEST.tsv", series, delimiter="\t")
    assert predict("model.pt", "Toy_TEST.tsv") == 1
    assert capsys.readouterr().err.endswith("; if its lines are labels and series, evaluate takes it\n")


def test_nobody_reads_on(folder):
    """As with ``| head``: it ends quietly. A name may be any bytes."""
    os.rename(b"data/a.npy", b"data/\xff.npy")
    flags = ["-m", "drsn_ops", "predict", "model.pt", "data", "--output", "windows.csv"]
    pipes = {"env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = subprocess.Popen([sys.executable, *flags], **pipes)
    command.stdout.close()
    other = subprocess.run([sys.executable, *flags[:-1], "other.csv"], **pipes)
    assert (command.stderr.read(), command.wait()) == (
        b"passed over, as no recordings: data/inner/notes.md\n",
        141,
    )
    assert not (folder / "windows.csv").exists()
    assert other.returncode == 0 and b"data/\xff.npy  " in other.stdout
    assert b"data/\xff.npy,0" in (folder / "other.csv").read_bytes()
