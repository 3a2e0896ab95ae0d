"""Training on sequence ranks with caches of their own gives the same weights from parts as from complete shards."""

from __future__ import annotations

import sys
from pathlib import Path

import long_windows as long
import numpy as np
import pytest
from fault_proxy import FaultProxy

from maestro_dist.data.manifest import load_manifest

sys.path.append(str(Path(__file__).parents[1] / "dist"))
from ranks import run_ranks

SETTINGS = [
    "model.width=16", "model.heads=2", "model.word={acc: 720, ecg: 7200, temp: 18}", "model.stem=null",
    "model.summary=none", "model.dropout=0.1", "optim.global_batch=3", "optim.epochs=2", "optim.optimizer=sgd",
    "optim.lr=0.05", "mesh.sequence=2", "run.launcher=inline",
]  # fmt: skip


def train(rank: int, ranks: int, data: str, cache: str, extra: list[str]) -> tuple[dict[str, np.ndarray], list[float]]:
    """What this rank owns of the weights in the end, and its part of the losses."""
    from maestro_dist.callbacks.base import Callback, State, StepRecord
    from maestro_dist.config.load import load_config
    from maestro_dist.engine.partition import owned_slices
    from maestro_dist.parallel.mesh import build_mesh
    from maestro_dist.training.builder import assemble
    from maestro_dist.training.loop import fit

    class Losses(Callback):
        def on_step(self, state: State, record: StepRecord) -> None:
            losses.append(float(record.loss))

    losses: list[float] = []
    config = load_config(None, [*SETTINGS, f"data.url={data}", f"data.cache={cache}/{rank}", *extra])
    state, stream = assemble(config, build_mesh(config.mesh, world=ranks, rank=rank))
    fit(state, stream.batches, Losses())
    owned = {f"{s.name} {kind}": t.numpy().copy() for s in owned_slices(state.engine) for kind, t in s.tensors.items()}
    state.engine.close()
    return owned, losses


@pytest.mark.slow
def test_parts_give_the_weights_of_complete_shards(proxied_s3: str, proxy: FaultProxy, tmp_path: Path) -> None:
    long.pack_long(proxied_s3)
    readers = ["data.loader_workers=1"]
    proxy.forget()
    parts = run_ranks(train, 2, proxied_s3, str(tmp_path / "parts"), readers)
    data = sum(shard.bytes for shard in load_manifest(proxied_s3).split("train").shards)
    assert 0.99 * data < proxy.count("GET", r"train-").bytes <= 1.02 * data
    proxy.forget()
    whole = run_ranks(train, 2, proxied_s3, str(tmp_path / "whole"), [*readers, "data.max_bad_samples=1"])
    assert proxy.count("GET", r"train-\d+\.tar").bytes == 2 * data
    for (owned, losses), (expected, expected_losses) in zip(parts, whole, strict=True):
        assert losses == expected_losses
        assert len(losses) == 2 * -(-long.SAMPLES // 3)
        assert owned.keys() == expected.keys()
        for name, value in owned.items():
            assert value.tobytes() == expected[name].tobytes()
