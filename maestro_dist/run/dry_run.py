"""The dry run: everything except training, for any number of workers, on any machine."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from maestro_dist.config.paths import with_absolute_paths
from maestro_dist.config.schema import Config
from maestro_dist.data.manifest import MANIFEST_NAME, Manifest
from maestro_dist.data.storage import Storage, redact
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.run.launch import interruptible, prepare_data
from maestro_dist.run.summary import described, print_start
from maestro_dist.system.memory import available
from maestro_dist.training.builder import first_batch
from maestro_dist.training.pretrained_weights import check_pretrained
from maestro_dist.training.teachers import check_teachers

_LOG = logging.getLogger(__name__)
_TORCH_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_OPERATIONS = 2 * 10**11
"""Floating-point operations of a forward that one core computes in about five seconds."""
_TO_FILL, _BYTES_TO_FILL = 500, 40
"""Cost of the initialization per parameter: time in operations, and bytes of temporary memory."""


def dry_run(config: Config) -> int:
    """Everything up to the first optimizer step: data, mesh, plan, memory, one batch, its loss. Uses no GPU.

    It plans any number of workers, also from a manifest without shards. The batch is left out without shards, or if it
    is too large for this machine. No files remain, even if the dry run is interrupted.
    """
    with interruptible(), TemporaryDirectory(prefix="maestro_dist-dry-run-") as folder, _caches_in(folder):
        return _dry_run(_with_files_in(folder, with_absolute_paths(config)))


@contextmanager
def _caches_in(folder: str) -> Iterator[None]:
    """Torch's compiler creates its cache folder at import, even if it is not used."""
    before = os.environ.get(_TORCH_CACHE)
    os.environ[_TORCH_CACHE] = folder
    try:
        yield
    finally:
        del os.environ[_TORCH_CACHE]
        if before is not None:
            os.environ[_TORCH_CACHE] = before


def _with_files_in(folder: str, config: Config) -> Config:
    """The configuration, with all files in `folder`: the packed `data.source` and copies of remote shards."""
    data, url = config.data, Storage(config.data.url)
    if data.source and not url.exists(MANIFEST_NAME):
        from maestro_dist.data.prepare import check_place, prepare

        build_mesh(config.mesh, world=config.run.workers)  # report a wrong mesh before packing, which takes minutes
        check_place(data.source, data.url)
        _LOG.info(
            "packing %s (%s) to a temporary folder, which the dry run removes at its end; a run would pack it to %s",
            data.source.path,
            data.source.converter,
            redact(data.url),
        )
        packed = f"{folder}/data"
        prepare(data.source, packed)
        data = data.model_copy(update={"url": packed})
    data = data.model_copy(update={"cache": f"{folder}/shards"})
    return config.model_copy(update={"data": data})


def _dry_run(config: Config) -> int:
    manifest, shards = prepare_data(config, bare=True)
    print_start(config, manifest)
    if start := check_pretrained(config, manifest):
        print(f"start      weights of {redact(start)}")
    check_teachers(config, manifest)
    for teacher in config.task.teachers:
        print(f"teacher    {redact(teacher)}, not used in a dry run: the loss is computed on the labels")
    samples, micro_batch = trial_samples(config, manifest)
    where = " (on the CPU, in fp32)" if config.run.device != "cpu" or config.engine.precision != "fp32" else ""
    if not shards:
        print("first micro-batch: left out, there is a manifest but no shards")
    elif not samples:
        print("first micro-batch: left out, one sample needs more memory or time than this machine has for a dry run")
    else:
        loss, taken = first_batch(_for_this_machine(config, samples))
        of = f" of {micro_batch}, as many as this machine computes in seconds," if samples < micro_batch else ","
        moment = "any step" if config.model.summary == "none" else "any step, and before statistics are standardized"
        print(f"first micro-batch: {taken} samples{of} loss {loss:.4f} before {moment}{where}")
    print("dry run: nothing was trained and nothing was written to the run")
    return 0


def _for_this_machine(config: Config, samples: int) -> Config:
    """The configuration for one batch of `samples` on this machine.

    Without reader processes, which take longer to start than to read; with one thread, because other work may use the
    cores.
    """
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"cpus_per_worker": 1}),
            "data": config.data.model_copy(update={"loader_workers": 0}),
            "engine": config.engine.model_copy(update={"micro_batch": samples}),
        }
    )


def trial_samples(config: Config, manifest: Manifest) -> tuple[int, int]:
    """Samples of rank 0's first micro-batch that this CPU can compute in seconds, and the size of the micro-batch.

    Samples are not split over sequence ranks here, and all experts are in this process.
    """
    from maestro_dist.model.estimate import forward_operations
    from maestro_dist.model.memory import TrainingSetup, memory_estimate

    pieces = described(config, manifest)
    mesh = build_mesh(config.mesh, world=config.run.workers)
    share = math.ceil(config.optim.global_batch / mesh.data)
    micro_batch = min(config.engine.micro_batch or share, share)
    sizes = [parameter.numel() for parameter in pieces.model.parameters()]
    parameters = sum(sizes)
    fit = (_OPERATIONS - _TO_FILL * parameters) // forward_operations(config.model, pieces.modalities)
    free = available()
    if free is not None:
        pretrain = config.task.pretrain if config.task.kind == "pretrain" else None
        estimate = memory_estimate(config.model, pieces.modalities, TrainingSetup(0, 1, pretrain=pretrain))
        fit = min(fit, (free // 2 - 4 * parameters - _BYTES_TO_FILL * max(sizes)) // estimate.total)
    if config.missing.consistency:  # each sample is computed twice
        fit //= 2
    return max(0, min(micro_batch, fit)), micro_batch
