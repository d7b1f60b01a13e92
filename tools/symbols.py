"""Checks that PyTorch 2.11 has every symbol that a compiled library takes from PyTorch.

python tools/symbols.py LIBRARY...                      names the missing symbols and fails if there are any
python tools/symbols.py --record SITE-PACKAGES/torch    writes the list from an installed PyTorch 2.11 with CUDA

The list, symbols-2.11.txt, has the C functions of the stable ABI, each after its library. PyTorch's C++ symbols change
from version to version and are not allowed. Symbols of the C and C++ runtime have versions; auditwheel checks those.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

LIST = Path(__file__).with_name("symbols-2.11.txt")
LIBRARIES = ("libtorch_cpu.so", "libtorch_cuda.so")


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def missing(library: str | Path) -> list[str]:
    """The symbols that neither a library it is linked with nor a versioned runtime has, except weak references."""
    needed = re.findall(r"NEEDED +(\S+)", output_of("objdump", "-p", str(library)))
    offered = (line.split() for line in LIST.read_text().splitlines())
    known = {symbol for owner, symbol in offered if owner in needed}
    wanted = re.findall(r" U (\S+)", output_of("nm", "-D", "--undefined-only", str(library)))
    # PyTorch 2.11 exports some of libstdc++'s symbols: libraries linked with it use them without a version.
    own = re.compile(r"_ZNK?St|_ZSt")
    return [s for s in wanted if "@" not in s and s not in known and not own.match(s)]


def record(torch: Path) -> None:
    lines = []
    for owner in LIBRARIES:
        symbols = output_of("nm", "-D", "--defined-only", str(torch / "lib" / owner))
        # aoti_torch_cpu_* and aoti_torch_cuda_* are generated, one for each operator, and not part of the stable ABI
        shims = re.findall(r" T ((?!aoti_torch_(?:cpu|cuda)_)(?:aoti_)?torch_\w+)$", symbols, re.MULTILINE)
        lines += [f"{owner} {symbol}\n" for symbol in sorted(shims)]
    LIST.write_text("".join(lines))


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--record"]:
        record(Path(arguments[1]))
        return 0
    found = {library: symbols for library in arguments if (symbols := missing(library))}
    for library, symbols in found.items():
        print(f"{library}: PyTorch 2.11 has no {', '.join(symbols)}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
