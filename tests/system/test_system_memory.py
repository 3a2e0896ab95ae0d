"""Freed memory is kept for the next allocation, where the C library can be told to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from maestro_dist.config.schema import Config, RunConfig
from maestro_dist.system.memory import HUGE_PAGES, keep_freed_memory
from maestro_dist.training import process

FAULTS = """
import resource, sys
from maestro_dist.system.memory import keep_freed_memory
mode, size = sys.argv[1], int(sys.argv[2]) << 20
if mode != "plain":
    assert keep_freed_memory(large=mode == "all")
def touch():
    array = bytearray(size)
    del array
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is on Linux")


def output(script: str, *arguments: object, environment: Mapping[str, str] = MappingProxyType({})) -> int:
    """What a script prints, in a process of its own."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return int(run.stdout)


@LINUX
def test_kept_memory_costs_no_page_faults() -> None:
    # Freshly mapped, every page faults (in blocks of 2 MB where the kernel gives huge pages); kept, none does.
    assert output(FAULTS, "small", 24) <= output(FAULTS, "plain", 24) // 4
    assert output(FAULTS, "all", 64) <= output(FAULTS, "plain", 64) // 4


@LINUX
def test_large_arrays_go_back_unless_all_are_kept() -> None:
    assert output(FAULTS, "small", 64) >= output(FAULTS, "plain", 64) // 2 > output(FAULTS, "all", 64)


ADVISED = """
import torch
array = torch.empty(3 << 20)
middle, inside, advised = array.data_ptr() + (6 << 20), False, 0
for line in open("/proc/self/smaps"):
    first, *rest = line.split()
    if "-" in first and ":" not in first:
        start, end = (int(part, 16) for part in first.split("-"))
        inside = start <= middle < end
    elif first == "VmFlags:" and inside:
        advised = int("hg" in rest)
print(advised)
"""


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this kernel has no huge pages")
def test_torch_asks_for_huge_pages() -> None:
    assert output(ADVISED, environment=HUGE_PAGES) == 1
    assert output(ADVISED, environment=dict.fromkeys(HUGE_PAGES, "0")) == 0


@pytest.mark.parametrize(
    ("device", "kept", "asked"), [("cpu", "small", True), ("cpu", "none", False), ("cuda", "all", False)]
)
def test_workers_on_cpu_ask_for_huge_pages(device: str, kept: str, asked: bool) -> None:
    run = {"name": "x", "device": device, "allocator_cache": kept}
    config = Config.model_construct(run=RunConfig.model_validate(run))
    assert (process.environment(config) == HUGE_PAGES) is asked


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libtcmalloc.so.4")
    assert keep_freed_memory() is False
