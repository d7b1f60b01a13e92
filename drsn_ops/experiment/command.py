"""The command ``python -m drsn_ops experiment``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import torch

from ..arguments import (
    MAX_PROCESSES,
    InputError,
    as_flag,
    count,
    counted,
    decibels,
    defaults,
    flagged,
    learning_rate,
    to_go_on,
)
from ..data.cwru_files import at_loads
from ..data.fingerprint import fingerprint, require_same_data
from ..data.flags import (
    ALIASES,
    CHOICE_FLAGS,
    MAX_BLOCKS,
    MAX_SIGNALS,
    SIMULATED,
    add_file_flags,
    add_window_flags,
    place_of,
    reading_arguments,
)
from ..noise import KINDS
from ..training.folders import claimed, new_folder
from ..training.networks import GATE_FLAGS, add_network_flags
from ..training.plan import parameters_of
from ..training.processes import Processes, processes, usable_device
from ..training.report import warn_of
from .caption import noun_of, other_flags
from .cell import build
from .report import write_report
from .schedule import Job, agree, complete_all, origin_of, share, wait_for
from .settings import GROWING, NETWORKS, PRESETS, STAGES, Cell, Result, Settings, settings_of
from .signals import Data, load
from .storage import make_room, read_fingerprint, read_results, read_settings, result_path, save_settings

MAX_SEEDS = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``experiment``. A flag that is not given takes its value from what is resumed or the preset."""
    add, preset = parser.add_argument, partial(defaults, PRESETS)
    add("--preset", choices=tuple(PRESETS), help="small: minutes on two cores (default); full: the paper's")
    add(
        "--data",
        metavar="NAME|PATH",
        help=f"{SIMULATED}: simulated signals (default), or the folder of your recordings: one folder for each class, "
        "named after it, or files named as those of Case Western Reserve University (CWRU)",
    )
    add("--data-dir", type=Path, help="the folder of the recordings, after --data cwru or --data folder")
    add(
        "--num-signals",
        type=count(1, MAX_SIGNALS),
        help=f"how many signals to simulate ({preset('num_signals')})",
    )
    add("--points", type=count(16), help=f"points of a window ({preset('points')})")
    add_file_flags(parser)
    add_window_flags(parser)
    add(
        "--networks",
        nargs="+",
        choices=NETWORKS,
        metavar="NAME",
        help=f"{', '.join(NETWORKS)} ({preset('networks')})",
    )
    add(
        "--noise-kind",
        nargs="+",
        choices=KINDS,
        metavar="KIND",
        help=f"{', '.join(KINDS)} ({preset('noise_kind')})",
    )
    add(
        "--snr",
        nargs="+",
        type=decibels,
        metavar="DB",
        help=f"signal-to-noise ratios, decibels ({preset('snr')})",
    )
    add(
        "--seeds",
        type=count(1, MAX_SEEDS),
        help=f"trainings of each network at each noise ({preset('seeds')})",
    )
    add("--blocks", type=count(1, MAX_BLOCKS), help=f"residual units of a network ({preset('blocks')})")
    add_network_flags(add, preset)
    add("--epochs", type=count(), help=f"passes over the training signals ({preset('epochs')})")
    add("--batch-size", type=count(2), help=f"signals a step ({preset('batch_size')})")
    add("--lr", type=learning_rate, help=f"learning rate at the start ({preset('lr')})")
    add(
        "--fresh-noise",
        action="store_true",
        default=None,
        help="draw the noise of the training signals anew in every epoch (default: once)",
    )
    add(
        "--adapt-batch-norm",
        action="store_true",
        default=None,
        help="AdaBN: before the test, take the statistics of BatchNorm from the test signals, without their labels",
    )
    add("--device", default="cpu", help="where to train (default: cpu)")
    add(
        "--workers",
        type=count(1, MAX_PROCESSES),
        help="processes of this program (default: one a core, or one a GPU); torchrun starts several programs",
    )
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument(
        "--output-dir",
        type=Path,
        help="an empty or new folder (default: runs/experiment-PRESET, numbered where it exists)",
    )
    folder.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="folder of an experiment to go on with; it may get more seeds, ratios, kinds of noise and networks",
    )


