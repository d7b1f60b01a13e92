"""Writes into csrc/cuda/README.md what the kernels' machine code lets expect of them.

python -m tools.predictions             compiles csrc/cuda for sm_90 and writes the table
python -m tools.predictions --check     writes nothing; an outdated table is an error
python -m tools.predictions shrink.cubin reduce.cubin --kernels shrink_apply    prints the table's rows of these files

Needs nvcc and nvdisasm, no GPU.
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import fill
from tools.machine_code import Kernel, read
from tools.machine_code import Path as CodePath

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "csrc" / "cuda" / "README.md"
REGION = "predictions"

# An H200: instructions of all lanes while memory moves a byte, of which four fifths are issued.
INSTRUCTIONS_A_BYTE = 132 * 128 * 1.8e9 * 0.8 / 4.2e12
# a multiprocessor of it
REGISTERS, WARPS, BLOCKS, SHARED, SHARED_OF_SYSTEM = 65536, 64, 32, 228 * 1024, 1024

TYPES = {"f": 4, "13__nv_bfloat16": 2}  # float32 and bfloat16, as they are in the kernels' names


@dataclass(frozen=True)
class Row:
    """A kernel, and which of its paths is counted. A stream is a tensor that is read."""

    words: str
    kernel: str  # a pattern of its name; {} are the type and V
    sizes: int  # bytes that an element must move: sizes of an element, and the mask's
    mask: float = 0
    streams: int = 1
    idle: int = 0  # of them, those that are not there in this case
    stores: int = 1  # vectors written for each of x
    others: int | None = (
        None  # of each vector, or of the thread: accesses of other sizes, where they tell paths apart
    )
    for_channels: int = 0  # arrays of which a thread loads V numbers
    for_vectors: int = 0  # the same for each vector
    threads: str = "kThreads"  # of a block


def plain(name: str) -> str:
    return rf"\d{name}I{{}}Li{{}}E"


def contiguous(name: str) -> str:
    return rf"\d{name}I{{}}Li{{}}ELb0E"


def channels_last(name: str) -> str:
    return rf"\d{name}I{{}}Li{{}}ELb1E"


def rows(op: str) -> str:
    return rf"11reduce_rowsI.*{op}E+v"


def columns(op: str) -> str:
    return rf"14reduce_columnsI.*{op}E+v"


ON_CHIP = {"threads": "kOnChipThreads"}

TABLE = [
    Row("`soft_threshold`, tau of a row, mask", plain("soft_threshold_kernel"), 2, 1 / 4, others=1),
    Row("the same, channels_last", plain("soft_threshold_kernel"), 2, 1 / 4, for_vectors=1),
    Row("its backward with dtau", rows(plain("ActiveSum")), 2, 1 / 4),
    Row("the same, channels_last", columns(plain("ActiveSum")), 2, 1 / 4),
    Row("`abs_mean`, mask", rows(plain("AbsSum")), 1, 1 / 4, stores=0),
    Row("the same, channels_last", columns(plain("AbsSum")), 1, 1 / 4, stores=0),
    Row("`abs_mean`", rows(plain("AbsSum")), 1, stores=0),
    Row("the same, channels_last", columns(plain("AbsSum")), 1, stores=0),
    Row("`shrink` on chip, residual, mask", contiguous("shrink_on_chip"), 3, 3 / 8, 2, **ON_CHIP),
    Row("the same, no residual", contiguous("shrink_on_chip"), 2, 3 / 8, 2, idle=1, **ON_CHIP),
    Row("the same, channels_last, residual", channels_last("shrink_on_chip"), 3, 3 / 8, 2, **ON_CHIP),
    Row("its backward", contiguous("shrink_backward_on_chip"), 2, 3 / 8, **ON_CHIP),
    Row("the same, channels_last", channels_last("shrink_backward_on_chip"), 2, 3 / 8, **ON_CHIP),
    Row("`gated_shrink` on chip, residual, mask", plain("gated_shrink_on_chip"), 3, 3 / 8, 2, **ON_CHIP),
    Row("the same, no residual", plain("gated_shrink_on_chip"), 2, 3 / 8, 2, idle=1, **ON_CHIP),
    Row("its backward", plain("gated_shrink_backward_on_chip"), 2, 3 / 8, **ON_CHIP),
    Row("`shrink` off chip, the result, residual, mask", plain("shrink_apply"), 3, 3 / 8, 2, others=2),
    Row("the same, no residual", plain("shrink_apply"), 2, 3 / 8, 2, idle=1, others=2),
    Row("the same, channels_last, residual", plain("shrink_apply"), 3, 3 / 8, 2, for_vectors=2),
    Row("its backward, the sums", rows(plain("ActiveSum")), 1, 1 / 4, stores=0),
    Row("the same, channels_last", columns(plain("ActiveSum")), 1, 1 / 4, stores=0),
    Row("its backward, dx", plain("combine_kernel"), 2, 3 / 8, others=1),
    Row("the same, channels_last", plain("combine_kernel"), 2, 3 / 8, for_vectors=1),
    Row("BatchNorm, statistics", contiguous("piece_statistics"), 1, stores=0),
    Row("the same, channels_last", channels_last("piece_statistics"), 1, stores=0),
    Row("`batch_norm_relu`, the result", contiguous("apply_norm_relu"), 2),
    Row("the same, channels_last", channels_last("apply_norm_relu"), 2, for_channels=4),
    Row("its backward, the sums", contiguous("norm_relu_sums"), 2, streams=2, stores=0),
    Row("the same, channels_last", channels_last("norm_relu_sums"), 2, streams=2, stores=0),
    Row("its backward, dx", contiguous("norm_relu_backward"), 3, streams=3, idle=1),
    Row("the same, channels_last", channels_last("norm_relu_backward"), 3, streams=3, idle=1, for_channels=6),
    Row("`batch_norm_shrink`, the sums", rows(contiguous("NormAbsSum")), 1, stores=0),
    Row("the same, channels_last", columns(channels_last("NormAbsSum")), 1, stores=0),
    Row("`batch_norm_shrink`, the result, residual", contiguous("apply_input_norm"), 3, streams=2),
    Row("the same, channels_last", channels_last("apply_input_norm"), 3, streams=2, for_channels=4),
    Row("its backward, the sums", rows(contiguous("NormRowSums")), 2, streams=2, stores=0),
    Row("the same, channels_last", columns(channels_last("NormRowSums")), 2, streams=2, stores=0),
    Row("its backward, dz", contiguous("input_norm_backward"), 3, streams=2),
    Row("the same, channels_last", channels_last("input_norm_backward"), 3, streams=2, for_channels=7),
]


@dataclass(frozen=True)
class Numbers:
    instructions: float  # an element
    registers: int
    bytes_in_flight: int  # of a multiprocessor
    share: float


def resident(threads: int, registers: int, shared: int) -> int:
    """Threads of a multiprocessor, in blocks of `threads`."""
    warps = threads // 32
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32) // warps
    return threads * min(by_registers, WARPS // warps, BLOCKS, SHARED // (shared + SHARED_OF_SYSTEM))


def fitting(row: Row, kernel: Kernel, V: int) -> tuple[CodePath, int] | None:
    """The row's path through the kernel and its vectors of each stream; None if there is no such path."""
    split = not any(path.accesses.stores for path in kernel.paths)  # into smaller stores, by the compiler
    found = []
    for path in kernel.paths:
        seen = path.accesses
        vectors, rest = divmod(seen.loads - row.for_channels * V // 4, row.streams + row.for_vectors * V // 4)
        stores = 0 if split else vectors * row.stores
        if rest or vectors < 1 or seen.stores < stores:
            continue
        for_each = not row.others or seen.others == vectors * row.others
        if for_each or seen.others == row.others:
            # what the row does not have may still be on each path, under a predicate
            beside = (
                seen.stores
                - stores
                + (0 if row.mask else seen.bytes)
                + (seen.others if row.others == 0 else 0)
            )
            rank = (vectors, -beside, seen.bytes, for_each, path.arithmetic, seen.others, -path.cost)
            found.append((rank, path, vectors))
    return max(found, key=lambda entry: entry[0])[1:] if found else None


def numbers(row: Row, kernels: Iterable[Kernel], scalar: str, threads: int) -> Numbers | None:
    """Of the kernel of that type; None if it is not among these."""
    size = TYPES[scalar]
    V = 16 // size
    named = [kernel for kernel in kernels if re.search(row.kernel.format(scalar, V), kernel.name)]
    if not named:
        return None
    found = [(kernel, *fit) for kernel in named if (fit := fitting(row, kernel, V))]
    if not found:
        seen = sorted({tuple(path.accesses) for kernel in named for path in kernel.paths}, reverse=True)
        sys.exit(
            f"tools/predictions.py: no path of {named[0].name} is what '{row.words}' says; its paths have (loads, "
            f"stores, bytes, other accesses) {str(seen[:12])[1:-1]}: the row, or the kernel, is to be changed"
        )
    kernel, path, vectors = max(found, key=lambda entry: entry[1].accesses.bytes)
    instructions = path.cost / (vectors * V)
    in_flight = min(kernel.in_flight(path), vectors * (row.streams - row.idle))
    moved = row.sizes * size + row.mask
    return Numbers(
        instructions,
        kernel.registers,
        16 * in_flight * resident(threads, kernel.registers, kernel.shared),
        min(1, INSTRUCTIONS_A_BYTE * moved / instructions),
    )


def table(kernels: list[Kernel], whole: bool = False) -> str:
    """A row for each of TABLE whose kernels are among these; where `whole` all have to be."""
    plan = (ROOT / "csrc" / "cuda" / "plan.h").read_text()
    lines = [
        "| kernel, float32 / bfloat16 | instructions an element | registers | KiB in flight an SM | predicted share |",
        "|---|---|---|---|---|",
    ]
    for row in TABLE:
        threads = int(re.search(rf"constexpr int {row.threads} = (\d+);", plan)[1])
        both = [found for scalar in TYPES if (found := numbers(row, kernels, scalar, threads))]
        if whole and len(both) < len(TYPES):
            sys.exit(
                f"tools/predictions.py: no kernel of each type is named {row.kernel}, as '{row.words}' says"
            )
        if not both:
            continue
        cells = [
            " / ".join(f"{found.instructions:.1f}" for found in both),
            " / ".join(str(found.registers) for found in both),
            " / ".join(f"{found.bytes_in_flight / 1024:.0f}" for found in both),
            " / ".join(f"{found.share:.2f}" for found in both),
        ]
        lines.append(f"| {row.words} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def find(program: str) -> str:
    """The path of a program of CUDA's toolkit."""
    homes = [
        os.environ.get("CUDA_HOME", ""),
        *glob.glob(f"{sys.prefix}/lib/python*/site-packages/nvidia/cu[0-9]*"),
    ]
    places = [f"{home}/bin" for home in homes if home] + [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    found = shutil.which(program, path=os.pathsep.join(places))
    if found is None:
        sys.exit(
            f"no {program} in CUDA_HOME, .venv, PATH or /usr/local/cuda/bin; `make nvcc` brings it into .venv"
        )
    return found


def compiled(folder: str) -> list[Path]:
    """The machine code of csrc/cuda for an H200, a file for each source."""
    made = []
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        made.append(Path(folder, f"{source.stem}.cubin"))
        flags = ["-std=c++17", "-O2", "--expt-relaxed-constexpr", "-arch=sm_90", f"-I{ROOT / 'csrc'}"]
        subprocess.run([find("nvcc"), *flags, "-cubin", "-o", made[-1], source], check=True)
    return made


def disassembled(cubins: Iterable[Path], pattern: str = "") -> list[Kernel]:
    """The kernels in these files that the table has, and whose names hold the pattern."""
    named = "|".join(row.kernel.format(scalar, 16 // size) for row in TABLE for scalar, size in TYPES.items())
    kernels = []
    for cubin in cubins:
        text = subprocess.run([find("nvdisasm"), cubin], check=True, stdout=subprocess.PIPE, text=True).stdout
        kernels += read(text, lambda name: re.search(named, name) and re.search(pattern, name))
    return kernels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="compiled already: .cubin files of sm_90")
    parser.add_argument("--kernels", default="", metavar="PATTERN", help="prints the rows of such names")
    parser.add_argument("--check", action="store_true", help="an outdated table is an error")
    chosen = parser.parse_args()
    find("nvdisasm")  # before minutes of compiling
    try:
        with tempfile.TemporaryDirectory() as scratch:
            kernels = disassembled(chosen.files or compiled(scratch), chosen.kernels)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error.cmd[0]} failed on {error.cmd[-1]}")
    if chosen.files or chosen.kernels:
        print(table(kernels), end="")
        return
    made = table(kernels, whole=True)
    page = fill(PAGE.read_text(), REGION, made)
    if not chosen.check:
        PAGE.write_text(page)
    elif PAGE.read_text() != page:
        sys.exit(f"{PAGE}: outdated; make predictions writes it anew")


if __name__ == "__main__":
    main()
