"""The experiment: its grid, its recipe, what it writes, that it repeats and goes on, and what it refuses."""

import csv
import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from commands import assert_refused, assert_settles_before_the_first_step, start, write_table
from commands import run_experiment as run

import drsn_ops
from drsn_ops import noise
from drsn_ops.data.vibration import CLASSES, vibration
from drsn_ops.experiment import averages, cell, command, figures, report, schedule, signals, storage
from drsn_ops.experiment.settings import FULL, NETWORKS, OF_THE_PAPER, SMALL, Cell, Result, settings_of
from drsn_ops.experiment.storage import read_features, read_settings, result_path
from drsn_ops.machine import processor
from drsn_ops.models import ConvolutionalUnit
from drsn_ops.modules import RSBU
from drsn_ops.training.processes import Processes
from drsn_ops.training.recipes import momentum

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

TINY = "--num-signals 72 --points 64 --blocks 3 --epochs 2 --batch-size 16 --seeds 2"
GRID = "--noise-kind pink gaussian --snr 5 -5 --networks ResNet DRSN-CW --workers 1"
TINY = [*TINY.split(), *GRID.split()]
PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def folder(alone_in, monkeypatch):
    """A folder to train in; the report is a table alone, since pictures and a t-SNE take longer than the training."""
    monkeypatch.setattr(command, "write_report", write_table)
    return alone_in


def results(folder):
    """The content of each cell's file, without what differs between runs."""
    files = {path.name: json.loads(path.read_text()) for path in (folder / "cells").glob("*.json")}
    for values in files.values():
        assert values.pop("seconds") >= 0 and "PyTorch" in values.pop("origin")
    return files


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished experiment."""
    folder = tmp_path_factory.mktemp("whole") / "experiment"
    assert run(*TINY, "--output-dir", folder) == 0
    return folder


def test_a_run(folder, monkeypatch, capsys):
    monkeypatch.setattr(command, "write_report", report.write_report)
    assert run(*TINY) == 0
    out, err = capsys.readouterr()
    own = folder / "runs" / "experiment-small"
    assert sorted(path.name for path in own.iterdir()) == [
        "accuracy.png",
        "cells",
        "results.csv",
        "settings.json",
        "table.md",
        "tsne.png",
    ]
    with (own / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == Result._fields and len(rows) == 16
    written = [json.loads(path.read_text()) for path in (own / "cells").glob("*.json")]
    key = str
    assert sorted(({k: str(v) for k, v in values.items()} for values in written), key=key) == sorted(
        rows, key=key
    )
    assert {(row["network"], row["parameters"]) for row in rows} == {("ResNet", "1864"), ("DRSN-CW", "2648")}
    assert len({(r["network"], r["noise_kind"], r["snr"], r["seed"]) for r in rows}) == 16
    assert all((own / name).read_bytes().startswith(PNG) for name in ("accuracy.png", "tsne.png"))
    assert "48 training and 24 test signals of 64 points, 8 classes" in out
    table = (own / "table.md").read_text()
    assert f"Computed on: {processor()} ({os.cpu_count()} cores), device cpu, workers 1, PyTorch " in table
    assert f"{torch.__version__}, drsn_ops {drsn_ops.__version__}, {date.today().isoformat()}." in table
    assert "16 cells, 0 of them done" in out and table in out
    # no bar where there is no terminal
    assert err == ""


def test_the_allocator_is_settled_first(monkeypatch):
    assert_settles_before_the_first_step(monkeypatch, cell, lambda: run(*TINY, "--seeds", 1, "--snr", 5))


def test_workers_change_nothing(whole, folder, monkeypatch):
    """Two of the cells are trained by two workers."""
    shutil.copytree(whole, folder / "two")
    shown = read_settings(whole).shown()
    for c in shown:
        for path in (folder / "two" / "cells").glob(f"{c.name}.*"):
            path.unlink()
    trained = watch_cells(monkeypatch)
    assert run("--resume", "two", "--workers", 2) == 0
    assert trained == [] and results(folder / "two") == results(whole)
    for c in shown:
        theirs = read_features(whole, c)
        assert all(torch.equal(t, theirs[name]) for name, t in read_features(folder / "two", c).items())


def test_resume_trains_what_is_damaged(whole, folder, monkeypatch, capsys):
    """Results that are cut short, of other types, of another cell; features that are missing or cut short."""
    shutil.copytree(whole, folder / "damaged")
    shown = read_settings(whole).shown()
    cut, mistyped, swapped = (
        Cell("ResNet", "pink", 5.0, 1),
        *(Cell("ResNet", "gaussian", s, 1) for s in (5.0, -5.0)),
    )
    cells = folder / "damaged" / "cells"
    (cells / f"{shown[0].name}.pt").unlink()
    os.truncate(cells / f"{shown[1].name}.pt", 500)
    os.truncate(cells / f"{cut.name}.json", 50)
    path = cells / f"{mistyped.name}.json"
    path.write_text(path.read_text().replace('"parameters": 1864', '"parameters": "1864"'))
    shutil.copy(cells / f"{cut.name.replace('_1', '_0')}.json", cells / f"{swapped.name}.json")
    trained = watch_cells(monkeypatch)
    inside, there = command.train_cells, []

    def watched(job, cells, workers):
        # a process that waits for the others takes a file for a cell that is done
        there.extend(c for c in cells if result_path(job.folder, c).exists())
        inside(job, cells, workers)

    monkeypatch.setattr(command, "train_cells", watched)
    assert run("--resume", "damaged") == 0
    assert there == []
    assert sorted(trained) == sorted([*shown, cut, mistyped, swapped])
    assert results(folder / "damaged") == results(whole)
    assert "16 cells, 11 of them done" in capsys.readouterr().out
    assert all(read_features(folder / "damaged", c) for c in shown)


def watch_cells(monkeypatch):
    """The cells that are trained from now on, in this process."""
    trained = []
    inside = schedule.train_cell
    monkeypatch.setattr(schedule, "train_cell", lambda *args: trained.append(args[1]) or inside(*args))
    return trained


def test_interrupt(whole, folder, monkeypatch, capsys):
    """Ctrl-C in the third cell leaves two, and the experiment goes on to the same end."""
    inside, calls = cell.fit, 0

    def interrupt(*args):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        inside(*args)

    with monkeypatch.context() as patch:
        patch.setattr(cell, "fit", interrupt)
        assert run(*TINY, "--output-dir", "part") == 130
    assert (
        "interrupted; 2 of 16 cells are done; to go on: --resume part --workers 1" in capsys.readouterr().out
    )
    assert sorted(path.name for path in (folder / "part").iterdir()) == ["cells", "settings.json"]
    assert run("--resume", "part", "--workers", 1) == 0
    assert results(folder / "part") == results(whole)


def test_interrupt_in_the_report(whole, folder, monkeypatch, capsys):
    """All cells are done then, and the message says how to go on."""

    def interrupt(*args):
        raise KeyboardInterrupt

    shutil.copytree(whole, folder / "part")
    with monkeypatch.context() as patch:
        patch.setattr(command, "write_report", interrupt)
        assert run("--resume", "part", "--workers", 1) == 130
    out = capsys.readouterr().out
    assert "16 of 16 cells are done; now the table" in out
    assert "interrupted; 16 of 16 cells are done; to go on: --resume part --workers 1" in out


def test_a_full_disk_at_the_start(folder, monkeypatch, capsys):
    """The folder is as empty as it was, so that the same command goes on, and the folder of the cells is made anew."""
    flags = [*TINY, "--seeds", 1, "--snr", 5, "--networks", "ResNet", "--noise-kind", "pink"]
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(storage, "json", SimpleNamespace(dumps=Mock(side_effect=full)))
        assert run(*flags, "--output-dir", "own") == 2
    assert "No space left on device: 'own/settings.json'" in capsys.readouterr().err
    assert run(*flags, "--output-dir", "own") == 0
    shutil.rmtree("own/cells")
    assert run("--resume", "own") == 0 and len(results(folder / "own")) == 1


def members(group):
    """The processes of a group that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, pgrp = path.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                found.append(path.parent.name)
    return found


