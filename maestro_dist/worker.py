"""What one worker does: mesh -> stream -> model -> engine -> fit. The pieces are put together here."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maestro_dist.callbacks.base import Callbacks, State
from maestro_dist.config.load import parse
from maestro_dist.config.schema import Config
from maestro_dist.data.home import own_folder
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.order import labelled_count
from maestro_dist.data.prefetch import Say, by_log
from maestro_dist.data.storage import Storage, redact
from maestro_dist.lease import Fence
from maestro_dist.memory import HUGE_PAGES, keep_freed_memory
from maestro_dist.parallel.mesh import Mesh, build_mesh

if TYPE_CHECKING:
    import torch

    from maestro_dist.checkpoint import CheckpointInfo, Saver
    from maestro_dist.data.stream import TrainStream
    from maestro_dist.evaluation import Evaluation
    from maestro_dist.model.maestro import Trunk
    from maestro_dist.parallel.collectives import Group
    from maestro_dist.task.base import Task
    from maestro_dist.tracking import MetricLog
    from maestro_dist.types import Batch, Modality, Output


@dataclass(frozen=True)
class Job:
    """What a driver hands to its workers: plain values only.

    `config` is the resolved configuration as plain JSON; the rest says where the run lives and is tracked. `start` is
    the place of the weights that it begins with, if there are any.
    """

    config: dict[str, Any]
    run_url: str
    attempt: int
    tracking_uri: str
    mlflow_run: str
    start_ms: int
    start: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for Ray's train loop configuration."""
        return asdict(self)


@dataclass(frozen=True)
class Pieces:
    """A model, what it needs from its data, and the groups that its ranks talk in."""

    manifest: Manifest
    modalities: list[Modality]
    task: Task
    model: Trunk
    groups: tuple[Group, ...] = ()


def build(config: Config, manifest: Manifest | None = None, mesh: Mesh | None = None) -> Pieces:
    """Manifest (by default that at `data.url`) -> modalities, task and initial model. The same on every rank.

    With a mesh whose ranks share the time axis the model works on this rank's slices; a process group must exist then.
    """
    from maestro_dist.model import Maestro, Pretraining

    manifest = manifest or load_manifest(config.data.url)
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
        model = Pretraining(config.model, modalities, config.task.pretrain, **given)
    else:
        model = Maestro(config.model, modalities, task.outputs, **given)
    return Pieces(manifest, modalities, task, model, tuple(groups))


def time_slices(config: Config, modalities: Sequence[Modality], mesh: Mesh) -> dict[str, tuple[int, int]] | None:
    """This rank's steps of each modality, [first, end); None where it has all."""
    if mesh.sequence == 1:
        return None
    from maestro_dist.parallel.sequence import model_cuts

    at = mesh.sequence_rank
    return {
        name: (cuts[at], cuts[at + 1]) for name, cuts in model_cuts(config.model, modalities, mesh.sequence).items()
    }


def build_task(config: Config, manifest: Manifest) -> Task:
    """The task that the configuration names for this data."""
    from maestro_dist.task import make_task

    split = manifest.split(config.data.train)
    return make_task(
        config.task,
        kind=manifest.task,
        classes=manifest.classes,
        class_counts=split.class_counts,
        target_mean=0.0 if split.target_mean is None else split.target_mean,
        target_std=1.0 if split.target_std is None else split.target_std,
        consistency=config.missing.consistency,
    )


def build_stream(
    config: Config,
    pieces: Pieces,
    mesh: Mesh,
    total_steps: int,
    say: Say = by_log,
    device: torch.device | None = None,
) -> TrainStream:
    """This rank's training samples, on their way to `device`; `say` hears what is waited for."""
    from maestro_dist.data.stream import TrainStream
    from maestro_dist.data.symbols import reads_symbols

    return TrainStream(
        config.data.url,
        pieces.manifest,
        config.data,
        pieces.modalities,
        seed=config.run.seed,
        global_batch=config.optim.global_batch,
        micro_batch=config.engine.micro_batch,
        rank=mesh.data_rank,
        ranks=mesh.data,
        curriculum=config.missing,
        total_steps=total_steps,
        slices=time_slices(config, pieces.modalities, mesh),
        symbols=reads_symbols(pieces.manifest, config.model, pieces.modalities, config.augment),
        augment=config.augment,
        say=_of_rank(say, mesh),
        device=device,
    )


