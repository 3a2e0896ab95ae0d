"""Freed memory is kept for the next allocation, where the C library can be told to."""

from __future__ import annotations

import subprocess
import sys

import pytest

from maestro_dist.memory import keep_freed_memory

FAULTS = """
import resource, sys
from maestro_dist.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def touch():
    array = bytearray(64 << 20)
    del array
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    """Page faults of four allocations of 64 MB after a first one, in a process of its own."""
    run = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is on Linux")
def test_kept_memory_costs_no_page_faults() -> None:
    # Freshly mapped, every page faults (in blocks of 2 MB where the kernel gives huge pages); kept, none does.
    assert page_faults("keep") <= page_faults("plain") // 4


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libtcmalloc.so.4")
    assert keep_freed_memory() is False
