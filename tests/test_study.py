"""The study of when shrinkage helps: its settings, that it goes on and is shared, and the tables that it makes."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from commands import assert_refused, contents, environment

from benchmarks import __main__ as benchmarks_command
from benchmarks import report as benchmarks_report
from benchmarks import study
from benchmarks.study import Setting
from drsn_ops.experiment import cell, command, report, schedule
from drsn_ops.experiment.settings import Result
from drsn_ops.experiment.storage import read_settings

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

SMALL = "--data vibration --num-signals 72 --points 64 --blocks 3 --epochs 2 --batch-size 16"
TINY = (
    Setting("one", "two networks", f"{SMALL} --networks ResNet DRSN-CW --noise-kind pink --snr 5"),
    Setting("two", "two ratios", f"{SMALL} --networks ResNet --noise-kind gaussian --snr 5 -5"),
    Setting("real", "recordings", "--points 64 --blocks 3 --epochs 1"),
)


def write_table(settings, results, folder):
    """The report without pictures, which take longer than the training."""
    report.write_csv(results, folder / "results.csv")
    (folder / "table.md").write_text("")
    return [folder / "results.csv"]


def run(*flags):
    """The study of `TINY`, in this process, recorded in the working folder."""
    parser = argparse.ArgumentParser()
    study.add_arguments(parser, TINY)
    args = parser.parse_args([*map(str, flags), "--workers", "1", "--record", "--output-dir", "own"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "write_report", write_table)
        patch.setattr(study, "RECORDED", Path("recorded"))
        return study.run(args, TINY)


def results(folder):
    """What was recorded of each setting, without what differs between runs."""
    return {
        path.stem: [result._replace(seconds=0.0, origin="") for result in study.read_csv(path)]
        for path in sorted((folder / "recorded").iterdir())
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What one process records of the simulated settings, with two seeds."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("--seeds", 2) == 0
    return results(folder)


def trained(monkeypatch, stop_after=100):
    """The cells that are trained from here on; after so many comes Ctrl-C."""
    cells, complete = [], schedule.complete

    def watched(job, cell):
        if len(cells) == stop_after:
            raise KeyboardInterrupt
        cells.append(cell)
        return complete(job, cell)

    monkeypatch.setattr(schedule, "complete", watched)
    return cells


def test_a_study_goes_on(whole, alone_in, monkeypatch, capsys):
    """After a break in the second setting; the results are those of a study that was not broken off."""
    assert {name: len(own) for name, own in whole.items()} == {"one": 4, "two": 4}
    with monkeypatch.context() as patch:
        trained(patch, stop_after=6)
        with pytest.raises(KeyboardInterrupt):
            run("--seeds", 2)
    assert results(alone_in) == {"one": whole["one"]}
    capsys.readouterr()
    cells = trained(monkeypatch)
    assert run("--seeds", 2) == 0
    assert len(cells) == 2 and results(alone_in) == whole
    out, _ = capsys.readouterr()
    assert "no --data: only the settings on the simulated machine\n" in out
    assert "one, 1 of 2: two networks; it is done\n" in out and "two, 2 of 2: two ratios\n" in out


def test_more_seeds_and_fewer(whole, alone_in, monkeypatch):
    """A setting keeps the seeds that it has; of one alone, only its own file is written."""
    assert run("--only", "two", "--seeds", 1) == 0
    assert run("--only", "two", "--seeds", 2) == 0
    assert results(alone_in) == {"two": sorted(whole["two"], key=lambda result: result.seed)}
    cells = trained(monkeypatch)
    assert run("--only", "two", "--seeds", 1) == 0
    assert cells == [] and read_settings(alone_in / "own" / "two").seeds == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "two", "real"], "--only real: needs --data DIR, the files of Case Western Reserve"),
        (["--data", "nowhere"], "--data nowhere: no such folder"),
        (["--only", "three"], "argument --only: invalid choice: 'three'"),
        (["--seeds", "0"], "argument --seeds: must be an integer from 1 to 10000, got '0'"),
    ],
)
def test_errors(flags, message, alone_in, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "print_usage", lambda *_: None)
        assert_refused(run, flags, message, alone_in, capsys)


def test_a_folder_of_another_experiment_is_refused_before_the_first_is_trained(alone_in, capsys):
    assert run("--only", "two", "--seeds", 1) == 0
    path = alone_in / "own" / "two" / "settings.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "epochs": 3}))
    assert_refused(run, ["--seeds", 1], "an experiment of --epochs 3, not of --epochs 2", alone_in, capsys)


def torchrun(*flags, **variables):
    """The study in two processes."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
        + ["--rdzv-endpoint", "localhost:0", __file__, *map(str, flags)],
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this PyTorch has no gloo")
def test_two_processes_share_a_study(whole, alone_in):
    """One of them fails in the second setting; the next two go on. The results are those of one process to the bit."""
    failed = torchrun("--seeds", 2, FAILING="1")
    assert failed.returncode != 0 and "this process fails" in failed.stderr
    assert results(alone_in) == {"one": whole["one"]}
    before = contents(alone_in / "own" / "one")
    done = torchrun("--seeds", 2)
    assert done.returncode == 0, done.stderr
    assert results(alone_in) == whole
    assert contents(alone_in / "own" / "one") == before
    assert done.stdout.count("no --data") == 1 and done.stdout.count("two, 2 of 2: two ratios\n") == 1


