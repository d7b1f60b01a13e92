"""The figures of an experiment: accuracies and gains against the signal-to-noise ratio, and features by t-SNE."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..arguments import as_flag, counted
from .averages import gaining, gains, half_width, of, over_seeds, spread
from .settings import PLAIN, Cell, Result, Settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_WIDTH = 5.5  # inches: a title fits
LONGEST_NAME = 40  # characters of a name in a legend
Style = dict[str, Any]


def plot_accuracy(settings: Settings, results: Sequence[Result], path: Path) -> None:
    """Plot test accuracies, and below them what they are above ResNet's: a column of panels for each kind of noise.

    Against the ratios, or where there is one, side by side. Of several seeds the accuracy's spread and the interval of
    the mean difference are shown: as a band or a bar.
    """
    kinds, compared = settings.noise_kind, gaining(settings.networks)
    height = 2 if compared else 1
    figure = new_figure(4 * len(kinds), 3.2 * height + 0.8)
    panels = figure.subplots(height, len(kinds), sharex=True, sharey="row", squeeze=False)
    look = dict(zip(settings.networks, styles(len(settings.networks)), strict=True))
    for column, kind in enumerate(kinds):
        own = [result for result in results if result.noise_kind == kind]
        upper, lower = panels[0, column], panels[-1, column]
        draw(
            upper, look, settings, own, lambda name, part: over_seeds(of(name, part), "test_accuracy"), spread
        )
        share = 100 * fmean(result.test_majority for result in own)
        upper.axhline(share, color="grey", linestyle=":", label="always the largest class")
        if compared:
            draw(lower, {name: look[name] for name in compared}, settings, own, gains, half_width)
            lower.axhline(0, color="grey", linewidth=0.8)
        upper.set_title(f"{kind} noise")
        one = f"at {as_flag(settings.snr)} dB"
        lower.set_xlabel("signal-to-noise ratio / dB" if len(settings.snr) > 1 else one)
    panels[0, 0].set_ylabel("test accuracy / %")
    if compared:
        panels[1, 0].set_ylabel(f"above {PLAIN} / points")
    seeds = counted(settings.seeds, "seed")
    below = "; below, the mean difference and its 95 % interval" if compared else ""
    figure.suptitle(f"mean and standard deviation of {seeds}{below}" if settings.seeds > 1 else seeds)
    legend_below(figure, *panels[0, 0].get_legend_handles_labels())
    figure.savefig(path, format="png", dpi=120)


def draw(
    axes: Axes,
    look: Mapping[str, Style],
    settings: Settings,
    results: Sequence[Result],
    sample: Callable[[str, Sequence[Result]], list[float]],
    width: Callable[[Sequence[float]], float | None],
) -> None:
    """Draw a curve for each network, of the mean of its ``sample`` at each ratio, and around it the ``width``."""
    ratios = sorted(settings.snr)
    axes.grid(alpha=0.3)
    for position, (name, style) in enumerate(look.items()):
        samples = [sample(name, [r for r in results if r.snr == snr]) for snr in ratios]
        mean = [100 * fmean(values) for values in samples]
        deviation = [100 * (width(values) or 0.0) for values in samples]
        bars = deviation if settings.seeds > 1 else None
        if len(ratios) == 1:
            axes.errorbar([name], mean, yerr=bars, capsize=4, linestyle="", **style)
            axes.margins(x=0.2)
            continue
        axes.plot(ratios, mean, label=name, **style)
        axes.set_xticks(ratios)
        if bars:
            low, high = ([m + sign * d for m, d in zip(mean, bars, strict=True)] for sign in (-1, 1))
            axes.fill_between(ratios, low, high, color=style["color"], alpha=0.15, zorder=position / 100)


def plot_features(
    cells: Sequence[Cell], features: Sequence[Mapping[str, Tensor]], classes: Sequence[str], path: Path
) -> None:
    """Plot the test signals' features, the classifier's input, in two dimensions by t-SNE: a panel for each network.

    Source: L. van der Maaten, G. Hinton, Visualizing Data using t-SNE, J. Mach. Learn. Res. 9, 2008, 2579-2605.
    """
    from matplotlib.lines import Line2D

    figure = new_figure(3.6 * len(cells), 4)
    # every panel shows the same split, and so the same classes
    present = features[0]["labels"].unique().tolist()
    look = dict(zip(present, styles(len(present)), strict=True))
    for axes, cell, seen in zip(
        figure.subplots(1, len(cells), squeeze=False)[0], cells, features, strict=True
    ):
        axes.set(title=cell.network, xticks=[], yticks=[])
        if why := nothing_to_show(seen["features"]):
            axes.text(0.5, 0.5, why, ha="center", transform=axes.transAxes)
            continue
        at = embedded(seen["features"])
        for label, style in look.items():
            x, y = at[(seen["labels"] == label).numpy()].T
            axes.scatter(x, y, s=10, linewidths=0, **style)
    handles = [Line2D([], [], linestyle="", **style) for style in look.values()]
    legend_below(figure, handles, [classes[label] for label in present])
    noise = f"{cells[0].noise_kind} noise, {as_flag(cells[0].snr)} dB"
    figure.suptitle(f"features of the test signals, {noise}, seed {cells[0].seed}")
    figure.savefig(path, format="png", dpi=120)


def nothing_to_show(features: Tensor) -> str | None:
    """What is said in place of features of a training that went wrong, or of one signal: t-SNE would crash on them."""
    if not features.isfinite().all():
        return "not finite"
    return "all the same" if (features == features[:1]).all() else None


def embedded(features: Tensor) -> Any:
    """The features in two dimensions, (N, 2), by t-SNE."""
    from sklearn.manifold import TSNE

    # the usual perplexity of 30 needs more than 90 signals
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, random_state=0).fit_transform(features.numpy())


def styles(count: int) -> list[Style]:
    """The colour and the marker of each of so many, all of them different: above ten, neighbours by the marker too."""
    from matplotlib import colormaps

    if count <= 20:
        colours = colormaps["tab10" if count <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    else:
        colours = colormaps["turbo"]([(i + 0.5) / count for i in range(count)])
    markers = cycle("o" if count <= 10 else "o^sDv")
    return [{"color": colours[i], "marker": next(markers)} for i in range(count)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches that lays itself out, wide enough for a title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(width, LEAST_WIDTH), height), layout="constrained")
    FigureCanvasAgg(figure)  # measures text
    return figure


def legend_below(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Add a legend below the panels, in as many columns as fit, and the height that it takes."""
    size = 10 if len(names) <= 10 else 8
    for rows in range(1, len(names) + 1):
        columns = math.ceil(len(names) / rows)
        blank = ["name"] * len(names)
        legend = figure.legend(handles, blank, loc="outside lower center", ncols=columns, fontsize=size)
        for text, name in zip(legend.get_texts(), names, strict=True):
            # a name is no formula, and one that begins with _ is shown, too
            text.set_parse_math(False)
            text.set_text(shortened(name))
        box = legend.get_window_extent()
        if box.width <= 0.97 * figure.bbox.width or columns == 1:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)


def shortened(name: str) -> str:
    """A name that is too long, without its middle."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[1 - half :]}"
