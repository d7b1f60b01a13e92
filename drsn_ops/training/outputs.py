"""Checks a command's ``--output`` before the work whose result it takes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..arguments import InputError


def require_output(output: Path, read: Iterable[Path]) -> None:
    """Check that a file can be written without the loss of one that is read.

    Args:
        output: the file of ``--output``, which may exist.
        read: the files that the command reads.

    Raises:
        InputError: it is one of these, by whatever path, or its folder does not exist.
    """
    # the target of a link is what would be replaced
    target = os.path.realpath(output)
    for path in read:
        if os.path.realpath(path) == target:
            raise InputError(f"--output {output}: is {path}, which is read; expected another file")
    if not output.absolute().parent.is_dir():
        raise InputError(f"--output {output}: its folder does not exist")
