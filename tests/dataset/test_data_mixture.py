"""Several data sets as one: the pattern, the order, batches, statistics; and what does not fit."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.mixture.pattern import PERIOD, MixPattern
from maestro_dist.data.mixture.source import source_of
from maestro_dist.data.pack import Description, RawRecording, RawSample, pack, pack_recordings
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream, evaluation_batches
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.train import main
from maestro_dist.types import Batch, Modality

SETS = {
    "a": ((Modality("acc", 3, 8.0, 32, "g"), Modality("pulse", 1, 1.0, 4)), {"train": 37, "validation": 5, "test": 4}),
    "b": ((Modality("pulse", 1, 1.0, 4), Modality("skin", 1, 2.0, 8)), {"train": 11, "validation": 3, "test": 2}),
    "c": ((Modality("acc", 3, 8.0, 32, "g"),), {"train": 64, "validation": 6, "test": 3}),
}


def describe(name: str, **changes: Any) -> Description:
    given = {"task": "classification", "classes": ("no", "yes"), "target": "t", "window_s": 4.0, "recording": False}
    return Description(name, "CC0", "", "", modalities=SETS[name][0], **{**given, **changes})  # type: ignore[arg-type]


def samples(name: str) -> list[RawSample]:
    """Each set has a scale of its own; some samples lack a modality."""
    draw, found = np.random.default_rng(ord(name)), []
    modalities, sizes = SETS[name]
    for split, count in sizes.items():
        for number in range(count):
            values = {m.name: draw.normal(ord(name), ord(name) - 90, size=(m.steps, m.variates)) for m in modalities}
            if number % 5 == 4 and len(values) > 1:
                del values[modalities[0].name]
            who = {"subject": f"{name}{number % 4}{split}", "recording": f"{name}{number}"}
            found.append(RawSample(split=split, key=f"{name}-{split}-{number}", label=number % 2, start_s=0.0,
                                   duration_s=4.0, values=values, **who))  # fmt: skip
    return found


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sets")
    for name in SETS:
        pack(folder / name, describe(name), samples(name), shard_bytes=4000)
    return {name: str(folder / name) for name in SETS}


def config_of(urls: dict[str, str], weights: dict[str, float | None], **more: Any) -> DataConfig:
    sources = [{"url": urls[name], "weight": weight} for name, weight in weights.items()]
    return DataConfig.model_validate({"sources": sources, "shuffle_shards": 2, **more})


def stream_of(
    config: DataConfig, rank: int = 0, ranks: int = 1, batch: int = 16, micro: int | None = None
) -> TrainStream:
    manifest = load_data(config)
    source = source_of("", manifest, config, tuple(manifest.select(None)), "train")
    schedule = TrainSchedule(seed=3, global_batch=batch, total_steps=100, micro_batch=micro)
    return TrainStream(source, schedule, DataRank(rank, ranks))


def keys_of(config: DataConfig, first: int, end: int, ranks: int = 1, micro: int | None = None) -> list[list[str]]:
    """The keys of each global batch that starts in [first, end), in the order of the ranks."""
    found: dict[int, list[str]] = {}
    for rank in range(ranks):
        for batch in stream_of(config, rank, ranks, micro=micro).batches(first, end):
            found.setdefault(batch.position, []).extend(batch.keys)
    return [found[position] for position in sorted(found)]


EQUAL: dict[str, float | None] = {"a": None, "b": None, "c": None}
WEIGHTED: dict[str, float | None] = {"a": 1.0, "b": 2.0, "c": 5.0}


@pytest.mark.parametrize("weights", [[1], [1, 1], [3, 1], [37, 11, 64], [1e-9, 1, 1e9], list(range(1, 30))])
def test_the_pattern_is_even_at_every_place(weights: list[float]) -> None:
    """After any number of places, each source has its share of them, but for a few; against a slow count."""
    pattern = MixPattern(weights)
    assert pattern.shares.sum() == 1
    assert (pattern.shares > 0).all()
    wanted = np.array(weights) / sum(weights)
    assert np.abs(pattern.shares - wanted).max() <= (len(weights) + 1) / PERIOD
    of = pattern.sources(0, 3 * PERIOD)
    counts = np.cumsum(of[:, None] == np.arange(len(weights)), axis=0)
    for places in (1, 2, 17, 1000, PERIOD, PERIOD + 5, 2 * PERIOD + 1):
        np.testing.assert_array_equal(pattern.taken(places), counts[places - 1])
        assert np.abs(counts[places - 1] - places * pattern.shares).max() <= len(weights)
    np.testing.assert_array_equal(pattern.sources(PERIOD - 3, PERIOD + 3), of[PERIOD - 3 : PERIOD + 3])


def test_without_weights_an_epoch_has_each_sample_about_once(urls: dict[str, str]) -> None:
    total = 37 + 11 + 64
    keys = [key for batch in keys_of(config_of(urls, EQUAL), 0, total) for key in batch]
    assert len(keys) == total
    counts = Counter(key[0] for key in keys)
    assert all(abs(counts[name] - SETS[name][1]["train"]) <= 1 for name in SETS)
    assert max(Counter(keys).values()) <= 2


@pytest.mark.parametrize("weights", [EQUAL, WEIGHTED])
def test_each_source_is_read_completely_before_it_comes_again(
    weights: dict[str, float | None], urls: dict[str, str]
) -> None:
    """Ten epochs: of each source, the first N samples are all of them, and so are the next N."""
    keys = [key for batch in keys_of(config_of(urls, weights), 0, 10 * 112) for key in batch]
    for name in SETS:
        own, size = [key for key in keys if key[0] == name], SETS[name][1]["train"]
        assert len(own) >= size
        orders = [own[at : at + size] for at in range(0, len(own) - size + 1, size)]
        assert all(len(set(order)) == size for order in orders)
        assert len(orders) == 1 or orders[0] != orders[1], "each epoch has an order of its own"
    if weights is WEIGHTED:
        counts = Counter(key[0] for key in keys)
        np.testing.assert_allclose([counts[name] / len(keys) for name in "abc"], [1 / 8, 2 / 8, 5 / 8], atol=0.01)


@pytest.mark.parametrize("weights", [EQUAL, WEIGHTED])
def test_any_ranks_micro_batches_and_restarts_read_the_same(
    weights: dict[str, float | None], urls: dict[str, str]
) -> None:
    config = config_of(urls, weights)
    expected = keys_of(config, 0, 224)
    assert expected == keys_of(config, 0, 224, ranks=2)
    assert expected == keys_of(config, 0, 224, ranks=3, micro=2)
    assert expected[3:] == keys_of(config, 48, 224, ranks=2)
    assert expected == keys_of(config_of(urls, weights, loader_workers=2), 0, 224)


def test_one_source_is_the_data_set_itself(urls: dict[str, str]) -> None:
    """The same batches as with `data.url`, value for value."""
    plain = DataConfig.model_validate({"url": urls["a"], "shuffle_shards": 2})
    manifest = load_data(plain)
    source = SplitSource(urls["a"], manifest, plain, tuple(manifest.select(None)), "train")
    schedule = TrainSchedule(seed=3, global_batch=16, total_steps=100)
    for one, other in zip(
        TrainStream(source, schedule, DataRank()).batches(0, 74),
        stream_of(config_of(urls, {"a": None})).batches(0, 74),
        strict=True,
    ):
        assert_equal(one, other)


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.keys == other.keys
    for name in ("sample", "target", "present"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.values.keys() == other.values.keys()
    for name, values in one.values.items():
        np.testing.assert_array_equal(values, other.values[name])
        np.testing.assert_array_equal(one.rows[name], other.rows[name])


@pytest.mark.parametrize("both", [False, True])
def test_a_batch_has_what_its_samples_have(both: bool, urls: dict[str, str]) -> None:
    """Each row against the sample that was packed, also where a source lacks a modality, and in two views."""
    config = config_of(urls, EQUAL)
    manifest = load_data(config)
    source = source_of("", manifest, config, tuple(manifest.select(None)), "train")
    packed = {sample.key: sample for name in SETS for sample in samples(name)}
    numbers = np.random.default_rng(0).permutation(112)[:40]
    batch = source.open().batch(Request(numbers, drop=0.5 if both else 0.0, seed=1, both=both))
    assert batch.sample.tolist() == numbers.tolist() * (1 + both)
    names = [m.name for m in manifest.modalities]
    assert names == ["acc", "pulse", "skin"]
    for row in range(len(batch)):
        sample = packed[batch.keys[row % 40]]
        has = {name for name, there in zip(names, batch.present[row].tolist(), strict=True) if there}
        assert has <= set(sample.values)
        assert has == set(sample.values) or row >= 40
        assert int(batch.target[row]) == sample.label
        for name in has:
            place = batch.rows[name].tolist().index(row)
            np.testing.assert_array_equal(batch.values[name][place], sample.values[name].astype(np.float32))
    assert both == (int(batch.present[40:].sum()) < int(batch.present[:40].sum()) and len(batch) == 80)


def test_an_evaluation_reads_each_sample_once(urls: dict[str, str]) -> None:
    config = config_of(urls, WEIGHTED)
    manifest = load_data(config)
    source = source_of("", manifest, config, tuple(manifest.select(None)), "test")
    for ranks in (1, 2):
        keys = [k for r in range(ranks) for b in evaluation_batches(source, 4, DataRank(r, ranks)) for k in b.keys]
        assert keys == [f"{name}-test-{n}" for name in SETS for n in range(SETS[name][1]["test"])]


def test_statistics_are_those_of_the_mixture(urls: dict[str, str]) -> None:
    """Against samples that are drawn by the weights."""
    manifest = load_data(config_of(urls, WEIGHTED))
    of = {m.name: m for m in manifest.modalities}
    values = {
        name: [s.values["acc"] for s in samples(name) if s.split == "train" and "acc" in s.values] for name in "ac"
    }
    flat = {name: np.concatenate(found).astype(np.float32).astype(np.float64) for name, found in values.items()}
    mean = flat["a"].mean(0) / 6 + flat["c"].mean(0) * 5 / 6
    square = (flat["a"] ** 2).mean(0) / 6 + (flat["c"] ** 2).mean(0) * 5 / 6
    np.testing.assert_allclose(of["acc"].mean, mean, rtol=1e-5)
    np.testing.assert_allclose(of["acc"].std, np.sqrt(square - mean**2), rtol=1e-4)
    alone = next(m for m in load_manifest(urls["b"]).modalities if m.name == "skin")
    assert of["skin"] == alone
    assert manifest.splits["train"].samples == 112
    assert manifest.splits["train"].class_counts == [19 + 6 + 32, 18 + 5 + 32]


def test_recordings_and_windows_together(urls: dict[str, str], tmp_path: Path) -> None:
    about = replace(describe("c"), name="long", window=WindowConfig(length_s=4))
    given = [
        RawRecording(f"r{n}", {"acc": np.full((8 * 20, 3), n)}, "yes", split=("train", "validation", "test")[n % 3])
        for n in range(6)
    ]
    pack_recordings(tmp_path / "long", about, given)
    config = config_of({**urls, "long": str(tmp_path / "long")}, {"b": 1, "long": 3})
    keys = [key for batch in keys_of(config, 0, 21) for key in batch]
    counts = Counter(key[0] for key in keys)
    assert 15 <= counts["r"] <= 17


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("no", "maybe")}, "'a' and 'x' .* are for other tasks or classes"),
        ({"task": "none", "classes": ()}, "are for other tasks or classes"),
        ({"window_s": 4.1}, "have windows of 4 s and 4.1 s"),
        ({"modalities": (Modality("acc", 3, 8.0, 32, "m/s2"),)}, "acc has unit 'g' and 'm/s2'"),
        ({"modalities": (Modality("acc", 2, 8.0, 32, "g"),)}, "acc has variates 3 and 2"),
        ({"modalities": (Modality("acc", 3, 8.1, 32, "g"),)}, "acc has rate_hz 8.0 and 8.1"),
    ],
)
def test_what_does_not_fit_is_named(
    changes: dict[str, Any], message: str, urls: dict[str, str], tmp_path: Path
) -> None:
    about = replace(describe("c"), name="x", **changes)
    modality = about.modalities[0]
    values = {"acc": np.zeros((modality.steps, modality.variates))}
    pack(tmp_path / "x", about, [RawSample("train", "k", 0, "", "", 0.0, 4.0, values)])
    with pytest.raises(ConfigError, match=message):
        load_data(config_of({**urls, "x": str(tmp_path / "x")}, {"a": None, "x": None}))


def test_weights_are_given_for_all_or_none(urls: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="give each data set a weight, or none"):
        load_data(config_of(urls, {"a": 1.0, "b": None}))


@pytest.mark.slow
def test_a_run_trains_resumes_and_is_evaluated(urls: dict[str, str], tmp_path: Path) -> None:
    """Also from copies of the data sets elsewhere; other weights are another run."""
    import shutil

    from maestro_dist.evaluate import main as evaluate

    def words(places: dict[str, str], steps: int, weight: float = 2.0) -> list[str]:
        sources = f"[{{url: {places['a']}, weight: {weight}}}, {{url: {places['b']}, weight: 1}}]"
        run = ["run.name=m", f"run.storage={tmp_path}/runs", "run.launcher=inline", "evaluation.test_rates=[0]"]
        model = ["model.width=16", "optim.global_batch=16", f"optim.max_steps={steps}"]
        return [f"data.sources={sources}", *run, *model]

    assert main([*words(urls, 6), "--dry-run"]) == 0
    assert main(words(urls, 6)) == 0
    result = json.loads((tmp_path / "runs/m/result.json").read_text())
    assert result["evaluation"]["samples"] == 6
    for more in ([], ["--data", urls["a"]]):
        assert evaluate([str(tmp_path / "runs/m"), *more, "--json", str(tmp_path / "found.json")]) == 0
        assert json.loads((tmp_path / "found.json").read_text())["samples"] == (4 if more else 6)
    moved = {name: str(shutil.copytree(url, tmp_path / f"moved-{name}")) for name, url in urls.items()}
    assert main(words(moved, 6)) == 0, "it is finished: nothing is trained again"
    assert main(words(moved, 6, weight=3.0)) == 2


def test_a_run_on_sources_has_no_url(tmp_path: Path, capsys: pytest.CaptureFixture[str], urls: dict[str, str]) -> None:
    for more, message in (
        (["data.url=x"], "data.sources: set it, or data.url"),
        (["augment.mixup=0.2"], "augment.mixup: not with several data sets"),
        (["data.label_share=0.5"], "data.label_share: not with several data sets"),
    ):
        assert main([f"data.sources=[{{url: {urls['a']}}}]", f"run.storage={tmp_path}", *more]) == 2
        assert message in capsys.readouterr().err
    assert isinstance(load_manifest(urls["a"]), Manifest)


def test_a_source_that_changed_is_named(urls: dict[str, str], tmp_path: Path) -> None:
    pack(tmp_path / "a", describe("a"), samples("a"))
    config = config_of({"a": str(tmp_path / "a"), "b": urls["b"]}, {"a": None, "b": None})
    manifest = load_data(config)
    pack(tmp_path / "a", describe("a", target="other"), samples("a"), overwrite=True)
    load_data(config)
    with pytest.raises(DataError, match="holds other data than 'a', with which the run started"):
        source_of("", manifest, config, tuple(manifest.select(None)), "train")


def test_an_archive_may_have_training_samples_only(urls: dict[str, str], tmp_path: Path) -> None:
    """Validation then has the samples of the others."""
    given = [sample for sample in samples("b") if sample.split == "train"]
    pack(tmp_path / "b", describe("b"), given, splits=["train"])
    for order in ({"b": None, "a": None}, {"a": None, "b": None}):
        config = config_of({"a": urls["a"], "b": str(tmp_path / "b")}, dict(order))
        stream = stream_of(config)
        assert len([key for batch in stream.batches(0, stream.samples) for key in batch.keys]) == 48
        manifest = load_data(config)
        source = source_of("", manifest, config, tuple(manifest.select(None)), "validation")
        found = [key for batch in evaluation_batches(source, 4, DataRank()) for key in batch.keys]
        assert found == [f"a-validation-{number}" for number in range(5)]
