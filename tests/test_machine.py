"""The allocator of a process: what settling it changes, and what it leaves."""

import platform

import pytest
from commands import start

# A process that has imported torch alone: the allocator has learnt little.
PROGRAM = """
import resource, torch
from drsn_ops.machine import settle_allocator
torch.set_num_threads(1)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step = [torch.ones(1 << 19) for _ in range(20)]  # 40 MB in blocks of 2
        del step
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

fresh = faults()
settle_allocator()
faults()
settled, before = faults(), resident()
large = torch.ones(1 << 26)
held = resident()
del large
print(fresh, settled, held - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc is settled")
def test_a_settled_allocator_faults_no_memory_in_and_gives_large_blocks_back():
    process = start("-c", PROGRAM)
    out, err = process.communicate()
    assert process.returncode == 0, err
    fresh, settled, held, kept = map(int, out.split())
    assert settled * 20 < fresh
    assert held >= 250 and kept < 10