def _of_rank(say: Say, mesh: Mesh) -> Say:
    return say if mesh.world == 1 else lambda line: say(f"worker {mesh.rank}: {line}")


def count_steps(config: Config, manifest: Manifest) -> tuple[int, int, int]:
    """Samples an epoch, optimizer steps an epoch, and steps of the whole run."""
    samples = labelled_count(manifest.split(config.data.train).samples, config.data.label_share)
    per_epoch = math.ceil(samples / config.optim.global_batch)
    total = per_epoch * config.optim.epochs
    return samples, per_epoch, min(total, config.optim.max_steps or total)


def environment(config: Config) -> dict[str, str]:
    """Environment variables that torch wants to find before it is imported."""
    return HUGE_PAGES if config.run.device == "cpu" and config.run.allocator_cache != "none" else {}


def prepare_process(config: Config) -> None:
    """Threads and memory of this process, as the configuration wants them; before the model is built."""
    import torch

    torch.set_num_threads(config.run.cpus_per_worker)
    if config.run.device == "cpu" and config.run.allocator_cache != "none":
        keep_freed_memory(large=config.run.allocator_cache == "all")


def first_batch(config: Config) -> tuple[float, int]:
    """Mean loss and number of samples of the first micro-batch of rank 0, before any step. Needs no process group."""
    import torch

    prepare_process(config)
    pieces = build(config)
    mesh = build_mesh(config.mesh, world=config.run.workers)
    whole = Mesh(rank=0, world=mesh.data, data=mesh.data)  # of the samples that sequence ranks would share
    _, _, total = count_steps(config, pieces.manifest)
    with closing(build_stream(config, pieces, whole, total).batches(0, config.optim.global_batch)) as batches:
        batch = next(batches)
    with torch.no_grad():
        loss = pieces.task.loss(pieces.model(batch, 0), batch).mean()
    return float(loss), batch.samples


def evaluate_on(
    state: State, split: str, rates: Sequence[float], draws: Sequence[int], *, keep: bool = False, say: Say = by_log
) -> Evaluation:
    """Evaluate the engine's weights on a split, over all ranks; the averaged ones where the run keeps such.

    With `keep` the answers are kept too.
    """
    from maestro_dist.parallel.partition import averaged

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
            say=_of_rank(say, mesh), device=device,
        ),
        presence(config.data.url, manifest, modalities, split, symbols=symbols),
        rates=rates, draws=draws, mesh=mesh, split=split, keep=keep, always=[m.always for m in modalities],
    )  # fmt: skip


def assemble(
    config: Config,
    mesh: Mesh,
    prepare: Callable[[Trunk, Manifest], None] = lambda model, manifest: None,
    say: Say = by_log,
) -> tuple[State, TrainStream]:
    """The state of a run at its start, with model and engine, and its training stream. A process group must exist.

    `prepare` may change the model's initial weights before the engine shards them.
    """
    from maestro_dist.model.estimate import tokens_by_modality
    from maestro_dist.optim import build_optimizer
    from maestro_dist.parallel.engine import Engine

    pieces = build(config, mesh=mesh)
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
    return state, build_stream(config, pieces, mesh, total, say, engine.device)


def run_worker(job: Job, say: Say, failed: Callable[[Exception], None] = lambda error: None) -> None:
    """Train, test, export. Called on every rank, and again from the top after a failure.

    A process group must exist. Raises `MaestroError` for what a person can mend. `failed` hears of any error first:
    before what is open is closed, which may take a while, as other ranks may be waiting for this one.
    """
    from maestro_dist.callbacks.progress import never_raising
    from maestro_dist.tracking.extras import lines_to

    say = never_raising(say)
    with lines_to(say), ExitStack() as stack:
        try:
            _train(job, say, stack)
        except Exception as error:
            failed(error)
            raise


