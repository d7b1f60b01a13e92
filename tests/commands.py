"""What the tests of the command line share."""

import os
from pathlib import Path

import drsn_ops


def environment():
    """That of a Python process on one thread which imports this package."""
    return {**os.environ, "PYTHONPATH": str(Path(drsn_ops.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def status_of(run, *flags):
    """The exit status, whether argparse leaves or main returns."""
    try:
        return run(*flags)
    except SystemExit as leaving:
        return leaving.code


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(run, flags, message, folder, capsys):
    """One line on stderr says why, and nothing in the folder has changed."""
    before = contents(folder)
    capsys.readouterr()
    assert status_of(run, *flags) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.endswith("\n")
    assert message in err
    assert contents(folder) == before and not (folder / "runs").exists()
