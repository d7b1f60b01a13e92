"""README's table and the plot, made from recorded rows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .grid import SIZES, TABLE, TWINS
from .rows import Row, slug

MISSING = "–"
PEERS = {"the fastest eager formula": "eager/", "the best torch.compile": "compile/"}
ONE_WAY = ("inference", "inference in place", "forward", "backward")
WORDS = {
    "inference": "no gradient",
    "inference in place": "no gradient, in place",
    "forward": "forward",
    "backward": "backward",
    "forward+backward": "forward + backward",
}
NETWORKS = {"paper": "the paper's network", "resnet18": "18 layers"}
WAYS = {
    "drsn_ops": "`Shrinkage`",
    "batch_norm_shrink": "`batch_norm_shrink`",
    "naive": "the widely copied formula",
}
# Of training, in table V of DOI 10.1109/TII.2019.2943898.
PAPER_SECONDS = {"ResNet": 978.04, "DRSN-CW": 1511.11, "DRSN-CS": 1585.33}


def select(rows: list[Row], **wanted: object) -> dict[str, Row]:
    """Rows by provider; where not asked for, float32, contiguous, and without the wait for the host."""
    keys = {"dtype": "float32", "layout": "contiguous", **wanted}
    timers = {wanted["timer"]} if "timer" in wanted else {"host", "graph"}
    return {
        row["provider"]: row
        for row in rows
        if row["timer"] in timers and all(row[key] == value for key, value in keys.items())
    }


def fastest(providers: dict[str, Row], prefix: str) -> float | None:
    """The median of the fastest provider whose name starts so."""
    return min((row["p50_us"] for name, row in providers.items() if name.startswith(prefix)), default=None)


def ratio(numerator: float | None, denominator: float | None) -> str:
    return f"{numerator / denominator:.2f}" if numerator and denominator else MISSING


def line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def times_line(label: str, cases: list[dict[str, Row]]) -> str:
    medians = [fastest(providers, "drsn_ops") for providers in cases]
    return line(f"{label}: ms", *(f"{us / 1e3:.3f}" if us else MISSING for us in medians))


def bytes_kept(rows: list[Row], provider: str, key: str) -> tuple[float, float] | None:
    """Bytes an element and bytes a row, from sizes whose rows differ in length."""
    cases = [
        select(rows, operator="shrink", direction="forward+backward", shape=list(size)) for size in SIZES
    ]
    if not all(provider in providers for providers in cases):
        return None
    counts = np.array([[np.prod(size), size[0] * size[1]] for size in SIZES], dtype=float)
    kept = np.array([providers[provider][key] for providers in cases], dtype=float)
    (element, a_row), *_ = np.linalg.lstsq(counts, kept)
    return float(element), float(a_row)


def cpu_table(rows: list[Row]) -> str:
    megabytes = [f"{4 * np.prod(size) / 1e6:.1f} MB" for size in SIZES]
    lines = [line("float32 x of", *megabytes), line("---", *("---:" for _ in SIZES))]
    for direction in ("inference in place", "forward+backward"):
        cases = [select(rows, operator="shrink", direction=direction, shape=list(size)) for size in SIZES]
        lines.append(times_line(f"`shrink`, {WORDS[direction]}", cases))
        for peer, prefix in PEERS.items():
            ratios = [ratio(fastest(case, prefix), fastest(case, "drsn_ops")) for case in cases]
            lines.append(line(f"{peer} takes, times that", *ratios))
        halves = [
            select(rows, operator="shrink", direction=direction, shape=list(size), dtype="bfloat16")
            for size in SIZES
        ]
        speeds = [
            ratio(fastest(case, "drsn_ops"), fastest(half, "drsn_ops"))
            for case, half in zip(cases, halves, strict=True)
        ]
        lines.append(line("bfloat16 elements a second, times float32's", *speeds))
    lines += ["", *memory_lines(rows), *small_lines(rows)]
    return "\n".join(lines)


def memory_lines(rows: list[Row]) -> list[str]:
    """What a backward of shrink keeps, ours beside the formulas, with x where the formula needs it later."""
    names = ["drsn_ops", *sorted({row["provider"] for row in rows if row["provider"].startswith("eager/")})]
    words = []
    for name in names:
        kept = bytes_kept(rows, name, "kept_bytes")
        if kept:
            words.append(f"{name} {kept[0]:.3f} an element and {kept[1]:.0f} a row")
    return [
        f"Bytes that `shrink` keeps for its backward, inputs that it needs included: {'; '.join(words)}.\n"
    ]


def small_lines(rows: list[Row]) -> list[str]:
    words = []
    for operator, size in (("soft_threshold", [4, 4]), ("shrink", [1, 4, 4])):
        for direction in ("forward", "forward+backward"):
            case = select(rows, operator=operator, direction=direction, shape=size)
            part = ratio(fastest(case, "drsn_ops"), fastest(case, "eager/tidy"))
            name = "x".join(map(str, size))
            words.append(f"{part} for `{operator}` on {name}, {direction.replace('+', ' + ')}")
    return [f"One call on a small tensor, as a part of the tidy eager formula's time: {'; '.join(words)}.\n"]


def cuda_table(rows: list[Row]) -> str:
    """The part of the copy's speed, and the peers' times over ours, in float32; and the slowest cases."""
    header = ("`shrink` with a residual", "float32 x of", "MB moved", "copy's time / ours", *PEERS)
    lines = [line(*header), line(*("---" for _ in header))]
    for row in rows:
        case = select(rows, **{key: row[key] for key in ("operator", "direction", "shape", "timer")})
        shown = row["operator"] == "shrink+residual" and tuple(row["shape"]) in TABLE
        if shown and row is case.get("drsn_ops"):
            peers = [ratio(fastest(case, prefix), row["p50_us"]) for prefix in PEERS.values()]
            what = WORDS[row["direction"]] + (", with the host" if row["timer"] == "events" else "")
            moved = f"{row['bytes'] / 1e6:.1f}"
            lines.append(
                line(what, "x".join(map(str, row["shape"])), moved, f"{row['fraction']:.2f}", *peers)
            )
    picture = f"![the copy's time / time, over the size of x](benchmarks/results/{slug(rows[0])}.png)"
    return "\n".join([*lines, "", *slowest_lines(rows), "", picture]) + "\n"


def is_plain(
    row: Row, *directions: str, operator: str = "shrink", least: float = 256e6, most: float = math.inf
) -> bool:
    """Float32 in contiguous memory, in one of these directions, with or without a residual, so many bytes moved."""
    found = row["operator"].startswith(operator) and row["direction"] in directions
    return (
        found and (row["dtype"], row["layout"]) == ("float32", "contiguous") and least <= row["bytes"] <= most
    )


KINDS: dict[str, Callable[[Row], bool]] = {
    "`soft_threshold`, 256 MB and more": lambda row: is_plain(row, *ONE_WAY, operator="soft_threshold"),
    "`shrink` without gradient, 256 MB and more": lambda row: is_plain(row, *ONE_WAY[:2]),
    "the same, 24 to 100 MB": lambda row: is_plain(row, *ONE_WAY[:2], least=24e6, most=100e6),
    "`shrink`, forward with the code, 256 MB and more": lambda row: is_plain(row, "forward"),
    "`shrink`, backward, 256 MB and more": lambda row: is_plain(row, "backward"),
    "float64, 256 MB and more": lambda row: row["dtype"] == "float64" and row["bytes"] >= 256e6,
    "float16 and bfloat16, 256 MB and more": lambda row: (
        row["dtype"] in ("float16", "bfloat16") and row["bytes"] >= 256e6
    ),
}


def slowest_lines(rows: list[Row]) -> list[str]:
    """Of each kind of case the one with the smallest part of the copy's speed, or of that of its twin."""
    ours = [row for row in rows if row["provider"] == "drsn_ops" and row["timer"] == "graph"]
    parts = {
        what: [row["fraction"] for row in ours if row["direction"] in ONE_WAY and belongs(row)]
        for what, belongs in KINDS.items()
    }
    part_of = {
        (row["operator"], row["direction"], tuple(row["shape"]), row["layout"]): row["fraction"]
        for row in ours
        if row["dtype"] == "float32"
    }
    twin_of = dict(TWINS)
    twins: dict[str, list[float]] = {"rows that no vector divides": [], "channels_last": []}
    for (operator, direction, shape, layout), part in part_of.items():
        kind = layout if layout == "channels_last" else "rows that no vector divides"
        twin = part_of.get((operator, direction, twin_of.get(shape, shape), "contiguous"))
        if twin and (layout == "channels_last" or shape in twin_of):
            twins[kind].append(part / twin)
    parts |= {
        f"{what}, as a part of that of the aligned, contiguous twins": found for what, found in twins.items()
    }
    header = ("all cases", "how many", "copy's time / ours, of the slowest")
    found = [line(what, str(len(part)), f"{min(part):.2f}") for what, part in parts.items() if part]
    return [line(*header), line(*("---" for _ in header)), *found] if found else []