def test_the_settings_are_experiments_of_their_own(tmp_path):
    """Each is another, all have windows that can be trained on, and an effect is the base but for what it changes."""
    parser = argparse.ArgumentParser()
    study.add_arguments(parser)
    args = parser.parse_args(["--data", str(tmp_path), "--output-dir", str(tmp_path)])
    asked = {setting.name: study.step_of(args, setting).args for setting in study.SETTINGS}
    every = {name: command.requested(flags, None) for name, flags in asked.items()}
    assert len({*every}) == len({*every.values()}) == len(study.SETTINGS)
    for name, settings in every.items():
        command.require_effects(asked[name], settings)
        assert settings.blocks == (12 if name.startswith("blocks-12") else 6)
        assert settings.seeds == 5 and settings.normalise == (
            "none" if name == "normalise-none" else "standard"
        )
        for network in settings.networks:
            built = cell.build(settings, network, 1, 10)
            assert built(torch.randn(2, 1, settings.points)).shape == (2, 10)
    base = every[study.TENS.name]
    assert len(base.classes) == 10 and base.loads == (0, 1) and base.data == str(tmp_path)
    assert every["vibration"].simulated and every["cwru-12"].classes is None
    of_grids = {"networks", "noise_kind", "snr", "shown_snr"}
    for effect in study.EFFECTS:
        own = every[effect.name]
        changed = {field for field, value in asdict(own).items() if value != getattr(base, field)}
        assert (changed > of_grids) == (effect != study.REFERENCE)
        assert own.noise_kind == ("gaussian",) and own.snr == (-5.0,)


def made_up(accuracies, noises=(("gaussian", -5.0),), seeds=range(5), day=3):
    """Results of networks with these accuracies, a number or one for each seed."""
    return [
        Result(
            *(network, kind, snr, seed, 1.0),
            values[seed % 5] if isinstance(values, list) else values,
            *(0.5, 0.125, 0.25, 20 + seed % 2, 10, 2000, 1000, 7.0, 4048, f"a machine, 2001-02-0{day}"),
        )
        for seed in seeds
        for kind, snr in noises
        for network, values in accuracies.items()
    ]


# 1 to 5 points above 0.5: 3 in the mean, and t of 4 degrees of freedom, 2.7764, times sqrt(2.5) / sqrt(5) is 1.96
RISING = [0.51, 0.52, 0.53, 0.54, 0.55]
FOUR = {"ConvNet": 0.4, "ResNet": 0.5, "DRSN-CS": 0.49, "DRSN-CW": RISING, "WDCNN": 0.6}


@pytest.fixture
def recorded(tmp_path):
    """A folder of results as the study records them: one grid with ten seeds, its peer, and three changes."""
    noises = [(kind, snr) for kind in ("gaussian", "laplacian", "impulsive") for snr in (-5.0, 0.0, 5.0)]
    higher = {name: 0.7 for name in FOUR}
    of = {
        "cwru-10": made_up(FOUR, noises[:1])
        + made_up(higher, noises[1:])
        + made_up(FOUR, seeds=range(5, 10), day=4),
        "base": made_up({"ResNet": 0.5, "DRSN-CW": RISING}, seeds=range(10)),
        "adabn": made_up({"ResNet": 0.5, "DRSN-CW": 0.6}),
        "rule-firm": made_up({"DRSN-CW": 0.45}, seeds=range(3)),
        "wdcnn-adabn": made_up({"WDCNN": 0.5}, noises, seeds=range(4)),
    }
    folder = tmp_path / "study"
    folder.mkdir()
    for name, results in of.items():
        report.write_csv(results, folder / f"{name}.csv")
    assert study.read_recorded(folder) == of
    return folder


