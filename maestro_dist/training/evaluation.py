"""Evaluate the engine's weights on a split, over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maestro_dist.callbacks.base import State
from maestro_dist.config.schema import Config
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.prefetch import Consumer
from maestro_dist.parallel.mesh import Mesh
from maestro_dist.training.builder import data_rank, split_source, worker_name
from maestro_dist.types import Modality

if TYPE_CHECKING:
    from maestro_dist.evaluation import Evaluation, EvaluationData, EvaluationPlan


def evaluate_on(state: State, plan: EvaluationPlan) -> Evaluation:
    """Evaluate the engine's weights, or their average if the run keeps one. Collective.

    Raises the errors of `evaluate_split`.
    """
    from maestro_dist.engine.partition import averaged
    from maestro_dist.evaluation import evaluate_split

    engine, consumer = state.engine, Consumer(worker_name(state.mesh), state.engine.device)
    engine.eval()
    try:
        with averaged(engine):
            data = evaluation_data(state.config, state.manifest, state.modalities, plan.split, state.mesh, consumer)
            return evaluate_split(
                lambda batch: engine(engine.place(batch), state.step), state.task, data, plan, state.mesh
            )
    finally:
        engine.train()


def evaluation_data(
    config: Config,
    manifest: Manifest,
    modalities: Sequence[Modality],
    split: str,
    mesh: Mesh,
    consumer: Consumer,
) -> EvaluationData:
    """This rank's share of a split, `evaluation.batch` samples at a time."""
    from maestro_dist.evaluation import EvaluationData

    source = split_source(config, manifest, modalities, split, mesh)
    return EvaluationData.of(source, config.evaluation.batch, data_rank(mesh), consumer)
