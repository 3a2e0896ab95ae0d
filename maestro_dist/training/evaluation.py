"""Evaluate a model on a split, over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from maestro_dist.callbacks.base import State
from maestro_dist.config.schema import Config
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.prefetch import Say, by_log
from maestro_dist.parallel.mesh import Mesh
from maestro_dist.training.builder import name_rank, time_slices

if TYPE_CHECKING:
    import torch

    from maestro_dist.evaluation import Evaluation
    from maestro_dist.task.base import Task
    from maestro_dist.types import Batch, Modality, Output


def evaluate_on(
    state: State, split: str, rates: Sequence[float], draws: Sequence[int], *, keep: bool = False, say: Say = by_log
) -> Evaluation:
    """Evaluate the engine's weights on a split, over all ranks; the averaged ones where the run keeps such.

    With `keep` the answers are kept too.
    """
    from maestro_dist.engine.partition import averaged

    state.engine.eval()
    try:
        with averaged(state.engine):
            return evaluate_with(
                lambda batch: state.engine(state.engine.place(batch), state.step),
                state.config, state.mesh, state.manifest, state.modalities, state.task, split,
                rates=rates, draws=draws, keep=keep, say=say, device=state.engine.device,
            )  # fmt: skip
    finally:
        state.engine.train()


def evaluate_with(
    forward: Callable[[Batch], Output],
    config: Config,
    mesh: Mesh,
    manifest: Manifest,
    modalities: list[Modality],
    task: Task,
    split: str,
    *,
    rates: Sequence[float],
    draws: Sequence[int],
    keep: bool = False,
    say: Say = by_log,
    device: torch.device | None = None,
) -> Evaluation:
    """Evaluate a model, in evaluation mode, on a split, over all ranks. `config` says how it reads its windows."""
    from maestro_dist.data.stream import evaluation_batches, presence
    from maestro_dist.data.symbols import reads_symbols
    from maestro_dist.evaluation import evaluate_split

    symbols = reads_symbols(manifest, config.model, modalities)
    return evaluate_split(
        forward,
        task,
        lambda mask: evaluation_batches(
            config.data.url, manifest, config.data, modalities, split,
            batch=config.evaluation.batch, rank=mesh.data_rank, ranks=mesh.data, keep=mask,
            symbols=symbols, slices=time_slices(config, modalities, mesh),
            say=name_rank(say, mesh), device=device,
        ),
        presence(config.data.url, manifest, modalities, split, symbols=symbols),
        rates=rates, draws=draws, mesh=mesh, split=split, keep=keep, always=[m.always for m in modalities],
    )  # fmt: skip
