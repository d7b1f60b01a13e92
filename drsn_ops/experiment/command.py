"""The command line of the experiment."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from pathlib import Path

import torch

from ..data import InputError
from ..distributed import Processes, device_of, processes
from ..noise import KINDS
from ..train import number, run_folder, usable_device
from .cell import build, load
from .report import write_report
from .schedule import Job, agree, complete_all, origin_of, share, wait_for
from .settings import (
    DATA,
    NETWORKS,
    PRESETS,
    Cell,
    Result,
    Settings,
    as_flag,
    read_results,
    read_settings,
    result_path,
    save_settings,
    settings_of,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``experiment``. What is not given is the resumed experiment's or the preset's."""
    add = parser.add_argument
    add("--preset", choices=tuple(PRESETS), help="small: minutes on two cores (default); full: the paper's")
    add("--data", choices=DATA, help="simulated signals, or recordings (default: vibration)")
    add("--data-dir", type=Path, help="folder of the recordings")
    add("--column", help="which one of a folder's files, a number from 0 or a name, where they have several")
    add("--num-signals", type=number(int, 1), help="how many signals to simulate")
    add("--points", type=number(int, 16), help="points of a signal")
    add("--networks", nargs="+", choices=NETWORKS, metavar="NAME", help=", ".join(NETWORKS))
    add("--noise", nargs="+", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    add("--snr", nargs="+", type=number(float, -100), metavar="DB", help="signal-to-noise ratios, decibels")
    add("--seeds", type=number(int, 1), help="trainings of each network at each noise")
    add("--blocks", type=number(int, 1), help="residual units of a network")
    add("--epochs", type=number(int, 1), help="passes over the training signals")
    add("--batch-size", type=number(int, 2), help="signals a step")
    add("--lr", type=number(float, 0, strict=True), help="learning rate at the start")
    add("--device", default="cpu", help="where to train (default: cpu)")
    add(
        "--workers",
        type=number(int, 1),
        help="processes of this program (default: one a core, or one a GPU); torchrun starts several programs",
    )
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument(
        "--output-dir",
        type=Path,
        help="an empty or new folder (default: runs/experiment-PRESET, numbered where it exists)",
    )
    folder.add_argument("--resume", type=Path, metavar="DIR", help="folder of an experiment to go on with")


def requested(args: argparse.Namespace, saved: Settings | None) -> Settings:
    """The settings that the flags ask for."""
    flags = {field.name: getattr(args, field.name, None) for field in fields(Settings)}
    for name, value in flags.items():
        if isinstance(value, list):
            flags[name] = tuple(dict.fromkeys(value))
        elif isinstance(value, Path):
            flags[name] = str(value.absolute())
    return settings_of(flags, args.preset, saved, args.resume)


def prepare(args: argparse.Namespace) -> tuple[Settings, Path, list[Cell]]:
    """The experiment that the flags ask for, its folder and what is left to train, once nothing speaks against it."""
    saved = read_settings(args.resume) if args.resume else None
    settings = requested(args, saved)
    data = load(settings, 0)
    networks = {name: build(settings, name, len(data.classes)) for name in settings.networks}
    folder: Path = args.resume or run_folder(args, f"experiment-{args.preset or 'small'}")
    done = {result.cell for result in read_results(folder, settings)}
    left = [cell for cell in settings.cells() if cell not in done]
    if settings != saved:
        save_settings(settings, folder)
    for cell in left:
        # damaged, if it is there; now a file means that its cell is done
        result_path(folder, cell).unlink(missing_ok=True)
    parameters = (f"{name} ({sum(p.numel() for p in n.parameters())})" for name, n in networks.items())
    print(
        f"{settings.data}: {len(data.train)} training and {len(data.test)} test signals of {settings.points} points, "
        f"{len(data.classes)} classes\n"
        f"{', '.join(settings.noise)} noise at {as_flag(settings.snr)} dB, {settings.seeds} seeds\n"
        f"{settings.blocks} blocks, parameters: {', '.join(parameters)}\n"
        f"SGD: learning rate {settings.lr:g}, batches of {settings.batch_size}, {settings.epochs} epochs\n"
        f"{len(settings.cells())} cells, {len(done)} of them done, in {folder}",
        flush=True,
    )
    return settings, folder, left


def train_cells(job: Job, cells: Sequence[Cell], workers: int) -> None:
    """Train these cells, with a bar and a line for each."""
    from tqdm import tqdm

    # disable=None shows the bar on a terminal only
    bar = tqdm(total=len(cells), unit="cell", disable=None, leave=False)

    def report(result: Result) -> None:
        bar.update()
        bar.write(
            f"{result.network:7}  {result.noise:9} {result.snr:+6g} dB  seed {result.seed}  "
            f"train {result.train_accuracy:7.2%}  test {result.test_accuracy:7.2%}  {result.seconds:.1f} s"
        )

    try:
        complete_all(job, cells, workers, report)
    finally:
        bar.close()


def experiment(args: argparse.Namespace, processes: Processes) -> int:
    """Train this process's share of what is left, and on the leading one report on all. Returns the exit status."""
    device = usable_device(device_of(args.device))
    settings, folder, left = agree(lambda: prepare(args))
    workers = args.workers or (torch.get_num_threads() if device.type == "cpu" else 1)
    job = Job(settings, folder, device, origin_of(device, workers * processes.count))
    try:
        train_cells(job, share(left, processes), workers)
        if not processes.leads:
            return 0
        wait_for(left, folder)
    except KeyboardInterrupt:
        if processes.leads:
            done, cells = len(read_results(folder, settings)), len(settings.cells())
            print(f"interrupted; {done} of {cells} cells are done; to go on: --resume {folder}")
        return 130
    paths = write_report(settings, read_results(folder, settings), folder)
    print((folder / "table.md").read_text())
    print(f"written: {', '.join(map(str, paths))}")
    return 0


def run(args: argparse.Namespace) -> int:
    """Run the command. Returns 0, 1 after a lost worker, 2 for what the user can put right, 130 after an interrupt."""
    # all are needed in the end; better missed now than after the last cell
    import matplotlib  # noqa: F401
    import sklearn  # noqa: F401
    import tqdm  # noqa: F401

    try:
        # on the CPU, whatever trains: all that is sent is the name of a folder
        with processes("cpu") as together:
            return experiment(args, together)
    except (InputError, OSError) as error:
        print(f"drsn_ops experiment: {error}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print(
            "drsn_ops experiment: a worker was killed, by want of memory perhaps: --resume", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        return 130