def requested(args: argparse.Namespace, saved: Settings | None) -> Settings:
    """The settings that the flags ask for, checked against what is resumed."""
    flags = {field.name: getattr(args, field.name, None) for field in fields(Settings)}
    flags |= {**reading_arguments(args), "data": place(args, saved)}
    given = {name: tuple(value) for name, value in flags.items() if isinstance(value, list | tuple)}
    # what comes twice is meant once; stages may be of the same width
    once = {name: tuple(dict.fromkeys(given[name])) for name in (*GROWING, *CHOICE_FLAGS) if name in given}
    return settings_of({**flags, **given, **once}, args.preset, saved, args.resume)


def place(args: argparse.Namespace, saved: Settings | None) -> str | None:
    """The name of the simulated machine or the path of the recordings, None where neither is given."""
    given: str | None = args.data
    if given is None and args.data_dir and saved and not saved.simulated:
        given = ALIASES[0]
    if given is not None and given != SIMULATED:
        return place_of(given, args.data_dir, (SIMULATED,))
    if args.data_dir:
        raise InputError(
            f"--data-dir {args.data_dir}: expected none with --data {SIMULATED}; --data takes a path"
        )
    return given


def prepare(args: argparse.Namespace, claims: ExitStack) -> tuple[Settings, Path, list[Cell]]:
    """The settings that the flags ask for, the experiment's folder, and the cells that are left to train.

    Everything is checked before the first file is written. The folder is locked until the ``claims`` are closed.
    """
    saved = read_settings(args.resume) if args.resume else None
    settings = requested(args, saved)
    data = load(settings, 0)
    # that of the folders, where no flag says which
    settings = replace(settings, split=data.split)
    mark = fingerprint([(data.x, data.labels)])
    begun = read_fingerprint(args.resume) if args.resume else None
    if saved and begun:
        require_same_data(args.resume, (begun, saved.data), (mark, settings.data))
    warn_of(data.passed_over, data.copies)
    require_effects(args, settings)
    if settings.adapt_batch_norm and len(data.test) < 2:
        raise InputError(
            f"--adapt-batch-norm: got {counted(len(data.test), 'test signal')}, expected at least 2"
        )
    networks = {name: build(settings, name, data.x.shape[1], len(data.classes)) for name in settings.networks}
    if args.resume:
        folder = claims.enter_context(claimed(args.resume))
    else:
        name = f"experiment-{args.preset or 'small'}"
        folder = claims.enter_context(new_folder(args.output_dir, name))
    done = {result.cell for result in read_results(folder, settings)}
    left = [cell for cell in settings.cells() if cell not in done]
    if settings != saved:
        save_settings(settings, mark, folder)
    make_room(folder)
    for cell in left:
        # a file of a cell that is not done is damaged; from here on, a file means that its cell is done
        result_path(folder, cell).unlink(missing_ok=True)
    parameters = (f"{name} ({parameters_of(n)})" for name, n in networks.items())
    noises = f"{', '.join(settings.noise_kind)} noise at {as_flag(settings.snr)} dB"
    others = other_flags(settings)
    chosen = f"not as in the paper: {', '.join(others)}\n" if others else ""
    print(
        f"{settings.data}: {described(settings, data)}\n"
        f"{noises}, {counted(settings.seeds, 'seed')}\n"
        f"{settings.blocks} blocks, parameters: {', '.join(parameters)}\n"
        f"SGD: learning rate {settings.lr:g}, batches of {settings.batch_size}, {counted(settings.epochs, 'epoch')}\n"
        f"{chosen}"
        f"{counted(len(settings.cells()), 'cell')}, {len(done)} of them done, in {folder}",
        flush=True,
    )
    return settings, folder, left


