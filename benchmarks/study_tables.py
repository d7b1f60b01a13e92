"""The study's tables in Markdown, and its plot: accuracies, and what networks are above others, paired by seed."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean

from drsn_ops.arguments import as_flag
from drsn_ops.experiment.averages import gains, half_width, least_to_greatest, of, over_seeds, points
from drsn_ops.experiment.settings import PLAIN, Result

from .study import EFFECTS, GRIDS, PEER, REFERENCE, TENS, Setting
from .tables import MISSING, number, table

Recorded = dict[str, list[Result]]  # by the setting's name

GROUPS = (range(5), range(5, 10))  # of seeds: those that settings are chosen on, and those that confirm
SHRUNK = ("DRSN-CS", "DRSN-CW")
OURS = (PLAIN, *SHRUNK)
PAIR = (PLAIN, "DRSN-CW")
ABOVE = [f"{name} above {PLAIN}" for name in SHRUNK]
PICTURE = "difference.png"


def texts(found: Recorded) -> dict[str, str]:
    """The text of every region that what is recorded fills."""
    made = {f"study-{grid.name}": grid_text(found[grid.name]) for grid in drawn(found)}
    what = f"what {' and '.join(SHRUNK)} are above {PLAIN}, against the signal-to-noise ratio"
    made["study-difference"] = f"![{what}](../benchmarks/results/study/{PICTURE})\n" if made else ""
    made["study-effects"] = effects_text(found)
    made["study-peer"] = peer_text(found)
    return {region: text for region, text in made.items() if text}


def pictures(found: Recorded, folder: Path) -> dict[Path, Callable[[Path], None]]:
    """The plot in the folder, and what draws it."""
    return {folder / PICTURE: partial(plot, found)} if drawn(found) else {}


def drawn(found: Recorded) -> list[Setting]:
    return [grid for grid in GRIDS if grid.name in found]


def in_group(results: Iterable[Result], seeds: Container[int]) -> list[Result]:
    return [result for result in results if result.seed in seeds]


def at(results: Iterable[Result], kind: str | None, snr: float | None) -> list[Result]:
    """Those in this kind of noise, and at this ratio; None is all."""
    return [result for result in results if kind in (None, result.noise_kind) and snr in (None, result.snr)]


def named(results: Sequence[Result]) -> str:
    """The seeds, in words."""
    seeds = sorted({result.seed for result in results})
    return f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"


def accuracies(network: str, results: Sequence[Result]) -> list[float]:
    return over_seeds(of(network, results), "test_accuracy")


def accuracy(network: str, results: Sequence[Result]) -> str:
    values = accuracies(network, results)
    return number(100 * fmean(values), 2) if values else MISSING


def above(network: str, results: Sequence[Result]) -> str:
    """What a network is above ResNet, with the interval of 95 %."""
    return points(gains(network, results)) if of(network, results) and of(PLAIN, results) else MISSING


def origin(results: Iterable[Result]) -> str:
    """The machines and versions, each with the first and the last date."""
    dates: dict[str, set[str]] = {}
    for result in results:
        where, _, date = result.origin.rpartition(", ")
        dates.setdefault(where, set()).add(date)
    return f"Trained on {'; '.join(f'{name}, {least_to_greatest(days)}' for name, days in dates.items())}.\n"


def grid_text(results: Sequence[Result]) -> str:
    """A table for each group of seeds: the kinds of noise by the ratios."""
    made = [grid_table(part) for seeds in GROUPS if (part := in_group(results, seeds))]
    return "\n".join([*made, f"{split(results)} {origin(results)}"])


def split(results: Sequence[Result]) -> str:
    """How many recordings and windows the splits have, and the share of a constant answer."""
    counts = []
    for part in ("train", "test"):
        spans = []
        for quantity in ("recordings", "windows"):
            spans.append(
                f"{least_to_greatest(getattr(result, f'{part}_{quantity}') for result in results)} {quantity}"
            )
        counts.append(" in ".join(reversed(spans)) + f" to {part}")
    share = fmean(result.test_majority for result in results)
    return f"{', '.join(counts)}; a constant answer is right for {number(100 * share, 1)} %."


def grid_table(results: Sequence[Result]) -> str:
    networks = list(dict.fromkeys(result.network for result in results))
    kinds = dict.fromkeys(result.noise_kind for result in results)
    noises = product(kinds, sorted({result.snr for result in results}))
    parts = {"all": results}
    parts |= {f"{kind}, {as_flag(snr)} dB": at(results, kind, snr) for kind, snr in noises}
    lines = [
        [label, *(accuracy(name, part) for name in networks), *(above(name, part) for name in SHRUNK)]
        for label, part in parts.items()
    ]
    sizes = [str(of(name, results)[0].parameters) for name in networks]
    lines.append(["parameters", *sizes, *[""] * len(SHRUNK)])
    return table([named(results), *networks, *ABOVE], lines)


def effects_text(found: Recorded) -> str:
    """The base, and below it every change of it."""
    base = found.get(REFERENCE.name, [])
    rows = {setting.words: completed(found.get(setting.name, []), base) for setting in EFFECTS}
    used = [result for results in rows.values() for result in results]
    chosen, fresh = (in_group(used, seeds) for seeds in GROUPS)
    if not chosen:
        return ""
    lines = []
    for words, results in rows.items():
        own, again = (in_group(results, seeds) for seeds in GROUPS)
        if own:
            fewer = "" if named(own) == named(chosen) else f", {named(own)}"
            gained = [above("DRSN-CW", part) for part in ((own, again) if fresh else (own,))]
            size = str(of("DRSN-CW", own)[0].parameters)
            means = [accuracy(network, own) for network in PAIR]
            lines.append([words + fewer, *means, *gained, size])
    confirming = [f"{ABOVE[1]}, {named(fresh)}"] if fresh else []
    head = [f"gaussian, -5 dB, {named(chosen)}", *PAIR, ABOVE[1], *confirming, "DRSN-CW: parameters"]
    return f"{table(head, lines)}\n{origin(used)}"


def completed(results: Sequence[Result], base: Sequence[Result]) -> list[Result]:
    """The results of a change, with the base's of the networks that it does not change, of the seeds of both."""
    own = {result.network for result in results}
    others = [result for result in base if result.network not in own]
    if not others:
        return [*results]
    seeds = {result.seed for result in results} & {result.seed for result in others}
    return in_group([*results, *others], seeds)


