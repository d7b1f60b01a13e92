"""For mkdocs.yml: pages and pictures from outside docs/, and the docstrings' examples as code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    "*.md",
    "LICENSE",
    "CITATION.cff",
    "csrc/*/README.md",
    "examples/*",
    "benchmarks/results/**/*.png",
)


def on_files(files: Files, config: Any) -> Files:
    """Adds what docs/ refers to, each where it lies in the repository."""
    for path in sorted(path for pattern in OUTSIDE for path in ROOT.glob(pattern) if path.is_file()):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are in the site, where the pages of docs/ lie beside README.md."""
    return re.sub(r"(?<=\]\()(docs|\.\.)/", "", markdown)


class Examples(griffe.Extension):
    """Docstrings as Markdown: sessions are fenced, and a text before literal lines ends in one colon."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = re.sub(r"::$", ":", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(
                r"^>>> .*?(?=\n\n|\Z)", r"```pycon\n\g<0>\n```", text, flags=re.M | re.S
            )
