"""Everything of a run but its training, for any number of workers, on a machine that need not be like theirs."""

from __future__ import annotations

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

_TORCH_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_OPERATIONS = 2 * 10**11
"""What one core does in about five seconds, in floating-point operations of a model's forward."""
_TO_FILL, _BYTES_TO_FILL = 500, 40
"""What it takes to draw a parameter: as long as so many operations, and bytes until its tensor is filled."""


def dry_run(config: Config) -> int:
    """Everything up to the first optimizer step: data, mesh, plan, memory, one batch, its loss. Takes no device.

    Any number of workers can be planned, also from a manifest without its shards; the batch is then left out, as it is
    where this machine could not take it. Nothing is left behind, also where the dry run is stopped.
    """
    with interruptible(), TemporaryDirectory(prefix="maestro_dist-dry-run-") as folder, _caches_in(folder):
        return _dry_run(_kept_in(folder, with_absolute_paths(config)))


@contextmanager
def _caches_in(folder: str) -> Iterator[None]:
    """Torch's compiler makes its cache as it is imported, used or not."""
    before = os.environ.get(_TORCH_CACHE)
    os.environ[_TORCH_CACHE] = folder
    try:
        yield
    finally:
        del os.environ[_TORCH_CACHE]
        if before is not None:
            os.environ[_TORCH_CACHE] = before


def _kept_in(folder: str, config: Config) -> Config:
    """The configuration with what a run would keep in `folder`: the packed `data.source`, copies of remote shards."""
    data, url = config.data, Storage(config.data.url)
    if data.source and not url.exists(MANIFEST_NAME):
        from maestro_dist.data.prepare import check_place, prepare

        build_mesh(config.mesh, world=config.run.workers)  # a wrong grid is told before the minutes of packing
        check_place(data.source, data.url)
        print(
            f"packing {data.source.path} ({data.source.converter}) to a temporary folder, which goes with the dry run; "
            f"a run would pack it to {redact(data.url)}",
            flush=True,
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
        print(f"teacher    {redact(teacher)}, not asked in a dry run: the loss is that on the labels")
    samples, whole = trial_samples(config, manifest)
    where = " (on the CPU, in fp32)" if config.run.device != "cpu" or config.engine.precision != "fp32" else ""
    if not shards:
        print("first micro-batch: left out, there is only the manifest and no shard")
    elif not samples:
        print("first micro-batch: left out, one sample takes more memory or time than this machine has for a dry run")
    else:
        loss, taken = first_batch(_here(config, samples))
        of = f" of {whole}, as many as this machine takes in seconds," if samples < whole else ","
        before = "any step" if config.model.summary == "none" else "any step, and before statistics are standardised"
        print(f"first micro-batch: {taken} samples{of} loss {loss:.4f} before {before}{where}")
    print("dry run: nothing was trained and nothing was written to the run")
    return 0


def _here(config: Config, samples: int) -> Config:
    """The configuration for one batch of so many samples on this machine, whatever else runs there.

    Reader processes would take longer to start than to read; threads that wait for a busy core cost more than they add.
    """
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"cpus_per_worker": 1}),
            "data": config.data.model_copy(update={"loader_workers": 0}),
            "engine": config.engine.model_copy(update={"micro_batch": samples}),
        }
    )


def trial_samples(config: Config, manifest: Manifest) -> tuple[int, int]:
    """Samples of rank 0's first micro-batch that this machine can take on the CPU in seconds, and all that are in it.

    They are taken whole, also where sequence ranks would share them, with all experts in one place.
    """
    from maestro_dist.model.estimate import forward_operations
    from maestro_dist.model.memory import TrainingSetup, memory_estimate

    pieces = described(config, manifest)
    mesh = build_mesh(config.mesh, world=config.run.workers)
    share = math.ceil(config.optim.global_batch / mesh.data)
    whole = min(config.engine.micro_batch or share, share)
    sizes = [parameter.numel() for parameter in pieces.model.parameters()]
    parameters = sum(sizes)
    fit = (_OPERATIONS - _TO_FILL * parameters) // forward_operations(config.model, pieces.modalities)
    free = available()
    if free is not None:
        pretrain = config.task.pretrain if config.task.kind == "pretrain" else None
        one = memory_estimate(config.model, pieces.modalities, TrainingSetup(0, 1, pretrain=pretrain))
        fit = min(fit, (free // 2 - 4 * parameters - _BYTES_TO_FILL * max(sizes)) // one.total)
    if config.missing.consistency:  # each is seen twice
        fit //= 2
    return max(0, min(whole, fit)), whole
