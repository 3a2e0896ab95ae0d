"""Scale the features of the summary tokens to mean 0 and standard deviation 1 over the first training samples.

Rank 0 measures the first samples in the order of the run and broadcasts the result. So the result is the same for any
number of workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from maestro_dist.config.schema import Config
from maestro_dist.data.label_share import KeptSamples
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.mixture.source import source_of
from maestro_dist.data.reader import Request
from maestro_dist.data.stream import epoch_order, order_settings
from maestro_dist.types import Batch, Modality

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.model.embedding import Embedding
    from maestro_dist.model.maestro import Trunk
    from maestro_dist.model.summary import Summary
    from maestro_dist.parallel.mesh import Mesh

SAMPLES, NUMBERS = 2048, 1 << 26
"""At most this many samples are measured, and at most this many numbers in all; at least one sample."""

_AT_ONCE = 1 << 22  # numbers in a batch


def standardise(model: Trunk, config: Config, manifest: Manifest, mesh: Mesh) -> None:
    """Set `shift` and `log_scale` of the summary modules of a new model, before it is sharded. All ranks call it.

    Raises:
        DataError: samples cannot be read.
    """
    import torch

    if config.model.summary == "none":
        return
    measured: dict[str, Tensor] = {}
    if mesh.rank == 0:
        measured = moments(model, first_samples(config, manifest, model.modalities))
    for modality in model.modalities:
        summary = _summary(model, modality.name)
        shape = (2, modality.variates, summary.count)
        scales = measured.get(modality.name, torch.zeros(shape, dtype=torch.float64))
        if mesh.world > 1:
            from torch import distributed as dist

            device = "cuda" if dist.get_backend() == "nccl" else "cpu"
            scales = scales.to(device)
            dist.broadcast(scales, src=0)
        summary.standardise(*scales.to(summary.shift.device))


def first_samples(config: Config, manifest: Manifest, modalities: list[Modality]) -> Iterator[Batch]:
    """The first training samples of the first epoch, as it is without `data.label_share` and `data.class_balance`:
    complete, not augmented."""
    split = manifest.split(config.data.train)
    source = source_of(config.data.url, manifest, config.data, tuple(modalities), config.data.train)
    settings = order_settings(replace(source, augment=config.augment), config.run.seed, config.optim.global_batch)
    order = epoch_order(source, settings, 0, KeptSamples(config.run.seed, split.shard_samples))
    numbers = max(1, sum(modality.steps * modality.variates for modality in modalities))
    count = min(split.samples, max(1, min(SAMPLES, NUMBERS // numbers)))
    steps = -(-count // settings.global_batch)
    chosen = np.concatenate([order.batch(number) for number in range(steps)])[:count]
    size = max(1, _AT_ONCE // numbers)
    with closing(source.open()) as reader:
        for start in range(0, count, size):
            yield reader.batch(Request(np.sort(chosen[start : start + size])))


def moments(model: Trunk, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Mean and standard deviation, float64 [2, D, F], of each modality's features; 0 and 0 if none was observed."""
    import torch

    from maestro_dist.model.context import OneProcess
    from maestro_dist.model.embedding import Embedding

    embeddings = {m.name: Embedding(model.config, m, model.time, OneProcess()) for m in model.modalities}
    measured: dict[str, Tensor] = {}
    with torch.no_grad():
        for batch in batches:
            for name, embedding in embeddings.items():
                reference = embedding.reference(batch.recording.get(name))
                features = embedding.prepare(batch.values[name], reference, model.unit.dtype).features
                assert features is not None
                seen = ~features.isnan()
                x = torch.where(seen, features, 0).double()
                sums = torch.stack((seen.sum(0).double(), x.sum(0), x.square().sum(0)))
                measured[name] = measured[name] + sums if name in measured else sums
    result = {}
    for name, (n, total, square) in measured.items():
        mean = total / n.clamp_min(1)
        result[name] = torch.stack((mean, (square / n.clamp_min(1) - mean.square()).clamp_min(0).sqrt()))
    return result


def _summary(model: Trunk, name: str) -> Summary:
    summary = cast("Embedding", model.embeddings[name]).summary
    assert summary is not None
    return summary
