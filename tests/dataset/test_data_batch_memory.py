"""Memory that a reader process shares: not overwritten while a batch is held, used again afterwards."""

from __future__ import annotations

import gc
import os
import random
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_data_readers import readers
from tiny import describe, source_of

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.batch_memory import ReceivedBatches, WrittenBatches
from maestro_dist.data.pack import RawSample, pack
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream
from maestro_dist.types import Batch, Modality

LONG = (Modality("ecg", 2, 2048.0, 4096, "mV"), Modality("acc", 3, 1024.0, 2048, "g"))
COUNT = 90


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Windows of 32 and 24 kB, each with numbers of its own; some are absent."""
    url = str(tmp_path_factory.mktemp("long"))
    draw = np.random.default_rng(0)
    samples = []
    for n in range(COUNT):
        values = {
            m.name: draw.normal(size=(m.steps, m.variates)).astype(np.float32)
            for m in LONG
            if draw.random() < 0.8 or m.name == "acc"
        }
        samples.append(RawSample("train", f"k{n}", n % 3, "p", "r", 0.0, 2.0, values))
    pack(url, describe(modalities=LONG, recording=False), samples, shard_bytes=200_000)
    return url


def stream(url: str, workers: int, batch: int = 2) -> TrainStream:
    source = source_of(url, config=DataConfig(url=url, loader_workers=workers, prefetch=3))
    return TrainStream(source, TrainSchedule(seed=1, global_batch=batch, total_steps=10**6), DataRank())


def assert_same(one: Batch, other: Batch) -> None:
    assert one.keys == other.keys
    assert one.values.keys() == other.values.keys()
    for name, tensor in one.values.items():
        assert torch.equal(tensor, other.values[name])


def shared_files(process: int) -> set[str]:
    """The anonymous files that a process has mapped, by address: other tests of this process may hold some, too."""
    gc.collect()
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return {line.split()[0] for line in lines if "/memfd:batch" in line}


@pytest.fixture
def before() -> set[str]:
    """The files that this process has mapped already."""
    return shared_files(os.getpid())


@pytest.mark.parametrize("batch", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 7))])
def test_batches_that_are_all_held_stay_as_they_were(long: str, batch: int, before: set[str]) -> None:
    """More than the files that a process may hold."""
    wanted = list(stream(long, 0, batch).batches(0, COUNT))
    held = list(stream(long, 2, batch).batches(0, COUNT))
    assert not readers()
    for one, other in zip(held, wanted, strict=True):
        assert_same(one, other)
    del held, one
    assert shared_files(os.getpid()) <= before


def test_batches_that_are_held_for_a_while_stay_as_they_were(long: str) -> None:
    draw, held = random.Random(0), list[tuple[Any, Any]]()
    pairs = zip(stream(long, 2).batches(0, 6 * COUNT), stream(long, 0).batches(0, 6 * COUNT), strict=True)
    for batch, wanted in pairs:
        kept = [batch, batch.values["acc"][1:], batch.values["acc"].numpy()[..., 0]][draw.randrange(3)]
        same = [wanted, wanted.values["acc"][1:].clone(), wanted.values["acc"].numpy()[..., 0].copy()]
        held.append((kept, same[0] if isinstance(kept, Batch) else same[1 if torch.is_tensor(kept) else 2]))
        del batch, wanted
        while len(held) > 12:
            one, other = held.pop(draw.randrange(len(held)))
            if isinstance(one, Batch):
                assert_same(one, other)
            else:
                assert np.array_equal(np.asarray(one), np.asarray(other))


def test_the_memory_is_used_again(long: str, before: set[str]) -> None:
    with closing(stream(long, 1).batches(0, 20 * COUNT)) as batches:
        for number, _ in enumerate(batches):
            if number == 200:
                break
        (reader,) = readers()
        assert 0 < len(shared_files(reader.pid)) <= 8
        assert 0 < len(shared_files(os.getpid()) - before) <= 8


def test_a_batch_may_be_written_to(long: str) -> None:
    batches = stream(long, 1).batches(0, COUNT)
    for batch, wanted in zip(batches, stream(long, 0).batches(0, COUNT), strict=True):
        assert_same(batch, wanted)
        batch.values["acc"].add_(1.0)


def ends() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def test_what_has_no_room_is_elsewhere() -> None:
    ours, theirs = ends()
    with ours, theirs:
        written = WrittenBatches(theirs.fileno())
        written.begin(100_000, [])
        assert written.shared(written.empty((10,), np.dtype(np.float32))) is None
        assert written.file() is None
        assert written.shared(written.empty((30_000,), np.dtype(np.float32))) is None
        inside = written.empty((20_000,), np.dtype(np.float32))
        shared = written.shared(inside)
        assert shared is not None
        assert written.shared(inside[::2]) is None
        assert written.shared(written.empty((20_000,), np.dtype(np.float32))) is None


def test_larger_batches_get_larger_files_and_the_small_ones_go(before: set[str]) -> None:
    ours, theirs = ends()
    with ours, theirs:
        written, received = WrittenBatches(theirs.fileno()), ReceivedBatches(ours.fileno())
        for length in (20_000, 30_000, 50_000, 20_000, 40_000):
            written.begin(8 * length, received.released())
            written.empty((length,), np.dtype(np.float64))  # a batch that is not sent
            written.begin(4 * length, [])
            array = written.empty((length,), np.dtype(np.float32))
            array[:] = length
            shared, file = written.shared(array), written.file()
            assert shared is not None
            written.sent()
            received.begin(file)
            found = received.array(shared)
            received.end()
            assert np.array_equal(found, np.full(length, length, np.float32))
            del found, array
        assert len(shared_files(os.getpid()) - before) == 2  # one file, mapped by both sides


def test_a_batch_that_was_not_sent_costs_no_file(before: set[str]) -> None:
    ours, theirs = ends()
    with ours, theirs:
        written = WrittenBatches(theirs.fileno())
        for _ in range(5):
            written.begin(400_000, [])
            written.empty((50_000,), np.dtype(np.float64))
        assert len(shared_files(os.getpid()) - before) == 1
