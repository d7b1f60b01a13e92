"""The flags for reading recordings: what they give, which values they take, what their help says."""

import argparse
import inspect

import pytest

from drsn_ops.data.flags import FLAGS, add_file_flags, add_window_flags, reading_arguments
from drsn_ops.data.recordings import read_recordings


def parser():
    made = argparse.ArgumentParser(prog="drsn", exit_on_error=False)
    add_window_flags(made)
    add_file_flags(made)
    return made


def arguments(*flags):
    return reading_arguments(parser().parse_args([str(flag) for flag in flags]))


def test_nothing_is_given_unasked():
    assert arguments() == {}
    assert reading_arguments(argparse.Namespace(channels=("a",), epochs=3)) == {"channels": ("a",)}


def test_every_flag_is_an_argument():
    given = arguments(
        *(
            "--variable",
            "X*_DE_time",
            "--channels",
            "x,1",
            "--layout",
            "channels-first",
            "--delimiter",
            r"\t",
        ),
        *("--classes", "good, worn out", "--classes", "bad", "--loads", 3, 0),
        *("--decimal", ",", "--encoding", "latin-1", "--sampling-rate", "25.6e3", "--resample", "--pad"),
        *("--step", 512, "--normalise", "mean", "--split", "time", "--test-share", 0.4),
    )
    assert given == {
        "classes": ("good", "worn out", "bad"),
        "loads": [3, 0],
        "variable": ("X*_DE_time",),
        "channels": ("x", "1"),
        "layout": "channels-first",
        "delimiter": r"\t",
        "decimal": ",",
        "encoding": "latin-1",
        "sampling_rate": 25_600.0,
        "resample": True,
        "pad": True,
        "step": 512,
        "normalise": "mean",
        "split": "time",
        "test_share": 0.4,
    }
    assert set(given) == set(FLAGS)
    # points and the share of the validation are the commands' own
    left = set(inspect.signature(read_recordings).parameters) - set(FLAGS)
    assert left == {"place", "points", "validation_share", "seed"}


def test_several_names():
    assert arguments("--variable", "a,b.c", "--variable", " d ")["variable"] == ("a", "b.c", "d")
    assert arguments("--column", "2") == arguments("--channels", "2") == {"channels": ("2",)}
    assert arguments("--delimiter", "tab")["delimiter"] == "tab"
    assert arguments("--delimiter", ";")["delimiter"] == ";"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--channels", "a,,b"], "argument --channels: expected names separated by commas, got 'a,,b'"),
        (["--classes", "a,"], "argument --classes: expected names separated by commas, got 'a,'"),
        (["--loads", "4"], "argument --loads: must be an integer from 0 to 3, got '4'"),
        (["--loads", "x"], "argument --loads: must be an integer from 0 to 3, got 'x'"),
        (["--variable", ""], "argument --variable: expected names separated by commas, got ''"),
        (["--sampling-rate", "0"], "argument --sampling-rate: must be a number from 1e-06 to 1e+12, got '0'"),
        (["--test-share", "1"], "argument --test-share: must be a number from 0.001 to 0.999, got '1'"),
        (["--step", "0"], "argument --step: must be an integer from 1"),
        (["--normalise", "std"], "argument --normalise: invalid choice: 'std'"),
        (["--split", "half"], "argument --split: invalid choice: 'half'"),
        (["--layout", "rows"], "argument --layout: invalid choice: 'rows'"),
        (["--decimal", ";"], "argument --decimal: invalid choice: ';'"),
        (["--delimiter", "x"], "argument --delimiter: got 'x', expected a character that is in no number"),
        (["--encoding", "latin-99"], "argument --encoding: got 'latin-99', expected one that Python knows"),
    ],
)
def test_bad_values(flags, message):
    with pytest.raises(argparse.ArgumentError) as caught:
        parser().parse_args(flags)
    assert str(caught.value).startswith(message)


def test_help_names_the_defaults(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    text = " ".join(parser().format_help().partition("choice of recordings:")[2].split())
    for name in ("layout", "normalise", "test_share"):
        default = inspect.signature(read_recordings).parameters[name].default
        flag = text.partition("--" + name.replace("_", "-"))[2].partition(" --")[0]
        assert f"(default: {default}" in flag
    assert "--column" not in text and text.count("(default: ") == len(FLAGS)
