"""Build the task, model, data stream and engine of one rank from a configuration and a manifest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maestro_dist.callbacks.base import State
from maestro_dist.config.learning import AugmentConfig
from maestro_dist.config.schema import Config
from maestro_dist.data.label_share import labelled_count
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.mixture.source import source_of
from maestro_dist.data.prefetch import Consumer
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream
from maestro_dist.data.symbols import reads_symbols
from maestro_dist.errors import ConfigError
from maestro_dist.parallel.mesh import Mesh, build_mesh
from maestro_dist.training.process import prepare_process
from maestro_dist.types import HeadShape, Modality

if TYPE_CHECKING:
    from maestro_dist.model.maestro import Trunk
    from maestro_dist.parallel.collectives import Group
    from maestro_dist.task.base import Task


@dataclass(frozen=True)
class ModelAndData:
    """A model, its data and task, and the process groups of its ranks."""

    manifest: Manifest
    modalities: list[Modality]
    task: Task
    model: Trunk
    groups: tuple[Group, ...] = ()


def build(config: Config, manifest: Manifest | None = None, mesh: Mesh | None = None) -> ModelAndData:
    """Modalities, task and initial model, the same on every rank; `manifest`: by default, the manifest at
    `data.url`.

    Where the ranks of `mesh` share the time axis or experts, a process group must exist.
    """
    from maestro_dist.model import Maestro, PretrainModel

    manifest = manifest or load_data(config.data, expected=True)
    modalities = manifest.select(config.data.modalities)
    task = build_task(config, manifest)
    groups: list[Group] = []
    sequence = None
    if mesh is not None and mesh.sequence > 1:
        from maestro_dist.parallel.group import sequence_group
        from maestro_dist.parallel.sequence import SequenceRanks, model_cuts
        from maestro_dist.parallel.ulysses import UlyssesRanks

        context = UlyssesRanks if config.mesh.sequence_method == "ulysses" else SequenceRanks
        cuts = model_cuts(config.model, modalities, mesh.sequence)
        sequence = context(sequence_group(mesh, config.run.timeout_s), cuts)
        groups.append(sequence.group)
    experts = None
    if mesh is not None and mesh.expert > 1:
        from maestro_dist.parallel.expert import spread_experts
        from maestro_dist.parallel.plan import plan_expert_movement

        movement = plan_expert_movement(config, modalities, mesh).movement
        experts, group = spread_experts(mesh, config.run.device, config.run.timeout_s, movement)
        groups.append(group)
    model: Trunk
    given: dict[str, Any] = {"seed": config.run.seed, "sequence": sequence, "experts": experts}
    if task.kind == "pretrain":
        model = PretrainModel(config.model, modalities, config.task.pretrain, **given)
    else:
        model = Maestro(config.model, modalities, head_shape(task, manifest.window_s), **given)
    return ModelAndData(manifest, modalities, task, model, tuple(groups))


def head_shape(task: Task, window_s: float) -> HeadShape:
    """The numbers that a model for windows of `window_s` seconds predicts."""
    return HeadShape(task.outputs // task.label_steps, task.label_steps, window_s / task.label_steps)


def _check_over_time(config: Config, manifest: Manifest) -> None:
    """Raise `ConfigError` for what labels over time do not go together with."""
    if manifest.label_steps == 1 or config.task.kind == "pretrain":
        return
    where = "with labels over time (data.window.label_every_s)"
    for key in ("shift", "time_warp"):
        if getattr(config.augment, key):
            raise ConfigError(f"augment.{key} moves values in time but not labels: not possible {where}; use 0")
    if config.data.class_balance:
        raise ConfigError(
            f"data.class_balance: not possible {where}: a sample has several; task.class_weights=balanced is"
        )


def build_task(config: Config, manifest: Manifest) -> Task:
    """The task of the configuration, for this data."""
    from maestro_dist.task import Labels, make_task

    _check_over_time(config, manifest)

    split = manifest.split(config.data.train)
    for name, target in zip(manifest.targets, split.targets or (), strict=bool(manifest.targets)):
        if not target.known and config.task.kind != "pretrain":
            raise ConfigError(
                f"data.train: target {name} is unknown in all samples of split '{config.data.train}', so it cannot be "
                "learned; divide the data otherwise (data.split), or pack it without this target"
            )
    labels = Labels(
        manifest.task,
        classes=manifest.classes,
        class_counts=split.class_counts,
        samples=split.samples if split.labelled is None else split.labelled,
        target_mean=0.0 if split.target_mean is None else split.target_mean,
        target_std=1.0 if split.target_std is None else split.target_std,
        targets=manifest.target_scales(config.data.train),
        steps=manifest.label_steps,
    )
    return make_task(config.task, labels, consistency=config.missing.consistency)


def time_slices(config: Config, modalities: Sequence[Modality], mesh: Mesh) -> dict[str, tuple[int, int]] | None:
    """This rank's steps [first, end) of each modality; None where a rank has all steps."""
    if mesh.sequence == 1:
        return None
    from maestro_dist.parallel.sequence import model_cuts

    at = mesh.sequence_rank
    return {
        name: (cuts[at], cuts[at + 1]) for name, cuts in model_cuts(config.model, modalities, mesh.sequence).items()
    }


