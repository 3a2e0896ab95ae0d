"""Several targets, some of them unknown: a restart changes no bit, ranks and micro-batches only rounding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks
from test_dist_learning import SAVED, Watch, learn, settings
from torch import Tensor

from maestro_dist.checkpoint import Saver
from maestro_dist.data.pack import Description, RawSample, pack
from maestro_dist.engine.engine import destroy_process_group, init_process_group
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.types import Modality

pytestmark = pytest.mark.slow

PULSE, WARMTH = Modality("pulse", 2, 4.0, 32), Modality("warmth", 1, 1.0, 8)
ABOUT = Description(
    "pressure", "CC0", "", "a generator", task="regression", classes=(), target="pressure", window_s=8,
    modalities=(PULSE, WARMTH), targets=("high", "low", "rare"),
)  # fmt: skip
CUTS = [["engine.zero_stage=2", "engine.micro_batch=3"], ["mesh.sequence=2"]]


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    init_process_group("cpu", 60)
    yield
    destroy_process_group()


def samples() -> Iterator[RawSample]:
    draw = np.random.default_rng(0)
    for split, count in {"train": 101, "validation": 17, "test": 5}.items():
        for n in range(count):
            numbers = draw.normal((120, 80, 0), (15, 10, 1e-3))
            values = {"pulse": draw.normal(size=(32, 2)) + numbers[0], "warmth": draw.normal(size=(8, 1)) + numbers[1]}
            lacks = draw.random(3) < (0.2, 0.3, 0.9)
            lacks[n % 2] = False
            values.pop(("pulse", "warmth")[n % 2] if n % 5 == 0 else "", None)
            label = np.where(lacks, np.nan, numbers)
            yield RawSample(split, f"s{n}", label, f"p{n % 7}", "", 0.0, 8.0, values)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data") / "pressure"
    pack(folder, ABOUT, samples(), shard_bytes=20_000)
    return str(folder)


@pytest.fixture(scope="module")
def whole(url: str) -> tuple[Watch, dict[str, Tensor]]:
    """A run in one process that is evaluated in between."""
    watch = Watch(evaluates=True)
    return watch, learn(settings(url), watch)


def test_a_restart_changes_no_bit(whole: tuple[Watch, dict[str, Tensor]], url: str, tmp_path: Path) -> None:
    watch, expected = whole
    assert np.isfinite(watch.losses).all()
    saver = Saver(str(tmp_path), build_mesh(settings(url).mesh, world=1), attempt=1, keep_last=2)
    learn(settings(url), Watch(saver=saver, stops=True))
    later = Watch()
    found = learn(settings(url), later, folder=str(tmp_path))
    assert later.losses == watch.losses[SAVED:]
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def on_ranks(rank: int, ranks: int, data: str) -> list[tuple[list[float], float]]:
    found = []
    for cut in CUTS:
        watch = Watch(evaluates=True)
        learn(settings(data, *cut), watch, rank, ranks)
        found.append((watch.losses, watch.validation))
    return found


def test_ranks_and_micro_batches_change_only_rounding(whole: tuple[Watch, dict[str, Tensor]], url: str) -> None:
    for found in run_ranks(on_ranks, 2, url):
        for losses, validation in found:
            assert losses == pytest.approx(whole[0].losses, abs=1e-4)
            assert validation == pytest.approx(whole[0].validation, abs=1e-4)
