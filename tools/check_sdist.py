"""Builds the sdist, and wheels from it, as others do: with and without isolation, in folders with a space in the name.

python tools/check_sdist.py    needs the package `build` and the build requirements of pyproject.toml

With and without must give the same files, and what was built must run. It compiles once, the CPU's kernels alone: the
second wheel is made where the first one was, of its objects.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_SOURCES = (".git", ".venv", "build", "dist", "*.egg-info", "*.so", "__pycache__", ".*_cache")


def run(*command: str | Path, folder: Path, **variables: str) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "USE_CUDA": "0", **variables})


def contents_of_sdist(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()}


def contents_of_wheel(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def same(plain: Path, isolated: Path, contents: Callable[[Path], dict[str, bytes]]) -> Path:
    """One of the two files that the folders hold, which must be of one name and have the same in them."""
    one, other = next(plain.iterdir()), next(isolated.iterdir())
    files, others = contents(one), contents(other)
    different = sorted(name for name in files.keys() | others if files.get(name) != others.get(name))
    if one.name != other.name or different:
        sys.exit(f"{one.name} and, with isolation, {other.name} differ in {different}")
    return one


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "a folder")
        checkout = folder / "a checkout"
        shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*NOT_SOURCES))
        sdists = folder / "sdist", folder / "isolated sdist"
        build = (sys.executable, "-m", "build", "--sdist")
        run(*build, "--no-isolation", "--outdir", sdists[0], folder=checkout)
        run(*build, "--outdir", sdists[1], folder=checkout)
        sdist = same(*sdists, contents_of_sdist)

        shutil.unpack_archive(sdist, folder)
        source = folder / sdist.name.removesuffix(".tar.gz")
        wheels = folder / "wheel", folder / "isolated wheel"
        pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", ".", "--wheel-dir")
        run(*pip, wheels[0], "--no-build-isolation", folder=source)
        run(*pip, wheels[1], folder=source)
        wheel = same(*wheels, contents_of_wheel)

        installed = folder / "an installation"
        shutil.unpack_archive(wheel, installed, "zip")
        run(sys.executable, "-m", "drsn_ops", "info", folder=installed, PYTHONPATH=str(installed))
        print(f"{sdist.name} and {wheel.name}: the same with and without isolation")


if __name__ == "__main__":
    main()
