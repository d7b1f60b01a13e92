"""Reads .csv files of numbers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

# the start of a number in digits, or a whole one in letters
NUMBER = re.compile(r"[+-]?(\.?\d|(nan|inf|infinity)$)", re.IGNORECASE)


def read_csv(path: Path) -> tuple[list[str], npt.NDArray[np.float64]]:
    """The names of a .csv file's columns, if it has any, and its numbers, (lines, columns).

    Raises:
        ValueError, OSError: it is damaged, has a gap or holds no numbers.
    """
    text = path.read_text(encoding="utf-8-sig")
    lines = {i: line for i, line in enumerate(text.splitlines(), 1) if not line.startswith("#")}
    filled = [i for i, line in lines.items() if line.strip()]
    names = [name.strip(' "') for i in filled[:1] for name in lines[i].split(",")]
    if any(map(NUMBER.match, names)):
        names = []
    else:
        filled = filled[1:]
    if not filled:
        raise ValueError("it holds no numbers")
    for i, line in lines.items():
        if filled[0] < i < filled[-1] and not line.strip():
            raise ValueError(f"line {i} is blank, a gap between numbers")
    values = np.loadtxt([lines[i] for i in filled], delimiter=",", ndmin=2)
    if names and len(names) != values.shape[1]:
        raise ValueError(f"its first line names {len(names)} columns, the others have {values.shape[1]}")
    return names, values
