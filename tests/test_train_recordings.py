"""Training on recordings: what it leaves, that it repeats and resumes to the bit, what is kept, and what is refused."""

import argparse
import copy
import csv
import json
import math
import shlex
import sys
import types
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import assert_refused, contents

from drsn_ops import Shrinkage, noise
from drsn_ops.__main__ import main
from drsn_ops.training import machine, recordings, train, verdict
from drsn_ops.training.keeper import Keeper
from drsn_ops.training.model import checksums, load_model
from drsn_ops.training.processes import Processes
from drsn_ops.training.recordings import RecordingSettings, balanced
from drsn_ops.training.report import describe, warn_of
from drsn_ops.training.run import Result, Run

for package in ("sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(package)

SMALL = "--points 64 --blocks 3 --widths 4 8 16 --batch-size 8 --lr 0.02".split()
KEPT = "checkpoint.pt confusion.csv confusion.png curve.csv curve.png model.pt predictions.csv report.json report.txt"


def write_recordings(folder, recordings=4, classes=("bad", "good")):
    """Sines of a frequency for each class, with noise: a recording has eleven windows of 64 points."""
    random = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(recordings):
            turns = (0.05 + 0.1 * label) * np.arange(384) + random.random()
            np.save(folder / name / f"{i}.npy", np.sin(2 * np.pi * turns) + random.standard_normal(384) / 2)


@pytest.fixture(autouse=True)
def folder(alone_in, monkeypatch):
    """A folder with recordings to train on, without matplotlib, which takes longer than that."""
    write_recordings(alone_in / "rec")
    monkeypatch.setattr(train, "draw_curve", lambda run, folder: (folder / "curve.png").touch())
    monkeypatch.setattr(verdict, "draw_confusion", lambda counts, classes, title, path: path.touch())
    return alone_in


def run(*flags):
    return main(["train", *map(str, flags)])


def trained(name, *flags, data="rec", epochs=2):
    assert run("--data", data, *SMALL, "--epochs", epochs, "--output-dir", name, *flags) == 0


def curve(name):
    """The rows of a curve in numbers, without the seconds, which differ between runs."""
    with open(f"{name}/curve.csv") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    for row in rows:
        assert row.pop("seconds") >= 0
    return rows


def flat(values, name=""):
    """The tensors and plain values of a saved file, by their place in it."""
    if isinstance(values, dict | list | tuple):
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        return {place: leaf for key, value in pairs for place, leaf in flat(value, f"{name}/{key}").items()}
    return {name: values}


def assert_same(name, other):
    """Two runs have the same curve, checkpoint and model, to the bit."""
    assert curve(name) == curve(other)
    for file in ("checkpoint.pt", "model.pt"):
        ours, theirs = (flat(torch.load(f"{place}/{file}", weights_only=True)) for place in (name, other))
        assert ours.keys() == theirs.keys()
        for place, value in ours.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, theirs[place]), place
            elif not (place.startswith("/rows") and place.endswith("/7")):  # seconds
                assert value == theirs[place], place


def begun(*flags):
    """A run that has not made a step, and what keeps its model."""
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    args = parser.parse_args(["--data", "rec", *SMALL, *map(str, flags)])
    job, _, keeper = train.prepare(args, Processes())
    return job, keeper


