"""The command ``python -m drsn_ops train``: it trains a published network by its recipe.

A run has a folder of its own. ``checkpoint.pt`` and ``curve.csv`` are replaced after every epoch, ``curve.png`` is
drawn at the end. A run that is cut off leaves whole files, see `files`. The original program for CIFAR-10 keeps its
last ten checkpoints, one every 500 steps of 100 images; here only the latest is kept.

With ``torchrun --nproc-per-node 2 -m drsn_ops train`` the processes share every batch, see `processes`. The result is,
to rounding, that of one process, and any number of processes can resume it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from ..arguments import MAX_REAL, InputError, count, defaults, learning_rate, number, seed, to_go_on
from ..data.datasets import load
from ..data.fingerprint import require_same_data, source_of
from ..modules import THRESHOLDS
from .checkpoints import Place, claim_place, read_checkpoint, save_checkpoint
from .processes import Processes, processes, usable_device
from .recipes import BACKENDS, RECIPES, Settings
from .report import describe, draw_curve, line_of, write_curve
from .run import Run, repeatable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``train``. A flag that is not given takes its value from the checkpoint or the recipe."""
    add, recipe = parser.add_argument, partial(defaults, RECIPES)
    add("--data", choices=tuple(RECIPES), help="data set (default: digits, which needs no files)")
    add(
        "--data-dir",
        type=Path,
        help="folder of MNIST's idx files or CIFAR-10's Python batches, as published or as torchvision leaves them, "
        "or CIFAR-10's archive",
    )
    add("--epochs", type=count(), help=f"passes over the training images ({recipe('epochs')})")
    add("--batch-size", type=count(2), help=f"images a step ({recipe('batch_size')})")
    add("--lr", type=learning_rate, help=f"learning rate at the start ({recipe('lr')})")
    add(
        "--noise",
        type=number(float, 0, MAX_REAL),
        help=f"width of the uniform noise added to every image ({recipe('noise')})",
    )
    add(
        "--thresholds", choices=(*THRESHOLDS, "none"), help="none is the plain ResNet (default: channel-wise)"
    )
    add(
        "--backend",
        choices=BACKENDS,
        help="compiled operators, or their plain PyTorch reference (default: drsn_ops)",
    )
    add("--device", default="cpu", help="where to train (default: cpu)")
    add("--seed", type=seed, help="of noise, initialisation and order (default: 0)")
    add(
        "--output-dir",
        type=Path,
        help="an empty or new folder (default: runs/DATA, numbered where it exists)",
    )
    add(
        "--checkpoint",
        type=Path,
        help="file to save to after each epoch (default: checkpoint.pt in the folder, or the one to resume)",
    )
    add(
        "--resume", type=Path, help="checkpoint to go on from, in its own folder unless --output-dir is given"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    # needed at the end: missing ones are reported before the training
    import matplotlib  # noqa: F401
    import tqdm  # noqa: F401

    with repeatable(), processes(args.device) as together, ExitStack() as claims:
        with together.agreeing():
            job, home = prepare(args, together)
        # nothing is written before every process is ready
        with together.agreeing():
            place = None
            if together.leads:
                claim = claim_place(job, args.output_dir, args.checkpoint, args.resume, home)
                place = claims.enter_context(claim)
        return train(job, place) if place else follow(job)


def prepare(args: argparse.Namespace, processes: Processes) -> tuple[Run, Path | None]:
    """The run that the flags ask for, and the folder of the one that is resumed. Writes nothing."""
    state = read_checkpoint(args.resume) if args.resume else None
    home: Path | None = None
    try:
        settings = settings_of(args, state["settings"] if state else None)
        if settings.batch_size < processes.count:
            raise InputError(
                f"--batch-size {settings.batch_size}: less than an image for each of {processes.count} processes"
            )
        device = usable_device(args.device)
        data = load(settings.data, settings.data_dir, noise=settings.noise, seed=settings.seed)
        run = Run(settings, data, device, processes)
        if state:
            begun = state["fingerprint"], source_of(settings.data, state["settings"]["data_dir"])
            require_same_data(
                args.resume, begun, (run.plan.fingerprint, source_of(settings.data, settings.data_dir))
            )
            run.restore(state)
            home = Path(os.path.normpath(args.resume.parent / state["folder"]))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if state is None:
            raise
        raise InputError(
            f"{args.resume}: a checkpoint of another network ({type(error).__name__})"
        ) from error
    if len(run.rows) >= settings.epochs:
        raise InputError(
            f"{args.resume}: {len(run.rows)} epochs are done; --epochs {settings.epochs} leaves none to do"
        )
    # a checkpoint that was moved without its folder goes on where it is
    return run, home if home is None or home.is_dir() else args.resume.parent


def settings_of(args: argparse.Namespace, saved: Mapping[str, Any] | None) -> Settings:
    """Each setting from its flag, or else from the checkpoint, or else from the recipe.

    Raises:
        InputError: a flag contradicts the checkpoint, or would have no effect.
    """
    data = args.data or (saved or {}).get("data", "digits")
    base = saved or {
        "thresholds": THRESHOLDS[0],
        "backend": BACKENDS[0],
        "seed": 0,
        "data_dir": None,
        **vars(RECIPES[data]),
    }
    values = {"data": data}
    for name in [field.name for field in fields(Settings)][1:]:
        flag = getattr(args, name)
        values[name] = base[name] if flag is None else str(flag.absolute()) if name == "data_dir" else flag
    for name, value in values.items():
        # epochs may be added, and the files may have moved
        if saved and value != saved[name] and name not in ("epochs", "data_dir"):
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{args.resume}: a checkpoint of {flag} {saved[name]}, not of {flag} {value}")
    settings = Settings(**values)
    if settings.data == "digits" and settings.data_dir:
        raise InputError(
            f"--data-dir {args.data_dir}: expected none with --data digits; --data mnist or cifar10 reads files"
        )
    if args.backend and settings.thresholds == "none":
        raise InputError(
            f"--backend {args.backend}: expected none with --thresholds none, which shrinks nothing"
        )
    return settings


def train(run: Run, place: Place) -> int:
    """Train to the last epoch in the leading process, print, save and draw. Returns the exit status."""
    print(describe(run))
    try:
        train_epochs(run, place)
    except KeyboardInterrupt:
        if place.checkpoint.exists():
            device = str(run.device) if run.processes.count == 1 else run.device.type
            flags = {"resume": place.checkpoint, "device": None if device == "cpu" else device}
            print(f"interrupted; {to_go_on(**flags)}")
            finish(run, place)
        raise
    results = run.rows[-1].results
    print(f"final accuracy: {', '.join(f'{name} {result.accuracy:.2%}' for name, result in results.items())}")
    finish(run, place)
    return 0


def train_epochs(run: Run, place: Place) -> None:
    """Train the remaining epochs with a progress bar; after each one, save and print a line."""
    from tqdm import tqdm

    total, done = (epochs * run.batches_per_epoch for epochs in (run.settings.epochs, len(run.rows)))
    # disable=None shows the bar on a terminal only
    with closing(tqdm(total=total, initial=done, unit="batch", disable=None, leave=False)) as bar:

        def advance(phase: str) -> None:
            bar.set_description(phase, refresh=False)
            bar.update()

        # before the first epoch: a run that is interrupted in it can be resumed, and a full disk is noticed
        save(run, place, place.new)
        while not run.finished:
            row = run.epoch(partial(advance, "training"), partial(advance, "evaluating"))
            save(run, place)
            bar.write(line_of(row))


def save(run: Run, place: Place, new: bool = False) -> None:
    """Replace the checkpoint and the table of the curve; a ``new`` checkpoint replaces none."""
    save_checkpoint(run, place, new)
    write_curve(run, place.folder)


def finish(run: Run, place: Place) -> None:
    """Draw the curve, if there is one yet, and print where the files are."""
    curves = [place.folder / "curve.csv"]
    if run.rows:
        draw_curve(run, place.folder)
        curves.append(place.folder / "curve.png")
    print(f"curve: {', '.join(map(str, curves))}\ncheckpoint: {place.checkpoint}")


def follow(run: Run) -> int:
    """Train in a process that does not lead: it prints and writes nothing. Returns the exit status."""
    while not run.finished:
        run.epoch(lambda: None, lambda: None)
    return 0
