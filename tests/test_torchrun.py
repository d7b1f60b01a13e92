"""The training program under torchrun: several processes train as one does, and stop together."""

import argparse
import csv
import gc
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from commands import environment
from torch.nn.parallel import DistributedDataParallel

from drsn_ops.__main__ import main
from drsn_ops.arguments import InputError
from drsn_ops.data import Dataset, Split
from drsn_ops.training import train
from drsn_ops.training.processes import Processes
from drsn_ops.training.recipes import Recipe
from drsn_ops.training.recordings import RecordingSettings, parts_of

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")


def images(*_, noise, seed, fresh_noise):
    """Two steps of 150 images: shares of 75, then of 36 and 35."""
    generator = torch.Generator().manual_seed(seed)
    x, labels = torch.rand(221, 1, 8, 8, generator=generator), torch.arange(221) % 10
    test = Split((x + noise * torch.rand(x.shape, generator=generator)).double(), labels)
    train = Split(x.double(), labels) if fresh_noise else test
    return Dataset(train, test, torch.zeros(1, 1, 1))


def run(*flags):
    """Train in this process, in float64: there a wrong sum differs by far more than another order of sums."""
    inside, load, leave = Recipe.learning_rate, RecordingSettings.load, dist.destroy_process_group

    def learning_rate(self, start, step):
        if step == 2 and "RANK" in os.environ and os.environ.get("FAILING") == os.environ["RANK"]:
            raise RuntimeError("this process fails")
        return inside(self, start, step)

    def destroy():
        """As PyTorch does, but an error where it could wait for ever, as it did now and then on a busy machine."""
        if any(isinstance(kept, DistributedDataParallel) for kept in gc.get_objects()):
            raise RuntimeError("a replica outlives its process group")
        leave()

    def doubled(self):
        loaded = load(self)
        parts = {
            name: windows._replace(x=windows.x.double())
            for name, windows in parts_of(loaded.recordings).items()
        }
        return loaded._replace(recordings=loaded.recordings._replace(**parts))

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "load", images)
            patch.setattr(Recipe, "learning_rate", learning_rate)
            patch.setattr(RecordingSettings, "load", doubled)
            patch.setattr(dist, "destroy_process_group", destroy)
            return main(["train", "--batch-size", "150", *map(str, flags)])
    finally:
        torch.set_default_dtype(before)


