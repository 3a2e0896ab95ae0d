"""Memory of this process: keep freed memory for the next allocation; free memory of the machine."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
"""Options of glibc's `mallopt` (its `malloc.h`)."""

HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Environment variables with which torch requests pages of 2 MiB for large arrays: fewer page faults, faster address
translation. torch reads it at its first allocation; kernels without huge pages ignore it."""

_LARGE = 32 << 20
"""The largest mmap threshold that glibc accepts, in bytes: larger arrays are always mapped separately."""

_NEVER = -1
"""A trim threshold that is never reached. Other values are below 2 GiB, so larger arrays would be returned."""


def keep_freed_memory(*, large: bool = False) -> bool:
    """Make the C library keep freed memory for the next allocation. Returns whether this succeeded.

    By default glibc returns freed memory to the kernel and maps every large array again, so each activation causes page
    faults. Arrays of 32 MiB and more are still mapped separately, unless `large` is set: that is faster, but gaps
    between freed arrays of different sizes increase peak memory, by up to half.

    The setting is valid for the process from the call on. It exists only with glibc on Linux, and only if no
    other allocator (jemalloc, tcmalloc) is preloaded; otherwise nothing happens and the result is False.
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
    """Free memory of this machine in bytes; None if the system does not report it."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = {line.split(":")[0]: line.split()[1] for line in lines}
        return int(fields["MemAvailable"]) * 1024
    except (OSError, LookupError, ValueError):
        return None
