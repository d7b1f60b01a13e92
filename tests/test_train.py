"""The training program: what it writes, that it repeats and resumes to the bit, and what it refuses."""

import copy
import csv
import gzip
import os
import shlex
import shutil
import sys
from contextlib import redirect_stdout
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import assert_refused, assert_settles_before_the_first_step, contents, status_of
from test_data import write_cifar10, write_mnist

from drsn_ops.__main__ import main
from drsn_ops.arguments import InputError
from drsn_ops.data import Dataset, Split, augment, load
from drsn_ops.training import run as running
from drsn_ops.training import train
from drsn_ops.training.processes import Processes
from drsn_ops.training.recipes import RECIPES, Recipe, Settings, adam
from drsn_ops.training.report import draw_curve
from drsn_ops.training.run import Run
from drsn_ops.training.storage import CHECKPOINT

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
tqdm = pytest.importorskip("tqdm")


def few(name, *args, **options):
    """The first of the digits: an epoch is three steps of the recipe's 100 images."""
    data = load(name, *args, **options)
    if name != "digits":
        return data
    train, test = (Split(*(t[:n] for t in split)) for split, n in ((data.train, 221), (data.test, 40)))
    return Dataset(train, test, data.mean)


@pytest.fixture(autouse=True)
def folder(alone_in, monkeypatch):
    """A folder to train in on a few digits, without matplotlib, which takes longer than that."""
    monkeypatch.setattr(train, "load", few)
    monkeypatch.setattr(train, "draw_curve", lambda run, folder: (folder / "curve.png").touch())
    return alone_in


def run(*flags):
    return main(["train", *map(str, flags)])


