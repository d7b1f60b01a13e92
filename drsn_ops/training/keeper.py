"""Keeps the model of a run on recordings, and judges it at the end."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import NamedTuple

from .model import Model
from .networks import rebuild
from .recordings import Loaded, RecordingSettings, parts_of
from .run import Run
from .storage import MODEL
from .verdict import both, of_one_recording, write_verdict

REPORT = ("report.txt", "confusion.csv", "confusion.png", "predictions.csv", "report.json")


class Keeper(NamedTuple):
    """What is kept of a run besides its checkpoint: the model of its best epoch, and the report on it."""

    settings: RecordingSettings
    data: Loaded

    def model(self, run: Run) -> Model:
        """The network of the best epoch."""
        found = self.data.recordings
        arguments = self.settings.arguments(found)
        # no random numbers are taken: the run goes on with them
        network = rebuild(self.settings.network, arguments, run.best)
        name, reading, snr = self.settings.network, found.reading, self.settings.snr
        kind = None if snr is None else self.settings.noise_kind
        return Model(network, name, arguments, found.classes, reading, self.data.trained_on, snr, kind)

    def save(self, run: Run, folder: Path) -> None:
        """Replace the model's file, once there is an epoch."""
        if run.rows:
            self.model(run).save(folder / MODEL.usual)

    def judge(self, run: Run, folder: Path) -> str:
        """Replace the report's files. Returns the verdict in a few lines."""
        found = self.data.recordings
        trained_too = len({*found.train.recording.tolist()} & {*found.test.recording.tolist()})
        report = write_verdict(
            self.model(run),
            parts_of(found),
            found.files,
            folder,
            title=title_of(run),
            data=run.plan.data,
            trained_on=trained_too,
        )
        lines = []
        for scope, noun in (("by_window", "window"), ("by_recording", "recording")):
            own = report[scope]
            lines.append(
                f"by {noun}: accuracy {own['accuracy']:.2%}, balanced {own['balanced_accuracy']:.2%}; "
                f"always guessing {own['majority_class']}: {own['majority_share']:.2%}"
            )
        counts = (f"{both(split)} {part}" for part, split in report["splits"].items())
        lines.append(f"recordings (windows): {', '.join(counts)}")
        if trained_too:
            tested = report["splits"]["test"]["recordings"]
            lines.append(
                f"{trained_too} of the {tested} test recordings are in the training split too, with other windows"
            )
        lines += of_one_recording(report)
        lines.append(f"report: {', '.join(str(folder / name) for name in REPORT)}")
        return "\n".join(lines)

    def has_judged(self, run: Run, folder: Path | None) -> bool:
        """Whether the folder has the report on the run's best epoch."""
        try:
            report = json.loads((folder / REPORT[-1]).read_text("utf-8")) if folder else {}
            judged: bool = report.get("title") == title_of(run)
            return judged
        except (OSError, ValueError, AttributeError):
            return False

    def next_commands(self, folder: Path) -> str:
        """What to do with the model, ready to paste."""
        model = shlex.quote(str(folder / MODEL.usual))
        return (
            f"next: python -m drsn_ops predict {model} FILE_OR_FOLDER ...\n"
            f"      python -m drsn_ops export {model} --format onnx"
        )


def title_of(run: Run) -> str:
    """That of the report on the run's best epoch."""
    return f"{run.plan.title}, epoch {run.best_epoch} of {len(run.rows)}"