def data_rank(mesh: Mesh) -> DataRank:
    """The share of the samples that this rank reads."""
    return DataRank(mesh.data_rank, mesh.data)


def split_source(
    config: Config,
    manifest: Manifest,
    modalities: Sequence[Modality],
    split: str,
    mesh: Mesh,
    augment: AugmentConfig | None = None,
) -> SplitSource:
    """The samples of a split, and how this rank reads them: raw windows or symbols, all steps or its slice.

    Raises:
        ConfigError: the data holds symbols only, but the model or `augment` needs something else.
    """
    return source_of(
        config.data.url,
        manifest,
        config.data,
        tuple(modalities),
        split,
        symbols=reads_symbols(manifest, config.model, modalities, augment),
        slices=time_slices(config, modalities, mesh),
        augment=augment,
    )


def build_stream(
    config: Config, pieces: ModelAndData, mesh: Mesh, total_steps: int, consumer: Consumer | None = None
) -> TrainStream:
    """The stream of this rank's training samples."""
    schedule = TrainSchedule(
        seed=config.run.seed,
        global_batch=config.optim.global_batch,
        total_steps=total_steps,
        micro_batch=config.engine.micro_batch,
        curriculum=config.missing,
    )
    source = split_source(config, pieces.manifest, pieces.modalities, config.data.train, mesh, config.augment)
    return TrainStream(source, schedule, data_rank(mesh), consumer)


def worker_name(mesh: Mesh) -> str:
    """Name of this worker in log lines, with a colon; "" where it is the only one."""
    return "" if mesh.world == 1 else f"worker {mesh.rank}: "


def count_steps(config: Config, manifest: Manifest) -> tuple[int, int, int]:
    """Samples an epoch, optimizer steps an epoch, and steps of the whole run."""
    samples = labelled_count(manifest.split(config.data.train).samples, config.data.label_share)
    per_epoch = math.ceil(samples / config.optim.global_batch)
    total = per_epoch * config.optim.epochs
    return samples, per_epoch, min(total, config.optim.max_steps or total)


def first_batch(config: Config) -> tuple[float, int]:
    """Mean loss and size of rank 0's first micro-batch, before any step. Needs no process group."""
    import torch

    prepare_process(config)
    pieces = build(config)
    mesh = build_mesh(config.mesh, world=config.run.workers)
    whole = Mesh(rank=0, world=mesh.data, data=mesh.data)  # without slices of the time axis
    _, _, total = count_steps(config, pieces.manifest)
    with closing(build_stream(config, pieces, whole, total).batches(0, config.optim.global_batch)) as batches:
        batch = next(batches)
    with torch.no_grad():
        loss = pieces.task.loss(pieces.model(batch, 0), batch).mean()
    return float(loss), batch.samples


def assemble(
    config: Config,
    mesh: Mesh,
    prepare: Callable[[Trunk, Manifest], None] = lambda model, manifest: None,
    run_url: str = "",
) -> tuple[State, TrainStream]:
    """State of a run at its start, with model and engine, and its training stream. A process group must exist.

    `prepare` may change the model's initial weights before the engine shards them. The run at `run_url` may have a copy
    of the manifest.
    """
    from maestro_dist.engine.engine import Engine
    from maestro_dist.model.estimate import tokens_by_modality
    from maestro_dist.optim import build_optimizer

    pieces = build(config, load_data(config.data, expected=True, run_url=run_url), mesh=mesh)
    prepare(pieces.model, pieces.manifest)
    engine = Engine(pieces.model, build_optimizer(pieces.model, config.optim), config, mesh)
    samples, per_epoch, total = count_steps(config, pieces.manifest)
    state = State(
        config=config,
        mesh=mesh,
        engine=engine,
        task=pieces.task,
        manifest=pieces.manifest,
        modalities=pieces.modalities,
        samples_per_epoch=samples,
        steps_per_epoch=per_epoch,
        total_steps=total,
        tokens_by_modality=tokens_by_modality(config.model, pieces.modalities),
        groups=pieces.groups,
    )
    consumer = Consumer(worker_name(mesh), engine.device)
    return state, build_stream(config, pieces, mesh, total, consumer)
