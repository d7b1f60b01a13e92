"""tools/arm64.sh where nothing can be compiled for arm64; where it can, its own comparison is the test."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "arm64.sh"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="needs the sources")


@pytest.mark.parametrize("required, status", [({}, 0), ({"REQUIRE_ARM64": "1"}, 1)])
def test_without_a_cross_compiler(tmp_path, required, status):
    (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
    ran = subprocess.run(
        [shutil.which("bash"), SCRIPT],
        env={"PATH": str(tmp_path), **required},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout) == (status, "")
    assert ran.stderr == (
        "No aarch64-linux-gnu-g++ in PATH (Debian's g++-aarch64-linux-gnu and qemu-user): "
        "nothing is compiled for arm64.\n"
    )