def curve(folder):
    """The rows of a curve, without the seconds, which differ between runs."""
    with (folder / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert float(row.pop("seconds")) >= 0
    return rows


def same(a, b):
    """True if two checkpoints hold the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def checkpoint(path):
    state = torch.load(path, weights_only=True)
    state["rows"] = [row[:-1] for row in state["rows"]]
    return state


def test_a_run(folder, monkeypatch, capsys):
    monkeypatch.setattr(train, "draw_curve", draw_curve)
    assert run("--epochs", 3) == 0
    out, err = capsys.readouterr()
    runs = folder / "runs" / "digits"
    assert sorted(path.name for path in runs.iterdir()) == ["checkpoint.pt", "curve.csv", "curve.png"]
    rows = curve(runs)
    assert list(rows[0]) == [
        "epoch",
        "step",
        "lr",
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
    ]
    assert [(row["epoch"], row["step"], row["lr"]) for row in rows] == [
        ("1", "3", "0.001"),
        ("2", "6", "0.001"),
        ("3", "9", "0.001"),
    ]
    assert (runs / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (
        "221 training and 40 test images" in out
        and "drsn_mnist: thresholds channel-wise, 1546 parameters" in out
    )
    assert f"final accuracy: train {float(rows[2]['train_accuracy']):.2%}" in out
    assert "curve: runs/digits/curve.csv" in out.replace(os.sep, "/")
    # no bar where there is no terminal
    assert err == ""


def test_the_allocator_is_settled_first(monkeypatch):
    assert_settles_before_the_first_step(monkeypatch, train, lambda: run("--epochs", 1))


def test_the_loss_falls(folder, monkeypatch):
    monkeypatch.setattr(train, "load", load)
    assert run("--epochs", 6, "--lr", 0.003, "--batch-size", 30, "--noise", 0) == 0
    rows = curve(folder / "runs" / "digits")
    assert float(rows[-1]["train_loss"]) < 1.5 < float(rows[0]["train_loss"])
    assert float(rows[-1]["test_accuracy"]) > 0.5


def test_runs_repeat_by_seed(folder):
    for seed, name in ((3, "a"), (3, "b"), (4, "c")):
        assert run("--epochs", 2, "--seed", seed, "--output-dir", name) == 0
    assert curve(folder / "a") == curve(folder / "b") != curve(folder / "c")
    assert same(checkpoint("a/checkpoint.pt"), checkpoint("b/checkpoint.pt"))


def test_the_reference_trains_alike(folder):
    for backend in ("drsn_ops", "reference"):
        assert run("--epochs", 2, "--backend", backend, "--output-dir", backend) == 0
    ours, plain = (curve(folder / backend)[-1] for backend in ("drsn_ops", "reference"))
    assert float(ours["train_loss"]) == pytest.approx(float(plain["train_loss"]), abs=0.02)


# a data set, what writes its files, and the images in them: seven or five times four, and three or four
FILES = [("mnist", write_mnist, 7, 3), ("cifar10", write_cifar10, 20, 4)]


@pytest.mark.parametrize("data, write, train_images, test_images", FILES)
def test_a_run_on_files(data, write, train_images, test_images, folder, capsys):
    """It follows its program's recipe; a resumed run is bitwise the same, with augmentation and momentum too."""
    files = folder / "files"
    files.mkdir()
    write(files, np.random.default_rng(0))
    flags = ("--data", data, "--data-dir", files, "--batch-size", 5)
    assert run(*flags, "--epochs", 2, "--output-dir", "whole") == 0
    out = capsys.readouterr().out
    recipe = RECIPES[data]
    assert f"{data}: {train_images} training and {test_images} test images, noise {recipe.noise:g} *" in out
    assert (
        f"drsn_{data}: thresholds channel-wise" in out and f"learning rate {recipe.lr:g}, batches of 5" in out
    )
    steps = -(-train_images // 5)
    rows = curve(folder / "whole")
    assert [(row["step"], row["lr"]) for row in rows] == [(str(n * steps), str(recipe.lr)) for n in (1, 2)]
    assert run(*flags, "--epochs", 1, "--output-dir", "part") == 0
    assert run("--data-dir", files, "--epochs", 2, "--resume", "part/checkpoint.pt") == 0
    assert curve(folder / "part") == rows
    assert same(checkpoint("part/checkpoint.pt"), checkpoint("whole/checkpoint.pt"))


@pytest.mark.parametrize("data, write, train_images, test_images", FILES)
def test_noise_that_is_drawn_anew(data, write, train_images, test_images, folder):
    """That of the training images, in every step from the default generator; the test images keep theirs."""
    write(folder, np.random.default_rng(0))
    flags = ("--data", data, "--data-dir", str(folder), "--batch-size", "5", "--seed", "1")
    once, anew = (train.prepare(train_args(*flags, *own), Processes())[0] for own in ((), ("--fresh-noise",)))
    clean = load(data, folder, noise=0, seed=1)
    assert torch.equal(anew.plan.splits["test"].x, once.plan.splits["test"].x)
    level = RECIPES[data].noise
    mean = clean.mean + level / 2 if data == "cifar10" else torch.zeros(1, 1, 1)
    torch.testing.assert_close(anew.plan.mean, mean)
    torch.testing.assert_close(anew.plan.mean, once.plan.mean, atol=level / 20, rtol=0)
    seen, passed = [], []
    anew.network.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, inputs[0])))
    for _ in range(2):
        seen.clear()
        random = torch.get_rng_state()
        row = anew.epoch(lambda: None, lambda: None)
        torch.set_rng_state(random)
        expected = []
        for batch in torch.randperm(train_images).split(5):
            images = clean.train.images[batch]
            images = images + level * torch.rand(images.shape)
            expected.append((augment(images) if data == "cifar10" else images) - mean)
        made = [x for training, x in seen if training]
        for actual, images in zip(made, expected, strict=True):
            torch.testing.assert_close(actual, images)
        # the results of the training images are of the steps, not of a pass over clean ones
        assert len(seen) == len(made) + 1 and list(row.results) == ["train", "test"]
        passed.append(torch.cat(made))
    assert not torch.equal(*passed)


@pytest.mark.parametrize("data, write, train_images, test_images", FILES)
def test_what_the_network_sees(data, write, train_images, test_images, folder):
    """Images with noise that is drawn once, less their mean; those of CIFAR-10 are augmented in training."""
    write(folder, np.random.default_rng(0))
    flags = train_args("--data", data, "--data-dir", str(folder), "--batch-size", "5", "--seed", "1")
    job, *_ = train.prepare(flags, Processes())
    clean = load(data, folder, noise=0, seed=1)
    kept = [split.x.clone() for split in job.plan.splits.values()]
    for images, split in zip(kept, (clean.train, clean.test), strict=True):
        noise = (images - split.images) / {"mnist": 0.5, "cifar10": 0.1}[data]
        assert noise.min() > -1e-5 and noise.max() < 1 + 1e-5 and abs(noise.mean() - 0.5) < 0.03
    mean = kept[0].mean((0, 2, 3), keepdim=True) if data == "cifar10" else 0
    seen = []
    job.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for _ in range(2):
        seen.clear()
        random = torch.get_rng_state()
        job.epoch(lambda: None, lambda: None)
        torch.set_rng_state(random)
        batches = [kept[0][batch] for batch in torch.randperm(train_images).split(5)]
        if data == "cifar10":
            batches = [augment(batch, padding=4) for batch in batches]
        for actual, images in zip(seen, [*batches, *kept], strict=True):
            torch.testing.assert_close(actual, images - mean)


