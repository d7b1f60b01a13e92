"""The tables that recorded rows make, in Markdown. Times are in ms; a ratio has a column of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from drsn_ops.arguments import counted
from drsn_ops.experiment.averages import percent

from .grid import BOTH_ENDS, SHOWN, SIZES, SMALL, TABLE, TWINS
from .host import IMPORTED
from .networks import PLAIN
from .rows import Row

MISSING = "–"
PEERS = {"eager": "eager/", "torch.compile": "compile/"}
PEER_COLUMNS = [f"{peer}: ratio" for peer in PEERS]
ONE_WAY = ("inference", "inference in place", "forward", "backward")
WORDS = {
    "inference": "no gradient",
    "inference in place": "no gradient, in place",
    "forward": "forward",
    "backward": "backward",
    "forward+backward": "forward + backward",
}
NETWORKS = {
    "paper": "the paper's network",
    "wide": "the same with 64, 128 and 256 channels",
    "resnet18": "the network of 18 layers, 64 to 512 channels",
    "cifar10": "the published program's network for CIFAR-10",
}
WHATS = {"step": "A training step", "evaluation": "Evaluation"}
DATA = {
    "cwru": "the drive-end files of Case Western Reserve University",
    "simulated": "recordings of the simulated machine, `drsn_ops.vibration`",
}
SPREADS = ("mean ± standard deviation", "lowest to highest")
# Of training, in table V of DOI 10.1109/TII.2019.2943898.
PAPER_SECONDS = {"ResNet": 978.04, "DRSN-CW": 1511.11, "DRSN-CS": 1585.33}


def select(rows: list[Row], **wanted: object) -> dict[str, Row]:
    """Rows by provider; where not asked for, float32, contiguous, and without the wait for the host."""
    keys = {"dtype": "float32", "layout": "contiguous", **wanted}
    timers = {wanted["timer"]} if "timer" in wanted else {"host", "cold", "graph"}
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


def number(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown; all columns but the first are numbers. Empty without rows."""
    cells = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    lines = ["| " + " | ".join(row) + " |\n" for row in cells]
    return "".join(lines) if len(lines) > 2 else ""


def name_of(shape: Sequence[int], layout: str = "contiguous") -> str:
    return "x".join(map(str, shape)) + ("" if layout == "contiguous" else f", {layout}")


def megabytes(shape: Sequence[int]) -> str:
    """Of a float32 tensor."""
    return f"{4 * np.prod(shape) / 1e6:.1f}"


def milliseconds(row: Row | None, digits: int = 3) -> str:
    return number(row and row["p50_us"] / 1e3, digits)


def operators_on_cpu(rows: list[Row]) -> str:
    times = [times_table(rows, operator) for operator in ("shrink", "batch_norm_relu")]
    return "\n".join(filter(None, [*times, types_table(rows), memory_table(rows), small_table(rows)]))


def times_table(rows: list[Row], operator: str) -> str:
    """Of every case of the operator in float32, from the first to the last of ``SHOWN``."""
    cases = [
        row
        for row in rows
        if (row["operator"], row["dtype"], row["provider"]) == (operator, "float32", "drsn_ops")
        and row["direction"] in SHOWN
        and tuple(row["shape"]) not in SMALL.values()
    ]
    lines = []
    for ours in sorted(cases, key=lambda row: (SHOWN.index(row["direction"]), np.prod(row["shape"]))):
        case = select(rows, **{key: ours[key] for key in ("operator", "direction", "shape", "layout")})
        peers = [ratio(fastest(case, prefix), ours["p50_us"]) for prefix in PEERS.values()]
        size = (name_of(ours["shape"], ours["layout"]), megabytes(ours["shape"]))
        times = (heat(ours), milliseconds(ours), number(ours["fraction"], 2))
        lines.append((WORDS[ours["direction"]], *size, *times, *peers))
    head = (f"`{operator}`, float32", "x", "MB", "inputs", "ms", "a copy: ratio", *PEER_COLUMNS)
    return table(head, lines)


def heat(row: Row) -> str:
    return "cold" if row["timer"] == "cold" else "hot"


def types_table(rows: list[Row]) -> str:
    lines = []
    for direction in BOTH_ENDS:
        cases = [select(rows, operator="shrink", direction=direction, shape=list(size)) for size in SIZES]
        for dtype in ("bfloat16", "float16", "float64"):
            others = [
                select(rows, operator="shrink", direction=direction, shape=list(size), dtype=dtype)
                for size in SIZES
            ]
            speeds = [
                ratio(fastest(case, "drsn_ops"), fastest(other, "drsn_ops"))
                for case, other in zip(cases, others, strict=True)
            ]
            if set(speeds) != {MISSING}:
                lines.append((f"{dtype}, {WORDS[direction]}", *speeds))
    return table(("speed, times float32's", *map(name_of, SIZES)), lines)


