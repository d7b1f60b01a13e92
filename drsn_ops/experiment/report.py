"""Reports the results of an experiment: all cells, the curves, the features, and a table beside the paper's."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

import torch

from ..arguments import as_flag
from ..files import replacing
from .settings import NETWORKS, Result, Settings
from .signals import load
from .storage import features_path

PLAIN = "ResNet"  # the network without shrinkage


def write_report(settings: Settings, results: Sequence[Result], folder: Path) -> list[Path]:
    """Write the tables and the figures. Returns their paths."""
    writers: dict[str, Callable[[Path], object]] = {
        "results.csv": lambda path: write_csv(results, path),
        "accuracy.png": lambda path: plot_accuracy(settings, results, path),
        "tsne.png": lambda path: plot_features(settings, folder, path),
        "table.md": lambda path: path.write_text(table(settings, results)),
    }
    for name, write in writers.items():
        with replacing(folder / name) as path:
            write(path)
    return [folder / name for name in writers]


def write_csv(results: Iterable[Result], path: Path) -> None:
    """Write a line for each cell."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([Result._fields, *results])


def over_seeds(results: Iterable[Result], quantity: str) -> list[float]:
    """For each seed, in order, the mean of a quantity over its results."""
    by_seed: dict[int, list[float]] = {}
    for result in results:
        by_seed.setdefault(result.seed, []).append(getattr(result, quantity))
    return [fmean(values) for _, values in sorted(by_seed.items())]


def gains(results: Iterable[Result], plain: Iterable[Result]) -> list[float]:
    """For each seed, the test accuracy minus that of ``plain``, which has the same noise and split."""
    pairs = zip(over_seeds(results, "test_accuracy"), over_seeds(plain, "test_accuracy"), strict=True)
    return [ours - theirs for ours, theirs in pairs]


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample, None for one value."""
    return stdev(values) if len(values) > 1 else None


def percent(values: Sequence[float], sign: str = "-") -> str:
    """Mean and spread in percent; with a ``sign`` of "+", a mean that is not negative gets a plus."""
    deviation = spread(values)
    mean = round(100 * fmean(values), 2) + 0.0  # turns -0 into 0
    return f"{mean:{sign}.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def of(network: str, results: Iterable[Result]) -> list[Result]:
    """The results of this network."""
    return [result for result in results if result.network == network]


def table(settings: Settings, results: Sequence[Result]) -> str:
    """Markdown tables: accuracies beside the paper's table III, those at each noise, and their gain over ResNet."""
    summary = [["", "train", "test", "the paper's: train", "test", "parameters", "seconds a cell"]]
    for name in settings.networks:
        own, paper = of(name, results), NETWORKS[name]
        train, test = (percent(over_seeds(own, f"{split}_accuracy")) for split in ("train", "test"))
        seconds = fmean(result.seconds for result in own)
        summary.append([name, train, test, paper.train, paper.test, str(own[0].parameters), f"{seconds:.1f}"])
    parts = {"all": results}
    for noise, snr in product(settings.noise, settings.snr):
        parts[f"{noise}, {as_flag(snr)} dB"] = [r for r in results if (r.noise, r.snr) == (noise, snr)]
    by_noise = [["test", *settings.networks]]
    for label, part in parts.items():
        tests = (over_seeds(of(name, part), "test_accuracy") for name in settings.networks)
        by_noise.append([label, *map(percent, tests)])
    text = f"{markdown(summary)}\n{caption(settings, results)}\n{markdown(by_noise)}"
    others = [name for name in settings.networks if name != PLAIN]
    if PLAIN not in settings.networks or not others:
        return text
    paired = [[f"test, above {PLAIN}", *others]]
    for label, part in parts.items():
        paired.append([label, *(percent(gains(of(name, part), of(PLAIN, part)), "+") for name in others)])
    return f"{text}\n{markdown(paired)}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head; all columns but the first are numbers."""
    head, *body = ("| " + " | ".join(row) + " |\n" for row in rows)
    return head + "| --- |" + " ---: |" * (len(rows[0]) - 1) + "\n" + "".join(body)


