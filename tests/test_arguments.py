"""The command line: every number is checked where it is parsed, help names defaults, an interrupt ends in silence."""

import argparse
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import assert_refused, status_of

from benchmarks import __main__ as benchmarks
from drsn_ops.__main__ import COMMANDS, main
from drsn_ops.arguments import as_input_error, counted, flagged

for name in ("sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(name)

# What every number refuses, and what some take.
NEVER = ("nan", "inf", "-inf", "1e400", "x", "", str(2**64))
SOME = ("-1", "0", "1", "2", "0.5", "1e-50", "1e39", str(2**31), str(2**64 - 1))
TAKEN = {
    "--seed": {"0", "1", "2", str(2**64 - 1), str(2**31)},
    "--lr": {"1", "2", "0.5", str(2**31), str(2**64 - 1)},
    "--snr": {"-1", "0", "1", "2", "0.5", "1e-50"},
    "train --noise": {"0", "1", "2", "0.5", "1e-50", str(2**31), str(2**64 - 1)},
    "--batch-size": {"2"},
    "--points": set(),
    "--shape": set(),
    "--test-share": {"0.5"},
    "--validation-share": {"0", "0.5", "1e-50"},
    "--batch-norm-momentum": {"1", "0.5"},
    "--dropout": {"0", "0.5", "1e-50"},
    "--loads": {"0", "1", "2"},
    "--sampling-rate": {"1", "2", "0.5", str(2**31)},
}
# What a command needs besides its flags.
NEEDED = {"evaluate": ["model.pt", "--data=."], "predict": ["model.pt", "a.npy"], "export": ["model.pt"]}
WORDS = ("--delimiter", "--encoding")


def commands():
    """Every parser that has flags, by its command."""
    for name, (module, _) in COMMANDS.items():
        parser = argparse.ArgumentParser()
        importlib.import_module(module).add_arguments(parser)
        yield name, parser
    yield "benchmarks", benchmarks.parser_of()[0]


NUMBERS = [
    (command, action.option_strings[0])
    for command, parser in commands()
    for action in parser._actions
    if action.option_strings and action.type not in (None, Path) and action.option_strings[0] not in WORDS
]


@pytest.mark.parametrize("command, flag", NUMBERS, ids=map(" ".join, NUMBERS))
def test_numbers_have_their_range(command, flag, monkeypatch, capsys):
    """Exit status 2 and a line that names the flag, what came and what is allowed, or else the number is taken."""
    if command == "benchmarks":
        run = benchmarks.main
        monkeypatch.setattr(benchmarks, "measure_all", lambda args: 0)
    else:
        monkeypatch.setattr(importlib.import_module(COMMANDS[command][0]), "run", lambda args: 0)

        def run(argv):
            return main([command, *NEEDED.get(command, []), *argv])

    taken = TAKEN.get(f"{command} {flag}", TAKEN.get(flag, {"1", "2"}))
    for text in (*NEVER, *SOME):
        if flag in ("--lr", "--noise", "--snr") and text == str(2**64):
            continue
        status = status_of(run, [f"{flag}={text}"])
        err = capsys.readouterr().err
        assert status == (0 if text in taken else 2), (text, err)
        if status:
            line = err.splitlines()[-1]
            assert f"argument {flag}: " in line and (repr(text) in line) and "Traceback" not in err
            assert " from " in line and " to " in line or "axes, not two to five" in line
            assert command == "benchmarks" or err.count("\n") == 1


def test_the_walk_has_every_number():
    flags = {f"{command} {flag}" for command, flag in NUMBERS}
    assert {"train --seed", "train --lr", "experiment --snr", "experiment --workers"} < flags
    assert {"bench --threads", "bench --shape", "benchmarks --jobs"} < flags


@pytest.mark.parametrize(
    "command, words",
    [
        (
            "train",
            [
                "180 for digits, 5 for mnist, 100 for cifar10",
                "(default: 100; for recordings a 32nd of the windows",
                "0.001 for digits, 0.001 for mnist",
            ],
        ),
        (
            "experiment",
            [
                "40 for small, 100 for full",
                "-5 5 for small",
                "1080 for small, 28800 for full",
                "the folder of your recordings: one folder for each class, named after it",
            ],
        ),
    ],
)
def test_help_names_the_defaults(command, words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    assert status_of(main, [command, "--help"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in words), out


def test_where_no_command_is_given_all_are_named(tmp_path, capsys):
    assert_refused(main, [[]], f"expected a command: info, {', '.join(COMMANDS)}", tmp_path, capsys)


def test_arguments_in_words():
    """The error of an argument names its flag; a text that is of none stays as it is."""
    for error, message in (
        ("test_share: got 2: no", "--test-share: got 2: no"),
        ("no argument: got 2", "no argument: got 2"),
        ("points", "points"),
    ):
        assert str(as_input_error(ValueError(error))) == message
    assert [flagged("step", value) for value in (None, (), False)] == ["no --step"] * 3
    assert flagged("test_share", 0.5) == "--test-share 0.5" and flagged("pad", True) == "--pad"
    assert (
        flagged("widths", (4, 8.0)) == "--widths 4 8" and flagged("channels", ("a", 2.0)) == "--channels a,2"
    )
    assert flagged("classes", ("ball 0.007", "b")) == "--classes 'ball 0.007,b'"
    assert [counted(number, "epoch") for number in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_of_the_imports_ends_in_silence(command, capsys, monkeypatch):
    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert main([command]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("allocate", [torch.empty, np.empty])
def test_too_little_memory_is_one_line(allocate, capsys, monkeypatch):
    """More than there are addresses."""
    monkeypatch.setattr(
        importlib.import_module("drsn_ops.training.train"), "run", lambda args: allocate(2**50)
    )
    assert main(["train"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("drsn_ops train: not enough memory: ") and err.count("\n") == 1
