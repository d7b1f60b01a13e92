"""Reads files ahead of the network, several at a time, in their order and within bounds of memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ..arguments import InputError, require_positive

# of the files that are read ahead of the network
BYTES_AHEAD = 16 * 2**20

Values = TypeVar("Values")


def read_ahead(
    read: Callable[[Path], Values], paths: Iterable[Path], jobs: int | None
) -> Iterator[tuple[Path, Values | InputError]]:
    """What ``read`` makes of each file, in the order given, or the InputError that it raises.

    Threads read: processes would take seconds to start, and formats that take long are read outside Python's lock.

    Args:
        read: reads a file.
        paths: of the files, which may be many: as many are read ahead as have `BYTES_AHEAD` together, and two a thread.
        jobs: the number of threads; None for as many as there are processors.

    Raises:
        ValueError: a bad ``jobs``.
    """
    if jobs is not None:
        require_positive("jobs", jobs)
    jobs = jobs or usable_processors()
    pool = ThreadPoolExecutor(jobs)
    ahead: deque[tuple[Path, int, Future[Values | InputError]]] = deque()
    bytes_ahead = 0

    def guarded(path: Path) -> Values | InputError:
        try:
            return read(path)
        except InputError as error:
            return error

    try:
        for path in paths:
            size = size_of(path)
            while ahead and (
                ahead[0][2].done() or (bytes_ahead + size > BYTES_AHEAD and len(ahead) >= 2 * jobs)
            ):
                done, freed, values = ahead.popleft()
                bytes_ahead -= freed
                yield done, values.result()
            ahead.append((path, size, pool.submit(guarded, path)))
            bytes_ahead += size
        for done, _, values in ahead:
            yield done, values.result()
    finally:
        # also where the caller takes no more of them
        pool.shutdown(cancel_futures=True)


def usable_processors() -> int:
    """The number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def size_of(path: Path) -> int:
    """The bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
