"""Process groups. Ray's workers already have a group; the inline launcher makes a group of one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from maestro_dist.errors import ConfigError
from maestro_dist.parallel.mesh import Mesh

if TYPE_CHECKING:
    import torch.distributed as dist


def backend(device: str) -> str:
    """gloo for the CPU, NCCL for CUDA."""
    return "nccl" if device == "cuda" else "gloo"


def init_process_group(device: str, timeout_s: int) -> None:
    """Make a group with only this process, unless a group exists. No port is opened."""
    import torch
    import torch.distributed as dist

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device = cuda, but torch finds no CUDA device here; use run.device = cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it
    if dist.is_initialized():
        return
    dist.init_process_group(
        backend(device), store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=timeout_s)
    )


def sequence_group(mesh: Mesh, timeout_s: int) -> dist.ProcessGroup:
    """The group of the ranks that share the samples of this rank. All ranks of the world must call it together."""
    return neighbours(mesh, mesh.sequence, timeout_s)


def neighbours(mesh: Mesh, size: int, timeout_s: int) -> dist.ProcessGroup:
    """Divide the world into groups of `size` consecutive ranks; return this rank's group. All ranks must call it."""
    import torch.distributed as dist

    own_group: dist.ProcessGroup | None = None
    for first in range(0, mesh.world, size):
        ranks = list(range(first, first + size))
        group = dist.new_group(ranks, timeout=timedelta(seconds=timeout_s))
        if mesh.rank in ranks:
            own_group = group
    assert own_group is not None  # the mesh covers the world
    return own_group


@contextmanager
def new_groups_limited(timeout_s: int) -> Iterator[None]:
    """Groups that are made inside get this timeout as their default.

    DeepSpeed reduces gradients in its own group and sets no timeout: torch's default would be 30 minutes.
    """
    import torch.distributed as dist

    original = dist.new_group
    dist.new_group = partial(original, timeout=timedelta(seconds=timeout_s))
    try:
        yield
    finally:
        dist.new_group = original


def destroy_process_group() -> None:
    """Destroy the group, with DeepSpeed's references to it, so that this process can make another one."""
    import sys

    import torch.distributed as dist

    if not dist.is_initialized():
        return
    comm = sys.modules.get("deepspeed.comm.comm")
    if comm is not None and comm.cdb is not None:
        comm.destroy_process_group()
    else:
        dist.destroy_process_group()