def test_a_run(folder, capsys):
    trained("out", epochs=3)
    out, err = capsys.readouterr()
    assert err == "" and sorted(path.name for path in (folder / "out").iterdir()) == KEPT.split()
    first, *rest = out.splitlines()
    assert first == (
        f"{folder / 'rec'}: 8 recordings of 2 classes, in windows of 64 points at a rate that no file says "
        "(--sampling-rate), split by recording: 44 train, 22 validation, 22 test"
    )
    assert rest[0] == "drsn, thresholds channel-wise: 2546 parameters, on cpu"
    assert (
        rest[1]
        == "SGD: learning rate 0.02 (cosine), balanced class weights, batches of 8, 3 epochs of 6 steps, seed 0"
    )
    rows = curve("out")
    assert list(rows[0])[3:] == ["train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
    assert [row["lr"] for row in rows] == pytest.approx(
        [0.01 * (1 + math.cos(math.pi * step / 18)) for step in (5, 11, 17)]
    )
    report = json.loads((folder / "out" / "report.json").read_text())
    assert f"by window: accuracy {report['by_window']['accuracy']:.2%}" in out
    assert f"by recording: accuracy {report['by_recording']['accuracy']:.2%}" in out
    assert "recordings (windows): 4 (44) train, 2 (22) validation, 2 (22) test" in out
    assert "test_loss" not in rows[0] and report["test_recordings_trained_on"] == 0
    assert rest[-2:] == [
        "next: python -m drsn_ops predict out/model.pt FILE_OR_FOLDER ...",
        "      python -m drsn_ops export out/model.pt --format onnx",
    ]


def test_the_model_is_that_of_the_checkpoint_and_of_the_report(folder):
    """It reloads to the same logits, and reads files as the training did."""
    trained("out", "--normalise", "mean", "--validation-share", 0)
    assert list(curve("out")[0])[3:] == ["train_loss", "train_accuracy"]
    job, keeper = begun("--normalise", "mean", "--validation-share", 0)
    job.network.load_state_dict(torch.load("out/checkpoint.pt")["network"])
    model, found = load_model("out/model.pt"), keeper.data.recordings
    job.network.eval()
    with torch.no_grad():
        assert torch.equal(model.network(found.test.x), job.network(found.test.x))
    assert model.classes == ("bad", "good") and model.name == "drsn" and model.reading == found.reading
    assert model.reading.cutting.step == 32 and model.trained_on == (
        *checksums(found.train),
        *checksums(found.validation),
    )
    with open("out/predictions.csv") as file:
        lines = list(csv.DictReader(file))
    probabilities = torch.tensor([[float(line[name]) for name in model.classes] for line in lines])
    torch.testing.assert_close(model.probabilities(found.test.x), probabilities, atol=1e-6, rtol=0)
    assert torch.equal(torch.from_numpy(model.reading.windows(found.files[0])), found.train.x[:11])


def test_runs_repeat_by_seed():
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        trained(name, "--seed", seed, "--snr", 0)
    assert_same("a", "b")
    assert curve("a") != curve("c")
    # and say what they were trained on
    model, report = load_model("a/model.pt"), json.loads(Path("a/report.json").read_text())
    assert (model.snr, model.noise_kind) == (0.0, "gaussian")
    assert report["data"].endswith(
        "split by recording: 44 train, 22 validation, 22 test, gaussian noise at 0 dB"
    )
    assert report["data"] == Path("a/report.txt").read_text().splitlines()[1]


def interrupted_at(wanted, *flags):
    """The flags to go on with that a run prints which Ctrl-C ends before a step."""
    inside = RecordingSettings.learning_rate

    def learning_rate(self, step, steps):
        if step == wanted:
            raise KeyboardInterrupt
        return inside(self, step, steps)

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setattr(RecordingSettings, "learning_rate", learning_rate)
        assert run("--data", "rec", *SMALL, *flags) == 130
    (line,) = (line for line in out.getvalue().splitlines() if line.startswith("interrupted; to go on: "))
    return shlex.split(line)[4:]


@pytest.mark.parametrize(
    "flags",
    [
        ["--class-weights", "none", "--schedule", "step"],
        ["--amp", "fp16", "--snr", "0", "--fresh-noise"],
        ["--split", "time"],
    ],
)
def test_an_interrupted_run_goes_on(folder, flags):
    """It has the model of its epochs; resumed, in its folder or another, it ends as one that was not interrupted."""
    trained("whole", *flags, epochs=3)
    later = interrupted_at(8 if "time" not in flags else 2, *flags, "--epochs", 3, "--output-dir", "part")
    assert later == ["--resume", "part/checkpoint.pt"]
    left = ["checkpoint.pt", "curve.csv", "curve.png", "model.pt"]
    assert sorted(path.name for path in (folder / "part").iterdir()) == left
    assert curve("part") == curve("whole")[: len(curve("part"))] and load_model("part/model.pt").classes
    assert run(*later, "--output-dir", "other") == 0
    assert run(*later) == 0
    assert_same("whole", "part")
    assert (folder / "whole" / "report.txt").read_text() == (folder / "other" / "report.txt").read_text()


def test_an_interrupt_in_the_first_epoch_leaves_no_model(folder):
    later = interrupted_at(1, "--epochs", 1, "--output-dir", "my run", "--patience", 4)
    assert sorted(path.name for path in (folder / "my run").iterdir()) == ["checkpoint.pt", "curve.csv"]
    assert run(*later) == 0
    trained("whole", "--patience", 4, epochs=1)
    assert_same("whole", "my run")


def test_a_report_that_was_cut_off_is_written_anew(folder, monkeypatch):
    """Some of its files are then of one model and some of another; the last one tells."""
    trained("out", epochs=1)
    before = contents(folder / "out")
    with monkeypatch.context() as patch:
        patch.setattr(verdict, "draw_confusion", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run("--resume", "out/checkpoint.pt", "--epochs", 2) == 130
    stale = before[folder / "out" / "predictions.csv"]
    assert (folder / "out" / "predictions.csv").read_bytes() == stale
    assert run("--resume", "out/checkpoint.pt") == 0
    assert (folder / "out" / "predictions.csv").read_bytes() != stale
    assert ", epoch " in (folder / "out" / "report.txt").read_text().splitlines()[0]
    assert run("--resume", "out/checkpoint.pt") == 2


def test_a_class_that_was_trained_on_one_recording_is_named(folder, capsys):
    for name in ("1", "2"):
        (folder / "rec" / "good" / f"{name}.npy").unlink()
    trained("out", epochs=1)
    line = "Trained on one recording: good. The figures of such a class may not hold for others."
    assert line in capsys.readouterr().out.splitlines()
    assert line in (folder / "out" / "report.txt").read_text().splitlines()


def test_a_run_that_ends_before_its_report_gets_one(folder, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "judge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run("--data", "rec", *SMALL, "--epochs", 1, "--output-dir", "out") == 130
    assert "to go on: --resume out/checkpoint.pt" in capsys.readouterr().out
    before = torch.load("out/checkpoint.pt")["network"]
    assert run("--resume", "out/checkpoint.pt") == 0
    assert (folder / "out" / "report.txt").exists() and len(curve("out")) == 1
    assert all(map(torch.equal, before.values(), torch.load("out/checkpoint.pt")["network"].values()))
    capsys.readouterr()
    assert run("--resume", "out/checkpoint.pt") == 2
    assert "1 epoch is done; --epochs 1 leaves none to do" in capsys.readouterr().err


@pytest.fixture
def losses(monkeypatch):
    """Validation losses to be found, in turn, and the weights that had them."""
    found, weights = [], []

    def evaluate(self, split, evaluated):
        weights.append(copy.deepcopy(self.network.state_dict()))
        return Result(found[len(self.rows)], 0.5)

    monkeypatch.setattr(Run, "evaluate", evaluate)
    return found, weights


def test_the_best_epoch_is_kept_and_the_run_ends_early(folder, losses, capsys):
    """The first of equal losses; a run that ended goes on with more patience."""
    found, weights = losses
    found += [math.nan, 0.5, 0.7, 0.5, 0.6, 0.4]
    trained("out", "--patience", 3, epochs=9)
    assert [row["validation_loss"] for row in curve("out")][1:] == found[1:5]
    assert "model: out/model.pt, of epoch 2" in capsys.readouterr().out

    def assert_kept(epoch):
        for kept in (
            load_model("out/model.pt").network.state_dict(),
            torch.load("out/checkpoint.pt")["best"],
        ):
            assert all(torch.equal(kept[name], tensor) for name, tensor in weights[epoch - 1].items())

    assert_kept(2)
    assert run("--resume", "out/checkpoint.pt") == 2
    assert capsys.readouterr().err == (
        "drsn_ops train: out/checkpoint.pt: 5 epochs are done, the best is 2; expected a longer --patience\n"
    )
    assert run("--resume", "out/checkpoint.pt", "--patience", 4, "--epochs", 6) == 0
    assert len(curve("out")) == 6
    assert_kept(6)


def test_without_validation_the_last_epoch_is_kept(losses):
    trained("out", "--validation-share", 0)
    kept = torch.load("out/checkpoint.pt")
    assert all(torch.equal(kept["network"][name], kept["best"][name]) for name in kept["network"])


def test_class_weights_are_balanced(folder):
    """N / (classes * count): the loss of a step is that of ``nn.CrossEntropyLoss`` with these weights."""
    assert balanced(torch.tensor([0, 0, 1, 0]), 3).tolist() == pytest.approx([4 / 9, 4 / 3, 0])
    (folder / "rec" / "good" / "0.npy").unlink()
    job, _ = begun("--batch-size", 30, "--validation-share", 0)
    x, labels = job.plan.splits["train"]
    assert labels.bincount().tolist() == [33, 22]
    torch.testing.assert_close(job.plan.weights, torch.tensor([55 / 66, 55 / 44]))
    twin = copy.deepcopy(job.network)
    logits, gradients = [], []
    job.network.register_forward_hook(lambda module, inputs, y: logits.append(y.detach()))
    with torch.random.fork_rng():
        order = torch.randperm(55)
    row = job.train_epoch(lambda: gradients.append([p.grad.clone() for p in job.network.parameters()]))
    batch = order[:30]
    (F.cross_entropy(twin(x[batch]), labels[batch], job.plan.weights) + twin.penalty()).backward()
    for ours, theirs in zip(gradients[0], twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-4, atol=1e-6)
    expected = F.cross_entropy(torch.cat(logits), labels[order], job.plan.weights)
    assert row.loss == pytest.approx(expected.item(), rel=1e-5)


def test_results_of_an_epoch_are_means_over_its_steps():
    """Each of the network in training mode before its step; those of validation are of the network after the epoch."""
    job, _ = begun()
    seen = []
    job.network.register_forward_hook(lambda module, inputs, y: seen.append((module.training, y.detach())))
    with torch.random.fork_rng():
        permutation = torch.randperm(44)
    row = job.epoch(lambda: None, lambda: None)
    labels = job.plan.splits["train"].labels[permutation]
    logits = torch.cat([y for training, y in seen if training])
    sums = F.cross_entropy(logits, labels), (logits.argmax(1) == labels).double().mean()
    assert row.results["train"] == pytest.approx([each.item() for each in sums], rel=1e-6)
    (after,) = (y for training, y in seen if not training)
    expected = F.cross_entropy(after, job.plan.splits["validation"].labels)
    assert row.results["validation"].loss == pytest.approx(expected.item(), rel=1e-6)


def test_noise_is_added_once_to_every_split(folder):
    job, keeper = begun("--snr", 3, "--noise-kind", "pink", "--seed", 1)
    _, clean = begun("--seed", 1)
    noisy, found = keeper.data.recordings, clean.data.recordings
    for part in range(3):
        torch.testing.assert_close(
            noise.snr(found[part].x, noisy[part].x),
            torch.full((len(found[part].x),), 3.0).double(),
            atol=0.01,
            rtol=0,
        )
    assert torch.equal(job.plan.splits["validation"].x, noisy.validation.x)
    assert keeper.data.trained_on == clean.data.trained_on
    assert keeper.data.trained_on == (*checksums(found.train), *checksums(found.validation))


def test_noise_that_is_drawn_anew(folder, capsys):
    """That of the windows to train on, in every step from the default generator; the other parts keep theirs."""
    flags = ("--snr", 3, "--noise-kind", "laplacian", "--seed", 1)
    (_, once), (job, anew), (_, clean) = begun(*flags), begun(*flags, "--fresh-noise"), begun("--seed", 1)
    before, found, without = (keeper.data.recordings for keeper in (once, anew, clean))
    assert torch.equal(found.train.x, without.train.x)
    assert torch.equal(found.validation.x, before.validation.x) and torch.equal(found.test.x, before.test.x)
    seen = []
    job.network.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, inputs[0])))
    passed = []
    for _ in range(2):
        seen.clear()
        with torch.random.fork_rng():
            expected = [
                noise.add_noise(found.train.x[batch], 3, "laplacian") for batch in torch.randperm(44).split(8)
            ]
        job.epoch(lambda: None, lambda: None)
        passed.append(torch.cat([x for training, x in seen if training]))
        assert torch.equal(passed[-1], torch.cat(expected))
    assert not torch.equal(*passed)
    assert "laplacian noise at 3 dB, of the training windows anew in every epoch\n" in describe(job)


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_amp_trains_in_its_precision(precision, dtype):
    """Convolutions do; weights, validation and the loss stay in float32, and the loss of fp16 is scaled."""
    job, _ = begun("--amp", precision)
    seen = []
    job.network.stem.register_forward_hook(lambda module, inputs, y: seen.append((module.training, y.dtype)))
    scales = job.scaler.get_scale()
    row = job.epoch(lambda: None, lambda: None)
    assert {*seen} == {(True, dtype), (False, torch.float32)}
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in job.network.parameters())
    plain, _ = begun()
    assert row.results["train"].loss == pytest.approx(
        plain.epoch(lambda: None, lambda: None).results["train"].loss, abs=0.05
    )
    assert (scales > 1) == (precision == "fp16")


