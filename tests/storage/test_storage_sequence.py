"""The sequence of samples of a run is the same for any ranks and readers, after any kill, on a server with faults."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path

import pytest
import reading_ranks
from fault_proxy import FaultProxy, Rule
from reading_ranks import EPOCHS, SAMPLES, Reading, Sample, expected, killed_ranks

from maestro_dist.data.order import lane_count
from maestro_dist.data.stream import order_settings

WAYS = {
    "lanes that divide neither the batch nor the ranks": {
        "global_batch": 13, "data": {"shuffle_shards": 2, "lanes": 6},
    },
    "a share of the samples": {
        "global_batch": 10, "micro_batch": 2, "data": {"shuffle_shards": 3, "lanes": 4, "label_share": 0.6},
    },
    "mixup in three lanes": {
        "global_batch": 26, "micro_batch": 3, "augment": {"mixup": 0.3, "jitter": 0.1, "shift": 0.2},
        "data": {"shuffle_shards": 2, "lanes": 3},
    },
    "fewer samples than ranks in the last batch": {
        "global_batch": 8, "data": {"shuffle_shards": 1, "lanes": 64, "prefetch": 1},
    },
    "one lane": {"global_batch": 9, "micro_batch": 1, "data": {"shuffle_shards": 4, "lanes": 1}},
    "rare classes more often, and mixup": {
        "global_batch": 24, "micro_batch": 5, "augment": {"mixup": 0.3, "jitter": 0.1},
        "data": {"shuffle_shards": 2, "lanes": 3, "class_balance": 1.0},
    },
}  # fmt: skip
LANES = [6, 4, 3, 8, 1, 3]
RANKS_AND_READERS = list(itertools.product([1, 2, 4], [0, 1, 2]))


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("uneven"))
    reading_ranks.write(url)
    return url


def assert_complete(steps: list[tuple[int, list[Sample]]], reading: Reading) -> None:
    """Each epoch has each kept sample once; with `data.class_balance` as many in all, and all of the rare classes."""
    kept = reading.stream().samples
    assert steps[-1][0] == EPOCHS * kept
    for epoch in range(EPOCHS):
        keys = Counter(key for at, part in steps if epoch * kept < at <= (epoch + 1) * kept for key, _ in part)
        if reading.data.get("class_balance"):
            assert keys.total() == kept == SAMPLES
            assert {f"n{number:03d}" for number in range(0, SAMPLES, 9)} <= set(keys)
            continue
        assert set(keys.values()) == {1}
        assert len(keys) == kept
        assert kept < SAMPLES or set(keys) == {f"n{number:03d}" for number in range(SAMPLES)}


def read_in_phases(
    reading: Reading, phases: list[tuple[int, int]], seed: int, notes: Path, of: list[tuple[int, list[Sample]]]
) -> list[tuple[int, list[Sample]]]:
    """The sequence of a run whose ranks are killed and started again with other ranks and readers.

    It goes on from the last or an earlier step that all ranks had read, as after a checkpoint.
    """
    draw, found, position = random.Random(seed), list[tuple[int, list[Sample]]](), 0
    for number, (ranks, readers) in enumerate(phases):
        last = number == len(phases) - 1
        until = len(of) - 1 if last else len(found) + (len(of) - len(found)) // (len(phases) - number) - 1
        pace_s = 0.0 if last else draw.choice([0.0, 0.004])
        read = killed_ranks(reading, ranks, readers, position, until=until, notes=notes / str(number), pace_s=pace_s)
        saved = max(read) if last else max(len(found), until - draw.randrange(3))
        found += [read[step] for step in range(len(found), saved + 1)]
        position = found[-1][0]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("way", "lanes"), list(zip(WAYS, LANES, strict=True)))
def test_kills_and_other_ranks_change_no_sample(uneven: str, tmp_path: Path, way: str, lanes: int) -> None:
    reading = Reading(uneven, **WAYS[way])  # type: ignore[arg-type]
    of = expected(reading)
    assert_complete(of, reading)
    settings = order_settings(reading.stream()._source, 5, reading.global_batch)
    assert lane_count(settings, len(reading.stream()._shard_samples)) == lanes
    seed = list(WAYS).index(way)
    phases = [RANKS_AND_READERS[(2 * seed + more) % 9] for more in (0, 4)]  # of all ways together: all pairs
    assert read_in_phases(reading, phases, seed, tmp_path, of) == of


@pytest.mark.slow
def test_a_faulty_server_changes_no_sample(uneven: str, proxied_s3: str, proxy: FaultProxy, tmp_path: Path) -> None:
    """Each kind of fault hits shards and indexes while ranks read them, are killed and go on with a cold cache."""
    reading_ranks.write(f"{proxied_s3}/data")
    way = dict(WAYS["mixup in three lanes"])
    of = expected(Reading(uneven, **way))  # type: ignore[arg-type]
    found: list[tuple[int, list[Sample]]] = []
    for number, (ranks, readers) in enumerate([(2, 1), (4, 0)]):
        way["data"] = {**WAYS["mixup in three lanes"]["data"], "cache": str(tmp_path / f"cache {number}")}  # type: ignore[dict-item]
        for path in (r"\.tar", r"\.index"):
            faults = ["status", "refuse", "reset", "truncate", "flip"]
            proxy.add(*(Rule("GET", path, after=3 * n, requests=1, fault=f, at=700) for n, f in enumerate(faults)))  # type: ignore[arg-type]
        reading = Reading(f"{proxied_s3}/data", **way)  # type: ignore[arg-type]
        until = len(of) // 2 if number == 0 else len(of) - 1
        position = found[-1][0] if found else 0
        read = killed_ranks(reading, ranks, readers, position, until=until, notes=tmp_path / str(number))
        found += [read[step] for step in range(len(found), until + 1)]
    assert found == of
    assert proxy.hits() >= 15


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_all_ranks_and_readers_read_the_same(uneven: str, tmp_path: Path, way: str) -> None:
    """All pairs of ranks and readers, alone and in a long chain of kills."""
    reading = Reading(uneven, **WAYS[way])  # type: ignore[arg-type]
    of = expected(reading)
    for ranks, readers in RANKS_AND_READERS:
        notes = tmp_path / f"{ranks} {readers}"
        found = killed_ranks(reading, ranks, readers, 0, until=len(of) - 1, notes=notes)
        assert [found[step] for step in range(len(of))] == of
    phases = random.Random(way).sample(RANKS_AND_READERS, 9)
    assert read_in_phases(reading, phases, 1, tmp_path, of) == of
