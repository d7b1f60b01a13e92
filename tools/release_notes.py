"""Prints the release notes of a tag: what CHANGELOG.md says of that version.

python tools/release_notes.py v0.2.0

Fails unless the tag, the version in pyproject.toml and the newest heading of CHANGELOG.md, with its date, agree.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def notes(tag: str, root: Path = ROOT) -> str:
    """The text under the version's heading; exits where tag, package and changes are not of one version."""
    project = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)
    if tag != f"v{project[1]}":
        sys.exit(f"tag {tag}: pyproject.toml has version {project[1]}, whose tag is v{project[1]}")
    newest = re.search(r"^## (.+)\n((?:(?!## ).*\n)*)", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    if not re.fullmatch(rf"{re.escape(project[1])} \(\d{{4}}-\d\d-\d\d\)", newest[1]):
        sys.exit(f"CHANGELOG.md: its newest heading is '{newest[1]}', expected '{project[1]} (YYYY-MM-DD)'")
    # in a release's text, unlike in a file, the end of a line is seen
    return re.sub(r"(?<=\S)\n *(?=[^\s*#|-])", " ", newest[2].strip()) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(notes(sys.argv[1]), end="")
