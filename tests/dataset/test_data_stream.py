from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from slow_order import slow_numbers
from tiny import SIZES, describe, source_of

from maestro_dist.config.learning import AugmentConfig, MissingConfig
from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.missing import drop_modalities, drop_probability, evaluation_mask
from maestro_dist.data.order import OrderSettings, rank_share
from maestro_dist.data.pack import RawSample, pack
from maestro_dist.data.reader import presence
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream, evaluation_batches
from maestro_dist.errors import DataError
from maestro_dist.parallel.sequence import time_cuts
from maestro_dist.types import Batch

G, N = 12, SIZES["train"]
STEPS = -(-N // G)
CURRICULUM = MissingConfig(max_rate=0.5, ramp_start=0.1, ramp_end=0.5)
MODALITIES = sorted(tiny.MODALITIES, key=lambda modality: modality.name)
NAMES = [modality.name for modality in MODALITIES]


def stream(
    url: str,
    rank: int = 0,
    ranks: int = 1,
    micro: int | None = None,
    slices: dict[str, tuple[int, int]] | None = None,
    augment: AugmentConfig | None = None,
    consistency: float = 0.0,
    **config: object,
) -> TrainStream:
    data = DataConfig(url=url, shuffle_shards=2, **config)  # type: ignore[arg-type]
    curriculum = CURRICULUM.model_copy(update={"consistency": consistency})
    schedule = TrainSchedule(3, G, 2 * STEPS, micro, curriculum)
    return TrainStream(source_of(url, config=data, slices=slices, augment=augment), schedule, DataRank(rank, ranks))


def assert_equal(a: Batch, b: Batch) -> None:
    for name in NAMES:
        assert torch.equal(a.values[name].nan_to_num(-99), b.values[name].nan_to_num(-99))
        assert torch.equal(a.rows[name], b.rows[name])
        assert torch.equal(a.recording[name], b.recording[name])
    assert torch.equal(a.present, b.present)
    assert torch.equal(a.sample, b.sample)
    assert torch.equal(a.target, b.target)
    assert (a.keys, a.last, a.step, a.epoch) == (b.keys, b.last, b.step, b.epoch)
    assert (a.position, a.global_samples) == (b.position, b.global_samples)


@pytest.mark.parametrize("ranks", [2, 3])
def test_slices_of_time_join_to_the_whole(packed: str, ranks: int) -> None:
    cuts = {m.name: time_cuts(m.steps, 4, ranks) for m in load_manifest(packed).select(None)}
    parts = [
        list(stream(packed, slices={name: (ends[rank], ends[rank + 1]) for name, ends in cuts.items()}).batches(0, N))
        for rank in range(ranks)
    ]
    for whole, *shares in zip(stream(packed).batches(0, N), *parts, strict=True):
        for share in shares:
            assert share.values.keys() == whole.values.keys()
        joined = {name: torch.cat([share.values[name] for share in shares], 1) for name in NAMES}
        assert_equal(replace(shares[0], values=joined), whole)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("micro", [None, 1, 3, 100])
def test_all_ranks_together_take_each_global_batch_once(
    packed: str, samples: list[RawSample], ranks: int, micro: int | None
) -> None:
    streams = [stream(packed, rank, ranks, micro) for rank in range(ranks)]
    batches = [list(s.batches(0, 2 * N)) for s in streams]
    accumulation = -(-G // (ranks * (micro or -(-G // ranks))))
    assert {len(b) for b in batches} == {2 * STEPS * accumulation}
    assert {s.accumulation for s in streams} == {accumulation}
    train = [s for s in samples if s.split == "train"]
    shard_samples = load_manifest(packed).splits["train"].shard_samples
    for step in range(2 * STEPS):
        epoch, g = divmod(step, STEPS)
        expected = slow_numbers(OrderSettings(3, G, 2), epoch, shard_samples)[g * G : (g + 1) * G]
        mine = [[b for b in of_rank if b.step == step] for of_rank in batches]
        for rank, parts in enumerate(mine):
            assert [n for b in parts for n in b.sample.tolist()] == expected[rank_share(len(expected), rank, ranks)]
            assert [b.last for b in parts] == [False] * (accumulation - 1) + [True]
            assert {len(b) <= (micro or G) for b in parts} == {True}
            position = epoch * N + min(N, (g + 1) * G)
            assert {(b.epoch, b.position, b.global_samples) for b in parts} == {(epoch, position, len(expected))}
        for batch in (b for parts in mine for b in parts):
            check_against_source(batch, train, step)


def check_against_source(batch: Batch, source: list[RawSample], step: int) -> None:
    """Row by row: a batch holds the packed windows, without the modalities that the curriculum drops."""
    p = drop_probability(CURRICULUM, step, 2 * STEPS)
    taken = dict.fromkeys(NAMES, 0)
    for row, number in enumerate(batch.sample.tolist()):
        raw = source[number]
        assert (batch.keys[row], int(batch.target[row])) == (raw.key, raw.label)
        natural = np.array([[name in raw.values for name in NAMES]])
        left = drop_modalities(natural, np.array([number]), MODALITIES, p=p, seed=3, step=step)[0]
        assert batch.present[row].tolist() == left.tolist()
        for name in np.array(NAMES)[left].tolist():
            at = taken[name]
            taken[name] += 1
            assert int(batch.rows[name][at]) == row
            assert np.array_equal(batch.values[name][at].numpy(), raw.values[name], equal_nan=True)
            assert batch.recording[name][at].numpy() == pytest.approx(raw.statistics[name], rel=1e-6)
    assert taken == {name: len(batch.rows[name]) for name in NAMES}


@pytest.mark.parametrize("start", [0, 1, STEPS - 1, STEPS, STEPS + 2])
def test_a_start_in_the_middle_gives_the_same_batches(packed: str, start: int) -> None:
    epoch, g = divmod(start, STEPS)
    whole = [b for b in stream(packed, 1, 2, 4).batches(0, 2 * N) if b.step >= start]
    later = list(stream(packed, 1, 2, 4).batches(epoch * N + g * G, 2 * N))
    assert len(whole) == len(later) > 0
    for a, b in zip(whole, later, strict=True):
        assert_equal(a, b)


def test_a_position_inside_a_global_batch_is_refused(packed: str) -> None:
    with pytest.raises(DataError, match="position 13 is not at the start of a global batch of 12"):
        stream(packed).batches(13, N)


def test_reader_processes_give_the_same_batches(packed: str) -> None:
    state = torch.get_rng_state()
    thread = list(stream(packed).batches(0, N))
    processes = list(stream(packed, loader_workers=2, prefetch=3).batches(0, N))
    assert torch.equal(state, torch.get_rng_state())
    assert len(thread) == len(processes) == STEPS
    for a, b in zip(thread, processes, strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_come_out_unchanged(fresh: str, workers: int) -> None:
    path = Path(fresh, load_manifest(fresh).splits["train"].shards[1].path)
    path.write_bytes(path.read_bytes()[:-1024])
    with pytest.raises(DataError, match=r"^/\S+train-000001.tar: \d+ bytes instead of \d+; copy the shard"):
        list(stream(fresh, loader_workers=workers).batches(0, N))


def test_closing_early_ends_the_reader(packed: str) -> None:
    batches = stream(packed, prefetch=1).batches(0, 100 * N)
    next(batches)
    assert "read-ahead" in {thread.name for thread in threading.enumerate()}
    started = time.monotonic()
    batches.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 2
    assert "read-ahead" not in {thread.name for thread in threading.enumerate()}


def test_remote_data_comes_through_the_cache(packed: str, samples: list[RawSample], tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4()}/set"
    manifest = pack(url, describe(), samples, shard_bytes=20_000)
    cache = tmp_path / "cache"
    local, remote = stream(packed).batches(0, N), stream(url, cache=str(cache)).batches(0, N)
    for a, b in zip(local, remote, strict=True):
        assert_equal(a, b)
    copies = sorted(cache.rglob("*.tar"))
    assert sorted(p.stem for p in copies) == sorted(s.sha256 for s in manifest.splits["train"].shards)
    copies[0].write_bytes(b"damaged")
    again = stream(url, cache=str(cache)).batches(0, N)
    for a, b in zip(stream(packed).batches(0, N), again, strict=True):
        assert_equal(a, b)
    assert copies[0].stat().st_size > 7


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_evaluation_covers_each_sample_once(packed: str, ranks: int, size: int) -> None:
    source = source_of(packed, "test")
    source = replace(source, modalities=tuple(source.manifest.select(["temp", "acc"])))
    keep = evaluation_mask(presence(source), 0.4, 1)

    def batches(rank: int) -> Iterator[Batch]:
        return evaluation_batches(source, size, DataRank(rank, ranks), keep)

    found = [list(batches(rank)) for rank in range(ranks)]
    assert len({len(of_rank) for of_rank in found}) == 1
    numbers = [[n for b in of_rank for n in b.sample.tolist()] for of_rank in found]
    assert sorted(n for of_rank in numbers for n in of_rank) == list(range(SIZES["test"]))
    assert numbers == [list(range(SIZES["test"]))[rank_share(SIZES["test"], rank, ranks)] for rank in range(ranks)]
    for batch in (b for of_rank in found for b in of_rank):
        assert batch.present.numpy().tolist() == keep[batch.sample.numpy()].tolist()
        assert list(batch.values) == ["acc", "temp"]
    for of_round in zip(*found, strict=True):
        assert {b.global_samples for b in of_round} == {sum(len(b) for b in of_round)}


def test_keeping_what_is_not_there_changes_nothing(packed: str) -> None:
    source, keep = source_of(packed, "test"), np.ones((SIZES["test"], 3), dtype=bool)
    plain = evaluation_batches(source, 8, DataRank())
    asked = evaluation_batches(source, 8, DataRank(), keep)
    for a, b in zip(plain, asked, strict=True):
        assert_equal(a, b)


def test_presence_is_what_was_packed(packed: str, samples: list[RawSample]) -> None:
    for split in SIZES:
        expected = [[name in s.values for name in NAMES] for s in samples if s.split == split]
        assert presence(source_of(packed, split)).tolist() == expected
