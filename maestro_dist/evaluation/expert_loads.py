"""Loads of the experts by missing set: the set of modalities that a sample lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maestro_dist.evaluation.gather import gather_rows

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.parallel.mesh import Mesh
    from maestro_dist.types import Batch, Output

MOST = 16
"""The most frequent missing sets are reported one by one; all others as one sum."""


@dataclass(frozen=True)
class ExpertLoad:
    """Tokens by expert of one missing set.

    missing  positions of the modalities that the samples lack; None: all other sets together
    samples  number of samples
    tokens   [layers][E] number of tokens
    """

    missing: list[int] | None
    samples: int
    tokens: list[list[int]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def label(self, names: Sequence[str]) -> str:
        """The set in words: "complete", "without eda, acc", "other sets"."""
        if self.missing is None:
            return "other sets"
        if not self.missing:
            return "complete"
        if len(self.missing) == len(names):
            return "nothing observed"
        if 2 * len(self.missing) > len(names):
            return "only " + ", ".join(name for number, name in enumerate(names) if number not in self.missing)
        return "without " + ", ".join(names[number] for number in self.missing)


class ExpertLoads:
    """Sums the loads of the experts by missing set. `add` keeps tensors on the device; `drain` reads them."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._sums: dict[bytes, np.ndarray] = {}
        self._shape: tuple[int, int] = (0, 0)

    def add(self, batch: Batch, output: Output) -> None:
        """Keep the loads of a forward pass, if the model has experts."""
        if "expert_load_by_sample" in output:
            self._kept.append((batch.present, output["expert_load_by_sample"]))

    def drain(self) -> None:
        """Copy the kept loads to the host and add them to the sums."""
        for present, load in self._kept:
            self._shape = (load.shape[0], load.shape[2])
            flat = load.cpu().numpy().transpose(1, 0, 2).reshape(len(present), load.shape[0] * load.shape[2])
            sets, inverse = np.unique(present.cpu().numpy(), axis=0, return_inverse=True)
            sums = np.zeros((len(sets), 1 + flat.shape[1]), np.int64)
            np.add.at(sums, inverse.reshape(-1), np.concatenate((np.ones((len(flat), 1), np.int64), flat), 1))
            for row, total in zip(sets, sums, strict=True):
                self._sums[row.tobytes()] = self._sums.get(row.tobytes(), 0) + total
        self._kept = []

    def result(self, mesh: Mesh, device: Any) -> list[ExpertLoad] | None:
        """The sets of all ranks, most frequent first, rare sets as one; None without experts. Collective."""
        import torch

        self.drain()
        rows = [[*np.frombuffer(name, np.bool_), *total] for name, total in self._sums.items()]
        width = len(rows[0]) if rows else 0
        if mesh.world > 1:  # a rank may have had no sample
            from torch import distributed as dist

            shape = torch.tensor([width, *self._shape], device=device)
            dist.all_reduce(shape, op=dist.ReduceOp.MAX)
            width, *layers_and_experts = (int(number) for number in shape.tolist())
            self._shape = (layers_and_experts[0], layers_and_experts[1])
        if width == 0:
            return None
        local = torch.tensor(rows, dtype=torch.float64, device=device).view(len(rows), width)
        all_rows = gather_rows(local, mesh, each=True).cpu().numpy().astype(np.int64)
        layers, experts = self._shape
        modalities = width - 1 - layers * experts
        sets, inverse = np.unique(all_rows[:, :modalities], axis=0, return_inverse=True)
        sums = np.zeros((len(sets), width - modalities), np.int64)
        np.add.at(sums, inverse.reshape(-1), all_rows[:, modalities:])
        sums[:, 0] //= mesh.sequence  # each of the ranks that share a sample has counted it
        order = np.argsort(-sums[:, 0], kind="stable")
        loads = [_load(np.flatnonzero(sets[i] == 0).tolist(), sums[i], layers, experts) for i in order[:MOST]]
        if len(order) > MOST:
            loads.append(_load(None, sums[order[MOST:]].sum(0), layers, experts))
        return loads


def _load(missing: list[int] | None, sums: np.ndarray, layers: int, experts: int) -> ExpertLoad:
    return ExpertLoad(missing, int(sums[0]), sums[1:].reshape(layers, experts).tolist())
