"""What came out of an experiment: a table of all cells, the curves, the features, and a table beside the paper's."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

import torch

from ..train import replacing
from .settings import Cell, Result, Settings, as_flag, result_path

# accuracy in percent, training and test, over the noises of -5 to 5 dB: table III
PAPER = {
    "ConvNet": ("82.06 ± 4.29", "77.62 ± 4.22"),
    "ResNet": ("91.96 ± 1.05", "86.25 ± 1.34"),
    "DRSN-CS": ("93.61 ± 0.98", "88.55 ± 1.02"),
    "DRSN-CW": ("94.84 ± 0.55", "89.57 ± 0.87"),
}


def write_report(settings: Settings, results: Sequence[Result], folder: Path) -> list[Path]:
    """Write all of them. Returns their paths."""
    writers: dict[str, Callable[[Path], object]] = {
        "results.csv": lambda path: write_csv(results, path),
        "accuracy.png": lambda path: plot_accuracy(settings, results, path),
        "tsne.png": lambda path: plot_features(settings.shown(), folder, path),
        "table.md": lambda path: path.write_text(table(settings, results)),
    }
    for name, write in writers.items():
        with replacing(folder / name) as path:
            write(path)
    return [folder / name for name in writers]


def write_csv(results: Iterable[Result], path: Path) -> None:
    """A line a cell."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([Result._fields, *results])


def over_seeds(results: Iterable[Result], quantity: str) -> list[float]:
    """For each seed, the mean of a quantity over all cells of it that are among the results."""
    by_seed: dict[int, list[float]] = {}
    for result in results:
        by_seed.setdefault(result.seed, []).append(getattr(result, quantity))
    return [fmean(values) for values in by_seed.values()]


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample; of one value there is none."""
    return stdev(values) if len(values) > 1 else None


def percent(values: Sequence[float]) -> str:
    """Mean and spread in percent."""
    deviation = spread(values)
    return f"{100 * fmean(values):.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def table(settings: Settings, results: Sequence[Result]) -> str:
    """Accuracies beside the paper's table III, and those of each noise, in Markdown."""
    of = {name: [r for r in results if r.network == name] for name in settings.networks}
    summary = [["", "train", "test", "the paper's: train", "test", "parameters", "seconds a cell"]]
    for name, own in of.items():
        train, test = (percent(over_seeds(own, f"{split}_accuracy")) for split in ("train", "test"))
        seconds = fmean(result.seconds for result in own)
        summary.append([name, train, test, *PAPER[name], str(own[0].parameters), f"{seconds:.1f}"])
    by_noise = [["test", *of]]
    for noise, snr in product(settings.noise, settings.snr):
        cells = ([r for r in own if (r.noise, r.snr) == (noise, snr)] for own in of.values())
        by_noise.append([f"{noise}, {snr:g} dB", *(percent(over_seeds(c, "test_accuracy")) for c in cells)])
    return f"{markdown(summary)}\n{caption(settings)}\n{markdown(by_noise)}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, its heads first; all columns but the first are numbers."""
    head, *body = ("| " + " | ".join(row) + " |\n" for row in rows)
    return head + "| --- |" + " ---: |" * (len(rows[0]) - 1) + "\n" + "".join(body)


def caption(settings: Settings) -> str:
    """What the figures are means of, and what differs from the paper."""
    data = f"recordings ({settings.data})"
    if settings.data == "vibration":
        data = f"{settings.num_signals} simulated signals, one of {settings.folds} folds to test on"
    return (
        f"Accuracy in percent, in {', '.join(settings.noise)} noise at {as_flag(settings.snr)} dB. A seed's figure is "
        f"the mean over these noises; given are the mean over the seeds ({settings.seeds}) ± their standard deviation "
        "(n - 1). Each seed has its own noise, first parameters and split.\n\n"
        f"The data are not the paper's: here {data}; there 28,800 signals of its authors' own rig, one of 10 folds to "
        f"test on, at -5 to 5 dB in steps of 1. Here and there: {settings.points} and 2048 points, {settings.blocks} "
        f"and 12 blocks, {settings.epochs} and 100 epochs, batches of {settings.batch_size} and 128, learning rates "
        f"from {settings.lr:g} and 0.1 down.\n"
    )


def plot_accuracy(settings: Settings, results: Sequence[Result], path: Path) -> None:
    """Test accuracy against the signal-to-noise ratio: a panel a noise, a line a network, its spread as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(settings.noise), 3.8), layout="constrained")
    ratios = sorted(settings.snr)
    panels = figure.subplots(1, len(settings.noise), sharey=True, squeeze=False)[0]
    for axes, noise in zip(panels, settings.noise, strict=True):
        for name in settings.networks:
            own = [r for r in results if (r.network, r.noise) == (name, noise)]
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


def plot_features(cells: Sequence[Cell], folder: Path, path: Path) -> None:
    """The test signals' features, before the classifier, in two dimensions by t-SNE: a panel a network.

    Source: L. van der Maaten, G. Hinton, Visualizing Data using t-SNE, J. Mach. Learn. Res. 9, 2008, 2579-2605.
    """
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    figure = Figure(figsize=(3.6 * len(cells), 4), layout="constrained")
    for axes, cell in zip(figure.subplots(1, len(cells), squeeze=False)[0], cells, strict=True):
        seen = torch.load(result_path(folder, cell).with_suffix(".pt"), weights_only=True)
        # the method's usual 30 neighbours need more signals than that
        neighbours = min(30.0, (len(seen["labels"]) - 1) / 3)
        x, y = TSNE(perplexity=neighbours, random_state=0).fit_transform(seen["features"].numpy()).T
        axes.scatter(x, y, s=6, c=seen["labels"], cmap="tab10", vmin=0, vmax=9)
        axes.set(title=cell.network, xticks=[], yticks=[])
    figure.suptitle(
        f"features of the test signals, {cells[0].noise} noise, {cells[0].snr:g} dB, seed {cells[0].seed}"
    )
    figure.savefig(path, format="png", dpi=120)
