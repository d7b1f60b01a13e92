"""Draws which rooms of the package import which, in docs/imports.md: python tools/imports.py [--check].

With --check nothing is written, and an outdated picture is an error.
"""

import sys
from pathlib import Path

import grimp

PAGE = Path(__file__).parents[1] / "docs" / "imports.md"
TEXT = """# Imports

Written by `python tools/imports.py`. A box is a folder of `drsn_ops/` with its modules, or a module by itself. An arrow
points to what is imported; where a longer way leads to the same box, the direct arrow is left out.

```mermaid
flowchart TD
{}
```
"""


def draw() -> str:
    graph = grimp.build_graph("drsn_ops", cache_dir=None)
    # load_model imports it when it is called
    graph.remove_import(importer="drsn_ops", imported="drsn_ops.training.model")
    boxes, lines = {"drsn_ops": "__init__.py"}, []
    for room in sorted(graph.find_children("drsn_ops")):
        name = room.rpartition(".")[2]
        modules = sorted(module.rpartition(".")[2] for module in graph.find_children(room))
        boxes[room] = "<br>".join([f"<b>{name}/</b>", *modules]) if modules else f"{name}.py"
        if modules:
            graph.squash_module(room)
    for box, label in boxes.items():
        lines.append(f'    {box}["{label}"]')
        imported = graph.find_modules_directly_imported_by(box) - {box}
        for other in sorted(imported):
            if not any(graph.chain_exists(between, other) for between in imported - {other}):
                lines.append(f"    {box} --> {other}")
    return TEXT.format("\n".join(lines).replace("drsn_ops.", ""))


if __name__ == "__main__":
    picture = draw()
    if "--check" not in sys.argv:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(picture)
    elif not PAGE.exists() or PAGE.read_text() != picture:
        sys.exit(f"{PAGE}: outdated; python tools/imports.py draws it anew")
