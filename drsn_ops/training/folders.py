"""The folder of a run, locked while the run lives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..arguments import InputError
from ..files import sync


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """The folder, made if it is missing, and locked against other runs.

    The system frees the lock when the process ends, however it ends.

    Raises:
        InputError: another run has locked it, or it cannot be made.
    """
    import fcntl  # missing on Windows, where the package can still be imported

    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"{folder}: cannot be used as a folder: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError(f"{folder}: in use by another run") from error
    except OSError:
        pass  # a file system without locks
    try:
        sync(folder.parent)
        yield folder
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(given: Path | None, name: str) -> Iterator[Path]:
    """A locked and empty folder: ``given``, or else a new ``runs/NAME``, numbered where that exists.

    Raises:
        InputError: ``given`` is not empty, not a folder, or in use by another run.
    """
    folder = given or made(name)
    require_empty(folder)
    with claimed(folder):
        require_empty(folder)  # again: another run may have come and gone before the lock
        yield folder


def made(name: str) -> Path:
    """A new folder in ``runs``. It is made in one step, so that runs started together get different ones."""
    parent, number = Path("runs"), 1
    parent.mkdir(exist_ok=True)
    while True:
        folder = parent / (f"{name}-{number}" if number > 1 else name)
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
        number += 1


def require_empty(folder: Path) -> None:
    """Raise InputError unless the folder is empty or does not exist."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--output-dir {folder}: not an empty folder")
