"""A run has its folder to itself while it lives."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import assert_refused, start

from drsn_ops.__main__ import main
from drsn_ops.arguments import InputError
from drsn_ops.training.folders import claimed, new_folder

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")


def test_runs_that_are_started_together_have_two_folders(alone_in, monkeypatch):
    """Both have chosen a name before either makes the folder."""
    inside, both = os.mkdir, threading.Barrier(2, timeout=60)
    first = threading.local()

    def mkdir(path, *args, **options):
        if "digits" in str(path) and not hasattr(first, "waited"):
            first.waited = both.wait()
        inside(path, *args, **options)

    def name(_):
        with new_folder(None, "digits") as folder:
            both.wait()
            return str(folder)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(name, range(2))) == ["runs/digits", "runs/digits-2"]


def test_a_folder_has_one_run_at_a_time(alone_in):
    with claimed(Path("deep/inside")) as folder:
        for claim in (claimed(folder), new_folder(folder, "unused")):
            with pytest.raises(InputError, match="^deep/inside: in use by another run$"), claim:
                raise AssertionError
    with claimed(folder), new_folder(None, "digits") as first, new_folder(None, "digits") as second:
        assert [first, second] == [Path("runs/digits"), Path("runs/digits-2")]


def run(*flags):
    return main(["train", *map(str, flags)])


def test_a_run_that_lives_is_left_alone_and_one_that_was_ended_goes_on(alone_in, capsys):
    """SIGTERM ends it as Ctrl-C does, without a traceback."""
    checkpoint, curve = Path("own/checkpoint.pt"), Path("own/curve.csv")
    process = start("-m", "drsn_ops", "train", "--epochs", 10**6, "--output-dir", "own")
    try:
        deadline = time.monotonic() + 300
        while not curve.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)  # alive, and its files stand still
        assert_refused(run, ["--resume", checkpoint], "own: in use by another run", alone_in, capsys)
        assert_refused(
            run, ["--output-dir", "own"], "--output-dir own: not an empty folder", alone_in, capsys
        )
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 143 and err == "" and "to go on: --resume own/checkpoint.pt\n" in out
    assert {path.name for path in Path("own").iterdir()} <= {"checkpoint.pt", "curve.csv", "curve.png"}
    with curve.open() as file:
        done = len(file.readlines()) - 1
    assert run("--resume", checkpoint, "--epochs", done + 1) == 0
