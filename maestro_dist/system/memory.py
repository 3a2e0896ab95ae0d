"""Memory of this process: freed memory kept for what comes next, and what the machine has left."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
"""Options of glibc's `mallopt` (its `malloc.h`)."""

HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Environment in which torch asks the kernel for pages of 2 MiB for its larger arrays: far fewer page faults, and on a
virtual machine cheaper addresses. torch reads it when it first allocates; kernels without such pages ignore it."""

_LARGE = 32 << 20
"""What glibc takes at most as the size from which an array is mapped by itself."""

_NEVER = -1
"""A trim threshold that is never reached; any other is an int, below 2 GiB, and larger arrays would be given back."""


def keep_freed_memory(*, large: bool = False) -> bool:
    """Make the C library keep freed memory for the next allocation; returns whether that took effect.

    By default glibc trims its heap when memory is freed, and maps large arrays anew each time: activations are then
    paid for with page faults. Measured on a 2-core virtual machine: a copy of 32 MB runs at 4.5 GB/s with fresh pages
    and at 30 GB/s with kept ones, and attention over 1,000 to 16,000 tokens takes 2.3 times as long.

    Arrays of 32 MiB and more are still mapped by themselves, unless `large`: kept as well, they are faster still (a
    step on a million steps a modality by a quarter), but freed gaps between arrays of many sizes then make the peak
    half as large again.

    It holds for the whole process, from the call on. Only glibc on Linux is touched (not while another allocator is
    preloaded, as jemalloc or tcmalloc: they keep memory by themselves); elsewhere nothing happens and False comes back.
    """
    if not sys.platform.startswith("linux") or "malloc" in os.environ.get("LD_PRELOAD", ""):
        return False
    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return False
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, ValueError, AttributeError):
        return False
    wanted = ((_MMAP_MAX, 0) if large else (_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, 1 << 28))
    return all(mallopt(option, value) == 1 for option, value in wanted)


def available() -> int | None:
    """Bytes that this machine can still give to processes; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            found = {line.split(":")[0]: line.split()[1] for line in lines}
        return int(found["MemAvailable"]) * 1024
    except (OSError, LookupError, ValueError):
        return None
