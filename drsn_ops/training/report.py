"""What a run tells: what is about to be trained, a line for each epoch, and its curve as a table and as a picture."""

from __future__ import annotations

import csv
from pathlib import Path

from ..files import replacing
from .run import Row, Run


def describe(run: Run) -> str:
    """What is about to be trained, on which data, and how."""
    settings, optimiser = run.settings, type(run.optimiser).__name__
    parameters = sum(parameter.numel() for parameter in run.network.parameters())
    together = f", {run.processes.count} processes" if run.processes.count > 1 else ""
    return (
        f"{settings.data}: {len(run.data.train.labels)} training and {len(run.data.test.labels)} test images, "
        f"noise {settings.noise:g} * U(0, 1)\n"
        f"{run.recipe.network.__name__}: thresholds {settings.thresholds}, {parameters} parameters, "
        f"operators of {settings.backend}, on {run.device}{together}\n"
        f"{optimiser}: learning rate {settings.lr:g}, batches of {settings.batch_size}, "
        f"{settings.epochs} epochs of {run.steps_per_epoch} steps, seed {settings.seed}"
    )


def line_of(row: Row) -> str:
    """One epoch."""
    return (
        f"epoch {row.epoch:3}  train loss {row.train_loss:.4f} accuracy {row.train_accuracy:7.2%}  "
        f"test loss {row.test_loss:.4f} accuracy {row.test_accuracy:7.2%}  {row.seconds:.1f} s"
    )


def write_curve(run: Run, folder: Path) -> None:
    """Replace ``curve.csv``: a line for each epoch."""
    with replacing(folder / "curve.csv") as path, path.open("w", newline="") as file:
        csv.writer(file).writerows([Row._fields, *run.rows])


def draw_curve(run: Run, folder: Path) -> None:
    """Replace ``curve.png``: loss and accuracy of both splits over the epochs."""
    from matplotlib.figure import Figure

    settings, rows = run.settings, run.rows
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    figure.suptitle(f"{settings.data}, thresholds {settings.thresholds}, seed {settings.seed}")
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split in ("train", "test"):
            values = [getattr(row, f"{split}_{quantity}") for row in rows]
            axes.plot([row.epoch for row in rows], values, label=split, marker="." if len(rows) < 10 else "")
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.grid(alpha=0.3)
        axes.legend()
    with replacing(folder / "curve.png") as path:
        figure.savefig(path, format="png", dpi=120)
