"""The verdict on a model: how right it is by window and by recording, beside what always guessing would reach."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..data.recordings import Windows
from ..files import replacing
from .confusion import draw_confusion
from .model import Model, cells_of, vote

Labels = npt.NDArray[np.int64]


class Verdict(NamedTuple):
    """The report, plain values for JSON, and the probabilities of the test windows, (N, classes)."""

    report: dict[str, Any]
    probabilities: torch.Tensor


def write_verdict(
    model: Model,
    splits: Mapping[str, Windows],
    files: Sequence[Path],
    folder: Path,
    *,
    title: str = "",
    data: str = "",
    trained_on: int | None = None,
) -> dict[str, Any]:
    """Judge a model by ``splits["test"]`` and replace the files that say how it did.

    Writes ``report.txt``, ``confusion.csv``, ``confusion.png``, ``predictions.csv`` and, last, ``report.json``.

    Args:
        model: the model; its classes are those of the labels.
        splits: by their names; those beside ``"test"`` are only counted.
        files: of the recordings that the windows' ``recording`` counts.
        folder: where to write.
        title: what was tested, one line.
        data: how the recordings were read, split and noised, one line.
        trained_on: how many of the test recordings the model was trained on, where that is known.

    Returns:
        The report, as in ``report.json``.
    """
    verdict = judge(model, splits, title=title, data=data, trained_on=trained_on)
    report, classes, test = verdict.report, model.classes, splits["test"]
    counts = report["by_window"]["confusion"]
    with replacing(folder / "report.txt") as path:
        path.write_text(as_text(report), "utf-8", "surrogateescape")
    write_rows(
        folder / "confusion.csv",
        [["true \\ predicted", *classes], *([name, *row] for name, row in zip(classes, counts, strict=True))],
    )
    with replacing(folder / "confusion.png") as path:
        draw_confusion(counts, classes, f"test windows, accuracy {report['by_window']['accuracy']:.1%}", path)
    write_rows(folder / "predictions.csv", predictions(test, files, classes, verdict.probabilities))
    # the last one: with this title, the others are of the same model
    with replacing(folder / "report.json") as path:
        # names of folders may be any bytes: what is no text is escaped, as JSON escapes
        text = json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False)
        path.write_text(f"{text}\n", "utf-8", "backslashreplace")
    return report


def judge(
    model: Model,
    splits: Mapping[str, Windows],
    *,
    title: str = "",
    data: str = "",
    trained_on: int | None = None,
) -> Verdict:
    """The verdict on a model; arguments as in `write_verdict`."""
    test = splits["test"]
    probabilities = model.probabilities(test.x)
    of = {"by_window": (test.labels.cpu().numpy(), probabilities.argmax(1).numpy())}
    # the windows of a recording lie together
    counts = test.recording.unique_consecutive(return_counts=True)[1].tolist()
    of["by_recording"] = (
        np.array([int(labels[0]) for labels in test.labels.split(counts)]),
        np.array([vote(recording)[0] for recording in probabilities.split(counts)]),
    )
    report = {
        "title": title,
        "data": data,
        "network": model.name,
        "arguments": model.arguments,
        "classes": list(model.classes),
        "reading": model.reading.plain(),
        "drsn_ops": model.version,
        "test_recordings_trained_on": trained_on,
        **{name: measures(true, predicted, model.classes) for name, (true, predicted) in of.items()},
        "splits": {name: counts_of(windows, model.classes) for name, windows in splits.items()},
    }
    return Verdict(report, probabilities)


def measures(true: Labels, predicted: Labels, classes: Sequence[str]) -> dict[str, Any]:
    """The measures of a prediction, plain values; None for what is not defined, as the recall of a missing class.

    Balanced accuracy and macro-F1 are means over the classes that are there to be tested.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    labels = list(range(len(classes)))
    precision, recall, f1, support = precision_recall_fscore_support(
        true, predicted, labels=labels, zero_division=np.nan
    )
    present = np.flatnonzero(support)
    majority = int(support.argmax())
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "balanced_accuracy": float(recall[present].mean()),
        "macro_f1": float(f1[present].mean()),
        "majority_class": classes[majority],
        "majority_share": float(support[majority] / support.sum()),
        "classes": {
            name: {
                "precision": number(precision[i]),
                "recall": number(recall[i]),
                "f1": number(f1[i]) if support[i] else None,
                "support": int(support[i]),
            }
            for i, name in enumerate(classes)
        },
        "confusion": confusion_matrix(true, predicted, labels=labels).tolist(),
    }