def tax_table(rows: list[Row]) -> str:
    return "\n".join(
        [*step_lines(rows), "", *compiled_lines(rows), *evaluation_lines(rows), "", *call_lines(rows)]
    )


def step_lines(rows: list[Row]) -> list[str]:
    steps = [row for row in rows if row["what"] == "step"]
    modes = list(dict.fromkeys(row["mode"] for row in steps))
    words = [mode.replace("compile", "torch.compile").replace("/", ", ") for mode in modes]
    columns = [*words, "peak memory", "the paper"]
    lines = [
        line("a training step, times the plain ResNet's", *columns),
        line("---", *("---:" for _ in columns)),
    ]
    keys = ("network", "dtype", "variant", "provider")
    for key in dict.fromkeys(tuple(row[name] for name in keys) for row in steps):
        network, dtype, variant, provider = key
        row_of = {row["mode"]: row for row in steps if tuple(row[name] for name in keys) == key}
        narrow = "" if dtype == "float32" else f", {dtype}"
        label = f"{NETWORKS[network]}{narrow}, {variant}"
        if variant == "ResNet":
            times = [
                f"{row_of[mode]['p50_us'] / 1e3:.0f} ms" if mode in row_of else MISSING for mode in modes
            ]
            peak = row_of["eager"]["peak_bytes"] if "eager" in row_of else None
            memory = f"{peak / 1e6:.0f} MB" if peak else MISSING
            lines.append(line(f"{label} itself", *times, memory, MISSING))
            continue
        ratios = [row_of[mode]["ratio_p50"] if mode in row_of else None for mode in modes]
        kept = row_of["eager"]["peak_ratio"] if "eager" in row_of else None
        paper = PAPER_SECONDS[variant] / PAPER_SECONDS["ResNet"] if network == "paper" else None
        cells = (f"{cell:.2f}" if cell else MISSING for cell in (*ratios, kept, paper))
        lines.append(line(f"{label}, {WAYS[provider]}", *cells))
    return lines