def _train(job: Job, say: Say, stack: ExitStack) -> None:
    import torch.distributed as dist

    from maestro_dist.checkpoint import Saver, newest, restore
    from maestro_dist.loop import fit
    from maestro_dist.standardise import standardise
    from maestro_dist.start import take
    from maestro_dist.teachers import answers

    config = _patient(parse(job.config, "the driver's configuration"))
    prepare_process(config)
    mesh = build_mesh(config.mesh, world=dist.get_world_size(), rank=dist.get_rank())
    found = _agreed(newest(job.run_url) if mesh.rank == 0 else None, job.run_url)

    def begin(model: Trunk, manifest: Manifest) -> None:
        if found:
            return
        standardise(model, config, manifest, mesh)
        if job.start:
            taken, of = take(model, job.start)
            if mesh.rank == 0:
                say(f"starts with {taken} of {of} parameters from {redact(job.start)}")

    state, stream = assemble(config, mesh, begin, say)
    stack.callback(state.engine.close)
    if found:
        restore(state.engine, found)
        state.resume(found.step, found.position, found.metadata)
        if mesh.rank == 0:
            say(f"goes on at step {state.step:,} of {state.total_steps:,}, from {found.url}")
    if config.task.teachers:
        known, asked = answers(config, state.manifest, mesh, job.run_url, state.engine.device)
        state.task.learn_from(known, config.task.teacher_share)
        if asked and mesh.rank == 0:
            say(f"learns from {len(config.task.teachers)} teachers' answers for {len(known):,} training samples")
    saver = Saver(job.run_url, mesh, attempt=job.attempt, keep_last=config.checkpoint.keep_last)
    if mesh.rank == 0:
        for line in stream.warnings():
            say(line)
    log = _metric_log(job, state) if mesh.rank == 0 else None
    if log is not None:
        stack.callback(_close_log, log, say)
    callbacks = _callbacks(job, state, saver, log, say)
    stack.callback(callbacks.close)
    fit(state, stream.batches, callbacks)


def _patient(config: Config) -> Config:
    """Readers give up before the other ranks do, which would not know why they wait."""
    limit = max(1, min(config.data.timeout_s, config.run.timeout_s * 4 // 5))
    return config.model_copy(update={"data": config.data.model_copy(update={"timeout_s": limit})})


def _close_log(log: MetricLog, say: Say) -> None:
    if not log.close():
        say(f"warning: tracking has not taken all metrics; they are kept in {log.folder}, and sent if this run goes on")


def _agreed(found: CheckpointInfo | None, run_url: str) -> CheckpointInfo | None:
    """Rank 0's checkpoint on all ranks: a late record of an earlier attempt must not part them."""
    import torch
    import torch.distributed as dist

    from maestro_dist.checkpoint import find

    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    step = torch.tensor(found.step if found else -1, device=device)
    dist.broadcast(step, src=0)
    return find(run_url, int(step)) if int(step) >= 0 else None


def _metric_log(job: Job, state: State) -> MetricLog:
    from maestro_dist.tracking import MetricLog

    folder = work_folder(job.run_url)
    return MetricLog(folder, job.tracking_uri, job.mlflow_run, job.start_ms, resume_step=state.step)


def work_folder(run_url: str) -> Path:
    """The run's own folder; where its storage is remote, one on this machine for metrics and pictures."""
    local = Storage(run_url).local_path()
    if local is not None:
        return local
    digest = hashlib.sha256(run_url.encode()).hexdigest()[:12]
    return own_folder("runs") / f"{run_url.rsplit('/', 1)[-1]}-{digest}"


def _callbacks(job: Job, state: State, saver: Saver, log: MetricLog | None, say: Say) -> Callbacks:
    """In the order in which they depend on one another."""
    from maestro_dist.callbacks.checkpointing import Checkpointing
    from maestro_dist.callbacks.figures import Figures
    from maestro_dist.callbacks.final_test import FinalTest
    from maestro_dist.callbacks.health import Health
    from maestro_dist.callbacks.metrics import Metrics
    from maestro_dist.callbacks.progress import Progress
    from maestro_dist.callbacks.validation import Validation

    evaluation, data = state.config.evaluation, state.config.data

    def validate() -> Evaluation:
        return evaluate_on(state, data.validation, evaluation.rates, evaluation.draws[:1], say=say)

    def test() -> Evaluation:
        keep = evaluation.predictions and state.task.kind != "pretrain"  # which answers nothing
        return evaluate_on(state, data.test, evaluation.test_rates, evaluation.draws, keep=keep, say=say)

    metrics, validation = Metrics(log), Validation(validate, log, say)
    fence = Fence(job.run_url, job.attempt).check
    return Callbacks(
        [
            metrics,
            Health(metrics, say),
            validation,
            Figures(validation, log, job.tracking_uri, job.mlflow_run),
            Checkpointing(saver, fence),
            Progress(metrics, say),
            FinalTest(
                test,
                log,
                fence=fence,
                run_url=job.run_url,
                tracking_uri=job.tracking_uri,
                mlflow_run=job.mlflow_run,
            ),
        ]
    )