@pytest.mark.parametrize(
    "schedule, rates", [("step", [1, 1, 0.1, 0.1, 0.01]), ("cosine", [1, 0.904508, 0.654508])]
)
def test_schedules(schedule, rates):
    settings = RecordingSettings("x", lr=2.0, schedule=schedule)
    assert [settings.learning_rate(step, 5) for step in range(len(rates))] == pytest.approx(
        [2 * rate for rate in rates]
    )


@pytest.mark.parametrize(
    "windows, given, batch_size, epochs",
    [
        (4000, {}, 64, 20),
        (1280, {}, 40, 38),  # 32 steps an epoch
        (100, {}, 16, 200),  # 6
        (2, {}, 16, 200),
        (100, {"batch_size": 4}, 4, 48),
        (100, {"epochs": 3}, 16, 3),
    ],
)
def test_few_windows_are_passed_more_often(windows, given, batch_size, epochs):
    settings = RecordingSettings("x", **given).sized(windows)
    assert (settings.batch_size, settings.epochs) == (batch_size, epochs)


def test_the_simulated_machine(folder):
    trained("out", "--num-signals", 40, "--normalise", "none", data="vibration", epochs=1)
    model = load_model("out/model.pt")
    assert len(model.classes) == 8 and model.reading.sampling_rate == 12_800
    report = json.loads((folder / "out" / "report.json").read_text())
    assert [split["recordings"] for split in report["splits"].values()] == [24, 8, 8]