def test_tables_of_known_results(recorded):
    made, pictures = benchmarks_report.recorded(recorded)
    assert {*made} == {f"study-{name}" for name in ("cwru-10", "difference", "effects", "peer")}
    grid = made["study-cwru-10"].splitlines()
    assert grid[0] == (
        "| seeds 0 to 4 | ConvNet | ResNet | DRSN-CS | DRSN-CW | WDCNN | DRSN-CS above ResNet | DRSN-CW above ResNet |"
    )
    assert grid[2].startswith("| all | 66.67 | 67.78 | 67.67 | 68.11 | 68.89 | -0.11 ")
    accuracies = "40.00 | 50.00 | 49.00 | 53.00 | 60.00 | -1.00 [-1.00, -1.00] | +3.00 [+1.04, +4.96]"
    assert grid[3] == f"| gaussian, -5 dB | {accuracies} |"
    assert grid[11].startswith("| impulsive, 5 dB | 70.00 ")
    assert grid[12] == "| parameters | 4048 | 4048 | 4048 | 4048 | 4048 |  |  |"
    assert grid[14].startswith("| seeds 5 to 9 | ") and grid[16] == grid[3].replace("gaussian, -5 dB", "all")
    assert grid[-1] == (
        "2000 windows in 20 to 21 recordings to train, 1000 windows in 10 recordings to test; a constant answer is "
        "right for 25.0 %. Trained on a machine, 2001-02-03 to 2001-02-04."
    )
    assert made["study-effects"] == (
        "| gaussian, -5 dB, seeds 0 to 4 | ResNet | DRSN-CW | DRSN-CW above ResNet "
        "| DRSN-CW above ResNet, seeds 5 to 9 | DRSN-CW: parameters |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| the base | 50.00 | 53.00 | +3.00 [+1.04, +4.96] | +3.00 [+1.04, +4.96] | 4048 |\n"
        "| AdaBN | 50.00 | 60.00 | +10.00 [+10.00, +10.00] | – | 4048 |\n"
        # its ResNet is the base's, on the seeds that it has
        "| rule firm, seeds 0 to 2 | 50.00 | 45.00 | -5.00 [-5.00, -5.00] | – | 4048 |\n"
        "\nTrained on a machine, 2001-02-03.\n"
    )
    peer = made["study-peer"].splitlines()
    assert len(peer) == 7 and peer[0].startswith("| all kinds of noise, seeds 0 to 3 | WDCNN | ")
    assert peer[4] == "| 5 dB | 70.00 | 50.00 | ResNet 70.00 | +20.00 [+20.00, +20.00] |"
    # of the four seeds that both have: the mean of 52.5, 70 and 70
    assert peer[2].startswith("| -5 dB | 66.67 | 50.00 | DRSN-CW 64.17 | +14.17 ")
    assert [*pictures] == [recorded / "difference.png"]


def test_a_change_of_more_seeds_than_the_base_has(recorded):
    """Its row is of the seeds of both: there was no table at all."""
    report.write_csv(made_up({"ResNet": 0.5, "DRSN-CW": RISING}, seeds=range(2)), recorded / "base.csv")
    lines = benchmarks_report.recorded(recorded)[0]["study-effects"].splitlines()
    assert lines[-3].startswith("| rule firm, seeds 0 to 1 | 50.00 | 45.00 | -5.00 [-5.00, -5.00] |")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "damaged: not enough values to unpack"),
        ("network,snr\nResNet,5\n", "damaged: zip"),
        (",".join(Result._fields) + "\n", "expected results with the columns network, noise_kind,"),
        (",".join(Result._fields) + "\nResNet,pink,5.0,0,0.5", "damaged: zip"),
        (",".join(Result._fields) + "\nResNet,pink,five" + ",1" * 13, "damaged: could not convert string"),
        ("a" + ",a" * 15 + "\nResNet,pink,5.0" + ",1" * 13, "expected results with the columns network,"),
    ],
)
def test_a_damaged_table(recorded, tmp_path, capsys, text, message):
    """A report of it says which it is."""
    (recorded / "adabn.csv").write_text(text)
    assert benchmarks_command.main(["report", str(recorded), "--folder", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"adabn.csv: {message}" in err and err.count("\n") == 1


def test_a_setting_with_a_damaged_table_is_not_done(alone_in, monkeypatch):
    """Its table is written anew; no cell is trained."""
    assert run("--only", "two", "--seeds", 1) == 0
    whole = (alone_in / "recorded" / "two.csv").read_bytes()
    (alone_in / "own" / "two" / "results.csv").write_bytes(whole[:-200])
    cells = trained(monkeypatch)
    assert run("--only", "two", "--seeds", 1) == 0
    assert cells == [] and (alone_in / "recorded" / "two.csv").read_bytes() == whole


def test_a_folder_of_recordings_with_the_name_of_the_machine(alone_in):
    (alone_in / "vibration").mkdir()
    parser = argparse.ArgumentParser()
    study.add_arguments(parser, TINY)
    step = study.step_of(parser.parse_args(["--data", "vibration"]), TINY[2])
    assert command.requested(step.args, None).data == str(alone_in / "vibration")


def test_the_page_has_every_region(recorded, tmp_path):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "shrinkage.md"
    page.write_text((Path(study.__file__).parents[1] / "docs" / "shrinkage.md").read_text())
    (tmp_path / "README.md").write_text("")
    for name in ("cwru-12", "vibration"):
        report.write_csv(made_up(FOUR), recorded / f"{name}.csv")
    assert benchmarks_command.main(["report", str(recorded), "--folder", str(tmp_path)]) == 0
    text = page.read_text()
    assert text.count("| all | 40.00 ") == 3 and text.count("Trained on a machine") == 5
    assert (recorded / "difference.png").read_bytes().startswith(b"\x89PNG")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if os.environ.get("FAILING") == os.environ["RANK"]:
        complete = schedule.complete

        def failing(job, cell):
            if job.folder.name == "two":
                raise RuntimeError("this process fails")
            return complete(job, cell)

        schedule.complete = failing
    sys.exit(run(*sys.argv[1:]))
