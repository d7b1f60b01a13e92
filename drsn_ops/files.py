"""Writes files that are complete or not there, whatever ends the writing: an error, a full disk, a loss of power."""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A temporary file beside ``path`` to write to. On success it is synchronised to the disk and replaces ``path``.

    The target of a symbolic link is replaced, not the link. Permissions are kept.

    Args:
        path: the file. It is unchanged until it is replaced.
        new: raise FileExistsError if the file exists, even if another process has only just made it.

    Raises:
        OSError: the file cannot be written. The error names ``path``.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        sync(temporary)
        if new:
            target.touch(exist_ok=False)
        elif target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
        sync(target.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # a folder may be unreadable, and some network file systems cannot synchronise one
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP):
            raise


def save_tensors(values: object, path: Path, *, new: bool = False) -> None:
    """`torch.save` through a buffer in memory: on a full disk, its own file writer raises no OSError."""
    content = io.BytesIO()
    torch.save(values, content)
    with replacing(path, new=new) as temporary:
        temporary.write_bytes(content.getbuffer())