def test_data_by_its_earlier_name(folder):
    """``--data folder --data-dir DIR`` is ``--data DIR``; so is cwru. A name that is a path stays a name."""
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    for name in ("cwru", "folder"):
        args = parser.parse_args(["--data", name, "--data-dir", "rec"])
        assert train.settings_of(args, None) == RecordingSettings(str(folder / "rec"))
    (folder / "vibration").mkdir()
    assert train.settings_of(parser.parse_args(["--data", "vibration"]), None).data == "vibration"
    assert train.settings_of(parser.parse_args(["--data", "./vibration"]), None).data == str(
        folder / "vibration"
    )


def test_a_run_that_diverges_ends(folder, capsys):
    """What was saved before stays."""
    assert run("--data", "rec", *SMALL, "--lr", 1e9, "--output-dir", "out") == 2
    assert capsys.readouterr().err == (
        "drsn_ops train: the weights are not finite after epoch 1; expected a lower --lr than 1e+09\n"
    )
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["checkpoint.pt", "curve.csv"]


def test_windows_of_recordings_that_were_trained_on_are_said_to_be(folder, capsys):
    trained("out", "--split", "time", epochs=1)
    assert "8 of the 8 test recordings are in the training split too" in capsys.readouterr().out
    assert "trained on 8 of these 8 recordings" in (folder / "out" / "report.txt").read_text()


