"""Memory that is freed is there for the next step, until it is given back."""

import json
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
STEPS = """
import json, resource, sys
import psutil, torch
from orchestrator.allocator import give_freed_memory_back, keep_freed_memory

def step():
    # As a network's: the last blocks are freed first.
    held = [torch.ones(7 * 2**20) for _ in range(4)]
    while held:
        held.pop()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(10):  # until all blocks have found their places
    step()
before = faults()
for _ in range(5):
    step()
counted, resident = faults() - before, psutil.Process().memory_info().rss
give_freed_memory_back()
print(json.dumps([counted, resident - psutil.Process().memory_info().rss]))
"""
PAGES = 28 * 2**20 * 4 // 4096
"""Of one step: 28 Mi numbers of 4 bytes."""


def run(kind: str) -> list[int]:
    command = [sys.executable, "-c", STEPS, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[int] = json.loads(done.stdout)
    return found


def test_steps_take_the_memory_of_those_before():
    given_back, _ = run("as it is")
    kept, released = run("kept")
    assert given_back > 4 * PAGES
    assert kept < 0.01 * PAGES
    assert released > 0.9 * PAGES * 4096
