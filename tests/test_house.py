"""The rules of the source tree: short files that say their job, few modules at the door, names kept private."""

import ast
import re
from collections import namedtuple
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "drsn_ops"
COMMENTS = {".py": '"""', ".pyi": '"""', ".sh": "# ", **dict.fromkeys((".h", ".cpp", ".cu", ".cuh"), "// ")}
SOURCES = [
    path.relative_to(ROOT)
    for folder in ("drsn_ops", "csrc", "tests", "tools", "benchmarks", "examples", ".")
    for path in (ROOT / folder).glob("*" if folder == "." else "**/*")
    if path.suffix in COMMENTS
]

pytestmark = pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="needs the sources")


def test_files_are_short():
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in SOURCES}
    shipped = {path: lines for path, lines in lengths.items() if path.parts[0] in ("drsn_ops", "csrc")}
    assert len(shipped) > 50
    assert {str(path): lines for path, lines in shipped.items() if lines > 500} == {}


def test_few_modules_lie_at_the_door():
    assert len(list(PACKAGE.glob("*.py"))) <= 12


def test_the_first_line_of_a_file_says_its_job():
    silent = []
    for path in SOURCES:
        lines = (ROOT / path).read_text().splitlines()
        first = lines[lines[0].startswith("#!")]
        if len(first.removeprefix(COMMENTS[path.suffix])) in (0, len(first)):
            silent.append(str(path))
    assert silent == []


def is_private(name: str) -> bool:
    public = {*dir(namedtuple("Tuple", ""))}  # its methods, such as _asdict
    return name.startswith("_") and not name.endswith("__") and name not in public


def private_names(source: str) -> list[str]:
    """The underscore names that a module of the package takes from another one."""
    imported, found = set(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("drsn_ops")):
            imported |= {name.asname or name.name for name in node.names}
            found += [name.name for name in node.names if is_private(name.name)]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
            if is_private(node.attr):
                found.append(f"{node.value.id}.{node.attr}")
    return found


def test_private_names_are_found():
    imports = "from torch import _a\nfrom . import _c, masks\nfrom .ops.masks import _b, c\n"
    assert private_names(imports + "masks._d(c.e, masks.__name__)") == ["_c", "_b", "masks._d"]


def test_a_copy_under_another_name_imports_itself():
    """Of a copy of the package beside it, as kernels from a hub are: every import of its own is a relative one."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module)
            assert not any(name.partition(".")[0] == "drsn_ops" for name in names), path


def test_private_names_stay_in_their_module():
    found = {path.name: names for path in PACKAGE.rglob("*.py") if (names := private_names(path.read_text()))}
    assert found == {}


def test_every_kernel_waits_for_the_one_before():
    kernels = [
        kernel.partition(") {")
        for path in (ROOT / "csrc" / "cuda").iterdir()
        for kernel in path.read_text().split("__global__ void")[1:]
    ]
    assert len(kernels) > 20
    assert [head for head, _, body in kernels if not re.match(r"\s*wait_for_previous\(\);", body)] == []
