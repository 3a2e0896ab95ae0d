"""Collect the predictions of all ranks, in manifest order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from maestro_dist.parallel.mesh import Mesh


def gather_rows(rows: Tensor, mesh: Mesh, *, each: bool = False) -> Tensor:
    """All-gather rows: float64 [n_r, K] on rank r -> [sum n_r, K], the same on every rank. Collective.

    Sequence ranks of one data rank have the same rows; only the first rank's rows are used (with `each`, all rows).
    The rows are padded to the longest rank, because collectives need equal shapes.
    """
    import torch
    from torch import distributed as dist

    if mesh.world == 1:
        return rows
    count = torch.tensor([len(rows)], dtype=torch.int64, device=rows.device)
    counts = [torch.empty_like(count) for _ in range(mesh.world)]
    dist.all_gather(counts, count)
    lengths = [int(item) for item in torch.cat(counts).tolist()]
    padded = rows.new_zeros(max(lengths), rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(mesh.world)]
    dist.all_gather(parts, padded)
    return torch.cat([parts[rank][: lengths[rank]] for rank in range(0, mesh.world, 1 if each else mesh.sequence)])


def in_manifest_order(sample: np.ndarray, values: np.ndarray, samples: int, split: str) -> np.ndarray:
    """Rows sorted by sample number. Raises DataError unless each of 0 ... samples-1 occurs exactly once."""
    counts = np.bincount(sample[(sample >= 0) & (sample < samples)], minlength=samples)
    if len(sample) != samples or (counts != 1).any():
        wrong = int(np.argmax(counts != 1)) if (counts != 1).any() else int(sample.max())
        times = int(counts[wrong]) if wrong < samples else 1
        raise DataError(
            f"split {split!r} has {samples} samples but {len(sample)} were evaluated: "
            f"number {wrong} came {times} times (is the manifest older than its shards?)"
        )
    return values[np.argsort(sample)]


def broadcast_array(values: np.ndarray, mesh: Mesh, device: torch.device) -> np.ndarray:
    """Rank 0's float64 array on every rank; the array of another rank only gives the shape. Collective."""
    import torch
    from torch import distributed as dist

    if mesh.world == 1:
        return values
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).to(device)
    dist.broadcast(tensor, src=0)
    return tensor.cpu().numpy()
