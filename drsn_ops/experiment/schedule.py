"""Shares the cells among worker processes of one program, and among the programs that torchrun starts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from datetime import date
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

from .. import __version__
from ..machine import processor
from ..training.processes import Processes
from .cell import train_cell
from .settings import Cell, Result, Settings
from .storage import result_path, save_features, save_result

T = TypeVar("T")


class Job(NamedTuple):
    """What all cells of an experiment are trained with."""

    settings: Settings
    folder: Path
    device: torch.device
    origin: str


def origin_of(device: torch.device, workers: int) -> str:
    """The machine, the number of processes, the versions and the date of a result, in words."""
    machine = f"{processor()} ({os.cpu_count()} cores)"
    if device.type == "cuda":
        machine = f"{torch.cuda.get_device_name(device)}, {machine}"
    versions = f"PyTorch {torch.__version__}, drsn_ops {__version__}"
    return f"{machine}, device {device.type}, workers {workers}, {versions}, {date.today().isoformat()}"


def share(cells: Sequence[Cell], processes: Processes) -> list[Cell]:
    """This process's share of the cells: equally many of each network, since some networks take longer."""
    dealt = sorted(cells, key=attrgetter("network"))[processes.rank :: processes.count]
    # seed by seed: the data of a seed are loaded once for all of its cells
    return sorted(dealt, key=attrgetter("seed"))


def complete(job: Job, cell: Cell) -> Result:
    """Train one cell and write its files."""
    result, features = train_cell(job.settings, cell, job.device, job.origin)
    if cell in job.settings.shown():
        save_features(features, job.folder, cell)
    save_result(result, job.folder)
    return result


def complete_all(job: Job, cells: Sequence[Cell], workers: int, done: Callable[[Result], object]) -> None:
    """Train the cells, with several workers at the same time; call ``done`` with each result."""
    if min(workers, len(cells)) <= 1:
        for cell in cells:
            done(complete(job, cell))
        return
    # spawned: a process that has used CUDA or threads cannot be forked
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(cells)), context, initializer=follow_parent) as pool:
        try:
            with no_interrupt():
                futures = [pool.submit(complete, job, cell) for cell in cells]
            for future in as_completed(futures):
                done(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


@contextmanager
def no_interrupt() -> Iterator[None]:
    """Processes that are started within never get Ctrl-C, which their parent handles after the block."""
    arrived: list[int] = []
    # the mask is for the processes, which inherit it; here another thread, of OpenMP, may still get the signal
    before = signal.signal(signal.SIGINT, lambda number, _: arrived.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
    if arrived:
        signal.raise_signal(signal.SIGINT)


def follow_parent() -> None:
    """End this worker as soon as its parent has ended, for whatever reason."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def agree(make: Callable[[], T]) -> T:
    """Call ``make`` in the leading process and return its result in all. If it raises, the others exit with 2."""
    if not dist.is_initialized():
        return make()
    box: list[T | None] = [None]
    try:
        if dist.get_rank() == 0:
            box[0] = make()
    finally:
        dist.broadcast_object_list(box)
    if box[0] is None:
        raise SystemExit(2)
    return box[0]


def wait_for(cells: Sequence[Cell], folder: Path) -> None:
    """Wait until the other processes have trained their cells, too."""
    while not all(result_path(folder, cell).exists() for cell in cells):
        time.sleep(0.5)
