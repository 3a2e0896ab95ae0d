"""`data.label_share` (a part of the training samples, the same on all ranks), and modalities that are always kept."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from slow_order import slow_numbers
from tiny import MODALITIES, SIZES, describe, rewrite, source_of

from maestro_dist import rng
from maestro_dist.config.load import load_config
from maestro_dist.config.schema import DataConfig
from maestro_dist.data.label_share import KeptSamples, labelled_count
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.missing import drop_modalities, evaluation_mask
from maestro_dist.data.order import OrderSettings, rank_share
from maestro_dist.data.pack import RawSample, pack
from maestro_dist.data.shard_index import load_index
from maestro_dist.data.storage import Storage
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream, evaluation_batches
from maestro_dist.errors import ConfigError
from maestro_dist.training.builder import count_steps
from maestro_dist.types import Modality

G, N = 6, SIZES["train"]
NAMES = ["acc", "bvp", "eda", "static"]
PLAIN = [Modality(name, 1, 1.0, 1) for name in NAMES]
MARKED = [*PLAIN[:3], replace(PLAIN[3], always=True)]


def labelled_mask(seed: int, samples: int, share: float) -> np.ndarray:
    """bool [N]: the samples that are kept."""
    mask = np.zeros(samples, dtype=bool)
    mask[KeptSamples(seed, [samples], share).numbers(0)] = True
    return mask


def stream(url: str, share: float, rank: int = 0, ranks: int = 1, seed: int = 3, **options: int) -> TrainStream:
    data = DataConfig(url=url, shuffle_shards=2, label_share=share, **options)  # type: ignore[arg-type]
    schedule = TrainSchedule(seed=seed, global_batch=G, total_steps=10)
    return TrainStream(source_of(url, config=data), schedule, DataRank(rank, ranks))


@pytest.mark.parametrize(("share", "count"), [(1.0, 53), (0.5, 26), (0.1, 5), (0.001, 1)])
def test_a_share_is_a_part_of_larger_ones(share: float, count: int) -> None:
    assert labelled_count(N, share) == count
    chosen = labelled_mask(7, N, share)
    assert (chosen.shape, chosen.sum()) == ((N,), count)
    assert not (chosen & ~labelled_mask(7, N, min(1.0, share + 0.3))).any()


def test_which_samples_depends_on_the_seed_alone_and_is_fair() -> None:
    parts = np.stack([labelled_mask(seed, 2000, 0.1) for seed in range(50)])
    assert (parts.sum(axis=1) == 200).all()
    assert (parts[0] & parts[1]).sum() < 60  # 20 by chance
    assert parts.mean(axis=0).max() < 0.4  # no sample is favoured: .1 +- .04
    assert abs(np.corrcoef(parts[0], np.arange(2000))[0, 1]) < 0.1


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_chosen_samples_alone(packed: str, ranks: int) -> None:
    streams = [stream(packed, 0.4, rank, ranks) for rank in range(ranks)]
    chosen = np.flatnonzero(labelled_mask(3, N, 0.4))
    assert len(chosen) == 21
    assert {(s.samples, s.steps_per_epoch) for s in streams} == {(21, 4)}
    batches = [list(s.batches(0, 42)) for s in streams]
    shard_samples = load_manifest(packed).splits["train"].shard_samples
    for epoch in (0, 1):
        expected = slow_numbers(OrderSettings(3, G, 2), epoch, shard_samples, chosen)
        for rank in range(ranks):
            mine = [b for b in batches[rank] if b.epoch == epoch]
            assert [b.step for b in mine] == [epoch * 4 + step for step in range(4)]
            assert [b.global_samples for b in mine] == [6, 6, 6, 3]
            assert mine[-1].position == 21 * (epoch + 1)
            for g, batch in enumerate(mine):
                part = expected[g * G : (g + 1) * G]
                assert batch.sample.tolist() == part[rank_share(len(part), rank, ranks)]


def test_a_start_in_the_middle_and_reader_processes_change_nothing(packed: str) -> None:
    whole = [b.sample.tolist() for b in stream(packed, 0.4).batches(0, 42)]
    later = [b.sample.tolist() for b in stream(packed, 0.4, loader_workers=1).batches(21 + 2 * G, 42)]
    assert later == whole[6:]


def test_all_is_the_default_and_evaluation_takes_all(packed: str) -> None:
    manifest = load_manifest(packed)
    shard_samples = manifest.splits["train"].shard_samples
    plain, whole = stream(packed, 1.0), slow_numbers(OrderSettings(3, G, 2), 0, shard_samples)
    assert DataConfig().label_share == 1.0
    assert [n for b in plain.batches(0, N) for n in b.sample.tolist()] == whole
    some = DataConfig(url=packed, label_share=0.1)
    found = evaluation_batches(source_of(packed, config=some), 8, DataRank())
    assert sum(len(b) for b in found) == N


def test_steps_follow(packed: str) -> None:
    config = load_config(None, [f"data.url={packed}", "data.label_share=0.4", "optim.global_batch=6", "optim.epochs=3"])
    assert count_steps(config, load_manifest(packed)) == (21, 4, 12)


@pytest.mark.parametrize("share", ["0", "1.1", "-0.5", "nan"])
def test_a_share_is_above_0_and_up_to_1(share: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.label_share"):
        load_config(None, [f"data.label_share={share}"])


def test_classes_that_get_no_sample_are_named(packed: str, samples: list[RawSample]) -> None:
    labels = np.array([s.label for s in samples if s.split == "train"])
    for seed in range(20):
        lost = sorted(set(range(3)) - set(labels[labelled_mask(seed, N, 0.05)].tolist()))
        found = stream(packed, 0.05, seed=seed).warnings()
        names = ", ".join(describe().classes[number] for number in lost)
        assert len(found) == bool(lost)
        assert not lost or f"label_share 0.05 leaves 3 training samples, none of {names};" in found[0]
    assert stream(packed, 1.0).warnings() == []


def test_a_bad_sample_does_not_stop_the_count(fresh: str) -> None:
    def change(key: str, members: dict[str, bytes]) -> None:
        members["json"] = b"{}"

    rewrite(fresh, change)
    assert "none of rest, walk, run;" in stream(fresh, 0.5).warnings()[0]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0, 3.0, 0.5])
def test_wrong_classes_in_an_index_do_not_stop_the_count(fresh: str, wrong: float) -> None:
    storage, manifest = Storage(fresh), json.loads(Path(fresh, "manifest.json").read_text())
    for shard, entry in zip(
        load_manifest(fresh).split("train").shards, manifest["splits"]["train"]["shards"], strict=True
    ):
        data = replace(load_index(storage, shard), targets=np.full(shard.samples, wrong)).to_bytes()
        storage.write(shard.index, data)
        entry["index_sha256"] = hashlib.sha256(data).hexdigest()
    storage.write("manifest.json", json.dumps(manifest).encode())
    assert "none of rest, walk, run;" in stream(fresh, 0.5).warnings()[0]


# modalities that are always kept


def test_masks_and_dropout_spare_what_is_always_there() -> None:
    present = np.random.default_rng(4).random((300, 4)) < 0.7
    present[:, 3] = True
    present[:9, :3] = False  # nothing else is there
    always, sample = [False, False, False, True], np.arange(300)
    for rate in (0.3, 1.0):
        kept = evaluation_mask(present, rate, 1, always)
        assert kept[:, 3].all()
        assert (kept[:, :3] == evaluation_mask(present[:, :3], rate, 1)).all()
        assert (kept[9:, :3].any(axis=1) == present[9:, :3].any(axis=1)).all()
    drop = {"p": 0.8, "seed": 1, "step": 5}
    kept = drop_modalities(present, sample, MARKED, **drop)  # type: ignore[arg-type]
    assert kept[:, 3].all()
    assert (kept[:, :3] == drop_modalities(present[:, :3], sample, PLAIN[:3], **drop)).all()  # type: ignore[arg-type]
    assert kept[:, :3].mean() < 0.4
    alone = np.ones((5, 1), dtype=bool)
    assert evaluation_mask(alone, 1.0, 0, [True]).all()
    assert drop_modalities(alone, sample[:5], MARKED[3:], **drop).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("always", [None, [False] * 4])
def test_without_such_modalities_nothing_changes(always: list[bool] | None) -> None:
    present = np.random.default_rng(5).random((200, 4)) < 0.7
    plain = np.random.default_rng(2).random((200, 4)) >= 0.2
    whole = (present & plain).any(axis=1) | ~present.any(axis=1)
    assert (evaluation_mask(present, 0.2, 2, always) == (present & plain))[whole].all()
    found = drop_modalities(present, np.arange(200), PLAIN, p=0.5, seed=1, step=5)
    plain = np.stack([rng.uniform_np(rng.key(1, "missing", 5, name), np.arange(200)) >= 0.5 for name in NAMES], 1)
    whole = (present & plain).any(axis=1) | ~present.any(axis=1)
    assert (found == (present & plain))[whole].all()


def test_the_manifest_says_it_only_where_it_is_so(fresh: str, samples: list[RawSample], tmp_path: Path) -> None:
    assert "always" not in Path(fresh, "manifest.json").read_text()
    kept = tuple(replace(m, always=m.name == "temp") for m in MODALITIES)
    marked = pack(str(tmp_path / "marked"), describe(modalities=kept), samples, shard_bytes=20_000)
    plain = load_manifest(fresh)
    assert [(m.name, m.always) for m in marked.select(None)] == [("acc", False), ("ecg", False), ("temp", True)]
    assert marked.splits == plain.splits
    assert marked.fingerprint() != plain.fingerprint()
    assert load_manifest(str(tmp_path / "marked")) == marked
    assert Manifest.model_validate(json.loads(plain.model_dump_json())).fingerprint() == plain.fingerprint()
