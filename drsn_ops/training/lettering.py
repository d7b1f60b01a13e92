"""Draws names of files and classes, in whatever script they are written, and of whatever bytes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawable(name: str) -> str:
    """A name of text alone: that of a folder may be any bytes."""
    return name.encode("utf-8", "replace").decode()


def families_for(names: Iterable[str]) -> list[str]:
    """The usual font, and the first that has the characters which are missing there, if there is one."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    usual = FontProperties()
    missing = set(map(ord, "".join(names))) - get_font(findfont(usual)).get_charmap().keys()
    families: list[str] = usual.get_family()
    # the font of last resort has boxes alone
    for font in fontManager.ttflist if missing else ():
        if "LastResort" not in font.fname and missing <= characters(font.fname):
            return [*families, font.name]
    return families


def characters(font: str) -> set[int]:
    """Those that a font's file has; none where it is gone, since the list of fonts is an old one."""
    from matplotlib.font_manager import get_font

    try:
        return set(get_font(font).get_charmap())
    except (OSError, RuntimeError):
        return set()


def save_picture(figure: Figure, path: Path, dpi: int) -> None:
    """Write a .png file. A character that no font has is a box there, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from|Matplotlib currently does not support")
        figure.savefig(path, format="png", dpi=dpi)