def test_resume_takes_its_settings_from_the_checkpoint(folder):
    flags = ("--thresholds", "channel-shared", "--lr", 0.01, "--batch-size", 50, "--noise", 0.2, "--seed", 5)
    assert run("--epochs", 2, "--output-dir", "whole", *flags) == 0
    assert run("--epochs", 1, "--output-dir", "part", *flags) == 0
    assert run("--epochs", 2, "--resume", "part/checkpoint.pt", "--output-dir", "other") == 0
    assert curve(folder / "other") == curve(folder / "whole")
    assert len(curve(folder / "part")) == 1


def test_resume_with_what_is_drawn_and_measured_anew(folder, capsys):
    """Noise, momentum and statistics of batches: bitwise as without a pause; without the flags it is another run."""
    flags = ("--fresh-noise", "--batch-norm-momentum", 0.25, "--batch-statistics")
    assert run("--epochs", 3, "--output-dir", "whole", *flags) == 0
    out = capsys.readouterr().out
    assert "noise 0.5 * U(0, 1), of the training images anew in every epoch\n" in out
    assert "learning rate 0.001, BatchNorm momentum 0.25, batches of 100" in out
    assert out.count("  test (batch statistics) loss ") == 3 and ", test (batch statistics) " in out
    assert run("--epochs", 1, "--output-dir", "part", *flags) == 0
    assert run("--epochs", 3, "--resume", "part/checkpoint.pt") == 0
    assert curve(folder / "part") == curve(folder / "whole")
    assert same(checkpoint("part/checkpoint.pt"), checkpoint("whole/checkpoint.pt"))
    assert list(curve(folder / "whole")[0])[-2:] == [
        "test_batch_statistics_loss",
        "test_batch_statistics_accuracy",
    ]


def test_a_checkpoint_of_a_gpu_has_the_state_of_its_random_numbers(monkeypatch):
    """A Dropout draws there. One of a CPU has none, and goes on on a GPU."""
    state, set_again = torch.arange(16, dtype=torch.uint8), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *given: set_again.append(given))
    settings = Settings("digits", "none", "drsn_ops", epochs=1, batch_size=100, lr=1e-3, noise=0.0, seed=0)
    job = Run(settings, few("digits", None, noise=0, seed=0), torch.device("cpu"))
    on_cpu = job.state()
    job.restore(on_cpu)
    job.device = torch.device("cuda")
    job.restore(on_cpu)
    assert set_again == [] and job.state()["random_of_device"] is state
    job.restore(job.state())
    assert set_again == [(state, job.device)]


def test_a_checkpoint_of_before_these_flags_goes_on(folder):
    """It has none of their settings."""
    assert run("--epochs", 2, "--output-dir", "whole") == 0
    assert run("--epochs", 1, "--output-dir", "part") == 0
    state = torch.load("part/checkpoint.pt", weights_only=True)
    for name in ("fresh_noise", "batch_norm_momentum", "batch_statistics"):
        del state["settings"][name]
    torch.save(state, "part/checkpoint.pt")
    assert run("--epochs", 2, "--resume", "part/checkpoint.pt") == 0
    assert same(checkpoint("part/checkpoint.pt"), checkpoint("whole/checkpoint.pt"))


