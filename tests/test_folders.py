"""A run has its folder to itself as long as it lives."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import assert_refused, environment

from drsn_ops.__main__ import main
from drsn_ops.arguments import InputError
from drsn_ops.training.folders import claimed, new_folder

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

# Two processes that have both chosen a name before either makes a folder.
TOGETHER = """
import os, sys, time
from drsn_ops.__main__ import main

def mkdir(path, *args, inside=os.mkdir):
    if "runs" in str(path):
        open(f"ready{sys.argv[1]}", "w").close()
        while not (os.path.exists("ready0") and os.path.exists("ready1")):
            time.sleep(0.001)
    inside(path, *args)

os.mkdir = mkdir
sys.exit(main(sys.argv[2:]))
"""
EXPERIMENT = (
    "--num-signals 24 --points 64 --blocks 3 --epochs 1 --seeds 1 --noise pink --snr 5 --workers 1".split()
)


@pytest.mark.parametrize(
    "command, names, files",
    [
        (["train", "--epochs", "1"], ["digits", "digits-2"], ["checkpoint.pt", "curve.csv", "curve.png"]),
        (
            ["experiment", "--networks", "ResNet", *EXPERIMENT],
            ["experiment-small", "experiment-small-2"],
            ["accuracy.png", "cells", "results.csv", "settings.json", "table.md", "tsne.png"],
        ),
    ],
    ids=["train", "experiment"],
)
def test_runs_that_are_started_together_have_two_folders(alone_in, command, names, files):
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(n), *command],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(2)
    ]
    ended = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    assert sorted(path.name for path in Path("runs").iterdir()) == names
    for name in names:
        assert sorted(path.name for path in Path("runs", name).iterdir()) == files


def test_a_folder_has_one_run_at_a_time(alone_in):
    with claimed(Path("deep/inside")) as folder:
        for claim in (claimed(folder), new_folder(folder, "unused")):
            with pytest.raises(InputError, match="^deep/inside: in use by another run$"), claim:
                raise AssertionError
    with claimed(folder), new_folder(None, "digits") as first, new_folder(None, "digits") as second:
        assert [first, second] == [Path("runs/digits"), Path("runs/digits-2")]


def run(*flags):
    return main(["train", *map(str, flags)])


def test_a_run_that_lives_is_left_alone_and_one_that_was_killed_goes_on(alone_in, capsys):
    command = [sys.executable, "-m", "drsn_ops", "train", "--epochs", str(10**6), "--output-dir", "own"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    try:
        checkpoint, curve = Path("own/checkpoint.pt"), Path("own/curve.csv")
        deadline = time.monotonic() + 300
        while not curve.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)  # alive, and its files stand still
        assert_refused(run, ["--resume", checkpoint], "own: in use by another run", alone_in, capsys)
        assert_refused(
            run, ["--output-dir", "own"], "--output-dir own: not an empty folder", alone_in, capsys
        )
    finally:
        process.kill()
        process.wait()
    with curve.open() as file:
        done = len(file.readlines()) - 1
    assert run("--resume", checkpoint, "--epochs", done + 2) == 0
