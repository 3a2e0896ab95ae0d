"""Recordings and samples that are shorter than the window: their labels, and batches of like lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import SplitConfig, WindowConfig
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.pack import Description, RawRecording, RawSample, pack, pack_recordings
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.train import main
from maestro_dist.types import Modality

NIGHT_S, NIGHTS, G = 90.0, 90, 8
WINDOW = WindowConfig(length_s=NIGHT_S)
PULSE, TEMPERATURE = Modality("pulse", 1, 4.0, 360), Modality("temperature", 2, 0.5, 45)
ABOUT = Description(
    "nights", "internal", "", "none", task="classification", classes=("calm", "restless"), target="state",
    window_s=NIGHT_S, modalities=(PULSE, TEMPERATURE), window=WINDOW,
)  # fmt: skip


def length_of(night: int) -> float:
    """From a fifth of the longest night to all of it."""
    return NIGHT_S * (1 + night * 37 % 41 / 10) / 5


def nights() -> Iterator[RawRecording]:
    draw = np.random.default_rng(0)
    for night in range(NIGHTS):
        length = length_of(night)
        values = {
            modality.name: draw.normal(size=(round(length * modality.rate_hz), modality.variates))
            for modality in (PULSE, TEMPERATURE)
        }
        states = [(0.0, 0.6 * length, "calm" if night % 2 else "restless")]
        yield RawRecording(f"n{night}", values, states, subject=f"p{night}")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = tmp_path_factory.mktemp("nights") / "data"
    pack_recordings(url, ABOUT, nights(), shard_bytes=8000)
    return str(url)


def config_of(url: str, tmp_path: Path, **more: object) -> DataConfig:
    split = SplitConfig(by="subject", test=0.1, validation=0.1)
    cache = str(tmp_path / "cache")
    return DataConfig.model_validate({"url": url, "cache": cache, "split": split, "shuffle_shards": 4, **more})


def stream(config: DataConfig, manifest: Manifest, rank: int = 0, ranks: int = 1) -> TrainStream:
    source = SplitSource(config.url, manifest, config, tuple(manifest.select(None)), "train")
    return TrainStream(source, TrainSchedule(3, G, 100), DataRank(rank, ranks))


def keys(one: TrainStream, position: int, end: int) -> dict[int, list[str]]:
    """Of each step."""
    found: dict[int, list[str]] = {}
    for batch in one.batches(position, end):
        found.setdefault(batch.step, []).extend(batch.keys)
    return found


def test_a_short_night_is_one_window_with_the_label_of_its_time(packed: str, tmp_path: Path) -> None:
    """Its label covers 60 % of it, but of the shortest only 12 % of a window."""
    manifest = load_data(config_of(packed, tmp_path, window=WINDOW))
    assert sum(split.samples for split in manifest.splits.values()) == NIGHTS
    with pytest.raises(ConfigError, match="no window of 90 s of 'nights' has data and a label"):
        load_data(config_of(packed, tmp_path, window=WINDOW.model_copy(update={"label": "last"})))  # of its end


def test_batches_have_like_lengths_once_each_for_any_ranks(packed: str, tmp_path: Path) -> None:
    config = config_of(packed, tmp_path, like_lengths=16)
    manifest = load_data(config)
    whole = stream(config, manifest)
    assert len(manifest.split("train").shards) > 8
    epochs = keys(whole, 0, 2 * whole.samples)
    per_epoch = whole.steps_per_epoch
    for epoch in range(2):
        seen = [key for step in range(per_epoch) for key in epochs[epoch * per_epoch + step]]
        assert len(seen) == len(set(seen)) == whole.samples
    for ranks in (2, 3):
        parts = [keys(stream(config, manifest, rank, ranks), 0, whole.samples) for rank in range(ranks)]
        for step in range(per_epoch):
            assert [key for part in parts for key in part.get(step, [])] == epochs[step]
    later = keys(whole, 3 * G, whole.samples)  # goes on in the middle of a stretch
    assert later == {step: found for step, found in epochs.items() if 3 <= step < per_epoch}

    def spread(batches: dict[int, list[str]]) -> float:
        lengths = [[length_of(int(key.split("-")[0][1:])) for key in found] for found in batches.values()]
        return float(np.mean([max(one) - np.mean(one) for one in lengths if len(one) == G]))

    plain = config.model_copy(update={"like_lengths": 1})
    assert spread(epochs) < spread(keys(stream(plain, manifest), 0, 2 * whole.samples)) * 0.6


def test_what_is_read_ends_where_the_longest_of_a_batch_does(packed: str, tmp_path: Path) -> None:
    config = config_of(packed, tmp_path, like_lengths=4)
    manifest = load_data(config)
    modalities = [modality.name for modality in manifest.select(None)]
    for batch in stream(config, manifest).batches(0, 5 * G):
        longest = max(length_of(int(key.split("-")[0][1:])) for key in batch.keys)
        assert batch.host_ends(modalities) == [round(longest * 4.0), round(longest * 0.5)]


def test_like_lengths_of_packed_windows_are_refused(
    synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data.url={synthetic}", "data.like_lengths=4", f"run.storage={tmp_path}", "run.launcher=inline"]
    assert main(words) == 2
    assert "data.like_lengths: not for packed windows" in capsys.readouterr().err


def sample(night: int, duration_s: float, steps: tuple[int, int], split: str = "train") -> RawSample:
    draw = np.random.default_rng(night)
    values = {"pulse": draw.normal(size=(steps[0], 1)), "temperature": draw.normal(size=(steps[1], 2))}
    return RawSample(split, f"n{night}", night % 2, f"p{night}", f"n{night}", 0.0, duration_s, values)


def test_a_packed_sample_may_be_shorter_if_it_says_so(tmp_path: Path) -> None:
    about = replace(ABOUT, window=None)
    given = [sample(0, 90.0, (360, 45)), sample(1, 30.0, (120, 15)), sample(2, 30.0, (360, 45))]
    manifest = pack(tmp_path / "data", about, given)
    source = SplitSource(str(tmp_path / "data"), manifest, DataConfig(), (PULSE, TEMPERATURE), "train")
    batch = source.open().batch(Request(np.array([1])))
    assert batch.values["pulse"].shape == (1, 360, 1)
    assert batch.host_ends(["pulse", "temperature"]) == [120, 15]
    np.testing.assert_array_equal(batch.values["pulse"][0, :120], np.float32(given[1].values["pulse"]))


@pytest.mark.parametrize(
    ("duration_s", "steps", "message"),
    [
        (90.0, (120, 15), "pulse has shape .120, 1., not 360 steps"),
        (30.0, (119, 15), "pulse has shape .119, 1., not 120 steps"),
        (30.0, (120, 16), "temperature has shape .16, 2., not 15 steps"),
    ],
)
def test_other_lengths_are_refused(duration_s: float, steps: tuple[int, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        pack(tmp_path / "data", replace(ABOUT, window=None), [sample(0, duration_s, steps)])
