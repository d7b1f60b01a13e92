"""What a release is made of: its notes, and the workflows' commands, which all run on any machine."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHANGES = """# Changes

## 0.2.0 (2026-12-01)

The second.

- One
  sentence.
- Another one.

## 0.1.0 (2026-11-01)

The first.
"""


class TestNotes:
    @pytest.fixture
    def notes(self, tmp_path):
        """Runs release_notes.py in a tree with these changes and this version."""
        (tmp_path / "tools").mkdir()
        tool = tmp_path / "tools" / "release_notes.py"
        tool.write_text((ROOT / "tools" / "release_notes.py").read_text())

        def run(tag, changes=CHANGES, version="0.2.0"):
            (tmp_path / "CHANGELOG.md").write_text(changes)
            (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "drsn_ops"\nversion = "{version}"\n')
            return subprocess.run([sys.executable, tool, tag], capture_output=True, text=True)

        return run

    def test_are_the_text_of_the_version_alone_without_breaks_in_a_sentence(self, notes):
        assert notes("v0.2.0").stdout == "The second.\n\n- One sentence.\n- Another one.\n"

    @pytest.mark.parametrize(
        "tag, changes, version, reason",
        [
            ("v0.3.0", CHANGES, "0.2.0", "tag v0.3.0: pyproject.toml has version 0.2.0, whose tag is v0.2.0"),
            (
                "v0.1.0",
                CHANGES,
                "0.1.0",
                "newest heading is '0.2.0 (2026-12-01)', expected '0.1.0 (YYYY-MM-DD)'",
            ),
            (
                "v0.2.0",
                CHANGES.replace("2026-12-01", "unreleased"),
                "0.2.0",
                "is '0.2.0 (unreleased)', expected",
            ),
        ],
    )
    def test_are_refused_where_the_versions_differ(self, notes, tag, changes, version, reason):
        done = notes(tag, changes, version)
        assert done.returncode == 1 and done.stdout == "" and reason in done.stderr