def test_epochs_are_added_after_the_report(folder):
    """And a report on fewer epochs than are done is written anew."""
    trained("out", epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "judge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run("--resume", "out/checkpoint.pt", "--epochs", 2) == 130
    assert "of 1" in json.loads((folder / "out" / "report.json").read_text())["title"]
    assert run("--resume", "out/checkpoint.pt") == 0
    assert "of 2" in json.loads((folder / "out" / "report.json").read_text())["title"]
    assert run("--resume", "out/checkpoint.pt") == 2


def test_other_networks_take_the_windows():
    for flags in (["--network", "convnet"], ["--thresholds", "none"]):
        trained(flags[1], *flags, epochs=1)
    assert load_model("none/model.pt").arguments["thresholds"] is None
    shape = load_model("convnet/model.pt").arguments
    stem = {"stem_width": 3, "stem_stride": 2, "dropout": 0.0}
    assert shape == {"in_channels": 1, "num_classes": 2, "blocks": 3, "widths": [4, 8, 16], **stem}
    settings = RecordingSettings("x", network="rsnet18", thresholds="channel-shared")
    assert settings.arguments(begun()[1].data.recordings) == {
        "in_channels": 1,
        "num_classes": 2,
        "thresholds": "channel-shared",
        "norm": "batch",
        "reduction": 1,
    }


CHOSEN = {
    **{"norm": "layer", "reduction": 2, "rule": "asymmetric", "pooling": "avg+max"},
    **{"stem_width": 7, "stem_stride": 4, "dropout": 0.25},
}


def test_what_is_chosen_of_a_network_is_kept(folder, capsys):
    """By the model, by the checkpoint, and in what is printed."""
    flags = [word for name, value in CHOSEN.items() for word in ("--" + name.replace("_", "-"), value)]
    trained("out", *flags)
    words = (
        "stem width 7, stem stride 4, norm layer, reduction 2, rule asymmetric, pooling avg+max, dropout 0.25"
    )
    assert f"drsn, thresholds channel-wise, {words}: " in capsys.readouterr().out
    model = load_model("out/model.pt")
    assert {name: model.arguments[name] for name in CHOSEN} == CHOSEN
    network = model.network
    assert (network.stem.kernel_size, network.stem.stride, network.dropout.p) == ((7,), (4,), 0.25)
    made = [module for module in network.modules() if isinstance(module, Shrinkage)]
    assert {(one.norm, one.reduction, one.rule, one.pooling) for one in made} == {
        ("layer", 2, "asymmetric", "avg+max")
    }
    assert main(["predict", "out/model.pt", "rec", "--output", "predicted.csv"]) == 0
    assert run("--resume", "out/checkpoint.pt", "--epochs", 3) == 0
    assert load_model("out/model.pt").arguments == model.arguments


def test_a_checkpoint_from_before_a_setting(folder):
    trained("out", epochs=1)
    saved = torch.load("out/checkpoint.pt")
    for name in CHOSEN:
        del saved["settings"][name]
    torch.save(saved, "out/checkpoint.pt")
    assert run("--resume", "out/checkpoint.pt", "--epochs", 2, "--norm", "batch") == 0


def test_a_gate_that_does_not_learn_is_said_to_once(folder):
    with pytest.warns(UserWarning, match="'hard' passes no gradient"):
        trained("out", "--rule", "hard", epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model("out/model.pt")


def test_moved_files_are_found_and_others_refused(folder, capsys):
    trained("out", epochs=1)
    write_recordings(folder / "others", recordings=5)
    (folder / "rec").rename("moved")
    assert_refused(
        run, ["--resume", "out/checkpoint.pt", "--epochs", "2"], f"{folder / 'rec'}: ", folder, capsys
    )
    message = f"begun with other data than {folder / 'others'} holds now; these were {folder / 'rec'}"
    assert_refused(
        run, ["--resume", "out/checkpoint.pt", "--epochs", "2", "--data", "others"], message, folder, capsys
    )
    assert run("--resume", "out/checkpoint.pt", "--epochs", 2, "--data", "moved") == 0


def test_files_that_are_passed_over_are_named(folder, capsys):
    for name in ("notes.md", "a.png"):
        (folder / "rec" / "bad" / name).touch()
    trained("out", epochs=1)
    assert capsys.readouterr().err == (
        f"passed over, as no recordings: {folder / 'rec' / 'bad' / 'a.png'} and 1 other\n"
    )


def test_tensorboard_gets_the_curve(folder, monkeypatch):
    """What SummaryWriter is called with: the package is no dependency."""
    written, opened = {}, []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            opened.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written[name, step] = value

        flush = close = lambda self: None

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(torch.utils, "tensorboard", module, raising=False)
    monkeypatch.setattr(train, "require_packages", lambda *_: None)
    trained("out", "--tensorboard")
    assert opened == [("out/tensorboard", 1)]
    rows = curve("out")
    assert written["loss/validation", 2] == rows[1]["validation_loss"]
    assert written["accuracy/train", 1] == rows[0]["train_accuracy"] and written["lr", 2] == rows[1]["lr"]


REFUSED = [
    (["--noise", "1"], "--noise 1: expected none with recordings; --snr and --noise-kind add noise"),
    (["--backend", "reference"], "--backend reference: expected none with recordings"),
    (["--noise-kind", "pink"], "--noise-kind pink: expected --snr with it"),
    (["--num-signals", "9"], "--num-signals 9: expected none but with --data vibration"),
    (["--data-dir", "rec"], "--data-dir rec: expected none with --data rec, a path itself"),
    (["--network", "rsnet18"], "--blocks 3: expected none with --network rsnet18"),
    (
        ["--network", "convnet", "--thresholds", "none"],
        "--thresholds none: expected none with --network convnet",
    ),
    (["--network", "convnet", "--rule", "firm"], "--rule firm: expected none with --network convnet"),
    (["--thresholds", "none", "--norm", "layer"], "--norm layer: expected none with --thresholds none"),
    (["--data", "digits", "--rule", "firm"], "expected none with --data digits"),
    (["--resume", "old/checkpoint.pt", "--rule", "firm"], "a checkpoint of --rule soft, not of --rule firm"),
    (["--patience", "2", "--validation-share", "0"], "--patience 2: expected a validation part"),
    (["--split", "given", "--test-share", "0.5"], "--test-share 0.5: expected none with --split given"),
    (["--blocks", "4"], "--blocks: got 4, expected a multiple of the number of widths, 3"),
    (["--points", "385"], "has 384 points, fewer than a window of 385 has"),
    (
        ["--data", "nowhere"],
        "nowhere: no such file or folder; --data takes a path to recordings, or a name: digits, ",
    ),
    (["--data", "cwru"], "--data cwru needs the folder that holds its files: --data-dir DIR, or --data DIR"),
    (["--fresh-noise"], "--fresh-noise: expected --snr with it"),
    (["--batch-statistics"], "--batch-statistics: expected none with recordings"),
    (["--batch-norm-momentum", "0.1"], "--batch-norm-momentum 0.1: expected none with recordings"),
    (["--data", "vibration", "--step", "5"], "--step 5: expected none with --data vibration"),
    (["--data", "vibration", "--num-signals", "23"], "--num-signals 23: expected at least 24"),
    (["--data", "digits", "--points", "64"], "--blocks 3: expected none with --data digits"),
    (["--output-dir", "rec"], "--output-dir rec: not an empty folder"),
    (["--snr", "5", "--data", "silent"], "has a window of 64 points that are all the same"),
    (["--resume", "old/checkpoint.pt", "--epochs", "1"], "1 epoch is done; --epochs 1 leaves none to do"),
    (["--resume", "old/checkpoint.pt", "--step", "5"], "a checkpoint of no --step, not of --step 5"),
    (["--resume", "old/checkpoint.pt", "--data", "digits"], "expected none with --data digits"),
    (["--resume", "old/checkpoint.pt", "--data", "vibration"], "not of --data vibration"),
    (
        ["--resume", "old/checkpoint.pt", "--channels", "1"],
        "a checkpoint of no --channels, not of --channels 1",
    ),
]


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A folder with recordings, silent ones, and a finished run."""
    folder = tmp_path_factory.mktemp("old")
    write_recordings(folder / "rec")
    write_recordings(folder / "silent")
    np.save(folder / "silent" / "bad" / "0.npy", np.zeros(384))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(train, "draw_curve", lambda *_: None)
        patch.setattr(verdict, "draw_confusion", lambda counts, classes, title, path: path.touch())
        trained("old", epochs=1)
    return folder


@pytest.mark.parametrize("flags, message", REFUSED, ids=[" ".join(flags) for flags, _ in REFUSED])
def test_errors(old, flags, message, monkeypatch, capsys):
    """A flag that is given twice has its last value."""
    monkeypatch.chdir(old)
    given = ["--data", "rec"] if "--data" not in flags else []
    assert_refused(run, [*given, *SMALL, *flags], message, old, capsys)


def test_what_the_machine_lacks_is_one_line(old, monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("no compiler\nand more")

    monkeypatch.chdir(old)
    monkeypatch.setattr(torch, "compile", fails)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr(machine, "autocast", fails)
    for flags, message in (
        (["--compile"], "--compile: cannot be used on cpu: no compiler"),
        (["--tensorboard"], "--tensorboard needs tensorboard: pip install 'drsn_ops[tensorboard]'"),
        (["--amp", "fp16"], "--amp fp16: cannot be used on cpu: no compiler"),
    ):
        assert_refused(run, ["--data", "rec", *SMALL, *flags], message, old, capsys)


def test_the_compiled_network_is_trained(monkeypatch):
    """What torch.compile returns is called in every step, and the model is the network's."""
    called = []

    class Compiled(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            called.append(self.training)
            return self.module(x)

    monkeypatch.setattr(torch, "compile", Compiled)
    flags = ("--snr", 0, "--fresh-noise")
    trained("out", "--compile", *flags, epochs=2)
    # twice six steps, after the machine is tried
    assert called[-12:] == [True] * 12 and len(called) <= 13
    trained("plain", *flags, epochs=2)
    assert_same("out", "plain")


def write_given(folder, parts):
    """A part of each name, of four recordings of each class."""
    for i, part in enumerate(parts):
        write_recordings(folder / part)
        for path in (folder / part).rglob("*.npy"):
            np.save(path, np.load(path) ** (2 * i + 1))


def test_shares_without_effect_are_refused(folder, capsys):
    """Where the split is found to be given. A share for validation has one, unless a folder gives that part."""
    write_given(folder / "two", ("train", "test"))
    write_given(folder / "three", ("train", "test", "val"))
    for name, flag, message in (
        (
            "two",
            "--test-share",
            f"--test-share 0.4: expected none with {folder / 'two'}, where the split is given",
        ),
        (
            "three",
            "--validation-share",
            f"--validation-share 0.4: expected none with {folder / 'three'}, which gives that part",
        ),
    ):
        assert_refused(run, ["--data", name, *SMALL, flag, 0.4], message, folder, capsys)
    trained("out", "--validation-share", 0.4, data="two", epochs=1)


@pytest.mark.parametrize("data", ["rec", "vibration"])
def test_a_bad_argument_of_reading_names_its_flag(folder, monkeypatch, capsys, data):
    def fail(*_, **__):
        raise ValueError("test_share: got 2")

    monkeypatch.setattr(recordings, "vibration", fail)
    monkeypatch.setattr(recordings, "read_recordings", fail)
    assert_refused(run, ["--data", data, *SMALL], "drsn_ops train: --test-share: got 2\n", folder, capsys)


def test_series_in_two_parts_are_named(folder, capsys):
    warn_of([], [(Path("a:1"), Path("b:2"))])
    warn_of([], [(Path("a:1"), Path("b:2"))] * 3)
    assert capsys.readouterr().err == (
        "the same series in two parts: a:1 and b:2\nthe same series in two parts: a:1 and b:2, and 2 others\n"
    )


@pytest.mark.parametrize(
    "where, epochs, model",
    [("save_checkpoint", 1, 1), ("write_curve", 2, 1), ("Keeper.save", 2, 1), ("Keeper.save first", 1, 0)],
)
def test_an_interrupt_between_epoch_and_files(folder, losses, monkeypatch, capsys, where, epochs, model):
    """What is printed and drawn is what the files hold: of two epochs, the second is the better one."""
    losses[0].extend([0.5, 0.4])
    at, drawn = 0 if where.endswith("first") else 1, []
    owner, name = (Keeper, "save") if where.startswith("Keeper") else (train, where)
    inside = getattr(owner, name)

    def interrupted(*args):
        job = next(arg for arg in args if isinstance(arg, Run))
        if len(job.rows) > at:
            raise KeyboardInterrupt
        return inside(*args)

    monkeypatch.setattr(owner, name, interrupted)
    monkeypatch.setattr(train, "draw_curve", lambda job, folder: drawn.append(len(job.rows)))
    assert run("--data", "rec", *SMALL, "--epochs", 2, "--output-dir", "out") == 130
    out = capsys.readouterr().out
    assert drawn == [epochs] == [len(torch.load("out/checkpoint.pt")["rows"])]
    assert (f"model: out/model.pt, of epoch {model}\n" in out) == bool(model) == ("model:" in out)
    assert (folder / "out" / "model.pt").exists() == bool(model)


def test_errors_of_the_data_are_not_the_checkpoints(old, monkeypatch):
    """Only what is made of the checkpoint's values is taken for another network's."""

    def fail(self):
        raise RuntimeError("of the files")

    monkeypatch.chdir(old)
    monkeypatch.setattr(RecordingSettings, "load", fail)
    with pytest.raises(RuntimeError, match="of the files"):
        run("--resume", "old/checkpoint.pt", "--epochs", 2)


def test_one_of_a_thing_is_no_plural():
    job, _ = begun("--batch-size", 44, "--epochs", 1)
    assert ", 1 epoch of 1 step, seed 0" in describe(job)
