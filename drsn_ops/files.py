"""Files that are whole or not there, whatever ends the writing: an error, a full disk, a loss of power."""

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
    """A file beside ``path`` to write to, which takes its place once it is whole and on the disk.

    A link stays, and what it points to is replaced; the permissions stay too.

    Args:
        path: the file. Until it is replaced, it is as it was.
        new: whether it must not be there yet, not even as the file of a process that was a moment faster.

    Raises:
        OSError: the file cannot be written; it names ``path``.
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
    """Wait until a file, or the names in a folder, are on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # a folder may be closed to readers, and some network file systems have no such call for one
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP):
            raise


def save_tensors(values: object, path: Path, *, new: bool = False) -> None:
    """`torch.save` by way of memory, since on a full disk its own writer raises no OSError."""
    content = io.BytesIO()
    torch.save(values, content)
    with replacing(path, new=new) as temporary:
        temporary.write_bytes(content.getbuffer())