def compiled_lines(rows: list[Row]) -> list[str]:
    """Compiled steps with our operators beside the eager ones of the same rounds."""
    words = []
    for row in rows:
        ours = row["provider"] in ("drsn_ops", "batch_norm_shrink")
        if row["what"] == "step" and row["mode"] == "compile" and ours and row.get("eager_ratio_p50"):
            narrow = "" if row["dtype"] == "float32" else f", {row['dtype']}"
            which = f"{NETWORKS[row['network']]}, {row['variant']}, {WAYS[row['provider']]}{narrow}"
            words.append(f"{row['eager_ratio_p50']:.2f} ({which})")
    return (
        [f"A compiled step, times the eager step with the same operators: {', '.join(words)}.\n"]
        if words
        else []
    )


def module_case(rows: list[Row], what: str, shape: list[int], timers: set[str]) -> dict[str, Row]:
    """Rows by a name that says what ``select``'s names say."""
    return {
        row["provider"]
        if row["provider"] in ("drsn_ops", "copy")
        else f"{row['mode']}/{row['provider']}": row
        for row in rows
        if row["what"] == what and row["shape"] == shape and row["timer"] in timers
    }


def evaluation_lines(rows: list[Row]) -> list[str]:
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows if row["what"] == "evaluation"))
    cases = [module_case(rows, "evaluation", list(shape), {"host", "graph"}) for shape in shapes]
    sizes = [f"{4 * np.prod(shape) / 1e6:.1f} MB" for shape in shapes]
    lines = [line("`Shrinkage` in evaluation, float32 x of", *sizes), line("---", *("---:" for _ in sizes))]
    lines.append(times_line("with a residual", cases))
    peers = PEERS if not rows[0]["gpu"] else {**PEERS, "a copy of the same bytes": "copy"}
    for peer, prefix in peers.items():
        ratios = [ratio(fastest(case, prefix), fastest(case, "drsn_ops")) for case in cases]
        lines.append(line(f"{peer} takes, times that", *ratios))
    return lines


