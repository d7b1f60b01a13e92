"""Reports the results of an experiment: all cells, tables with what they are to be read with, and the figures."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean

import torch

from ..arguments import as_flag
from ..files import replacing
from .averages import gaining, gains, least_to_greatest, of, over_seeds, percent, points
from .caption import caption, like_the_papers
from .figures import plot_accuracy, plot_features
from .settings import NETWORKS, PLAIN, Result, Settings
from .signals import load
from .storage import features_path


def write_report(settings: Settings, results: Sequence[Result], folder: Path) -> list[Path]:
    """Write the tables and the figures. Returns their paths."""
    writers: dict[str, Callable[[Path], object]] = {
        "accuracy.png": lambda path: plot_accuracy(settings, results, path),
        "tsne.png": lambda path: plot_shown(settings, folder, path),
        "table.md": lambda path: path.write_text(table(settings, results)),
        # the last one: where it is, the others are too
        "results.csv": lambda path: write_csv(results, path),
    }
    for name, write in writers.items():
        with replacing(folder / name) as path:
            write(path)
    return [folder / name for name in writers]


def write_csv(results: Iterable[Result], path: Path) -> None:
    """Write a line for each cell."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([Result._fields, *results])


def plot_shown(settings: Settings, folder: Path, path: Path) -> None:
    """Plot the features of the cells that are shown."""
    cells = settings.shown()
    features = [torch.load(features_path(folder, cell), weights_only=True) for cell in cells]
    plot_features(cells, features, load(settings, 0).classes, path)


def table(settings: Settings, results: Sequence[Result]) -> str:
    """Markdown tables: a row for each network, one for each split, accuracies at each noise, and gains over ResNet."""
    beside = like_the_papers(settings)
    paper_head = ["the paper's: train", "test"] if beside else []
    summary = [["", "train", "test", "test macro-F1", *paper_head, "parameters", "seconds a cell"]]
    for name in settings.networks:
        own, paper = of(name, results), NETWORKS[name]
        quantities = ("train_accuracy", "test_accuracy", "test_macro_f1")
        row = [name, *(percent(over_seeds(own, quantity)) for quantity in quantities)]
        row += [paper.train, paper.test] if beside else []
        summary.append([*row, str(own[0].parameters), f"{fmean(result.seconds for result in own):.1f}"])
    parts = {"all": results}
    for kind, snr in product(settings.noise_kind, sorted(settings.snr)):
        parts[f"{kind}, {as_flag(snr)} dB"] = [r for r in results if (r.noise_kind, r.snr) == (kind, snr)]
    by_noise = [["test", *settings.networks]]
    for label, part in parts.items():
        tests = (over_seeds(of(name, part), "test_accuracy") for name in settings.networks)
        by_noise.append([label, *map(percent, tests)])
    tables = [summary, caption(settings, results), splits(results), by_noise]
    if others := gaining(settings.networks):
        paired = [[f"test, above {PLAIN}", *others]]
        for label, part in parts.items():
            paired.append([label, *(points(gains(name, part)) for name in others)])
        tables.append(paired)
    return "\n".join(part if isinstance(part, str) else markdown(part) for part in tables)


def splits(results: Sequence[Result]) -> list[list[str]]:
    """A table of the splits: over the seeds, how many recordings and windows they have, and their largest class."""
    rows = [["split of a seed", "recordings", "windows", "largest class / %"]]
    for split in ("train", "test"):
        counts = []
        for quantity in ("recordings", "windows"):
            counts.append(least_to_greatest(getattr(result, f"{split}_{quantity}") for result in results))
        rows.append([split, *counts, percent(over_seeds(results, f"{split}_majority"))])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head; all columns but the first are numbers."""
    head, *body = ("| " + " | ".join(row) + " |\n" for row in rows)
    return head + "| --- |" + " ---: |" * (len(rows[0]) - 1) + "\n" + "".join(body)
