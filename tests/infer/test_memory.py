"""Memory that is kept while a network computes is not fetched from the system again, and is given back after it."""

import platform
import subprocess
import sys

import pytest

_ALLOCATES = """
import resource
import torch
from medgen.infer.memory import kept_memory

def faults(times=30, numbers=16_000_000):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(numbers)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

with kept_memory("meta"):
    usual = faults()
idle = resident()
with kept_memory():
    with kept_memory("cpu"):
        pass
    kept, held = faults(), resident()
left = resident()
faults(numbers=1_000_000)
print(usual, kept, held - idle, left - idle, faults(numbers=1_000_000))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be told")
def test_kept_memory_is_used_again_and_given_back() -> None:
    command = [sys.executable, "-c", _ALLOCATES]
    numbers = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    usual, kept, held, left, afterwards = (int(number) for number in numbers)
    assert usual > 100_000
    assert kept < 0.5 * usual
    assert held > 60e6
    assert left < 0.1 * held
    assert afterwards < 1_000  # blocks of a few MB, as windows are, come from the heap, as they do in a fresh process