def call_lines(rows: list[Row]) -> list[str]:
    lines = []
    for shape, timer in dict.fromkeys(
        (tuple(row["shape"]), row["timer"]) for row in rows if row["what"] == "call"
    ):
        case = module_case(rows, "call", list(shape), {timer})
        ours = fastest(case, "drsn_ops")
        peers = [
            f"{peer} takes {ratio(fastest(case, prefix), ours)} times that" for peer, prefix in PEERS.items()
        ]
        words = [f"{ours / 1e3:.3f} ms" if ours else MISSING, *peers]
        where = f"{'x'.join(map(str, shape))}, forward + backward{', in a CUDA graph' if timer == 'graph' else ''}"
        lines.append(f"One `Shrinkage` with a residual on {where}: {'; '.join(words)}.\n")
    return lines


def host_table(rows: list[Row]) -> str:
    lines = [line("one call, small tensors", "microseconds"), line("---", "---:")]
    return "\n".join(lines + [line(row["call"], f"{row['p50_us']:,.1f}") for row in rows]) + "\n"


TABLES = {
    "benchmark": {"cpu": cpu_table, "cuda": cuda_table},
    "tax": {"cpu": tax_table, "cuda": tax_table},
    "host": {"cpu": host_table, "cuda": host_table},
}


def origin(row: Row) -> str:
    where = f"{row['gpu']}, driver {row['driver']}, CUDA {row['cuda']}" if row["gpu"] else row["machine"]
    commit = f", commit {row['commit']}" if row["commit"] else ""
    return f"Medians on {where}; {row['threads']} threads, torch {row['torch']}, {row['date']}{commit}."


def insert(readme: str, rows: list[Row], kind: str = "benchmark") -> str:
    """The README with the table of the rows' kind and device between its two marker comments."""
    if not rows:
        raise ValueError("no rows in the results")
    device = "cuda" if rows[0]["gpu"] else "cpu"
    return fill(readme, f"{kind}:{device}", f"{TABLES[kind][device](rows)}\n{origin(rows[0])}\n")


def fill(readme: str, marker: str, text: str) -> str:
    """The README with this text between the marker's two comments."""
    start, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    if readme.count(start) != 1 or readme.count(end) != 1 or readme.index(start) > readme.index(end):
        raise ValueError(f"needs {start} and, after it, {end}, once each")
    between = f"{start}\n{text}{end}"
    return re.sub(f"{start}.*?{end}", lambda _: between, readme, flags=re.DOTALL)


def plot(rows: list[Row], path: Path) -> None:
    """The part of the copy's speed over the size of x, a line a provider, in float32."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # on a GPU the operator that torch.compile is compared with at every size
    operator, first = ("shrink+residual", "inference") if rows[0]["gpu"] else ("shrink", "inference in place")
    directions = (first, "forward", "backward", "forward+backward")
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
