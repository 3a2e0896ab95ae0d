"""Several targets, or labels over time, some of them unknown: a restart changes no bit, ranks only rounding."""

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
from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.pack import Description, RawRecording, RawSample, pack, pack_recordings
from maestro_dist.engine.engine import destroy_process_group, init_process_group
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.types import Modality

pytestmark = pytest.mark.slow

SENSORS = (Modality("pulse", 2, 4.0, 32), Modality("warmth", 1, 1.0, 8))
SEVERAL = Description(
    "pressure", "CC0", "", "a generator", task="regression", classes=(), target="pressure", window_s=8,
    modalities=SENSORS, targets=("high", "low", "rare"),
)  # fmt: skip
OVER_TIME = Description(
    "motion", "CC0", "", "a generator", task="classification", classes=("a", "b"), target="activity", window_s=8,
    modalities=SENSORS, recording=True, window=WindowConfig(length_s=8, label_every_s=1.6),
)  # fmt: skip
SIZES = {"train": 101, "validation": 17, "test": 5}
MORE = {"several": [], "over time": ["augment.time_warp=0", "augment.shift=0"]}  # what moves values in time is refused
CUTS = [["engine.zero_stage=2", "engine.micro_batch=3"], ["mesh.sequence=2"]]


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    init_process_group("cpu", 60)
    yield
    destroy_process_group()


def samples() -> Iterator[RawSample]:
    """Some lack a sensor, or targets."""
    draw = np.random.default_rng(0)
    for split, count in SIZES.items():
        for n in range(count):
            numbers = draw.normal((120, 80, 0), (15, 10, 1e-3))
            values = {"pulse": draw.normal(size=(32, 2)) + numbers[0], "warmth": draw.normal(size=(8, 1)) + numbers[1]}
            lacks = draw.random(3) < (0.2, 0.3, 0.9)
            lacks[n % 2] = False
            values.pop(("pulse", "warmth")[n % 2] if n % 5 == 0 else "", None)
            label = np.where(lacks, np.nan, numbers)
            yield RawSample(split, f"s{n}", label, f"p{n % 7}", "", 0.0, 8.0, values)


def recordings() -> Iterator[RawRecording]:
    """Of one window each; some lack a sensor, or labels of parts."""
    draw = np.random.default_rng(0)
    for split, count in SIZES.items():
        for n in range(count):
            kinds = draw.integers(0, 2, 5)
            known = [k for k in range(5) if k == n % 5 or draw.random() < 0.6]
            labels = [(1.6 * k, 1.6 * k + 1.6, int(kinds[k])) for k in known]
            pulse = draw.normal(size=(32, 2)) + np.repeat(kinds, 7)[:32, None]
            values = {"pulse": pulse, "warmth": draw.normal(size=(8, 1))}
            values.pop(("pulse", "warmth")[n % 2] if n % 5 == 0 else "", None)
            yield RawRecording(f"{split}{n}", values, labels, subject=f"{split}{n % 7}", split=split)


@pytest.fixture(scope="module", params=MORE)
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """URL of a data set, and settings for it."""
    folder = tmp_path_factory.mktemp("data") / "set"
    if request.param == "several":
        pack(folder, SEVERAL, samples(), shard_bytes=20_000)
    else:
        pack_recordings(folder, OVER_TIME, recordings(), shard_bytes=20_000)
    return str(folder), MORE[request.param]


@pytest.fixture(scope="module")
def whole(given: tuple[str, list[str]]) -> tuple[Watch, dict[str, Tensor]]:
    """A run in one process that is evaluated in between."""
    watch = Watch(evaluates=True)
    return watch, learn(settings(given[0], *given[1]), watch)


def test_a_restart_changes_no_bit(
    whole: tuple[Watch, dict[str, Tensor]], given: tuple[str, list[str]], tmp_path: Path
) -> None:
    (watch, expected), config = whole, settings(given[0], *given[1])
    assert np.isfinite(watch.losses).all()
    saver = Saver(str(tmp_path), build_mesh(config.mesh, world=1), attempt=1, keep_last=2)
    learn(config, Watch(saver=saver, stops=True))
    later = Watch()
    found = learn(config, later, folder=str(tmp_path))
    assert later.losses == watch.losses[SAVED:]
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def on_ranks(rank: int, ranks: int, data: str, more: list[str]) -> list[tuple[list[float], float]]:
    found = []
    for cut in CUTS:
        watch = Watch(evaluates=True)
        learn(settings(data, *more, *cut), watch, rank, ranks)
        found.append((watch.losses, watch.validation))
    return found


def test_ranks_and_micro_batches_change_only_rounding(
    whole: tuple[Watch, dict[str, Tensor]], given: tuple[str, list[str]]
) -> None:
    for found in run_ranks(on_ranks, 2, *given):
        for losses, validation in found:
            assert losses == pytest.approx(whole[0].losses, abs=1e-4)
            assert validation == pytest.approx(whole[0].validation, abs=1e-4)