def memory_table(rows: list[Row]) -> str:
    """What a backward of shrink keeps, ours beside the formulas, with x where the formula needs it later."""
    names = ["drsn_ops", *sorted({row["provider"] for row in rows if row["provider"].startswith("eager/")})]
    kept = {name: bytes_kept(rows, name, "kept_bytes") for name in names}
    return table(
        ("`shrink` keeps for its backward pass", "bytes an element", "bytes a row"),
        [(name, number(both[0], 3), number(both[1], 0)) for name, both in kept.items() if both],
    )


def small_table(rows: list[Row]) -> str:
    lines = []
    for operator, size in SMALL.items():
        for direction in ("forward", "forward+backward"):
            case = select(rows, operator=operator, direction=direction, shape=list(size))
            part = ratio(fastest(case, "drsn_ops"), fastest(case, "eager/tidy"))
            lines.append((f"`{operator}`, {WORDS[direction]}", name_of(size), part))
    return table(("one call on a small tensor, hot", "x", "time / the tidy eager formula's"), lines)


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


def operators_on_cuda(rows: list[Row]) -> str:
    """The part of the copy's speed, and the peers' times over ours, in float32; and the slowest cases."""
    lines = []
    for row in rows:
        case = select(rows, **{key: row[key] for key in ("operator", "direction", "shape", "timer")})
        shown = row["operator"] == "shrink+residual" and tuple(row["shape"]) in TABLE
        if shown and row is case.get("drsn_ops"):
            peers = [ratio(fastest(case, prefix), row["p50_us"]) for prefix in PEERS.values()]
            what = WORDS[row["direction"]] + (", with the host" if row["timer"] == "events" else "")
            moved, part = number(row["bytes"] / 1e6, 1), number(row["fraction"], 2)
            lines.append((what, name_of(row["shape"]), moved, milliseconds(row), part, *peers))
    head = ("`shrink` with a residual, float32", "x", "MB moved", "ms", "a copy: ratio", *PEER_COLUMNS)
    return f"{table(head, lines)}\n{slowest_table(rows)}"


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
    "`shrink`, forward with the mask, 256 MB and more": lambda row: is_plain(row, "forward"),
    "`shrink`, backward, 256 MB and more": lambda row: is_plain(row, "backward"),
    "float64, 256 MB and more": lambda row: row["dtype"] == "float64" and row["bytes"] >= 256e6,
    "float16 and bfloat16, 256 MB and more": lambda row: (
        row["dtype"] in ("float16", "bfloat16") and row["bytes"] >= 256e6
    ),
}


def slowest_table(rows: list[Row]) -> str:
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
    return table(
        ("all cases", "how many", "a copy: ratio, the slowest"),
        [(what, str(len(part)), f"{min(part):.2f}") for what, part in parts.items() if part],
    )


def networks_table(rows: list[Row]) -> str:
    """Times and memory of each network's training step, and the times of evaluation."""
    tables = []
    for case in dict.fromkeys((row["what"], row["network"], *row["shape"], row["dtype"]) for row in rows):
        own = [row for row in rows if (row["what"], row["network"], *row["shape"], row["dtype"]) == case]
        what, network, *shape, dtype = case
        tables.append(f"{WHATS[what]} of {NETWORKS[network]}, x of {name_of(shape)}, {dtype}:\n")
        tables += [step_table(own)] + [peak_table(own)] * (what == "step")
    return "\n".join(tables)


