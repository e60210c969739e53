"""Memory that is freed is there for the next step, until it is given back."""

import json
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
BLOCK = 28 * 2**20
SCRIPT = f"""
import ctypes, json
import psutil, torch
from orchestrator.allocator import give_freed_memory_back, keep_freed_memory

class Info(ctypes.Structure):  # mallinfo2(3)
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info

def mapped():  # blocks that the system is asked for one by one
    return libc.mallinfo2().hblks

def resident():
    return psutil.Process().memory_info().rss

before = mapped()
block = torch.ones({BLOCK} // 4)
alone = mapped() - before
del block
keep_freed_memory()
before = mapped()
blocks = [torch.ones({BLOCK} // 4) for _ in range(4)]
kept_alone = mapped() - before
taken = resident()
del blocks
freed = taken - resident()
give_freed_memory_back()
given = taken - resident()
print(json.dumps([alone, kept_alone, freed, given]))
"""


def test_freed_blocks_are_kept_until_they_are_given_back():
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    alone, kept_alone, freed, given = json.loads(done.stdout)
    assert alone == 1 and kept_alone == 0
    assert freed < 0.1 * BLOCK and given > 3.9 * BLOCK
