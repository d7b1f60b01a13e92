"""The checkpoint of a run: where it is kept, and how it is written and read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..arguments import InputError
from ..files import save_tensors
from .folders import claimed, new_folder
from .run import Run
from .storage import CHECKPOINT, read_saved


class Place(NamedTuple):
    """The folder of a run, its checkpoint, and whether that is a new file, not the one that is resumed from."""

    folder: Path
    checkpoint: Path
    new: bool


@contextmanager
def claim_place(
    run: Run, output_dir: Path | None, given: Path | None, resume: Path | None, home: Path | None
) -> Iterator[Place]:
    """The place of a run's files, locked against other runs.

    Args:
        run: the run, which has gone on from ``resume`` where that is given.
        output_dir, given, resume: ``--output-dir``, ``--checkpoint`` and ``--resume``.
        home: the folder of the run that is resumed.

    Raises:
        InputError: a file would be overwritten, or another run uses the folder.
    """
    with ExitStack() as claims:
        checkpoint = given or (resume if output_dir is None else None)
        new = checkpoint is None or resume is None or checkpoint.absolute() != resume.absolute()
        if checkpoint and new and checkpoint.exists():
            raise InputError(f"{checkpoint}: exists; --resume it, or give another --checkpoint")
        if checkpoint and not checkpoint.absolute().parent.is_dir():
            raise InputError(f"--checkpoint {checkpoint}: its folder does not exist")
        if home and (output_dir is None or not new):
            folder = claims.enter_context(claimed(home))
        # the checkpoint was read before its folder was locked
        if resume and not new and read_checkpoint(resume)["step"] != run.step:
            raise InputError(f"{resume}: another run has just gone on from it")
        if output_dir or not home:
            folder = claims.enter_context(new_folder(output_dir, run.settings.name))
        yield Place(folder, checkpoint or folder / CHECKPOINT.usual, new)


def save_checkpoint(run: Run, place: Place, new: bool = False) -> None:
    """Replace the checkpoint; with ``new``, raise FileExistsError where there is one."""
    # relative, so that both can be moved together
    home = os.path.relpath(place.folder, place.checkpoint.parent)
    save_tensors({"format": CHECKPOINT.format, **run.state(), "folder": home}, place.checkpoint, new=new)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; raises InputError where `read_saved` does."""
    return read_saved(path, CHECKPOINT)
