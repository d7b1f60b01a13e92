"""Draws a confusion matrix that can be read, for two classes or thirty, whatever their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .lettering import drawable, families_for, save_picture

# of a name, in characters
LONGEST = 32


def draw_confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], title: str, path: Path) -> None:
    """Draw the counts, true classes by predicted ones, each cell as dark as its share of the row.

    The picture grows with the number of classes and the length of their names, and names are turned where they would
    touch each other.
    """
    from matplotlib.figure import Figure

    table = np.array(counts)
    names = [shortened(drawable(name)) for name in classes]
    families = families_for(names)
    longest = max(map(len, names))
    digits = len(str(table.max()))
    cell = max(0.42, 0.08 * digits + 0.12)
    turned = 0.09 * longest > cell
    side = max(cell * len(names), 1.6)
    margin = 0.085 * longest + 0.6
    figure = Figure(
        figsize=(side + margin + 0.3, side + (margin if turned else 0.7) + 0.5), layout="constrained"
    )
    axes = figure.subplots()
    totals = table.sum(1, keepdims=True)
    shares = np.divide(table, totals, out=np.zeros(table.shape), where=totals > 0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(table):
        if count:
            axes.text(
                j,
                i,
                str(count),
                ha="center",
                va="center",
                size=8,
                color="white" if shares[i, j] > 0.5 else "black",
            )
    ticks = range(len(names))
    # a dollar is a dollar
    axes.set_xticks(ticks, names, rotation=90 if turned else 0, size=8, family=families, parse_math=False)
    axes.set_yticks(ticks, names, size=8, family=families, parse_math=False)
    axes.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, size=9)
    save_picture(figure, path, dpi=150)


def shortened(name: str) -> str:
    """A name without its middle, where it is too long."""
    half = LONGEST // 2 - 1
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}"