def wait_until(condition):
    """Poll for what another process is about to do."""
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers by /proc")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(folder, signum):
    """Ctrl-C at a terminal reaches the whole group; a kill reaches the parent alone."""
    endless = [*TINY, "--networks", "ResNet", "--epochs", 100_000, "--workers", 2, "--output-dir", "part"]
    process = start("-m", "drsn_ops", "experiment", *endless)
    try:
        # the parent, two workers, and multiprocessing's own process that keeps track of resources
        wait_until(lambda: len(members(process.pid)) == 4)
        if signum == signal.SIGINT:
            os.killpg(process.pid, signum)
        else:
            process.kill()
        out, err = process.communicate(timeout=300)
        wait_until(lambda: not members(process.pid))
    finally:
        # a failure leaves none that goes on for ever
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == (130 if signum == signal.SIGINT else -signum)
    if signum == signal.SIGINT:
        assert err == "" and "interrupted; 0 of 8 cells are done; to go on: --resume part" in out
    assert list((folder / "part" / "cells").iterdir()) == []


def test_an_interrupt_while_workers_start_is_not_lost(request):
    """It comes when they have started, and they never get one."""
    # what a shell starts in the background, these tests perhaps, ignores it
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    started = []
    word = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with pytest.raises(KeyboardInterrupt), schedule.no_interrupt():
        signal.raise_signal(signal.SIGINT)
        started.append(subprocess.run([sys.executable, "-c", word], capture_output=True, text=True).stdout)
    assert started == ["True\n"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_process_trains_its_share(folder, monkeypatch):
    """The second of two processes, here alone, trains its half and leaves the report to the first."""
    trained = watch_cells(monkeypatch)
    monkeypatch.setattr(command, "processes", lambda device: nullcontext(Processes(1, 2)))
    assert run(*TINY, "--output-dir", "half") == 0
    cells = read_settings(folder / "half").cells()
    half = schedule.share(cells, Processes(1, 2))
    assert trained == half and len(half) == 8
    assert sorted(path.name for path in (folder / "half").iterdir()) == ["cells", "settings.json"]
    # resumed, it does half of the other half
    assert run("--resume", "half") == 0
    assert trained[8:] == schedule.share([c for c in cells if c not in half], Processes(1, 2))


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_shares_have_as_many_cells_of_each_network(count):
    """Also when some cells are done: here, those of three networks with the first seed."""
    left = [c for c in SMALL.cells() if c.seed or c.network == "ConvNet"]
    shares = [schedule.share(left, Processes(rank, count)) for rank in range(count)]
    assert sorted(sum(shares, [])) == sorted(left)
    for name in SMALL.networks:
        counts = [sum(c.network == name for c in own) for own in shares]
        assert max(counts) - min(counts) <= 1 and min(counts) >= 1
    assert all([c.seed for c in own] == sorted(c.seed for c in own) for own in shares)


def write_recordings(folder, values):
    """Two classes of four files, each with five windows of 64 points."""
    random = np.random.default_rng(0)
    for label in ("good", "bad"):
        (folder / label).mkdir(parents=True)
        for i in range(4):
            np.save(folder / label / f"{i}.npy", values(random.standard_normal(64 * 5)))


RECORDED = [*TINY[2:], "--noise-kind", "gaussian", "--snr", "5", "--data"]


def test_recordings(folder, capsys):
    """The windows of a folder; whole recordings are tested on, and the seed selects them."""
    write_recordings(folder / "data", lambda values: values)
    (folder / "data" / "sensor.pdf").write_text("")
    assert run(*RECORDED, "data", "--output-dir", "own") == 0
    out, err = capsys.readouterr()
    assert (
        f"{folder}/data: 30 training and 10 test windows of 64 points, of 6 and 2 recordings, 2 classes"
        in out
    )
    assert err == f"passed over, as no recordings: {folder}/data/sensor.pdf\n"
    assert len(results(folder / "own")) == 4
    table = (folder / "own" / "table.md").read_text()
    assert (
        "The data are recordings, `data`, in windows, `--split recording`: 64 points" in table
        and "paper" not in table
    )
    assert "| train | 6 | 30 | 50.00 ± 0.00 |\n| test | 2 | 10 | 50.00 ± 0.00 |" in table
    own = read_settings(folder / "own")
    assert (
        own.num_signals is None
        and own.channels is None
        and own.split == "recording"
        and Path(own.data) == folder / "data"
    )
    tests = [data.x[data.test] for data in (signals.load(own, seed) for seed in range(4))]
    assert any(not tests[0].equal(test) for test in tests)


@pytest.mark.parametrize("flags", [["--data"], ["--data", "folder", "--data-dir"], ["--data-dir"]])
def test_an_experiment_goes_on_where_its_recordings_have_moved_to(folder, monkeypatch, flags):
    """And remembers it. The name before ``--data-dir`` is the older way."""
    write_recordings(folder / "data", lambda values: values)
    flag = ["--data", "folder", "--data-dir"] if flags == ["--data-dir"] else flags
    few = ("--networks", "ResNet", "--seeds", 1, "--output-dir", "own")
    assert run(*RECORDED[:-1], *flag, "data", *few) == 0
    (folder / "data").rename("moved")
    next((folder / "own" / "cells").glob("*.json")).unlink()
    trained = watch_cells(monkeypatch)
    assert run("--resume", "own", *flags, "moved") == 0
    assert len(trained) == 1 and read_settings(folder / "own").data == str(folder / "moved")


def test_a_window_without_a_signal_is_refused(folder, capsys):
    """Noise has no ratio to it. One channel of several may be silent."""
    write_recordings(folder / "data", lambda values: values)
    np.save(folder / "data" / "bad" / "3.npy", np.full(64 * 5, 0.1))
    flags = [*RECORDED, "data", "--output-dir", "other"]
    message = f"{folder}/data/bad/3.npy: has a window of 64 points that are all the same"
    assert_refused(run, flags, message, folder, capsys)
    write_recordings(folder / "two", lambda values: np.stack([values, np.full(64 * 5, 0.1)], 1))
    assert run(*RECORDED, "two", "--channels", "0,1", "--output-dir", "own") == 0
    x = signals.load(read_settings(folder / "own"), 0).x
    assert x.shape == (40, 2, 64) and not x[:, 1].any() and x[:, 0].any(-1).all()


def test_networks_have_the_channels_of_the_data(folder):
    """The channels that were asked for, each standardised, so that neither offset nor scale is left of them."""
    write_recordings(folder / "data", lambda values: np.stack([values, 2 * values + 100, values**2], 1))
    first = {}
    for name, flag in (("0", "--column"), ("1", "--channels"), ("0,2", "--channels")):
        flags = (flag, name, "--networks", "ResNet", "--seeds", 1, "--output-dir", name)
        assert run(*RECORDED, "data", *flags) == 0
        own = read_settings(folder / name)
        assert own.channels == tuple(name.split(","))
        first[name] = signals.load(own, 0).x
    torch.testing.assert_close(first["0"], first["1"])
    assert first["0,2"].shape[1] == 2 and first["0,2"][:, :1].equal(first["0"])
    parameters = [next(iter(results(folder / name).values()))["parameters"] for name in first]
    assert parameters == [1762, 1762, 1762 + 3 * 4]
    x = first["0,2"].double()
    torch.testing.assert_close(x.mean(-1), torch.zeros(40, 2).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(x.std(-1, correction=0), torch.ones(40, 2).double(), rtol=0, atol=1e-6)


def test_recordings_are_split_and_cut_as_asked(folder, monkeypatch):
    """Flags of reading are kept, so that what is resumed reads the same."""
    write_recordings(folder / "data", lambda values: values)
    asked = "--split time --test-share 0.4 --step 32 --normalise mean".split()
    assert run(*RECORDED, "data", *asked, "--output-dir", "own") == 0
    own = read_settings(folder / "own")
    assert (own.split, own.test_share, own.step, own.normalise) == ("time", 0.4, 32, "mean")
    data = signals.load(own, 0)
    assert len(data.recording[data.test].unique()) == len(data.recording[data.train].unique()) == 8
    assert data.test.equal(signals.load(own, 1).test) and len(data.test) == 8 * 4
    table = (folder / "own" / "table.md").read_text()
    assert "all test on the last part of each recording" in table and "and keeps its power" in table
    trained = watch_cells(monkeypatch)
    assert run("--resume", "own", *asked) == 0 and not trained


def test_a_given_split_is_kept(folder, capsys):
    """Every seed has it. Of its three parts, that for validation is not used."""
    for i, part in enumerate(("train", "test", "validation")):
        write_recordings(folder / "data" / part, lambda values, i=i: np.roll(values, 7 * i) ** (2 * i + 1))
    assert run(*RECORDED, "data", "--output-dir", "own") == 0
    out = capsys.readouterr().out
    assert (
        "40 training and 40 test windows of 64 points, of 8 and 8 recordings, without 40 validation windows"
        in out
    )
    message = f"--test-share 0.4: expected none with {folder / 'data'}, where the split is given"
    assert_refused(run, [*RECORDED, "data", "--test-share", 0.4], message, folder, capsys)
    own = read_settings(folder / "own")
    assert signals.load(own, 0).x.equal(signals.load(own, 1).x)
    assert own.split == "given"
    table = (folder / "own" / "table.md").read_text()
    assert "its own noise; the split of all is the one given" in table


def test_other_recordings_than_the_experiments_are_refused(folder, capsys):
    """Otherwise one table would mix the results of both."""
    for name, power in (("my data", 1), ("others", 3)):
        write_recordings(folder / name, lambda values, power=power: values**power)
    assert run(*RECORDED, "my data", "--networks", "ResNet", "--output-dir", "own") == 0
    message = "own: begun with other data than {0}/others holds now; these were {0}/my data"
    flags = ["--resume", "own", "--data", "others"]
    assert_refused(run, flags, message.format(folder), folder, capsys)


def test_what_is_printed_to_go_on_can_be_pasted(folder, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(cell, "fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*TINY, "--output-dir", "my part", "--device", "cpu:0") == 130
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == (
        "interrupted; 0 of 16 cells are done; to go on: --resume 'my part' --device cpu:0 --workers 1"
    )
    trained = watch_cells(monkeypatch)
    monkeypatch.setattr(cell, "fit", lambda *_: None)
    assert run(*shlex.split(line.partition("to go on: ")[2])) == 0 and len(trained) == 16


def test_a_lost_worker_is_one_line(folder, monkeypatch, capsys):
    def lose(*_):
        raise BrokenProcessPool

    monkeypatch.setattr(command, "complete_all", lose)
    assert run(*TINY, "--output-dir", "part") == 1
    err = capsys.readouterr().err
    assert (
        err.endswith("0 of 16 cells are done; to go on: --resume part --workers 1\n") and err.count("\n") == 1
    )


def test_an_experiment_grows(whole, folder, monkeypatch):
    """What it has stays as it is, also what the t-SNE shows; in the end it is what a larger one is from the start."""
    one = "--networks DRSN-CW --noise-kind pink --snr -5 --seeds 1 --output-dir own".split()
    assert run(*TINY, *one) == 0
    first = read_settings(folder / "own").shown()
    assert first == [Cell("DRSN-CW", "pink", -5.0, 0)]
    files = {path: path.read_bytes() for path in (folder / "own" / "cells").iterdir()}
    trained = watch_cells(monkeypatch)
    for more, count in (("--seeds 2", 1), ("--snr -5 5 --seeds 2", 2), (" ".join(TINY), 12)):
        assert run("--resume", "own", *more.split()) == 0
        assert len(trained) == count and not {*trained} & {*first}
        del trained[:]
    assert results(folder / "own") == results(whole) and len(files) == 2
    assert all(path.read_bytes() == before for path, before in files.items())
    own = read_settings(folder / "own")
    assert (own.networks, own.noise_kind) == (("DRSN-CW", "ResNet"), ("pink", "gaussian"))
    assert own.snr == (-5.0, 5.0) and own.seeds == 2
    assert own.shown() == [*first, Cell("ResNet", "pink", -5.0, 0)]
    assert all(read_features(folder / "own", c) for c in own.shown())
    assert run("--resume", "own") == 0 and not trained


def test_settings_of_an_experiment_that_grows():
    saved = replace(SMALL, networks=("DRSN-CW",), snr=(9.0, -5.0, 0.0), seeds=2, shown_snr=0.0)
    asked = {"networks": ("ResNet", "DRSN-CW"), "snr": (-20.0, -5.0, 0.0, 9.0, -30.0), "seeds": 4}
    now = settings_of(asked, None, saved, Path("old"))
    assert now == replace(saved, networks=("DRSN-CW", "ResNet"), snr=(9.0, -5.0, 0.0, -20.0, -30.0), seeds=4)
    assert [c.snr for c in now.shown()] == [0.0, 0.0] and replace(now, shown_snr=None).shown()[0].snr == -5
    assert settings_of({}, None, saved, Path("old")) == saved
    assert settings_of({"snr": (1.0, 2.0)}, None, None, None).shown_snr == 2


def test_the_full_preset_is_the_papers():
    assert len(FULL.cells()) == 4 * 3 * 11 * 10 == len(set(FULL.cells()))
    assert (FULL.num_signals, FULL.points, FULL.blocks, FULL.epochs, FULL.batch_size) == (
        28_800,
        2048,
        12,
        100,
        128,
    )
    assert FULL.snr == tuple(range(-5, 6)) and FULL.noise_kind == ("gaussian", "laplacian", "pink")
    assert FULL.lr == 0.1 and FULL.folds == FULL.seeds == 10


def test_names_of_cells_tell_them_apart():
    assert len({c.name for c in FULL.cells()}) == len(FULL.cells())
    close = replace(SMALL, snr=(0.1, 0.1000001), seeds=1).cells()
    assert len({c.name for c in close}) == len(close) and len({c.noise_seed for c in close}) == 6


def test_every_network_sees_the_same_noise():
    seeds = {}
    for c in FULL.cells():
        seeds.setdefault(c.noise_seed, set()).add((c.noise_kind, c.snr, c.seed))
    assert len(seeds) == 330 and all(len(noises) == 1 for noises in seeds.values())


@pytest.fixture
def tiny():
    return replace(SMALL, num_signals=72, points=256, blocks=3, epochs=5, batch_size=16)


def test_folds_test_every_signal_once(tiny):
    parts = [signals.load(tiny, seed) for seed in range(tiny.folds)]
    assert torch.cat([data.test for data in parts]).sort().values.equal(torch.arange(72))
    for data in parts:
        assert torch.cat([data.train, data.test]).sort().values.equal(torch.arange(72))
        assert data.labels[data.test].bincount().tolist() == [3] * 8
    assert signals.load(tiny, tiny.folds).test.equal(parts[0].test)


def train(settings, trained):
    """One cell, on the CPU."""
    return cell.train_cell(settings, trained, torch.device("cpu"), "here")


def test_noise_is_added_once_at_its_ratio(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(cell, "fit", lambda network, optimiser, epochs, *_: seen.extend(epochs))
    for network in ("ConvNet", "ResNet"):
        train(tiny, Cell(network, "laplacian", -3.0, 1))
    data = signals.load(tiny, 1)
    decibels = noise.snr(data.x[data.train], seen[0])
    torch.testing.assert_close(decibels, torch.full_like(decibels, -3), rtol=0, atol=1e-4)
    assert len(seen) == 2 * tiny.epochs and all(x.equal(seen[0]) for x in seen)


def test_simulated_signals_are_normalised(tiny):
    raw = vibration(72, points=256).x
    x = {n: signals.load(replace(tiny, normalise=n), 0).x for n in ("none", "mean", "standard")}
    assert x["none"].equal(raw) and SMALL.normalise == FULL.normalise == "standard"
    torch.testing.assert_close(x["mean"], raw - raw.mean(-1, keepdim=True))
    torch.testing.assert_close(x["standard"], x["mean"] / raw.std(-1, correction=0, keepdim=True))


def test_the_networks_are_the_papers(tiny):
    """Table II: units, thresholds and numbers of parameters."""
    units = {"ConvNet": ConvolutionalUnit, "ResNet": RSBU, "DRSN-CS": RSBU, "DRSN-CW": RSBU}
    thresholds = {"ConvNet": None, "ResNet": None, "DRSN-CS": "channel-shared", "DRSN-CW": "channel-wise"}
    parameters = {"ConvNet": 8416, "ResNet": 8416, "DRSN-CS": 10220, "DRSN-CW": 11552}
    for name in OF_THE_PAPER:
        network = cell.build(FULL, name, 1, 8)
        assert sum(p.numel() for p in network.parameters()) == parameters[name]
        assert len(network.units) == 12
        for unit in network.units:
            assert type(unit) is units[name]
            assert getattr(unit.shrink, "thresholds", None) == thresholds[name]


def test_a_cell_is_one_of_its_own_seed_thread_and_algorithms(tiny, monkeypatch):
    """The seed initialises the network, one thread trains it, and of cuDNN only the choice of algorithms changes."""
    cudnn = torch.backends.cudnn
    first, within = [], []

    def watched(network, optimiser, *_):
        assert optimiser.defaults["momentum"] == 0.9 and optimiser.defaults["lr"] == tiny.lr
        first.append(network.units[0].conv1.weight.detach().clone())
        flags = (cudnn.enabled, cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32)
        within.append((torch.get_num_threads(), *flags))

    monkeypatch.setattr(cell, "fit", watched)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for seed, tf32 in ((0, True), (1, False), (0, True)):
            with cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32):
                train(tiny, Cell("ResNet", "gaussian", 0.0, seed))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert within == [(1, True, True, False, tf32) for tf32 in (True, False, True)]
    assert first[0].equal(first[2]) and not first[0].equal(first[1])


def test_accuracies_are_of_their_splits(tiny, monkeypatch):
    """A result's accuracies and features are those of the trained network on the two splits."""
    networks, noisy = [], []
    fit, add = cell.fit, cell.add_noise
    monkeypatch.setattr(cell, "fit", lambda *args: networks.append(args[0]) or fit(*args))
    monkeypatch.setattr(
        cell, "add_noise", lambda *args, **options: noisy.append(add(*args, **options)) or noisy[0]
    )
    result, shown = train(tiny, Cell("DRSN-CW", "pink", 5.0, 2))
    data = signals.load(tiny, 2)
    with torch.inference_mode():
        right = networks[0].eval()(noisy[0]).argmax(1) == data.labels
        logits = networks[0](noisy[0][data.test])
        torch.testing.assert_close(networks[0].classifier(shown["features"]), logits)
    shares = [right[split].double().mean().item() for split in (data.train, data.test)]
    assert [result.train_accuracy, result.test_accuracy] == pytest.approx(shares) and shares[0] != shares[1]
    assert shown["labels"].equal(data.labels[data.test]) and result.origin == "here"
    assert (result.train_majority, result.test_majority) == (1 / 8, 1 / 8)
    counts = (result.train_recordings, result.test_recordings, result.train_windows, result.test_windows)
    assert counts == (48, 24, 48, 24)


def test_scores_are_of_the_classes_that_are_tested(tiny, monkeypatch):
    """A third class, which is predicted once and never there, is no part of the mean of the F1."""
    labels = torch.tensor([0, 0, 0, 1] * 2)
    data = signals.Data(
        torch.randn(8, 1, 256), labels, ("a", "b", "c"), torch.arange(4), torch.arange(4, 8), torch.arange(8)
    )
    monkeypatch.setattr(cell, "load", lambda *_: data)
    monkeypatch.setattr(cell, "fit", lambda *_: None)
    monkeypatch.setattr(cell, "predict", lambda *_: torch.tensor([0, 0, 2, 1]))
    result, _ = train(tiny, Cell("ResNet", "gaussian", 0.0, 0))
    assert result.test_accuracy == result.train_majority == result.test_majority == 0.75
    assert result.test_macro_f1 == pytest.approx((0.8 + 1) / 2)


def test_seconds_are_of_the_training_alone(tiny, monkeypatch):
    """With a second for the training and a minute for everything else."""
    clock = 0

    def passing(seconds, inside):
        def timed(*args, **options):
            nonlocal clock
            clock += seconds
            return inside(*args, **options)

        return timed

    monkeypatch.setattr(cell, "time", SimpleNamespace(perf_counter=lambda: clock))
    monkeypatch.setattr(cell, "fit", passing(1, lambda *_: None))
    for name in ("load", "add_noise", "build", "momentum", "features_of", "predict", "measures"):
        monkeypatch.setattr(cell, name, passing(60, getattr(cell, name)))
    assert train(tiny, Cell("ResNet", "gaussian", 0.0, 0))[0].seconds == 1


def test_learning_rates_and_l2(tiny):
    """0.1, 0.01 and 0.001 over two, two and one fifth of the epochs, and the penalty's gradient."""
    torch.manual_seed(0)
    x, labels = torch.randn(33, 1, 64), torch.arange(33) % 8
    network = cell.build(tiny, "DRSN-CW", 1, 8)
    network.l2 = 1e3
    before = network.units[0].conv1.weight.detach().clone()
    rates, gradients = [], []
    optimiser = momentum(network.parameters(), tiny.lr)
    optimiser.register_step_pre_hook(lambda *_: rates.append(optimiser.param_groups[0]["lr"]))
    optimiser.register_step_pre_hook(lambda *_: gradients.append(network.units[0].conv1.weight.grad.clone()))
    cell.fit(network, optimiser, [x] * tiny.epochs, labels, tiny)
    # 33 signals are two steps of 16: a remainder of one is left out
    assert rates == pytest.approx([0.1] * 4 + [0.01] * 4 + [0.001] * 2)
    torch.testing.assert_close(gradients[0], 2e3 * before, rtol=1e-2, atol=1.0)


def test_a_network_learns(tiny):
    """Almost without noise, a few epochs give an accuracy well above chance, 1 / 8."""
    learning = replace(tiny, num_signals=288, epochs=10)
    result, _ = train(learning, Cell("DRSN-CW", "gaussian", 40.0, 0))
    assert result.train_accuracy > 0.3 and result.test_accuracy > 0.3


def made(network, noise_kind, snr, seed, test):
    """Of 40 test signals in 4 recordings, of which the largest class has 20 %."""
    cell_of, origin = (network, noise_kind, snr, seed), "one machine" if seed else "another"
    return Result(*cell_of, 0.5, test, test / 2, 0.1, 0.2, 9 + seed, 4, 100, 40, 2.0, 1000, origin)


def test_table_of_known_results():
    """Seeds of 0.6 and 0.8 over the noises: mean 70 %, standard deviation of n - 1 0.1414."""
    grid = replace(SMALL, networks=("ResNet", "DRSN-CW"), noise_kind=("pink",), snr=(5.0, -5.0), seeds=2)
    known = [
        made("ResNet", "pink", -5.0, 0, 0.5),
        made("ResNet", "pink", 5.0, 0, 0.7),
        made("ResNet", "pink", -5.0, 1, 0.7),
        made("ResNet", "pink", 5.0, 1, 0.9),
        *(made("DRSN-CW", "pink", snr, seed, 0.25 + seed / 4) for snr in (-5.0, 5.0) for seed in (1, 0)),
    ]
    lines = report.table(grid, known).splitlines()
    assert lines[0] == "|  | train | test | test macro-F1 | parameters | seconds a cell |"
    assert "| ResNet | 50.00 ± 0.00 | 70.00 ± 14.14 | 35.00 ± 7.07 | 1000 | 2.0 |" in lines
    assert "| DRSN-CW | 50.00 ± 0.00 | 37.50 ± 17.68 | 18.75 ± 8.84 | 1000 | 2.0 |" in lines
    splits = lines[lines.index("| split of a seed | recordings | windows | largest class / % |") :]
    assert splits[2:4] == ["| train | 9 to 10 | 100 | 10.00 ± 0.00 |", "| test | 4 | 40 | 20.00 ± 0.00 |"]
    by_noise = lines[lines.index("| test | ResNet | DRSN-CW |") :]
    assert by_noise[2:5] == [
        "| all | 70.00 ± 14.14 | 37.50 ± 17.68 |",
        "| pink, -5 dB | 60.00 ± 14.14 | 37.50 ± 17.68 |",
        "| pink, 5 dB | 80.00 ± 14.14 | 37.50 ± 17.68 |",
    ]
    # seed by seed: 0.25 - 0.6 and 0.5 - 0.8, half a difference of 0.025 times Student's t of 12.7062
    after = lines[lines.index("| test, above ResNet | DRSN-CW |") :]
    assert after[2:] == [
        "| all | -32.50 [-64.27, -0.73] |",
        "| pink, -5 dB | -22.50 [-54.27, +9.27] |",
        "| pink, 5 dB | -42.50 [-74.27, -10.73] |",
    ]
    assert "Computed on: another; one machine." in lines
    # it goes under a heading of the README's
    assert not any(line.startswith("#") for line in lines)
    assert any("means over 2 seeds ± their standard deviation (n - 1)" in line for line in lines)


@pytest.mark.parametrize(
    "changes, beside",
    [
        ({}, True),
        ({"noise_kind": ("pink", "gaussian", "laplacian"), "snr": (5.0, 0.0, -5.0)}, True),
        ({"noise_kind": ("gaussian", "laplacian")}, False),
        ({"noise_kind": (*SMALL.noise_kind, "uniform")}, False),
        ({"snr": (5.0,)}, False),
        ({"snr": (-5.0, 5.0, 20.0)}, False),
        ({"data": "/recordings"}, False),
    ],
)
def test_the_papers_figures_are_beside_its_kind_of_data_alone(changes, beside):
    """The simulated machine, and means over the paper's noises."""
    grid = replace(SMALL, seeds=1, **changes)
    text = report.table(grid, [made(*c, 0.5) for c in grid.cells()])
    assert (
        "| DRSN-CW | 50.00 | 50.00 | 25.00 | 94.84 ± 0.55 | 89.57 ± 0.87 | 1000 | 2.0 |" in text
    ) == beside
    assert ("the paper's: train" in text) == ("The paper's ± is as printed there." in text) == beside


def test_what_was_done_to_the_signals_is_said():
    grid = replace(SMALL, seeds=1)
    known = [made(*c, 0.5) for c in grid.cells()]
    said = {n: report.caption(replace(grid, normalise=n), known) for n in ("none", "mean", "standard")}
    assert "Each signal keeps its mean and its power." in said["none"]
    assert "each signal is taken less its mean in each channel, and keeps its power" in said["mean"]
    assert "less its mean and divided by its standard deviation" in said["standard"]


def test_a_toy_run_is_called_one():
    """40 test signals, of which the largest class is 20 %: two standard errors above it are 32.6 %."""
    grid = replace(
        SMALL, networks=("ResNet", "DRSN-CW", "DRSN-CS"), noise_kind=("pink",), snr=(0.0,), seeds=1
    )
    known = [made(*c, test) for c, test in zip(grid.cells(), (0.32, 0.1, 0.34), strict=True)]
    text = report.caption(grid, known)
    assert "by two standard errors: ResNet, DRSN-CW.**" in text and "One test signal is 2.50 points" in text
    assert "constant answer" not in report.caption(grid, [made(*c, 0.34) for c in grid.cells()])


def test_one_seed_has_no_spread():
    grid = replace(SMALL, networks=("ResNet",), noise_kind=("pink",), snr=(0.0,), seeds=1)
    lines = report.table(grid, [made("ResNet", "pink", 0.0, 0, 0.5)]).splitlines()
    assert "| pink, 0 dB | 50.00 |" in lines
    assert not any("above ResNet |" in line for line in lines)
    text = "\n".join(lines)
    assert "They are of 1 seed" in text and "1 seeds" not in text and "±" not in text
    assert averages.points([-1e-9]) == "+0.00" and averages.points([-0.1]) == "-10.00"


def figure_of(monkeypatch, plot, *args):
    """What a function draws, as a figure of matplotlib's."""
    from matplotlib.figure import Figure

    drawn, inside = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **o: drawn.append(self) or inside(self, *a, **o))
    plot(*args)
    return drawn[0]


def band(axes):
    """The outline of the first band: its lower and its upper edge over the ratios."""
    corners = np.unique(axes.collections[0].get_paths()[0].vertices, axis=0)
    return corners.tolist()


def test_curves_show_mean_and_spread(monkeypatch, tmp_path):
    """Lines connect the means in the order of the ratios, with a band: of one standard deviation on each side above.

    Below it is the interval of the mean: of two values, half their difference times Student's t of 12.7062.
    """
    grid = replace(SMALL, networks=("ResNet", "DRSN-CW"), noise_kind=("pink",), snr=(5.0, -5.0), seeds=2)
    known = [
        made("ResNet", "pink", 5.0, 0, 0.7),
        made("ResNet", "pink", 5.0, 1, 0.9),
        made("ResNet", "pink", -5.0, 0, 0.4),
        made("ResNet", "pink", -5.0, 1, 0.4),
        made("DRSN-CW", "pink", 5.0, 0, 0.8),
        made("DRSN-CW", "pink", 5.0, 1, 0.8),
        made("DRSN-CW", "pink", -5.0, 0, 0.6),
        made("DRSN-CW", "pink", -5.0, 1, 0.6),
    ]
    figure = figure_of(monkeypatch, figures.plot_accuracy, grid, known, tmp_path / "a.png")
    upper, lower = figure.axes
    assert upper.lines[0].get_xdata().tolist() == [-5, 5]
    assert upper.lines[0].get_ydata() == pytest.approx([40, 80])
    assert np.allclose(band(upper), [[-5, 40], [5, 80 - 200**0.5], [5, 80 + 200**0.5]])
    # the largest class has 20 %
    assert upper.lines[2].get_ydata() == pytest.approx([20, 20])
    # seed by seed, above ResNet: 20 and 20, 10 and -10
    assert lower.lines[0].get_ydata() == pytest.approx([20, 0])
    assert np.allclose(band(lower), [[-5, 20], [5, -127.062], [5, 127.062]], rtol=1e-5)
    assert lower.lines[0].get_color() == upper.lines[1].get_color() != upper.lines[0].get_color()
    assert lower.get_ylabel() == "above ResNet / points"
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_one_ratio_has_error_bars(monkeypatch, tmp_path):
    grid = replace(SMALL, networks=("ResNet", "DRSN-CW"), noise_kind=("pink",), snr=(0.0,), seeds=2)
    known = [made(*c, 0.5 + 0.2 * c.seed) for c in grid.cells()]
    figure = figure_of(monkeypatch, figures.plot_accuracy, grid, known, tmp_path / "a.png")
    upper, lower = figure.axes
    bars = [container.lines[2][0].get_segments()[0][:, 1] for container in upper.containers]
    assert np.allclose(bars, [[60 - 200**0.5, 60 + 200**0.5]] * 2) and not upper.collections[2:]
    assert [text.get_text() for text in lower.get_xticklabels()] == ["ResNet", "DRSN-CW"]
    assert lower.get_xlabel() == "at 0 dB" and len(lower.containers) == 1


def test_one_seed_has_neither_band_nor_bar(monkeypatch, tmp_path):
    """And is one seed, not 1 seeds. Without another network than ResNet, or without it, there is no gain to show."""
    for networks, ratios in ((("ResNet",), (0.0,)), (("DRSN-CS", "DRSN-CW"), (0.0, 5.0))):
        grid = replace(SMALL, networks=networks, snr=ratios, seeds=1)
        known = [made(*c, 0.5) for c in grid.cells()]
        figure = figure_of(monkeypatch, figures.plot_accuracy, grid, known, tmp_path / "a.png")
        monkeypatch.undo()
        assert figure.get_suptitle() == "1 seed" and len(figure.axes) == 3
        assert all(not axes.collections for axes in figure.axes)


def assert_all_is_seen(figure):
    """The legend is within the picture and beside the panels, and so are the titles."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, picture = legend.get_window_extent(), figure.bbox
    assert picture.x0 <= box.x0 and box.x1 <= picture.x1 and picture.y0 <= box.y0 and box.y1 <= picture.y1
    for axes in figure.axes:
        inside = axes.get_tightbbox()
        assert not Bbox.intersection(box, inside)
        assert inside.x0 >= -1 and inside.x1 <= picture.x1 + 1 and inside.width > 0.5 * figure.dpi


@pytest.mark.parametrize("networks", [("ResNet",), tuple(NETWORKS)])
@pytest.mark.parametrize("kinds", [1, 3])
@pytest.mark.parametrize("ratios", [1, 3])
def test_curves_are_named(monkeypatch, tmp_path, networks, kinds, ratios):
    snr = tuple(range(ratios))
    grid = replace(SMALL, networks=networks, noise_kind=SMALL.noise_kind[:kinds], snr=snr)
    known = [made(*c, 0.5) for c in grid.cells()]
    figure = figure_of(monkeypatch, figures.plot_accuracy, grid, known, tmp_path / "a.png")
    assert [axes.get_title() for axes in figure.axes[:kinds]] == [f"{name} noise" for name in grid.noise_kind]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == [*(networks if ratios > 1 else ()), "always the largest class"]
    assert_all_is_seen(figure)


@pytest.mark.parametrize("classes", [2, 12, 30])
def test_classes_are_told_apart(monkeypatch, tmp_path, classes):
    """By colours that are all different, and above ten by markers; their names are whole text, however long."""
    from matplotlib.colors import to_rgb

    names = [f"$\\{i}$ _a name of more than forty characters, {i}" for i in range(classes)]
    names[0] = "_good"
    labels = torch.arange(4 * classes) % classes
    shown = [{"features": torch.randn(len(labels), 16), "labels": labels}]
    cells = [Cell("DRSN-CW", "pink", 5.0, 0)]
    monkeypatch.setattr(figures, "embedded", lambda x: x[:, :2].numpy())
    figure = figure_of(monkeypatch, figures.plot_features, cells, shown, names, tmp_path / "a.png")
    points = figure.axes[0].collections
    assert len({tuple(own.get_facecolor()[0]) for own in points}) == len(points) == classes
    handles = figure.legends[0].legend_handles
    assert len({handle.get_marker() for handle in handles}) == (1 if classes <= 10 else 5)
    for own, handle in zip(points, handles, strict=True):
        assert own.get_facecolor()[0][:3] == pytest.approx(to_rgb(handle.get_color()))
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert (
        texts[0] == "_good"
        and texts[1] == "$\\1$ _a name of more…forty characters, 1"
        and len(texts) == classes
    )
    assert_all_is_seen(figure)


@pytest.mark.parametrize("value, said", [(torch.nan, "not finite"), (0.5, "all the same")])
def test_features_that_cannot_be_shown_are_said_to_be(monkeypatch, tmp_path, value, said):
    """Of a network whose training went wrong; t-SNE crashes on them."""
    labels = torch.arange(20) % 2
    shown = [{"features": torch.full((20, 4), value), "labels": labels}]
    cells = [Cell("DRSN-CW", "pink", 5.0, 0)]
    figure = figure_of(monkeypatch, figures.plot_features, cells, shown, ("a", "b"), tmp_path / "a.png")
    assert [text.get_text() for text in figure.axes[0].texts] == [said]
    assert len(figure.legends[0].get_texts()) == 2


def test_the_features_that_are_shown(whole, monkeypatch, tmp_path):
    """Those of the first noise, the middle ratio and the first seed, in their classes' colours."""
    from sklearn.manifold import TSNE

    shown = replace(
        SMALL, networks=("DRSN-CW",), noise_kind=("pink", "gaussian"), snr=(9.0, -5.0, 0.0)
    ).shown()
    assert shown == [Cell("DRSN-CW", "pink", 0.0, 0)]
    given, inside = [], TSNE.fit_transform
    monkeypatch.setattr(TSNE, "fit_transform", lambda self, x: given.append(x) or inside(self, x))
    own = read_settings(whole)
    cells = own.shown()
    figure = figure_of(monkeypatch, report.plot_shown, own, whole, tmp_path / "a.png")
    assert [axes.get_title() for axes in figure.axes] == ["ResNet", "DRSN-CW"]
    for axes, x, c in zip(figure.axes, given, cells, strict=True):
        saved = read_features(whole, c)
        assert np.array_equal(x, saved["features"].numpy())
        assert [len(points.get_offsets()) for points in axes.collections] == [3] * 8
    assert "pink noise, 5 dB, seed 0" in figure.get_suptitle()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(CLASSES)
    assert_all_is_seen(figure)


BAD = [
    # a flag may be shortened, as this one was called before
    (["--noise", "brown"], "argument --noise-kind: invalid choice: 'brown'"),
    (["--networks", "VGG"], "argument --networks: invalid choice: 'VGG'"),
    (["--num-signals", "23"], "--num-signals: got 23, expected at least 24"),
    (["--points", "128001"], "--points: got 128001, expected at most 128000, 10 seconds"),
    (["--blocks", "4"], "--blocks: got 4, expected a multiple of the number of widths, 3"),
    (["--device", "abacus"], "--device abacus: cannot be used here"),
    (["--data-dir", "nowhere"], "--data-dir nowhere: expected none with --data vibration"),
    (
        ["--data", "old", "--data-dir", "nowhere"],
        "--data-dir nowhere: expected none with --data old, a path itself",
    ),
    (["--data", "cwru"], "--data cwru needs the folder that holds its files: --data-dir"),
    (
        ["--data", "nowhere"],
        "nowhere: no such file or folder; --data takes a path to recordings, or a name: vibration",
    ),
    (["--data", "folder", "--data-dir", "nowhere"], "nowhere: no such file or folder"),
    (["--data", "old", "--num-signals", "99"], "--num-signals: got 99, expected none with --data /"),
    (["--column", "1"], "--channels 1: expected none with --data vibration, which has no files"),
    (["--resample"], "--resample: expected none with --data vibration"),
    (["--split", "time"], "--split time: expected none with --data vibration"),
    (["--output-dir", "old"], "--output-dir old: not an empty folder"),
    (["--output-dir", "new", "--resume", "old"], "argument --resume: not allowed with argument --output-dir"),
    (["--resume", "nowhere"], "settings.json: no such file"),
    (["--resume", "other"], "settings.json: not the settings of an experiment of this program"),
    (["--resume", "cut"], "settings.json: damaged"),
    (["--resume", "list"], "settings.json: damaged"),
    (["--resume", "later"], "settings.json: not the settings of an experiment of this version"),
    (["--resume", "mistyped"], "settings.json: not the settings of an experiment of this version"),
    (["--resume", "unmarked"], "settings.json: not the settings of an experiment of this version"),
    (["--resume", "unknown"], "settings.json: not the settings of an experiment of this version"),
    (["--resume", "old", "--lr", "0.1000001"], "old: an experiment of --lr 0.1, not of --lr 0.1000001"),
    (["--resume", "old", "--epochs", "3"], "old: an experiment of --epochs 2, not of --epochs 3"),
    (
        ["--resume", "old", "--snr", "5"],
        "old: an experiment of --snr 5 -5, not of --snr 5: it can get more when it is resumed, not fewer",
    ),
    (
        ["--resume", "old", "--seeds", "1"],
        "old: an experiment of --seeds 2, not of --seeds 1: it can get more",
    ),
    (
        ["--resume", "old", "--networks", "ResNet", "ConvNet"],
        "an experiment of --networks ResNet DRSN-CW, not of",
    ),
    (
        ["--resume", "old", "--seeds", "3", "--normalise", "mean"],
        "--normalise standard, not of --normalise mean",
    ),
    (["--resume", "old", "--step", "9"], "old: an experiment of no --step, not of --step 9"),
    (["--resume", "old", "--data", "other"], "old: an experiment of --data vibration, not of --data /"),
    (
        ["--resume", "before"],
        "before/settings.json: an experiment in format 1 of drsn_ops; this version, "
        f"{drsn_ops.__version__}, goes on with format 3 only",
    ),
    (
        ["--resume", "old", "--preset", "small"],
        "old: an experiment of --num-signals 72, not of --num-signals",
    ),
]


@pytest.fixture(scope="module")
def old(whole, tmp_path_factory):
    """A folder with a finished experiment, and folders that are none."""
    folder = tmp_path_factory.mktemp("old")
    shutil.copytree(whole, folder / "old")
    saved = (whole / "settings.json").read_text()
    for name, text in {
        "other": "{}",
        "before": '{"format": "drsn_ops.experiment 1", "data": "vibration", "column": null}',
        "unmarked": saved[: saved.index(',\n "fingerprint"')] + "}",
        "cut": saved[:50],
        "list": "[]",
        "later": saved.replace('"blocks"', '"layers"'),
        "mistyped": saved.replace('"epochs": 2', '"epochs": "2"'),
        "unknown": saved.replace('"DRSN-CW"', '"DRSN-XL"'),
    }.items():
        (folder / name).mkdir()
        (folder / name / "settings.json").write_text(text)
    return folder


@pytest.mark.parametrize("flags, message", BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_errors(old, flags, message, monkeypatch, capsys):
    monkeypatch.chdir(old)
    assert_refused(run, flags, message, old, capsys)
