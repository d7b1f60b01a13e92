"""The experiment's choices beside the paper's: other networks, noise drawn anew, AdaBN, intervals, what is refused."""

import argparse
import json
from dataclasses import replace

import pytest
import torch
from commands import assert_refused, write_table
from commands import run_experiment as run
from scipy.stats import ttest_rel

import drsn_ops
from drsn_ops import noise
from drsn_ops.experiment import averages, cell, command, report, signals
from drsn_ops.experiment.settings import FULL, NETWORKS, OF_THE_PAPER, SMALL, Cell
from drsn_ops.training.recipes import momentum

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

TINY = (
    "--num-signals 72 --points 64 --blocks 3 --epochs 2 --batch-size 16 --seeds 1 --snr 5 --workers 1".split()
)


@pytest.fixture(autouse=True)
def folder(alone_in, monkeypatch):
    """A folder to train in; the report is a table alone."""
    monkeypatch.setattr(command, "write_report", write_table)
    return alone_in


@pytest.fixture
def tiny():
    return replace(SMALL, num_signals=72, points=256, blocks=3, epochs=3, batch_size=16)


def train(settings, network="DRSN-CW", snr=0.0):
    return cell.train_cell(settings, Cell(network, "gaussian", snr, 1), torch.device("cpu"), "here")[0]


def seen_in_training(monkeypatch, settings, network="ResNet"):
    """The training signals of each epoch, and those that are tested on."""
    epochs, tested = [], []
    monkeypatch.setattr(cell, "fit", lambda network, optimiser, own, *_: epochs.extend(own))
    monkeypatch.setattr(
        cell,
        "features_of",
        lambda network, x: tested.append(x) or torch.zeros(len(x), network.classifier.in_features),
    )
    train(settings, network)
    return epochs, tested


def test_fresh_noise_is_of_the_training_signals_alone(tiny, monkeypatch):
    """Each epoch has other noise at the same ratio; the first epoch and the test have that of a cell without."""
    once, tested_once = seen_in_training(monkeypatch, tiny)
    fresh, tested = seen_in_training(monkeypatch, replace(tiny, fresh_noise=True))
    again, _ = seen_in_training(monkeypatch, replace(tiny, fresh_noise=True), "DRSN-CW")
    assert len(fresh) == len(once) == 3 and fresh[0].equal(once[0])
    assert all(x.equal(y) for x, y in zip(tested, tested_once, strict=True))
    assert not fresh[0].equal(fresh[1]) and not fresh[1].equal(fresh[2])
    assert all(x.equal(y) for x, y in zip(fresh, again, strict=True)), "every network sees the same noise"
    data = signals.load(tiny, 1)
    for x in fresh:
        decibels = noise.snr(data.x[data.train], x)
        torch.testing.assert_close(decibels, torch.zeros_like(decibels), rtol=0, atol=1e-4)


def test_adapt_batch_norm(tiny, monkeypatch):
    """The test sees the statistics of all test signals together; the accuracy in training is from before."""
    kept, plain = [], train(tiny, snr=5.0)
    adapt = cell.adapt_batch_norm
    monkeypatch.setattr(
        cell, "adapt_batch_norm", lambda network, x: kept.append((network, x)) or adapt(network, x)
    )
    adapted = train(replace(tiny, adapt_batch_norm=True), snr=5.0)
    assert adapted.train_accuracy == plain.train_accuracy
    (network, x), data = kept[0], signals.load(tiny, 1)
    assert len(x) == len(data.test)
    with torch.inference_mode():
        h = network.stem(drsn_ops.layers.pad_same(x, 2))
    torch.testing.assert_close(network.units[0].bn1.running_mean, h.mean((0, 2)))
    with torch.inference_mode():
        right = network.eval()(x).argmax(1) == data.labels[data.test]
    assert adapted.test_accuracy == pytest.approx(right.double().mean().item())


def test_the_networks_are_as_asked():
    asked = replace(SMALL, widths=(8, 16), blocks=4, stem_width=16, stem_stride=4, reduction=2, norm="layer")
    asked = replace(asked, rule="garrote", pooling="max", dropout=0.25)
    for name in OF_THE_PAPER:
        network = cell.build(asked, name, 2, 5)
        assert [unit.out_channels for unit in network.units] == [8, 8, 16, 16] and network.in_channels == 2
        assert (network.stem.kernel_size, network.stem.stride) == ((16,), (4,)) and network.dropout.p == 0.25
        shrink = network.units[0].shrink
        assert (shrink is None) == (name in ("ConvNet", "ResNet"))
        if shrink is not None:
            assert (shrink.rule, shrink.pooling) == ("garrote", "max")
            assert shrink.fc[0].out_features == 4 and isinstance(shrink.fc[1], torch.nn.LayerNorm)


def test_wdcnn_is_trained_by_the_same_recipe(tiny):
    asked = replace(tiny, points=1024, epochs=2)
    network = cell.build(asked, "WDCNN", 1, 8)
    assert momentum(network.parameters(), 0.1).defaults["momentum"] == 0.9
    result = train(asked, "WDCNN")
    assert result.network == "WDCNN" and result.parameters == sum(p.numel() for p in network.parameters())
    assert "WDCNN" not in FULL.networks and {*FULL.networks} == {*OF_THE_PAPER} < {*NETWORKS}