def number(value: float) -> float | None:
    """The value, None for NaN, which JSON does not have."""
    return None if math.isnan(value) else float(value)


def counts_of(windows: Windows, classes: Sequence[str]) -> dict[str, Any]:
    """How many recordings and windows a split has, in all and of each class."""
    by_class = {}
    for label, name in enumerate(classes):
        own = windows.recording[windows.labels == label]
        by_class[name] = {"recordings": len(own.unique()), "windows": len(own)}
    totals = {"recordings": len(windows.recording.unique()), "windows": len(windows.labels)}
    return {**totals, "classes": by_class}


def of_one_recording(report: Mapping[str, Any]) -> list[str]:
    """A line on the classes that were trained on one recording, where there are any."""
    trained = report["splits"].get("train", {"classes": {}})["classes"]
    names = [name for name, own in trained.items() if own["recordings"] == 1]
    if not names:
        return []
    return [
        f"Trained on one recording: {', '.join(names)}. The figures of such a class may not hold for others."
    ]


def as_text(report: Mapping[str, Any]) -> str:
    """The report for people."""
    scopes = {"by window": report["by_window"], "by recording": report["by_recording"]}
    head = [report[name] for name in ("title", "data") if report[name]]
    blocks = ["\n".join(head)] if head else []
    trained_on = report["test_recordings_trained_on"]
    if trained_on is not None:
        flattered = ": what follows flatters it" if trained_on else ""
        tested = report["splits"]["test"]["recordings"]
        blocks.append(f"The model was trained on {trained_on} of these {tested} recordings{flattered}.")
    rows = [["", *scopes]]
    for name, label in (
        ("accuracy", "accuracy"),
        ("balanced_accuracy", "balanced accuracy"),
        ("macro_f1", "macro-F1"),
    ):
        rows.append([label, *(percent(scope[name]) for scope in scopes.values())])
    majority = " / ".join(dict.fromkeys(scope["majority_class"] for scope in scopes.values()))
    rows.append(
        [f"always guessing {majority}", *(percent(scope["majority_share"]) for scope in scopes.values())]
    )
    blocks.append(aligned(rows))
    for scope, noun in (("by window", "windows"), ("by recording", "recordings")):
        rows = [[scope, "precision", "recall", "F1", noun]]
        for name, own in scopes[scope]["classes"].items():
            shares = (percent(own[key]) for key in ("precision", "recall", "f1"))
            rows.append([name, *shares, str(own["support"])])
        blocks.append(aligned(rows))
    splits = report["splits"]
    rows = [["recordings (windows)", *splits]]
    rows += [
        [name, *(both(split["classes"][name]) for split in splits.values())] for name in report["classes"]
    ]
    rows.append(["all", *map(both, splits.values())])
    blocks.append(aligned(rows))
    blocks += of_one_recording(report)
    missing = [name for name, own in splits["test"]["classes"].items() if not own["windows"]]
    if missing:
        blocks.append(f"No test recording of: {', '.join(missing)}. The means leave them out.")
    return "\n\n".join(blocks) + "\n"


def percent(value: float | None) -> str:
    """A share in percent, a dash where it is not defined."""
    return "-" if value is None else f"{value:.2%}"


def both(counts: Mapping[str, Any]) -> str:
    """The number of recordings, and that of windows in parentheses."""
    return f"{counts['recordings']} ({counts['windows']})"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lines of columns: the first aligned to the left, the others, which are numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def predictions(
    test: Windows, files: Sequence[Path], classes: Sequence[str], probabilities: torch.Tensor
) -> Iterable[Sequence[object]]:
    """The lines of ``predictions.csv``: windows count from 0 among those of each recording that are tested on."""
    yield ["file", "window", "true", "predicted", *classes]
    seen: dict[int, int] = {}
    columns = (test.recording.tolist(), test.labels.tolist(), probabilities.tolist())
    for recording, label, row in zip(*columns, strict=True):
        window = seen[recording] = seen.get(recording, -1) + 1
        yield [files[recording], window, classes[label], *cells_of(row, classes)]


def write_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Replace a .csv file."""
    # names of files may be any bytes
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file).writerows(rows)
