"""Builds the sdist and, from it, the wheel in dist/, one for every Python and PyTorch; checks its files and symbols.

python tools/wheel.py            sdist and wheel; compiles everything
python tools/wheel.py --quick    only the wheel, with the objects in build/

CUDA is in it wherever an nvcc is found. auditwheel names the wheel after the oldest glibc and libstdc++ that have every
symbol the libraries use. Needs the packages `build` and `auditwheel` and the build requirements of pyproject.toml.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import symbols

ROOT = Path(__file__).parents[1]
BUILD_FILE = "drsn_ops/build_info.json"
# PyTorch brings them
NOT_SHIPPED = ("libtorch*.so", "libc10*.so", "libcuda*")
NEWEST_GLIBC = (2, 34)  # that a released wheel may ask for


def run(*command: str | Path, folder: Path = ROOT) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PORTABLE": "1"})


def build(folder: Path, quick: bool) -> Path:
    """Returns the wheel. The sdist is put beside it, unless quick."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", place, *["--wheel"] * quick)
        (wheel,) = Path(place).glob("*.whl")
        for sdist in Path(place).glob("*.tar.gz"):
            shutil.copy(sdist, folder)
        return repair(wheel, folder)


def repair(wheel: Path, folder: Path) -> Path:
    """Copies the wheel into the folder, tagged with the oldest glibc that it works with; its files stay the same."""
    with tempfile.TemporaryDirectory() as place:
        excluded = [f"--exclude={name}" for name in NOT_SHIPPED]
        # no patcher: fail rather than ship further libraries and change ours to find them
        command = ("repair", "--patcher", "none", *excluded, "--wheel-dir", place, wheel)
        run(sys.executable, "-m", "auditwheel", *command)
        (tagged,) = Path(place).glob("*.whl")
        return Path(shutil.copy(tagged, folder))


def glibc(wheel: Path) -> tuple[int, int]:
    """The oldest glibc that the tag allows."""
    major, minor = re.search(r"manylinux_(\d+)_(\d+)", wheel.name).groups()
    return int(major), int(minor)


def check_files(wheel: Path) -> None:
    """Exits unless the wheel is for every Python and holds exactly the package's Python files and libraries."""
    if "-py3-none-manylinux" not in wheel.name:
        sys.exit(f"{wheel.name}: expected the tags of every Python 3 on Linux, py3-none-manylinux")
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if not n.endswith("/") and ".dist-info/" not in n}
        built = json.loads(archive.read(BUILD_FILE)) if BUILD_FILE in names else {}
    kinds = ("*.py", "py.typed")
    expected = {p.relative_to(ROOT).as_posix() for kind in kinds for p in (ROOT / "drsn_ops").rglob(kind)}
    expected |= {BUILD_FILE, "drsn_ops/_ops_cpu.so"}
    if built.get("cuda"):
        expected.add("drsn_ops/_ops_cuda.so")
    if names != expected:
        lacking, odd = sorted(expected - names), sorted(names - expected)
        sys.exit(f"{wheel.name}: lacks {lacking}, and should not have {odd}")


def check_glibc(wheel: Path) -> None:
    if glibc(wheel) > NEWEST_GLIBC:
        newest = ".".join(map(str, NEWEST_GLIBC))
        sys.exit(
            f"{wheel.name}: works on this Linux, and a release's is for glibc {newest}; build that on Debian 12"
        )


def check_symbols(wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = zipfile.ZipFile(wheel)
        libraries = [archive.extract(n, folder) for n in archive.namelist() if "/_ops_" in n]
        if symbols.main(libraries):
            sys.exit(f"{wheel.name}: does not load under the oldest PyTorch that it supports")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Builds the sdist and the wheel and checks them.")
    parser.add_argument("--outdir", type=Path, default=ROOT / "dist")
    parser.add_argument("--quick", action="store_true", help="only the wheel, with the objects in build/")
    options = parser.parse_args(arguments)
    wheel = build(options.outdir.resolve(), options.quick)
    check_files(wheel)
    check_symbols(wheel)
    if not options.quick:
        check_glibc(wheel)
    print(f"{wheel}: complete, {wheel.stat().st_size} bytes; PyTorch 2.11 has every symbol that it uses")


if __name__ == "__main__":
    main(sys.argv[1:])