def test_choices_are_kept_and_said(folder, capsys):
    flags = (
        "--networks ResNet DRSN-CW --noise-kind impulsive --fresh-noise --adapt-batch-norm --widths 4 8 16"
    )
    assert run(*TINY, *flags.split(), "--norm", "none", "--output-dir", "own") == 0
    said = capsys.readouterr().out
    assert (
        "\nnot as in the paper: --norm none, --fresh-noise, --adapt-batch-norm\n2 cells, 0 of them done"
        in said
    )
    saved = json.loads((folder / "own" / "settings.json").read_text())
    assert saved["fresh_noise"] is saved["adapt_batch_norm"] is True and saved["norm"] == "none"
    table = (folder / "own" / "table.md").read_text()
    assert "Not as in the paper: `--norm none`, `--fresh-noise`, `--adapt-batch-norm`." in table
    assert "drawn anew in every epoch" in table and "(AdaBN)" in table
    assert run("--resume", "own", "--seeds", 2) == 0
    capsys.readouterr()
    assert_refused(
        run, ["--resume", "own", "--norm", "batch"], "of --norm none, not of --norm batch", folder, capsys
    )


def test_stages_of_one_width(folder):
    """What comes twice is meant once, but for the widths: the second of two alike was lost."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    flags = "--widths 8 8 16 --snr 5 5 --seeds 2 --networks ResNet ResNet --classes a,b,a --loads 1 0 1"
    asked = command.requested(parser.parse_args(flags.split()), None)
    assert asked.widths == (8, 8, 16)
    assert (asked.snr, asked.networks, asked.classes, asked.loads) == ((5,), ("ResNet",), ("a", "b"), (1, 0))


def test_what_is_the_papers_is_not_said():
    grid = replace(SMALL, networks=("ResNet",), seeds=1)
    results = [train_result(*c) for c in grid.cells()]
    assert "Not as in the paper" not in report.caption(grid, results)


def test_the_recordings_that_were_chosen_are_named():
    grid = replace(SMALL, data="/recordings", num_signals=None, networks=("ResNet",), seeds=1)
    results = [train_result(*c) for c in grid.cells()]
    chosen = replace(grid, classes=("normal", "ball 0.007"), loads=(0, 1))
    text = report.caption(chosen, results)
    assert "`recordings`, of the classes normal, ball 0.007, at the loads 0, 1, in windows" in text
    assert "`recordings`, in windows" in report.caption(grid, results)


def train_result(network, kind, snr, seed):
    return report.Result(network, kind, snr, seed, 0.5, 0.5, 0.5, 0.1, 0.2, 9, 4, 100, 40, 2.0, 1000, "here")


def test_an_interval_is_that_of_a_paired_test():
    ours, theirs = [0.61, 0.66, 0.58, 0.7, 0.64], [0.6, 0.61, 0.6, 0.62, 0.63]
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    for level in (0.95, 0.8):
        expected = ttest_rel(ours, theirs).confidence_interval(level)
        assert averages.interval(differences, level) == pytest.approx(expected)
    assert averages.interval([0.5]) is None
    assert averages.interval([0.25, 0.25]) == (0.25, 0.25)


REFUSED = [
    (
        ["--networks", "ResNet", "--norm", "layer"],
        "--norm layer: expected none with --networks ResNet, which",
    ),
    (
        ["--networks", "ConvNet", "ResNet", "--rule", "garrote"],
        "--rule garrote: expected none with --networks",
    ),
    (
        ["--networks", "WDCNN", "--points", "1024", "--blocks", "6"],
        "--blocks 6: expected none with --networks WDCNN",
    ),
    (["--networks", "WDCNN", "--points", "1024", "--widths", "4", "8"], "--widths 4 8: expected none with"),
    (["--networks", "DRSN-CW", "--rule", "soggy"], "argument --rule: invalid choice: 'soggy'"),
    (["--networks", "WDCNN", "--points", "64"], "--points: got 64, expected an integer of at least 1009"),
    (["--widths", "8", "4", "2"], "--widths: got (8, 4, 2), expected none that is less than the one before"),
    (["--loads", "0"], "--loads 0: expected none with --data vibration"),
]


@pytest.mark.parametrize("flags, message", REFUSED, ids=[" ".join(flags) for flags, _ in REFUSED])
def test_errors(folder, flags, message, capsys):
    small = ["--num-signals", 72, "--epochs", 1, "--seeds", 1, "--workers", 1, "--output-dir", "new"]
    assert_refused(run, [*small, *flags], message, folder, capsys)


def test_one_signal_has_no_statistics(folder, tiny, monkeypatch, capsys):
    data = signals.load(tiny, 0)
    monkeypatch.setattr(command, "load", lambda *_: data._replace(test=data.test[:1]))
    flags = [*TINY, "--points", 256, "--adapt-batch-norm", "--output-dir", "new"]
    assert_refused(run, flags, "--adapt-batch-norm: got 1 test signal, expected at least 2", folder, capsys)