def caption(settings: Settings, results: Iterable[Result]) -> str:
    """The text between the tables: what is averaged, what differs from the paper, and where it was computed."""
    data = f"recordings ({settings.data}), each window less its mean"
    if settings.data == "vibration":
        data = f"{settings.num_signals} simulated signals, one of {settings.folds} folds to test on"
    origins = dict.fromkeys(result.origin for result in results)
    return (
        f"Accuracy in percent, in {', '.join(settings.noise)} noise at {as_flag(settings.snr)} dB. A seed's figure is "
        f"the mean over these noises; given are the mean over the seeds ({settings.seeds}) ± their standard deviation "
        "(n - 1). Each seed has its own first parameters, and its own noise and split, which are the same for every "
        f"network: what a network is above {PLAIN} is taken seed by seed. Splits have training signals in common, so "
        "that seeds are not independent of each other. Seconds are of the training alone.\n\n"
        f"The data are not the paper's: here {data}; there 28,800 signals of its authors' own rig, one of 10 folds to "
        f"test on, at -5 to 5 dB in steps of 1. Here and there: {settings.points} and 2048 points, {settings.blocks} "
        f"and 12 blocks, {settings.epochs} and 100 epochs, batches of {settings.batch_size} and 128, learning rates "
        f"from {settings.lr:g} and 0.1 down. The paper's ± is as printed there.\n\n"
        f"Computed on: {'; '.join(origins)}.\n"
    )


def plot_accuracy(settings: Settings, results: Sequence[Result], path: Path) -> None:
    """Plot test accuracy against the signal-to-noise ratio: a panel for each noise, lines with bands for networks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(settings.noise), 3.8), layout="constrained")
    ratios = sorted(settings.snr)
    panels = figure.subplots(1, len(settings.noise), sharey=True, squeeze=False)[0]
    for axes, noise in zip(panels, settings.noise, strict=True):
        for name in settings.networks:
            own = [r for r in of(name, results) if r.noise == noise]
            samples = [[100 * r.test_accuracy for r in own if r.snr == snr] for snr in ratios]
            mean = [fmean(sample) for sample in samples]
            deviation = [spread(sample) or 0.0 for sample in samples]
            axes.plot(ratios, mean, marker=".", label=name)
            low, high = ([m + sign * d for m, d in zip(mean, deviation, strict=True)] for sign in (-1, 1))
            axes.fill_between(ratios, low, high, alpha=0.2)
        axes.set(title=f"{noise} noise", xlabel="signal-to-noise ratio / dB")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy / %")
    panels[0].legend()
    figure.suptitle(f"mean and standard deviation of {settings.seeds} seeds")
    figure.savefig(path, format="png", dpi=120)


def plot_features(settings: Settings, folder: Path, path: Path) -> None:
    """Plot the test signals' features, the classifier's input, in two dimensions by t-SNE: a panel for each network.

    Source: L. van der Maaten, G. Hinton, Visualizing Data using t-SNE, J. Mach. Learn. Res. 9, 2008, 2579-2605.
    """
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    cells, classes = settings.shown(), load(settings, 0).classes
    figure = Figure(figsize=(3.6 * len(cells), 4.4), layout="constrained")
    for axes, cell in zip(figure.subplots(1, len(cells), squeeze=False)[0], cells, strict=True):
        seen = torch.load(features_path(folder, cell), weights_only=True)
        # the usual perplexity of 30 needs more than 90 signals
        neighbours = min(30.0, (len(seen["labels"]) - 1) / 3)
        x, y = TSNE(perplexity=neighbours, random_state=0).fit_transform(seen["features"].numpy()).T
        points = axes.scatter(x, y, s=6, c=seen["labels"], cmap="tab10", vmin=0, vmax=9)
        axes.set(title=cell.network, xticks=[], yticks=[])
    # every panel shows the same split, and so the same classes
    names = [classes[label] for label in seen["labels"].unique()]
    figure.legend(points.legend_elements(num=None)[0], names, loc="outside lower center", ncols=len(names))
    figure.suptitle(
        f"features of the test signals, {cells[0].noise} noise, {as_flag(cells[0].snr)} dB, seed {cells[0].seed}"
    )
    figure.savefig(path, format="png", dpi=120)