def peer_text(found: Recorded) -> str:
    """WDCNN without and with AdaBN beside the best of ResNet and the DRSNs, a mean over the kinds of noise."""
    plain, adapted = (in_group(found.get(setting.name, ()), GROUPS[0]) for setting in (TENS, PEER))
    both = {result.seed for result in plain} & {result.seed for result in adapted}
    plain, adapted = in_group(plain, both), in_group(adapted, both)
    if not both:
        return ""
    ratios = sorted({result.snr for result in plain})
    lines = [peer_line(at(plain, None, snr), at(adapted, None, snr)) for snr in ratios]
    best = f"the best of {', '.join(OURS)}"
    head = [
        f"all kinds of noise, {named(plain)}",
        "WDCNN",
        "WDCNN with AdaBN",
        best,
        "it is above WDCNN with AdaBN",
    ]
    return f"{table(head, lines)}\n{origin([*plain, *adapted])}"


def peer_line(plain: Sequence[Result], adapted: Sequence[Result]) -> list[str]:
    best = max(OURS, key=lambda name: fmean(accuracies(name, plain)))
    ours, theirs = accuracies(best, plain), accuracies("WDCNN", adapted)
    differences = [own - other for own, other in zip(ours, theirs, strict=True)]
    means = [accuracy("WDCNN", plain), accuracy("WDCNN", adapted), f"{best} {accuracy(best, plain)}"]
    return [f"{as_flag(plain[0].snr)} dB", *means, points(differences)]


def plot(found: Recorded, path: Path) -> None:
    """Draws what each DRSN is above ResNet: a column a data set, a line a kind of noise, bars of 95 %; seeds 0 to 4."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grids = drawn(found)
    figure, axes = pyplot.subplots(
        len(SHRUNK),
        len(grids),
        figsize=(max(4.2 * len(grids) + 0.6, 6.4), 6.4),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for (row, name), (column, grid) in product(enumerate(SHRUNK), enumerate(grids)):
        panel, results = axes[row, column], in_group(found[grid.name], GROUPS[0])
        ratios = sorted({result.snr for result in results})
        for place, kind in enumerate(dict.fromkeys(result.noise_kind for result in results)):
            samples = [gains(name, at(results, kind, snr)) for snr in ratios]
            # side by side: bars would hide each other
            beside = [snr + 0.3 * (place - 1) for snr in ratios]
            means = [100 * fmean(values) for values in samples]
            bars = [100 * (half_width(values) or 0.0) for values in samples]
            panel.errorbar(beside, means, yerr=bars, marker="o", capsize=3, label=kind)
        panel.axhline(0, color="grey", linewidth=0.8)
        panel.set_xticks(ratios)
        panel.grid(alpha=0.3)
    for column, grid in enumerate(grids):
        axes[0, column].set_title(grid.words, fontsize=10)
        axes[-1, column].set_xlabel("signal-to-noise ratio / dB")
    for row, name in enumerate(SHRUNK):
        axes[row, 0].set_ylabel(f"{name} above {PLAIN} / points")
    handles, kinds = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, [f"{kind} noise" for kind in kinds], loc="outside lower center", ncols=len(kinds))
    figure.savefig(path, format="png", dpi=100)
    pyplot.close(figure)
