"""What a run tells: what is about to be trained, a line for each epoch, and its curve as a table and as a picture."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from ..arguments import counted
from ..files import replacing
from .lettering import drawable, families_for, save_picture
from .run import Row, Run


def describe(run: Run) -> str:
    """What is about to be trained, on which data, and how."""
    plan, settings = run.plan, run.settings
    together = f", {run.processes.count} processes" if run.processes.count > 1 else ""
    return (
        f"{plan.data}\n"
        f"{plan.what}, on {run.device}{together}\n"
        f"{type(run.optimiser).__name__}: learning rate {settings.lr:g}{plan.how}, batches of {settings.batch_size}, "
        f"{counted(settings.epochs, 'epoch')} of {counted(run.steps_per_epoch, 'step')}, seed {settings.seed}"
    )


def warn_of(passed_over: Sequence[Path], copies: Sequence[tuple[Path, Path]] = ()) -> None:
    """Name the first of the files that are no recordings, and of the pairs of copies in different parts."""
    pairs = [f"{one} and {other}{',' * (len(copies) > 1)}" for one, other in copies]
    for words, found in (
        ("passed over, as no recordings", passed_over),
        ("the same series in two parts", pairs),
    ):
        if found:
            others = f" and {counted(len(found) - 1, 'other')}" if len(found) > 1 else ""
            print(f"{words}: {found[0]}{others}", file=sys.stderr)


def line_of(row: Row) -> str:
    """One epoch."""
    results = (
        f"{name} loss {loss:.4f} accuracy {accuracy:7.2%}  " for name, (loss, accuracy) in row.results.items()
    )
    return f"epoch {row.epoch:3}  {''.join(results)}{row.seconds:.1f} s"


def accuracies(row: Row) -> str:
    """The accuracy of each split."""
    return ", ".join(f"{name} {result.accuracy:.2%}" for name, result in row.results.items())


def write_curve(run: Run, folder: Path) -> None:
    """Replace ``curve.csv``: a line for each epoch."""
    with replacing(folder / "curve.csv") as path, path.open("w", newline="") as file:
        csv.writer(file).writerows([Row.names(run.plan.splits), *(row.values() for row in run.rows)])


def draw_curve(run: Run, folder: Path) -> None:
    """Replace ``curve.png``: loss and accuracy of the splits over the epochs."""
    from matplotlib.figure import Figure

    rows = run.rows
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    title = drawable(run.plan.title)
    figure.suptitle(title, family=families_for([title]), parse_math=False)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split in run.plan.splits:
            values = [getattr(row.results[split], quantity) for row in rows]
            axes.plot([row.epoch for row in rows], values, label=split, marker="." if len(rows) < 10 else "")
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if run.plan.keeps_best:
            axes.axvline(run.best_epoch, color="grey", linestyle="--", linewidth=1, label="kept")
        axes.grid(alpha=0.3)
        axes.legend()
    with replacing(folder / "curve.png") as path:
        save_picture(figure, path, dpi=120)
