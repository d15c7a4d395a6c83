"""The machine: memory that is freed stays for the next tensors."""

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import sys
from resource import RUSAGE_SELF, getrusage

from app.machine import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
import torch

for _ in range(30):  # the heap takes the form that these need
    torch.ones(10_000_000)
before = getrusage(RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(10_000_000)
print(getrusage(RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_what_is_freed_is_used_again_without_a_fault_at_each_page():
    taken = [
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("leave", "keep")
    ]
    assert taken[1] < taken[0] / 10