def by_contestant(rows: list[Row]) -> dict[str, dict[str, Row]]:
    """The rows of one network by contestant, and then by mode."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(contestant(row), {})[row["mode"]] = row
    return found


def contestant(row: Row) -> str:
    names = {PLAIN: "PyTorch's plain ResNet", ("DRSN-CW", "pytorch"): "DRSN-CW, widely copied formula"}
    who = (row["variant"], row["provider"])
    return names.get(who, ", ".join(who)) + ", channels_last" * (row["layout"] == "channels_last")


def modes_among(rows: list[Row]) -> dict[str, str]:
    """The modes that were measured, and what a column calls them."""
    modes = dict.fromkeys(row["mode"] for row in rows)
    return {mode: mode.replace("compile", "torch.compile").replace("/", ", ") for mode in modes}


def three_digits(row: Row | None, key: str) -> str:
    """Microseconds in ms, or bytes in MB."""
    value = row and row[key] and row[key] / (1e6 if key == "peak_bytes" else 1e3)
    return number(value, 0 if not value or abs(value) >= 100 else 1 if abs(value) >= 10 else 2)


def step_table(rows: list[Row]) -> str:
    modes = modes_among(rows)
    steps = rows[0]["what"] == "step"
    paper = steps and rows[0]["network"] == "paper"
    head = ["time", *(column for words in modes.values() for column in (f"{words}: ms", "ratio"))]
    head += ["shrinkage adds: ms"] * steps + ["the paper's: ratio"] * paper
    lines = []
    for name, row_of in by_contestant(rows).items():
        cells = [name]
        for row in map(row_of.get, modes):
            cells += [three_digits(row, "p50_us"), number(row and row["ratio_p50"], 2)]
        cells += [three_digits(row_of.get("eager"), "added_us")] * steps
        cells += [ratio_of_the_paper(row_of)] * paper
        lines.append(cells)
    return table(head, lines)


def ratio_of_the_paper(row_of: dict[str, Row]) -> str:
    (variant,) = {row["variant"] for row in row_of.values()}
    return ratio(PAPER_SECONDS[variant], PAPER_SECONDS["ResNet"])


def peak_table(rows: list[Row]) -> str:
    modes = modes_among(rows)
    head = ["peak memory", *(column for words in modes.values() for column in (f"{words}: MB", "ratio"))]
    lines = []
    for name, row_of in by_contestant(rows).items():
        cells = [name]
        for row in map(row_of.get, modes):
            cells += [three_digits(row, "peak_bytes"), number(row and row["peak_ratio"], 2)]
        lines.append(cells)
    return table(head, lines)


def first_table(rows: list[Row]) -> str:
    """The README's: a step of the paper's network in float32."""
    steps = [
        row for row in rows if (row["what"], row["network"], row["dtype"]) == ("step", "paper", "float32")
    ]
    lines = []
    for name, row_of in by_contestant(steps).items():
        eager, compiled = row_of.get("eager"), row_of.get("compile")
        cells = [three_digits(eager, "p50_us")]
        cells += [number(row and row["ratio_p50"], 2) for row in (eager, compiled)]
        cells.append(number(eager and eager["peak_ratio"], 2))
        lines.append((name, *cells, ratio_of_the_paper(row_of)))
    head = ("a training step", "ms", "ratio", "compiled: ratio", "memory: ratio", "the paper's: ratio")
    if not steps:
        return ""
    best = min(
        row["ratio_p50"] for row in steps if (row["variant"], row["provider"]) == ("DRSN-CW", "drsn_ops")
    )
    label = f"The paper's network, 12 units, x of {name_of(steps[0]['shape'])}, float32"
    told = f"DRSN-CW trains in {best:.2f} of the time of PyTorch's plain ResNet:"
    return f"{label}: {told}\n\n{table(head, lines)}"


def host_table(rows: list[Row]) -> str:
    calls = [row for row in rows if row["call"] != IMPORTED]
    text = table(
        ("one call, small tensors", "microseconds"), [(r["call"], number(r["p50_us"], 1)) for r in calls]
    )
    return text + "".join(
        f"\n`{IMPORTED}`: {milliseconds(row, 0)} ms.\n" for row in rows if row["call"] == IMPORTED
    )


def digits_table(rows: list[Row]) -> str:
    backends = dict.fromkeys(row["backend"] for row in rows)
    accuracy = {(row["seed"], row["backend"]): row["test_accuracy"] for row in rows}
    lines = [
        (str(seed), *(number(100 * accuracy[seed, backend], 2) for backend in backends))
        for seed in dict.fromkeys(row["seed"] for row in rows)
    ]
    over_seeds = [[row["test_accuracy"] for row in rows if row["backend"] == backend] for backend in backends]
    lines += [(what, *map(make, over_seeds)) for what, make in zip(SPREADS, (percent, span), strict=True)]
    return table(("seed", *(f"{backend}: test accuracy, %" for backend in backends)), lines)


def span(shares: Sequence[float]) -> str:
    """The lowest and the highest, in percent."""
    return f"{100 * min(shares):.2f} to {100 * max(shares):.2f}"


def mnist_table(rows: list[Row]) -> str:
    """The recipe and what mends it: over the seeds, by running statistics and by those of each batch."""
    seeds = {row["seed"] for row in rows}
    lines = []
    for choice in dict.fromkeys(row["choice"] for row in rows):
        own = [row for row in rows if row["choice"] == choice]
        columns = [[row[name] for row in own] for name in ("test_accuracy", "test_batch_statistics_accuracy")]
        cells = [cell for shares in columns for cell in (percent(shares), span(shares))]
        lines.append((f"`{choice}`" if choice else "the recipe", *cells))
    statistics = [f"{which} statistics: {what}" for which in ("running", "batch") for what in SPREADS]
    return table((f"test accuracy, %, {counted(len(seeds), 'seed')}", *statistics), lines)


def recordings_table(rows: list[Row]) -> str:
    found = {row["what"]: row for row in rows}
    reading, training, predicting, small = (
        found[what] for what in ("read", "train", "predict", "predict small")
    )
    right = " and ".join(
        f"{number(100 * share, 1)} % of the test {scope}s" for scope, share in training["accuracy"].items()
    )
    counts = f"{reading['recordings']} recordings of {reading['classes']} classes"
    lines = [
        (f"read {counts}, cut into {reading['windows']} windows", f"{number(reading['seconds'], 2)} s"),
        (f"train: {right} right", f"{number(training['seconds'], 0)} s"),
        (
            f"predict {predicting['recordings']} recordings",
            f"{predicting['windows'] / predicting['seconds']:,.0f} windows/s",
        ),
        (f"predict {small['recordings']:,} text files of one window", f"{number(small['seconds'], 1)} s"),
    ]
    return table((DATA.get(reading["data"], reading["data"]), ""), lines)


def verdict(rows: list[Row]) -> str:
    """What ``train`` wrote of the data that it was measured on."""
    (text,) = (row["verdict"] for row in rows if row["what"] == "train")
    return f"```text\n{text.rstrip()}\n```\n"
