"""Runs `make test` and writes into CONTRIBUTING.md how long it took, and on which machine."""

import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from benchmarks.report import fill
from drsn_ops.machine import processor

ROOT = Path(__file__).parent.parent


def main() -> int:
    start = time.monotonic()
    done = subprocess.run(["make", "test"], cwd=ROOT)
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    if done.returncode:
        return done.returncode
    line = f"`make test` took {minutes}:{seconds:02} min on {processor()}, {os.cpu_count()} cores ({date.today()}).\n"
    guide = ROOT / "CONTRIBUTING.md"
    guide.write_text(fill(guide.read_text(), "test-time", line))
    print(line, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