@contextmanager
def torchrun(*flags, **variables):
    """The same in two processes, started but not waited for."""
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
        + ["--rdzv-endpoint", "localhost:0", __file__, *map(str, flags)],
        env={**environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:  # a test has failed; asked to end, torchrun ends what it has started
            process.terminate()
            process.communicate(timeout=60)


def rows(folder):
    with (folder / "curve.csv").open() as file:
        return [{name: float(row[name]) for name in row if name != "seconds"} for row in csv.DictReader(file)]


def assert_same_run(folder, other):
    """Network, running statistics, optimiser (its means are of gradients), random numbers and curve."""
    a, b = (torch.load(f / "checkpoint.pt", weights_only=True) for f in (folder, other))
    for key in ("settings", "step"):
        assert a[key] == b[key]
    assert torch.equal(a["random"], b["random"])
    assert a["network"].keys() == b["network"].keys()
    for name, tensor in a["network"].items():
        torch.testing.assert_close(tensor, b["network"][name], rtol=1e-7, atol=1e-9, msg=name)
    assert a["optimiser"]["param_groups"] == b["optimiser"]["param_groups"]
    for index, state in a["optimiser"]["state"].items():
        for name, tensor in state.items():
            torch.testing.assert_close(
                tensor, b["optimiser"]["state"][index][name], rtol=1e-7, atol=1e-9, msg=name
            )
    for row, its in zip(rows(folder), rows(other), strict=True):
        assert row == pytest.approx(its, rel=1e-7)


def test_two_processes_train_as_one_does(alone_in):
    """Two processes go on from the checkpoint of one, and one goes on from theirs; statistics are of whole batches."""
    assert run("--epochs", 3, "--batch-statistics", "--output-dir", "whole") == 0
    assert run("--epochs", 1, "--batch-statistics", "--output-dir", "shared") == 0
    with torchrun("--epochs", 2, "--resume", "shared/checkpoint.pt") as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("final accuracy") == 1 and "on cpu, 2 processes" in out
    assert run("--epochs", 3, "--resume", "shared/checkpoint.pt") == 0
    assert_same_run(alone_in / "shared", alone_in / "whole")
    names = ["checkpoint.pt", "curve.csv", "curve.png"]
    assert sorted(path.name for path in (alone_in / "shared").iterdir()) == names


def test_two_processes_drop_out_as_one_does(alone_in):
    """With new noise too. Shares of 15 are 8 and 7: each process drew for its own, and then had an order of its own."""
    flags = "--data vibration --num-signals 64 --points 64 --batch-size 15 --blocks 3 --widths 4 4 8".split()
    flags += "--dropout 0.5 --snr 5 --fresh-noise --epochs 2".split()
    assert run(*flags, "--output-dir", "whole") == 0
    with torchrun(*flags, "--output-dir", "shared") as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert_same_run(alone_in / "shared", alone_in / "whole")


def assert_can_go_on(folder):
    """A run that was cut off left whole files and nothing else, and can be resumed."""
    assert {path.name for path in folder.iterdir()} <= {"checkpoint.pt", "curve.csv", "curve.png"}
    # The checkpoint is renewed before the curve, and the run may have been cut off between the two.
    done = len(torch.load(folder / "checkpoint.pt")["rows"])
    assert done - len(rows(folder)) in (0, 1)
    assert run("--resume", folder / "checkpoint.pt", "--epochs", done + 1) == 0
    assert [row["epoch"] for row in rows(folder)] == list(range(1, done + 2))


def test_interrupt(alone_in):
    """Ctrl-C ends all processes."""
    folder = alone_in / "runs" / "digits"
    with torchrun("--epochs", 10**6) as process:
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if (folder / "curve.csv").exists() and rows(folder):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    assert process.returncode != 0 and (folder / "curve.csv").exists(), err
    assert [path.name for path in (alone_in / "runs").iterdir()] == ["digits"]
    assert_can_go_on(folder)


def test_a_process_that_fails_ends_the_others(alone_in):
    """Process 1 fails in the second epoch. The first, of a new run of two, is that of one process, with new noise."""
    with torchrun("--epochs", 1000, "--fresh-noise", "--output-dir", "shared", FAILING="1") as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode != 0 and "this process fails" in err
    assert run("--epochs", 1, "--fresh-noise", "--output-dir", "alone") == 0
    assert rows(alone_in / "shared") == [pytest.approx(row, rel=1e-7) for row in rows(alone_in / "alone")]
    assert_can_go_on(alone_in / "shared")


def test_a_batch_has_an_image_for_every_process(alone_in, monkeypatch):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    args = parser.parse_args(["--batch-size", "2"])
    with pytest.raises(InputError, match="^--batch-size 2: less than a sample for each of 3 processes"):
        train.prepare(args, Processes(0, 3))


def test_processes_that_cannot_be_joined(alone_in, monkeypatch, capsys):
    """WORLD_SIZE without an address to meet at."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert main(["train", "--epochs", "1"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("drsn_ops train: WORLD_SIZE is 2, but the processes cannot be joined: ")
    assert err.count("\n") == 1 and not any(alone_in.iterdir())


@pytest.mark.parametrize("size", ["abc", "0", ""])
def test_a_number_of_processes_that_is_none(alone_in, monkeypatch, capsys, size):
    monkeypatch.setenv("WORLD_SIZE", size)
    assert main(["train", "--epochs", "1"]) == 2
    assert capsys.readouterr().err == (
        f"drsn_ops train: WORLD_SIZE: got {size!r}, expected the number of processes, as torchrun sets it\n"
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_one_gpu_for_all_processes(alone_in, monkeypatch, capsys, rank):
    """Refused, and said once."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    if rank:
        with pytest.raises(SystemExit, match="^2$"):
            main(["train", "--device", "cuda:0"])
    else:
        assert main(["train", "--device", "cuda:0"]) == 2
    assert (
        capsys.readouterr().err == ""
        if rank
        else ("drsn_ops train: --device cuda:0: got one GPU for 2 processes, expected cuda, each its own\n")
    )


def test_more_processes_than_gpus(alone_in, monkeypatch, capsys):
    def set_device(device):
        assert device == "cuda:1"
        raise RuntimeError("CUDA error: invalid device ordinal\nmore words")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert main(["train", "--device", "cuda"]) == 2
    err = capsys.readouterr().err
    assert (
        err.endswith("processes cannot be joined: CUDA error: invalid device ordinal\n")
        and err.count("\n") == 1
    )


def test_shares_are_even_and_whole():
    batch = torch.arange(11)
    shares = [Processes(rank, 4).share(batch) for rank in range(4)]
    assert torch.equal(torch.cat(shares), batch) and {len(share) for share in shares} == {2, 3}


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(run(*sys.argv[1:]))