@pytest.mark.parametrize("given, expected", [((), 0.01), (("--batch-norm-momentum", "0.5"), 0.5)])
def test_the_momentum_of_every_batch_norm(given, expected):
    job, *_ = train.prepare(train_args(*given), Processes())
    norms = [m for m in job.network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert [norm.momentum for norm in norms] == [expected] * 4


def test_the_statistics_of_each_batch(folder):
    """Of as many test images as a training batch has, the last one joining a batch; what is trained stays the same."""
    for name, flags in (("plain", ()), ("both", ("--batch-statistics",))):
        assert run("--epochs", 2, "--batch-size", 39, "--output-dir", name, *flags) == 0
    plain, both = (checkpoint(f"{name}/checkpoint.pt") for name in ("plain", "both"))
    assert same(both["network"], plain["network"]) and same(both["optimiser"], plain["optimiser"])
    measured = [{name: row[name] for name in row if "batch" not in name} for row in curve(folder / "both")]
    assert measured == curve(folder / "plain")
    job, *_ = train.prepare(train_args("--batch-statistics", "--batch-size", "15"), Processes())
    job.train_epoch(lambda: None)
    network = copy.deepcopy(job.network).train()
    x, labels = job.plan.splits["test"]
    kept = copy.deepcopy(job.network.state_dict())
    logits = torch.cat([network(part) for part in (x[:15], x[15:30], x[30:])])
    loss, accuracy = job.evaluate("test (batch statistics)", lambda: None)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == labels).double().mean()
    assert same(job.network.state_dict(), kept)
    assert loss != pytest.approx(job.evaluate("test", lambda: None).loss, rel=1e-3)


def test_a_last_sample_joins_a_batch():
    assert [running.sizes_of(n, 4) for n in (1, 4, 5, 6, 9)] == [[1], [4], [5], [4, 2], [4, 5]]


def test_one_test_image_has_no_statistics(monkeypatch, capsys):
    def one(*args, **options):
        data = few(*args, **options)
        return data._replace(test=Split(*(t[:1] for t in data.test)))

    monkeypatch.setattr(train, "load", one)
    assert run("--batch-statistics") == 2
    message = "--batch-statistics: digits has one test image, expected two or more\n"
    assert capsys.readouterr().err.endswith(message)


def test_interrupt(folder, monkeypatch, capsys):
    """After Ctrl-C in the second epoch the first is on disk, and the resumed run ends as an uninterrupted one."""
    assert run("--epochs", 3, "--output-dir", "whole") == 0
    inside = Recipe.learning_rate

    def interrupt(self, start, step):
        if step == 4:
            raise KeyboardInterrupt
        return inside(self, start, step)

    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "learning_rate", interrupt)
        assert run("--epochs", 3, "--output-dir", "part") == 130
    assert "to go on: --resume" in capsys.readouterr().out
    assert curve(folder / "part") == curve(folder / "whole")[:1]
    assert not [path for path in (folder / "part").iterdir() if path.name.startswith(".")]
    assert run("--resume", "part/checkpoint.pt") == 0
    assert curve(folder / "part") == curve(folder / "whole")


