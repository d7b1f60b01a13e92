"""The command ``python -m drsn_ops train``: it trains a network on recordings, or a published network by its recipe.

A run has a folder of its own. ``checkpoint.pt`` and ``curve.csv`` are replaced after every epoch, ``curve.png`` is
drawn at the end. On recordings, ``model.pt`` is replaced after every epoch that is better than those before, and the
report on it is written at the end. A run that is cut off leaves whole files, see `files`. The original program for
CIFAR-10 keeps its last ten checkpoints, one every 500 steps of 100 images; here only the latest is kept.

With ``torchrun --nproc-per-node 2 -m drsn_ops train`` the processes share every batch, see `processes`. The result is,
to rounding, that of one process, and any number of processes can resume it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..arguments import InputError, counted, require_packages, to_go_on
from ..data.datasets import load
from ..data.fingerprint import require_same_data, source_of
from ..machine import settle_allocator
from .board import Board, board_in
from .checkpoints import Place, claim_place, read_checkpoint, save_checkpoint
from .flags import add_arguments, require_effects_on, settings_of
from .keeper import Keeper
from .machine import require_compiler, require_precision
from .processes import Processes, processes, usable_device
from .recipes import Settings
from .recordings import RecordingSettings
from .report import accuracies, describe, draw_curve, line_of, warn_of, write_curve
from .run import Run, repeatable
from .storage import MODEL

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    with repeatable(), processes(args.device) as together:
        return run_among(together, args)


def run_among(together: Processes, args: argparse.Namespace) -> int:
    """The command in one of the processes; nothing of its network is left when it returns."""
    with ExitStack() as claims:
        with together.agreeing():
            job, home, keeper = prepare(args, together)
        # nothing is written before every process is ready
        with together.agreeing():
            place = None
            if together.leads:
                claim = claim_place(job, args.output_dir, args.checkpoint, args.resume, home)
                place = claims.enter_context(claim)
        settle_allocator()
        if place is None:
            return follow(job)
        board = claims.enter_context(board_in(place.folder, job)) if args.tensorboard else None
        return train(job, place, keeper, board)


def prepare(args: argparse.Namespace, processes: Processes) -> tuple[Run, Path | None, Keeper | None]:
    """The run that the flags ask for, the folder of the one that is resumed, and what keeps the model of recordings.

    Writes nothing.
    """
    state = read_checkpoint(args.resume) if args.resume else None
    home: Path | None = None
    with understood(args.resume):
        settings = settings_of(args, state["settings"] if state else None)
    device = usable_device(args.device)
    if args.compile:
        require_compiler(device)
    if args.tensorboard:
        require_packages("--tensorboard", "tensorboard", "tensorboard")
    run, keeper = begin(args, settings, device, processes)
    if run.settings.batch_size < processes.count:
        raise InputError(
            f"--batch-size {run.settings.batch_size}: less than a sample for each of {processes.count} processes"
        )
    if state:
        with understood(args.resume):
            begun = state["fingerprint"], source(state["settings"])
            require_same_data(args.resume, begun, (run.plan.fingerprint, source(asdict(settings))))
            run.restore(state)
            home = Path(os.path.normpath(args.resume.parent / state["folder"]))
    # a checkpoint that was moved without its folder goes on where it is
    home = home if home is None or home.is_dir() else args.resume.parent
    judged = keeper is None or keeper.has_judged(run, args.output_dir or home)
    if run.finished and judged:
        done = (
            f"{args.resume}: {counted(len(run.rows), 'epoch')} {'is' if len(run.rows) == 1 else 'are'} done"
        )
        if len(run.rows) < run.settings.epochs:
            raise InputError(f"{done}, the best is {run.best_epoch}; expected a longer --patience")
        raise InputError(f"{done}; --epochs {run.settings.epochs} leaves none to do")
    require_precision(run)
    return run, home, keeper


@contextmanager
def understood(resume: Path | None) -> Iterator[None]:
    """Within, where the checkpoint ``resume`` is used, an error says that it is of another network."""
    try:
        yield
    # values of a file may be anything
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if resume is None:
            raise
        raise InputError(f"{resume}: a checkpoint of another network ({type(error).__name__})") from error


def begin(
    args: argparse.Namespace,
    settings: Settings | RecordingSettings,
    device: torch.device,
    processes: Processes,
) -> tuple[Run, Keeper | None]:
    """A new run of these settings, and for recordings what keeps its model."""
    compiled = bool(args.compile)
    if isinstance(settings, Settings):
        images = load(
            settings.data,
            settings.data_dir,
            noise=settings.noise,
            seed=settings.seed,
            fresh_noise=settings.fresh_noise,
        )
        return Run(settings, images, device, processes, compiled), None
    loaded = settings.load()
    require_effects_on(loaded.recordings, args, settings)
    if processes.leads:
        warn_of(loaded.recordings.passed_over, loaded.recordings.copies)
    settings = settings.sized(len(loaded.recordings.train.labels))
    return Run(settings, loaded, device, processes, compiled), Keeper(settings, loaded)


def source(settings: Mapping[str, Any]) -> str:
    """How messages name the data of these settings."""
    return source_of(settings["data"], settings.get("data_dir"))


@dataclass
class Saved:
    """The last epoch in the checkpoint, and the one whose model is kept; 0 where there is none."""

    epochs: int = 0
    model: int = 0


def train(run: Run, place: Place, keeper: Keeper | None, board: Board | None) -> int:
    """Train to the last epoch in the leading process, print, save and draw. Returns the exit status."""
    print(describe(run), flush=True)
    saved = Saved(0 if place.new else len(run.rows))
    try:
        train_epochs(run, place, keeper, board, saved)
        print(
            f"final accuracy: {accuracies(run.rows[-1])}"
            if keeper is None
            else keeper.judge(run, place.folder)
        )
    except KeyboardInterrupt:
        if place.checkpoint.exists():
            device = str(run.device) if run.processes.count == 1 else run.device.type
            flags = {
                "resume": place.checkpoint,
                "device": None if device == "cpu" else device,
                "compile": run.compiled or None,
                "tensorboard": board and True,
            }
            print(f"interrupted; {to_go_on(**flags)}")
            # an epoch that is not saved is lost
            del run.rows[saved.epochs :]
            finish(run, place, saved)
        raise
    finish(run, place, saved)
    if keeper:
        print(keeper.next_commands(place.folder))
    return 0


def train_epochs(run: Run, place: Place, keeper: Keeper | None, board: Board | None, saved: Saved) -> None:
    """Train the remaining epochs with a progress bar; after each one, save and print a line. ``saved`` is kept up."""
    from tqdm import tqdm

    total, done = (epochs * run.batches_per_epoch for epochs in (run.settings.epochs, len(run.rows)))
    # disable=None shows the bar on a terminal only
    with closing(tqdm(total=total, initial=done, unit="batch", disable=None, leave=False)) as bar:

        def advance(phase: str) -> None:
            bar.set_description(phase, refresh=False)
            bar.update()

        # before the first epoch: a run that is interrupted in it can be resumed, and a full disk is noticed
        save(run, place, keeper, saved, place.new)
        while not run.finished:
            row = run.epoch(partial(advance, "training"), partial(advance, "evaluating"))
            if run.diverged:
                raise InputError(
                    f"the weights are not finite after epoch {row.epoch}; expected a lower --lr than "
                    f"{run.settings.lr:g}"
                )
            save(run, place, keeper, saved)
            if board:
                board.add(row)
            bar.write(line_of(row))
            sys.stdout.flush()  # a log shows each epoch when it is done


def save(run: Run, place: Place, keeper: Keeper | None, saved: Saved, new: bool = False) -> None:
    """Replace the checkpoint, the curve's table, and a model of another epoch; a ``new`` checkpoint replaces none."""
    save_checkpoint(run, place, new)
    saved.epochs = len(run.rows)
    write_curve(run, place.folder)
    if keeper and run.best_epoch != saved.model:
        keeper.save(run, place.folder)
        saved.model = run.best_epoch


def finish(run: Run, place: Place, saved: Saved) -> None:
    """Draw the curve, if there is one yet, and print where the files are."""
    curves = [place.folder / "curve.csv"]
    if run.rows:
        draw_curve(run, place.folder)
        curves.append(place.folder / "curve.png")
    if saved.model:
        print(f"model: {place.folder / MODEL.usual}, of epoch {saved.model}")
    print(f"curve: {', '.join(map(str, curves))}\ncheckpoint: {place.checkpoint}")


def follow(run: Run) -> int:
    """Train in a process that does not lead: it prints and writes nothing. Returns the exit status."""
    while not run.finished:
        run.epoch(lambda: None, lambda: None)
        if run.diverged:
            return 2
    return 0
