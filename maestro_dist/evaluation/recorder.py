"""Records the predictions of every scenario of an evaluation, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.evaluation.gather import gather_rows
from maestro_dist.evaluation.predictions import Predictions

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.parallel.mesh import Mesh
    from maestro_dist.types import Batch, Output


class PredictionRecorder:
    """Every rank makes the same calls; the result is on rank 0."""

    def __init__(self) -> None:
        self._expert_loads: list[Tensor] = []
        self._logits: list[np.ndarray] = []
        self._kept: list[np.ndarray] = []
        self._experts: list[np.ndarray] = []

    def add(self, batch: Batch, output: Output) -> None:
        """Record the experts of a batch's tokens, if the model has experts. (`end_scenario` gets the logits.)"""
        import torch

        if "expert_load_by_sample" in output:
            load = output["expert_load_by_sample"].long().transpose(0, 1)  # [B, layers, E]
            number = batch.sample.to(load.device)[:, None, None].expand(-1, 1, load.shape[2])
            self._expert_loads.append(torch.cat([number, load], dim=1))

    def end_scenario(self, logits: np.ndarray, kept: np.ndarray, mesh: Mesh) -> None:
        """End a scenario. Collective.

        `logits` float32 [N, C] of the complete split in manifest order; `kept` bool [N, M]: modalities of the samples.
        """
        if mesh.rank == 0:
            self._logits.append(logits)
            self._kept.append(kept)
        if self._expert_loads:
            tokens = _by_sample(self._expert_loads, len(logits), mesh)
            if mesh.rank == 0:
                self._experts.append(tokens)
        self._expert_loads = []

    def result(self, plan: Sequence[tuple[float, int]], target: np.ndarray, mesh: Mesh) -> Predictions | None:
        """The recorded predictions, on rank 0; `plan` has (rate, draw) of each scenario."""
        if mesh.rank:
            return None
        rates, draws = zip(*plan, strict=True)
        return Predictions(
            target=target,
            rate=np.array(rates, dtype=np.float64),
            draw=np.array(draws, dtype=np.int64),
            logits=np.stack(self._logits),
            kept=np.stack(self._kept),
            experts=np.stack(self._experts) if self._experts else None,
        )


def _by_sample(taken: Sequence[Tensor], samples: int, mesh: Mesh) -> np.ndarray:
    """int32 [layers, N, E]: tokens of each sample by expert, summed over the ranks that share the sample.

    `taken`: for each batch of this rank int64 [B, 1 + layers, E], the sample's number and then its tokens by layer.
    """
    import torch

    local = torch.cat(list(taken))
    layers, experts = local.shape[1] - 1, local.shape[2]
    rows = gather_rows(local.flatten(1).double(), mesh, each=True).cpu().numpy().astype(np.int64)
    total = np.zeros((samples, layers, experts), np.int32)
    np.add.at(total, rows[:, 0], rows[:, experts:].reshape(len(rows), layers, experts))
    return total.transpose(1, 0, 2)