def interrupted(monkeypatch, *flags):
    """The flags that a run prints to go on with when it is interrupted in its first epoch."""
    with monkeypatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setattr(Recipe, "learning_rate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*flags) == 130
    (line,) = (line for line in out.getvalue().splitlines() if line.startswith("interrupted; to go on: "))
    return shlex.split(line)[4:]


def test_interrupt_in_the_first_epoch_can_be_resumed(folder, monkeypatch):
    """It draws no empty curve; the flags that it prints work, also with spaces in names."""
    (folder / "my files").mkdir()
    write_mnist(folder / "my files", np.random.default_rng(0))
    flags = interrupted(
        monkeypatch,
        *(
            "--data",
            "mnist",
            "--data-dir",
            "my files",
            "--epochs",
            1,
            "--batch-size",
            5,
            "--output-dir",
            "my run",
        ),
    )
    assert flags == ["--resume", "my run/checkpoint.pt"]
    assert sorted(path.name for path in (folder / "my run").iterdir()) == ["checkpoint.pt", "curve.csv"]
    assert curve(folder / "my run") == []
    # the same in another folder, before there is a checkpoint of its own
    again = interrupted(monkeypatch, *flags, "--output-dir", "other")
    assert again == ["--resume", "other/checkpoint.pt"]
    for resumed, name in ((flags, "my run"), (again, "other")):
        assert run(*resumed) == 0 and len(curve(folder / name)) == 1
        assert (folder / name / "curve.png").exists()


def test_the_device_is_named_to_go_on_with(folder, monkeypatch):
    assert interrupted(monkeypatch, "--device", "cpu:0") == [
        *("--resume", "runs/digits/checkpoint.pt"),
        *("--device", "cpu:0"),
    ]


def test_other_data_than_the_checkpoints_are_refused(folder, monkeypatch, capsys):
    """The content counts, not the folder's name: it may have moved, or hold other files now."""
    for name, seed in (("files", 0), ("others", 1)):
        (folder / name).mkdir()
        write_mnist(folder / name, np.random.default_rng(seed))
    assert (
        run("--data", "mnist", "--data-dir", "files", "--epochs", 1, "--batch-size", 5, "--output-dir", "own")
        == 0
    )
    flags = ["--resume", "own/checkpoint.pt", "--epochs", "2"]
    (folder / "files").rename("moved")
    assert_refused(run, flags, f"{folder / 'files'}", folder, capsys)
    message = "begun with other data than mnist in {0}/others holds now; these were mnist in {0}/files"
    assert_refused(run, [*flags, "--data-dir", "others"], message.format(folder), folder, capsys)
    assert run(*flags, "--data-dir", "moved") == 0
    assert run("--resume", "own/checkpoint.pt", "--epochs", 3) == 0
    # a few pixels of one image
    images = next(path for path in (folder / "moved").iterdir() if path.name.startswith("train-images"))
    content = (gzip.decompress if images.suffix == ".gz" else bytes)(images.read_bytes())
    images.with_suffix("").write_bytes(content[:-3] + bytes(255 - value for value in content[-3:]))
    if images.suffix == ".gz":
        images.unlink()
    flags[-1] = "4"
    assert_refused(run, flags, "begun with other data than mnist", folder, capsys)


def test_a_checkpoint_elsewhere_belongs_to_its_run(folder):
    """A resumed run uses its folder and the same file; they can be moved together, or the checkpoint alone."""
    (folder / "saved").mkdir()
    assert run("--epochs", 1, "--output-dir", "own", "--checkpoint", "saved/a.pt") == 0
    assert run("--epochs", 2, "--resume", "saved/a.pt") == 0
    assert sorted(path.name for path in (folder / "own").iterdir()) == ["curve.csv", "curve.png"]
    assert [path.name for path in (folder / "saved").iterdir()] == ["a.pt"]
    assert len(curve(folder / "own")) == 2 == len(checkpoint("saved/a.pt")["rows"])
    (folder / "deep").mkdir()
    for name in ("own", "saved"):
        (folder / name).rename(folder / "deep" / name)
    assert run("--epochs", 3, "--resume", "deep/saved/a.pt") == 0
    assert len(curve(folder / "deep" / "own")) == 3
    (folder / "alone").mkdir()
    shutil.copy("deep/saved/a.pt", "alone")
    assert run("--epochs", 4, "--resume", "alone/a.pt") == 0
    assert len(curve(folder / "alone")) == 4 and len(curve(folder / "deep" / "own")) == 3


def test_a_checkpoint_that_another_run_has_gone_on_from(folder, monkeypatch, capsys):
    """After the reading and before the lock: what that run has saved is not overwritten."""
    assert run("--epochs", 1, "--output-dir", "own") == 0
    inside = train.prepare

    def prepare(args, together):
        job = inside(args, together)
        monkeypatch.setattr(train, "prepare", inside)
        assert run("--resume", "own/checkpoint.pt", "--epochs", 2) == 0
        capsys.readouterr()
        return job

    monkeypatch.setattr(train, "prepare", prepare)
    assert run("--resume", "own/checkpoint.pt", "--epochs", 5) == 2
    assert (
        capsys.readouterr().err == "drsn_ops train: own/checkpoint.pt: another run has just gone on from it\n"
    )
    assert len(curve(folder / "own")) == 2


def test_a_full_disk_leaves_the_last_checkpoint(folder, small_files, capsys):
    assert run("--epochs", 1, "--output-dir", "own") == 0
    before = contents(folder)
    capsys.readouterr()
    with small_files:
        assert run("--epochs", 2, "--resume", "own/checkpoint.pt") == 2
    err = capsys.readouterr().err
    assert (
        err.startswith("drsn_ops train: [Errno ")
        and err.endswith("'own/checkpoint.pt'\n")
        and err.count("\n") == 1
    )
    assert contents(folder) == before
    assert run("--epochs", 2, "--resume", "own/checkpoint.pt") == 0


def test_the_largest_seed(folder):
    """PyTorch's generators take it, and a checkpoint keeps it."""
    assert run("--epochs", 1, "--seed", 2**64 - 1) == 0
    assert run("--epochs", 2, "--resume", "runs/digits/checkpoint.pt", "--seed", 2**64 - 1) == 0


def test_seconds_are_of_the_whole_epoch(folder, monkeypatch, capsys):
    """With a second for each step and a minute for the evaluation of each split."""
    clock = 0.0

    def pass_time(owner, name, seconds):
        inside = getattr(owner, name)

        def timed(*args):
            nonlocal clock
            clock += seconds
            return inside(*args)

        monkeypatch.setattr(owner, name, timed)

    pass_time(Recipe, "learning_rate", 1)
    pass_time(Run, "evaluate", 60)
    monkeypatch.setattr(running, "time", SimpleNamespace(perf_counter=lambda: clock))
    assert run("--epochs", 1) == 0
    with (folder / "runs" / "digits" / "curve.csv").open() as file:
        assert [float(row["seconds"]) for row in csv.DictReader(file)] == [123.0]
    assert "  123.0 s\n" in capsys.readouterr().out


def test_the_bar_moves_in_the_evaluation(folder, monkeypatch):
    """It counts steps and three evaluation batches, and names them; in a resumed run it begins where it was."""
    monkeypatch.setattr(running, "evaluation_batch", lambda network, x: 111)
    bars = []

    class Bar:
        def __init__(self, total, initial, **_):
            self.total, self.initial, self.phase, self.phases = total, initial, None, []
            bars.append(self)

        def set_description(self, phase, refresh):
            self.phase = phase

        def update(self):
            self.phases.append(self.phase)

        def write(self, line):
            pass

        def close(self):
            pass

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    epoch = 3 * ["training"] + 3 * ["evaluating"]
    assert run("--epochs", 2) == 0
    assert run("--epochs", 3, "--resume", "runs/digits/checkpoint.pt") == 0
    first, second = bars
    assert (first.total, first.initial, first.phases) == (12, 0, 2 * epoch)
    assert (second.total, second.initial, second.phases) == (18, 12, epoch)


def test_a_second_run_gets_a_folder_of_its_own(folder):
    assert run("--epochs", 1) == 0
    first = contents(folder)
    assert run("--epochs", 1) == 0
    assert run("--epochs", 1) == 0
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["digits", "digits-2", "digits-3"]
    assert first.items() <= contents(folder).items()


@pytest.mark.parametrize("thresholds, parameters", [("channel-shared", 1483), ("none", 1386)])
def test_thresholds(thresholds, parameters, capsys):
    assert run("--epochs", 1, "--thresholds", thresholds) == 0
    assert f"thresholds {thresholds}, {parameters} parameters" in capsys.readouterr().out


def test_a_remainder_of_one_image_is_left_out(folder):
    """221 = 11 * 20 + 1, and BatchNorm cannot train on one."""
    assert run("--epochs", 1, "--batch-size", 20) == 0
    assert curve(folder / "runs" / "digits")[0]["step"] == "11"


def test_recipe_of_cifar10():
    assert RECIPES["cifar10"].augment and RECIPES["cifar10"].decay_steps == 20_000
    settings = train.settings_of(train_args("--data", "cifar10"), None)
    assert (settings.epochs, settings.batch_size, settings.lr, settings.noise) == (100, 100, 0.1, 0.1)
    job = Run(settings, few("digits", None, noise=0, seed=0), torch.device("cpu"))
    rates = [job.plan.learning_rate(step, 10**6) for step in (0, 19_999, 20_000, 40_000)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])
    job.step, rates = 19_998, []
    # its results are of a pass of their own
    assert job.train_epoch(lambda: rates.append(job.optimiser.param_groups[0]["lr"])) is None
    assert rates == pytest.approx([0.1, 0.1, 0.01])
    assert isinstance(job.optimiser, torch.optim.SGD) and job.optimiser.defaults["momentum"] == 0.9


