"""Pictures of names in scripts that the usual font has not, and of names that are no text."""

import os
from types import SimpleNamespace

import pytest

from drsn_ops.training.lettering import families_for
from drsn_ops.training.report import draw_curve
from drsn_ops.training.run import Result, Row

fonts = pytest.importorskip("matplotlib.font_manager")


def test_a_font_that_has_the_characters():
    usual, other = (
        set(fonts.get_font(fonts.findfont(name)).get_charmap()) for name in ("DejaVu Sans", "STIXGeneral")
    )
    name = chr(min(other - usual))
    first, second = families_for(["abc", name])
    assert (first, families_for(["abc"])) == ("sans-serif", ["sans-serif"])
    assert ord(name) in fonts.get_font(fonts.findfont(second)).get_charmap()


def test_the_curve_of_any_folder(tmp_path, recwarn):
    row = Row(1, 1, 0.1, {"train": Result(1.0, 0.5)}, 1.0)
    for title in ("轴承", os.fsdecode(b"\xff"), "$_$"):
        plan = SimpleNamespace(title=title, splits=["train"], keeps_best=False)
        draw_curve(SimpleNamespace(plan=plan, rows=[row]), tmp_path)
        assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [str(warning.message) for warning in recwarn] == []
