"""Puts recorded results into the marked regions of README.md and docs/, and draws the plots."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from . import study_tables, tables
from .rows import Row, slug
from .study import read_recorded
from .tables import select

# The tables of a region, by the device; and the regions that a kind of results fills.
TABLES = {
    "operators": {"cpu": tables.operators_on_cpu, "cuda": tables.operators_on_cuda},
    "first": {"cpu": tables.first_table, "cuda": tables.first_table},
    "networks": {"cpu": tables.networks_table, "cuda": tables.networks_table},
    "host": {"cpu": tables.host_table, "cuda": tables.host_table},
    "digits": {"cpu": tables.digits_table},
    "mnist": {"cpu": tables.mnist_table},
    "recordings": {"cpu": tables.recordings_table},
    "verdict": {"cpu": tables.verdict},
}
REGIONS = {
    "operators": ("operators",),
    "tax": ("first", "networks"),
    "host": ("host",),
    "digits": ("digits",),
    "mnist": ("mnist",),
    "recordings": ("recordings", "verdict"),
}
DONE = {"digits": "Trained", "mnist": "Trained", "recordings": "Measured"}  # of other rows than medians


def origin(row: Row, what: str = "Medians") -> str:
    where = f"{row['gpu']}, driver {row['driver']}, CUDA {row['cuda']}" if row["gpu"] else row["machine"]
    commit = f", commit {row['commit']}" if row["commit"] else ""
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    return f"{what} on {where}; {threads}, torch {row['torch']}, {row['date']}{commit}."


def texts(rows: list[Row], kind: str = "operators") -> dict[str, str]:
    """The text of every region that the rows of one file of results fill."""
    if not rows:
        raise ValueError("no rows in the results")
    device = "cuda" if rows[0]["gpu"] else "cpu"
    commits = dict.fromkeys(row["commit"] for row in rows if row["commit"])
    made = origin({**rows[0], "commit": ", ".join(commits)}, DONE.get(kind, "Medians"))
    picture = f"\n![time of a copy / time, over the size of x](../benchmarks/results/{slug(rows[0])}.png)\n"
    return {
        f"{region}:{device}": f"{TABLES[region][device](rows)}\n{made}\n{picture * (kind == 'operators')}"
        for region in REGIONS[kind]
    }


def recorded(path: Path) -> tuple[dict[str, str], dict[Path, Callable[[Path], None]]]:
    """What recorded results have to say, by region, and the pictures that are drawn of them, each by a function."""
    if path.is_dir():
        found = read_recorded(path)
        return study_tables.texts(found), study_tables.pictures(found, path)
    if path.suffix == ".md":  # of `python -m drsn_ops experiment`, in a folder of its own
        return {path.parent.name: path.read_text()}, {}
    rows = json.loads(path.read_text())
    kind = path.stem.rpartition("-")[2]
    if kind in REGIONS:
        return texts(rows, kind), {}
    return texts(rows), {path.with_suffix(".png"): partial(plot, rows)}


def fill(page: str, region: str, text: str) -> str:
    """The page with this text between the region's two comments."""
    start, end = f"<!-- {region} -->", f"<!-- /{region} -->"
    if page.count(start) != 1 or page.count(end) != 1 or page.index(start) > page.index(end):
        raise ValueError(f"needs {start} and, after it, {end}, once each")
    before, _, rest = page.partition(start)
    return f"{before}{start}\n{text}{end}{rest.partition(end)[2]}"


def pages(folder: Path) -> list[Path]:
    """Where regions may be."""
    return [folder / "README.md", *sorted((folder / "docs").glob("*.md"))]


def with_regions(folder: Path, found: dict[str, str]) -> dict[Path, str]:
    """The pages of the folder that have these regions, with the texts in them; each region is in one page."""
    now = {path: path.read_text() for path in pages(folder)}
    changed = {}
    for region, text in found.items():
        holders = [path for path, page in now.items() if f"<!-- {region} -->" in page]
        if len(holders) != 1:
            raise ValueError(f"<!-- {region} --> is in {len(holders)} pages of {folder}, expected 1")
        now[holders[0]] = changed[holders[0]] = fill(now[holders[0]], region, text)
    return changed


def plot(rows: list[Row], path: Path) -> None:
    """The part of the copy's speed over the size of x, a line a provider, in float32."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # on a GPU the operator that torch.compile is compared with at every size
    operator = "shrink+residual" if rows[0]["gpu"] else "shrink"
    directions = ("inference", "forward", "backward", "forward+backward")
    figure, axes = pyplot.subplots(1, len(directions), figsize=(16, 4), sharey=True, layout="constrained")
    for axis, direction in zip(axes, directions, strict=True):
        curves: dict[str, dict[float, float]] = {}
        shapes = [row["shape"] for row in rows if row["provider"] == "drsn_ops" and row["shape"] != [1, 4, 4]]
        for shape in shapes:
            case = select(rows, operator=operator, direction=direction, shape=shape)
            for name, row in case.items():
                curve = "torch.compile, the best" if name.startswith("compile/") else name
                if curve != "copy":
                    points = curves.setdefault(curve, {})
                    size = 4 * float(np.prod(shape)) / 1e6
                    points[size] = max(points.get(size, 0.0), row["fraction"])
        for name, points in curves.items():
            axis.plot(*zip(*sorted(points.items()), strict=True), marker="o", label=name)
        axis.set(xscale="log", xlabel="x, MB", title=f"{operator}, {direction}", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("time of a copy of the same bytes / time")
    axes[-1].legend()
    figure.suptitle(origin(rows[0]))
    figure.savefig(path, format="png", dpi=100)
    pyplot.close(figure)
