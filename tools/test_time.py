"""Runs `make test` and writes into CONTRIBUTING.md how long it took, and on which machine."""

import os
import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from drsn_ops.benchmark.machine import processor

ROOT = Path(__file__).parent.parent
MARKED = re.compile(r"(<!-- test-time -->\n).*?(<!-- /test-time -->)", re.DOTALL)


def main() -> int:
    start = time.monotonic()
    done = subprocess.run(["make", "test"], cwd=ROOT)
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    if done.returncode:
        return done.returncode
    line = f"`make test` took {minutes}:{seconds:02} min on {processor()}, {os.cpu_count()} cores ({date.today()}).\n"
    guide = ROOT / "CONTRIBUTING.md"
    text, places = MARKED.subn(lambda marks: marks[1] + line + marks[2], guide.read_text())
    if places != 1:
        print(f"{guide}: {places} places for the time, expected one", file=sys.stderr)
        return 2
    guide.write_text(text)
    print(line, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
