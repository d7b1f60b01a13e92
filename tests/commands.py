"""What the tests of the command line share."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_pre_hook

import drsn_ops
from drsn_ops.__main__ import main
from drsn_ops.experiment import report, signals


def environment():
    """That of a Python process on one thread which imports this package."""
    return {**os.environ, "PYTHONPATH": str(Path(drsn_ops.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def start(*arguments, **options):
    """A Python process of its own, at the head of a process group, which Ctrl-C ends.

    What a shell starts in the background, these tests perhaps, ignores it.
    """
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment(),
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


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


def assert_settles_before_the_first_step(monkeypatch, module, run):
    """The allocator is settled by ``module``, before an optimiser takes the first step of ``run``."""
    events = []
    monkeypatch.setattr(module, "settle_allocator", lambda: events.append("settled"))
    with register_optimizer_step_pre_hook(lambda *_: events.append("step")):
        run()
    assert events[0] == "settled" and "step" in events


def run_experiment(*flags):
    """The experiment's command, as a program starts: without data in memory."""
    signals.load.cache_clear()
    return main(["experiment", *map(str, flags)])


def write_table(settings, results, folder):
    """In the place of the report: its table alone, since pictures and a t-SNE take longer than the training."""
    (folder / "table.md").write_text(report.table(settings, results))
    return [folder / "table.md"]
