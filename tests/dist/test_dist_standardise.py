"""Features of summary tokens start standardised, and alike for any number of workers."""

from __future__ import annotations

import numpy as np
import pytest
import runs
import torch
from ranks import run_ranks

from maestro_dist.config.load import load_config
from maestro_dist.config.schema import Config
from maestro_dist.data.manifest import load_manifest
from maestro_dist.parallel.mesh import Mesh, build_mesh
from maestro_dist.training.builder import build
from maestro_dist.training.feature_scaling import first_samples, standardise

SUMMARY = ["model.summary=statistics", "model.summary_bands=3", "run.launcher=inline"]


def settings(data: str, *extra: str) -> Config:
    return load_config(None, [*runs.TINY, *SUMMARY, f"data.url={data}", *extra])


def standards(config: Config, mesh: Mesh) -> dict[str, np.ndarray]:
    pieces = build(config, mesh=mesh)
    standardise(pieces.model, config, pieces.manifest, mesh)
    named = pieces.model.named_parameters()
    return {name: p.detach().numpy().copy() for name, p in named if name.endswith(("summary.shift", "log_scale"))}


def on_rank(rank: int, ranks: int, data: str, *extra: str) -> dict[str, np.ndarray]:
    config = settings(data, *extra)
    return standards(config, build_mesh(config.mesh, world=ranks, rank=rank))


def test_the_first_samples_have_mean_0_and_deviation_1(synthetic: str) -> None:
    config = settings(synthetic)
    pieces = build(config)
    standardise(pieces.model, config, pieces.manifest, Mesh(rank=0, world=1, data=1))
    seen: list[torch.Tensor] = []
    embedding = pieces.model.embeddings["acc"]
    embedding.summary.linear.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    for batch in first_samples(config, pieces.manifest, pieces.modalities):
        embedding(batch.values["acc"], batch.recording.get("acc"), torch.float32)
    z = torch.cat(seen)
    assert len(z) > 70  # those of 101 that have it
    assert z.mean(0).abs().max() < 0.05
    spread = z.std(0)
    assert ((spread - 1).abs() < 0.1).float().mean() > 0.8
    assert spread.max() < 1.1  # some never change, and some lie far out


def test_with_a_level_only_or_no_summary_there_is_less_or_nothing_to_do(synthetic: str) -> None:
    whole = Mesh(rank=0, world=1, data=1)
    level = standards(settings(synthetic, "model.summary=level", "model.summary_bands=0"), whole)
    assert {name: len(value) for name, value in level.items() if name.endswith("shift")} == {
        "embeddings.acc.summary.shift": 4,
        "embeddings.bvp.summary.shift": 2,
        "embeddings.temp.summary.shift": 2,
    }
    assert standards(settings(synthetic, "model.summary=none"), whole) == {}


@pytest.mark.parametrize("extra", [(), ("mesh.sequence=2",)])
def test_ranks_start_alike(synthetic: str, extra: tuple[str, ...]) -> None:
    expected = standards(settings(synthetic), Mesh(rank=0, world=1, data=1))
    assert len(expected) == 6
    for found in run_ranks(on_rank, 2, synthetic, "run.workers=2", *extra):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert (found[name] == value).all()
            assert np.isfinite(value).all()


def test_few_of_the_numbers_of_long_recordings_are_read(synthetic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, manifest = settings(synthetic), load_manifest(synthetic)
    modalities = manifest.select(None)
    numbers = sum(modality.steps * modality.variates for modality in modalities)
    monkeypatch.setattr("maestro_dist.training.feature_scaling.NUMBERS", 7 * numbers + 1)
    monkeypatch.setattr("maestro_dist.training.feature_scaling._AT_ONCE", 2 * numbers)
    assert [len(batch) for batch in first_samples(config, manifest, modalities)] == [2, 2, 2, 1]
    monkeypatch.setattr("maestro_dist.training.feature_scaling.NUMBERS", 1)
    assert [len(batch) for batch in first_samples(config, manifest, modalities)] == [1]