def require_effects(args: argparse.Namespace, settings: Settings) -> None:
    """Raise InputError where a network's flag has no effect on any of the networks."""
    taken = {name for network in settings.networks for name in NETWORKS[network].settings}
    for name in (*STAGES, *GATE_FLAGS):
        value = getattr(args, name)
        if value is not None and name not in taken:
            networks = flagged("networks", settings.networks)
            raise InputError(f"{flagged(name, value)}: expected none with {networks}, which have none")


def described(settings: Settings, data: Data) -> str:
    """How many signals there are to train and to test on, and what they are like."""
    channels = data.x.shape[1]
    each = f"{settings.points} points" + (f" in {channels} channels" if channels > 1 else "")
    counts = (
        f"{len(data.train)} training and {counted(len(data.test), f'test {noun_of(settings)}')} of {each}"
    )
    if not settings.simulated:
        train, test = (len(data.recording[split].unique()) for split in (data.train, data.test))
        counts += f", of {train} and {counted(test, 'recording')}"
        counts += at_loads(settings.loads or ())
    if data.validation:
        counts += f", without {counted(data.validation, 'validation window')}"
    return f"{counts}, {len(data.classes)} classes; normalise: {settings.normalise}"


def train_cells(job: Job, cells: Sequence[Cell], workers: int) -> None:
    """Train these cells, with a progress bar and a line for each."""
    from tqdm import tqdm

    # disable=None shows the bar on a terminal only
    bar = tqdm(total=len(cells), unit="cell", disable=None, leave=False)

    def report(result: Result) -> None:
        bar.update()
        bar.write(
            f"{result.network:7}  {result.noise_kind:9} {result.snr:+6g} dB  seed {result.seed}  "
            f"train {result.train_accuracy:7.2%}  test {result.test_accuracy:7.2%}  {result.seconds:.1f} s"
        )

    try:
        complete_all(job, cells, workers, report)
    finally:
        bar.close()


def conduct(args: argparse.Namespace, processes: Processes, claims: ExitStack) -> int:
    """Train this process's share of the cells; the leading process reports on all.

    The experiment's folder is locked until the ``claims`` are closed. Returns the exit status: 1 after a lost worker.
    """
    device = usable_device(args.device)
    settings, folder, left = agree(lambda: prepare(args, claims))
    workers = args.workers or (torch.get_num_threads() if device.type == "cpu" else 1)
    job = Job(settings, folder, device, origin_of(device, workers * processes.count))
    device_flag = None if args.device == "cpu" else args.device
    go_on = to_go_on(resume=folder, device=device_flag, workers=args.workers)
    try:
        train_cells(job, share(left, processes), workers)
        if not processes.leads:
            return 0
        wait_for(left, folder)
        print(
            f"{progress(settings, folder)}; now the table, the curves and the features, by t-SNE", flush=True
        )
        paths = write_report(settings, read_results(folder, settings), folder)
    except KeyboardInterrupt:
        if processes.leads:
            print(f"interrupted; {progress(settings, folder)}; {go_on}")
        raise
    except BrokenProcessPool:
        why = "a worker was killed, by want of memory perhaps"
        print(f"drsn_ops experiment: {why}; {progress(settings, folder)}; {go_on}", file=sys.stderr)
        return 1
    print((folder / "table.md").read_text())
    print(f"written: {', '.join(map(str, paths))}")
    return 0


def progress(settings: Settings, folder: Path) -> str:
    """How many cells are done, in words."""
    return f"{len(read_results(folder, settings))} of {len(settings.cells())} cells are done"


def run(args: argparse.Namespace) -> int:
    """Run the command. Returns its exit status."""
    # on the CPU, whatever the device: the processes exchange Python objects only
    with processes("cpu") as together, ExitStack() as claims:
        return conduct(args, together, claims)