def test_recipe_of_mnist():
    settings = train.settings_of(train_args("--data", "mnist"), None)
    assert (settings.epochs, settings.batch_size, settings.lr, settings.noise) == (5, 100, 1e-3, 0.5)
    job = Run(settings, few("digits", None, noise=0, seed=0), torch.device("cpu"))
    assert isinstance(job.optimiser, torch.optim.Adam) and job.optimiser.defaults["eps"] == 1e-7
    assert job.plan.learning_rate(10**6, 10**6) == 1e-3


def keras_adam(p, gradients, lr=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    """Adam.get_updates of Keras 2.2.1, with its defaults and in its names; what each step leaves of p."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        lr_t = lr * (np.sqrt(1 - beta_2**t) / (1 - beta_1**t))
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        p = p - lr_t * m / (np.sqrt(v) + epsilon)
        yield p


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("resumed", [False, True])
def test_adam_is_that_of_keras(foreach, resumed):
    """Gradients of the size of epsilon, on which PyTorch's own Adam takes other steps."""
    random = np.random.default_rng(0)
    start = random.standard_normal(20)
    gradients = random.standard_normal((50, 20)) * np.logspace(-8, -4, 20)

    def steps(make):
        p = torch.nn.Parameter(torch.tensor(start))
        optimiser = make([p], 1e-3)
        for t, g in enumerate(gradients):
            if resumed and t == 20:
                state, optimiser = optimiser.state_dict(), make([p], 1e-3)
                optimiser.load_state_dict(state)
            for group in optimiser.param_groups:
                group["foreach"] = foreach
            p.grad = torch.tensor(g)
            optimiser.step()
            yield p.detach().numpy().copy()

    expected = list(keras_adam(start, gradients))
    np.testing.assert_allclose(list(steps(adam)), expected, rtol=1e-13)
    plain = list(steps(lambda parameters, lr: torch.optim.Adam(parameters, lr, eps=1e-7)))
    assert np.abs(np.subtract(plain, expected)).max() > 1e-4


def train_args(*flags):
    import argparse

    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return parser.parse_args(list(flags))


def test_the_l2_term_is_trained_on():
    """The gradient of a kernel w holds 2 * l2 * w besides that of the cross-entropy."""
    settings = Settings("cifar10", "channel-wise", "drsn_ops", 1, 2000, 0.1, 0.0, 0)
    data = few("digits", None, noise=0, seed=0)

    def step(l2):
        job = Run(settings, data, torch.device("cpu"))
        job.network.l2 = l2
        kernel = job.network.units[0].conv1.weight
        before = kernel.detach().clone()
        job.train_epoch(lambda: None)
        assert job.step == 1
        return before, kernel.grad

    (kernel, with_term), (_, without) = step(0.25), step(0.0)
    torch.testing.assert_close(with_term - without, 0.5 * kernel, rtol=1e-4, atol=1e-5)


BAD = [
    (["--thresholds", "both"], "argument --thresholds: invalid choice: 'both'"),
    (["--colour"], "unrecognized arguments: --colour"),
    (["--device", "abacus"], "--device abacus: cannot be used here"),
    (["--device", "meta"], "--device meta: cannot be used here"),
    (["--device", "cuda:99"], "--device cuda:99: cannot be used here"),
    (
        ["--data-dir", "nowhere"],
        "--data-dir nowhere: expected none with --data digits; --data mnist or cifar10 reads files",
    ),
    (["--data", "digits", "--data-dir", "."], "--data-dir .: expected none with --data digits"),
    (
        ["--backend", "reference", "--thresholds", "none"],
        "--backend reference: expected none with --thresholds none, which shrinks nothing",
    ),
    (["--device", "hpu"], "--device hpu: cannot be used here"),
    (["--fresh-noise", "--noise", "0"], "--fresh-noise: expected --noise above 0 with it"),
    (["--batch-norm-momentum", "0"], "argument --batch-norm-momentum: must be a number from 1e-06 to 1"),
    (
        ["--resume", "old/checkpoint.pt", "--epochs", "2", "--fresh-noise"],
        "a checkpoint of no --fresh-noise, not of --fresh-noise",
    ),
    (["--data", "mnist"], "mnist needs the folder that holds its files: --data-dir"),
    (["--data", "mnist", "--data-dir", "nowhere"], "train-images-idx3-ubyte: no such file"),
    (["--data", "cifar10", "--data-dir", "nowhere"], "data_batch_1: no such file"),
    (["--resume", "missing.pt"], "missing.pt: no such file"),
    (["--resume", "text.pt"], "text.pt: damaged, or not a checkpoint"),
    (["--resume", "cut.pt"], "cut.pt: damaged, or not a checkpoint"),
    (["--resume", "weights.pt"], "weights.pt: not a checkpoint of this program"),
    (["--resume", "object.pt"], "object.pt: damaged, or not a checkpoint"),
    (["--resume", "."], ".: a folder, expected a checkpoint, as checkpoint.pt"),
    (
        ["--resume", "earlier.pt"],
        "earlier.pt: a checkpoint of drsn_ops.train 1, not of this version's drsn_ops.train 2",
    ),
    (["--resume", "listed.pt"], "listed.pt: a checkpoint of another network (AttributeError)"),
    (["--resume", "other.pt"], "other.pt: a checkpoint of another network"),
    (["--resume", "old/checkpoint.pt"], "1 epoch is done; --epochs 1 leaves none to do"),
    (
        ["--resume", "old/checkpoint.pt", "--data", "mnist"],
        "a checkpoint of --data digits, not of --data mnist",
    ),
    (
        ["--resume", "old/checkpoint.pt", "--epochs", "2", "--thresholds", "channel-shared"],
        "a checkpoint of --thresholds channel-wise, not of --thresholds channel-shared",
    ),
    (
        ["--resume", "old/checkpoint.pt", "--epochs", "2", "--batch-size", "7"],
        "a checkpoint of --batch-size 100, not of --batch-size 7",
    ),
    (["--output-dir", "old"], "--output-dir old: not an empty folder"),
    (["--output-dir", "text.pt"], "--output-dir text.pt: not an empty folder"),
    (["--output-dir", "text.pt/inside"], "text.pt"),
    (["--checkpoint", "text.pt"], "text.pt: exists; --resume it, or give another --checkpoint"),
    (["--checkpoint", "nowhere/a.pt"], "--checkpoint nowhere/a.pt: its folder does not exist"),
]


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A folder with a finished run, and files that are not checkpoints of it."""
    folder = tmp_path_factory.mktemp("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load", few)
        assert run("--epochs", 1, "--output-dir", folder / "old") == 0
    state = torch.load(folder / "old" / "checkpoint.pt", weights_only=True)
    torch.save(state["network"], folder / "weights.pt")
    torch.save(
        {**state, "settings": {**state["settings"], "thresholds": "none", "epochs": 2}}, folder / "other.pt"
    )
    torch.save({**state, "format": "drsn_ops.train 1"}, folder / "earlier.pt")
    torch.save({**state, "settings": [1]}, folder / "listed.pt")
    torch.save({"format": CHECKPOINT.format, "run": object}, folder / "object.pt")
    whole = (folder / "old" / "checkpoint.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pt").write_text("not a checkpoint")
    return folder


@pytest.mark.parametrize("flags, message", BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_errors(old, flags, message, monkeypatch, capsys):
    monkeypatch.chdir(old)
    assert_refused(run, flags, message, old, capsys)


def test_a_checkpoint_runs_no_code(old, monkeypatch, capsys):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, ("harmed",)

    monkeypatch.chdir(old)
    torch.save({"format": CHECKPOINT.format, "settings": Harmful()}, old / "harmful.pt")
    assert status_of(run, "--resume", "harmful.pt") == 2
    (old / "harmful.pt").unlink()
    assert not (old / "harmed").exists()


def test_info(capsys):
    import json

    assert main(["info"]) == 0
    assert json.loads(capsys.readouterr().out)["version"]


@pytest.mark.parametrize("argv", [[], ["paint"]])
def test_a_wrong_command_is_one_line(argv, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(argv)
    assert leaving.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_missing_extra_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("--epochs", 1) == 2
    message = "drsn_ops train: the command needs matplotlib: pip install 'drsn_ops[train]'\n"
    assert capsys.readouterr().err == message


def test_cudnn_stays_as_it_is_but_for_its_choice_of_algorithms(monkeypatch):
    seen = []

    def look(*_):
        cudnn = torch.backends.cudnn
        seen.append((cudnn.enabled, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic))
        raise InputError("seen")

    monkeypatch.setattr(train, "prepare", look)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
        assert run() == 2
    assert seen == [(True, True, False, True)]
