"""Reads sound files, .wav and .flac."""

from __future__ import annotations

from pathlib import Path

from ..arguments import InputError, first_line
from .channels import Found


def read_wav(path: Path) -> Found:
    """The samples, (points, channels), from -1 to 1 where they are integers in the file, and their rate.

    Raises:
        InputError: it is damaged or cut short.
    """
    import soundfile

    try:
        with path.open("rb") as file:
            start = file.read(8)
        # libsndfile reads what there is of a file that is cut short; programs that stream write no size
        size = int.from_bytes(start[4:], "little") + 8
        if start[:4] == b"RIFF" and path.stat().st_size < size < 2**32 - 1:
            raise ValueError(f"it holds {path.stat().st_size} bytes where its header says {size}")
        values, rate = soundfile.read(path, always_2d=True)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read as a sound file: {first_line(error)}") from error
    return Found(values, rate=float(rate), points_first=True)
