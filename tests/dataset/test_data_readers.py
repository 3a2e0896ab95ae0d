"""Readers that are killed, stopped, stuck or wrong: the same batches or one error, and no process is left."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from tiny import SIZES, source_of

from maestro_dist.config.learning import MissingConfig
from maestro_dist.config.schema import DataConfig
from maestro_dist.data import prefetch, reader_process
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.prefetch import Consumer, read_ahead
from maestro_dist.data.reader import Request, SplitReader, SplitSource
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream
from maestro_dist.data.windows import Empty
from maestro_dist.errors import MaestroError, ReaderError, StorageError
from maestro_dist.parallel.failure import report_of
from maestro_dist.types import Batch

N = SIZES["train"]


def stream(url: str, workers: int = 1, **config: Any) -> TrainStream:
    source = source_of(url, config=DataConfig(url=url, loader_workers=workers, **config))
    schedule = TrainSchedule(seed=3, global_batch=4, total_steps=20, curriculum=MissingConfig(max_rate=0.0))
    return TrainStream(source, schedule, DataRank(), Consumer())


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the readers' side has logged."""
    return [record.getMessage() for record in caplog.records if record.name == prefetch.__name__]


def numbers(batches: Iterator[Batch]) -> list[list[int]]:
    return [batch.sample.tolist() for batch in batches]


def readers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "reader_process" in " ".join(child.cmdline())]


def instead(monkeypatch: pytest.MonkeyPatch, arrays: str) -> None:
    """Have reader processes run these lines as the body of `SplitReader.arrays(self, request, empty)`."""
    code = "import os, signal, sys, time; from maestro_dist.data import reader, reader_process\n"
    code += f"read = reader.SplitReader.arrays\ndef arrays(self, request, empty):\n    {arrays}\n"
    code += "reader.SplitReader.arrays = arrays\nreader_process.serve(*map(int, sys.argv[1:]))"
    monkeypatch.setattr(reader_process, "_START", code)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on each poll takes 10 ms, but counts as before."""
    wait = threading.Condition.wait
    monkeypatch.setattr(threading.Condition, "wait", lambda self, timeout=None: wait(self, timeout and 0.01))


def test_a_killed_reader_is_replaced(packed: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = numbers(stream(packed, workers=0).batches(0, 4 * N))
    batches = stream(packed, workers=2, prefetch=2).batches(0, 4 * N)
    found = numbers(next(batches) for _ in range(3))
    for child in readers():
        child.kill()
    assert found + numbers(batches) == expected
    assert len(logged(caplog)) == 2
    killed = r"was killed by signal 9 \(Killed\); it was (asked for|reading|opening) .*\.tar"
    assert re.search(killed, logged(caplog)[0])
    assert not readers()


@pytest.mark.parametrize(
    ("line", "message", "tries"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by signal 11 (Segmentation fault)", 2),
        ("os._exit(3)", "ended with code 3", 1),
        ("raise MemoryError", "has no memory left", 1),
    ],
)
def test_a_reader_that_is_lost_again_and_again_is_worth_another_start(
    packed: str, line: str, message: str, tries: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    instead(monkeypatch, line)
    monkeypatch.setattr(prefetch, "_TRIES", tries)
    with pytest.raises(ReaderError, match=r"data\.prefetch$") as caught:
        numbers(stream(packed).batches(0, N))
    assert message in str(caught.value)
    assert len(logged(caplog)) == tries - 1
    assert not report_of(0, caught.value).final
    assert not readers()


def test_a_process_that_cannot_be_started_is_said(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ReaderError, match=r"reader 1 of 1 cannot be started .*; lower data\.loader_workers"):
        numbers(stream(packed).batches(0, N))


def test_an_exception_that_does_not_travel_comes_as_text(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, "raise type('Odd', (Exception,), {'__reduce__': None})('a strange thing')")
    with pytest.raises(RuntimeError, match=r"(?s)reader 1 of 1 \(process \d+\) failed:.*Odd: a strange thing"):
        numbers(stream(packed).batches(0, N))
    assert not readers()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_exceptions_of_the_asker_come_out_in_their_place(packed: str, workers: int) -> None:
    manifest = load_manifest(packed)
    source = SplitSource(packed, manifest, DataConfig(url=packed), tuple(manifest.select(None)), "train")

    def requests() -> Iterator[Request]:
        yield Request(torch.arange(3).numpy())
        raise KeyError("of the asker")

    batches = read_ahead(source, requests(), workers)
    assert next(batches).sample.tolist() == [0, 1, 2]
    with pytest.raises(KeyError, match="of the asker"):
        next(batches)


def test_a_stopped_reader_is_an_error_after_a_while(
    packed: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    batches = stream(packed, prefetch=1, timeout_s=40).batches(0, 4 * N)
    next(batches)
    (child,) = readers()
    child.send_signal(signal.SIGSTOP)
    hurry(monkeypatch)
    name = rf"reader 1 of 1 \(process {child.pid}\)"
    with pytest.raises(ReaderError, match=f"^{name} has given no sign of life for 40 s; it was .*train-0"):
        numbers(batches)
    assert len(logged(caplog)) == 1
    assert logged(caplog)[0].startswith(f"waiting for data for 30 s: reader 1 of 1 (process {child.pid}) is ")
    assert not readers()


def test_a_stuck_thread_is_named_with_what_it_reads(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_JOIN_S", 0.01)
    free = threading.Event()
    monkeypatch.setattr(os, "preadv", lambda *_: free.wait())
    hurry(monkeypatch)
    with pytest.raises(
        ReaderError, match=r"the reader thread .*; it was reading \S+\.tar, sample train-\d+; .*timeout_s"
    ):
        numbers(stream(packed, workers=0, timeout_s=5).batches(0, N))
    free.set()


def test_a_reader_that_gets_on_may_be_slow(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader takes longer than the limit, but gives signs of life in between."""
    looks = threading.Semaphore(0)
    wait, read = threading.Condition.wait, SplitReader.arrays

    def look(self: threading.Condition, timeout: float | None = None) -> bool:
        if timeout != prefetch._POLL_S:
            return wait(self, timeout)
        looks.release()
        return wait(self, 0.001)

    def slow(self: SplitReader, request: Request, empty: Empty = np.empty) -> Batch:
        for _ in range(3):
            for _ in range(6):  # 3 of 5 seconds
                looks.acquire()
            self._heartbeat("at it")
        return read(self, request, empty)

    monkeypatch.setattr(SplitReader, "arrays", slow)
    monkeypatch.setattr(threading.Condition, "wait", look)
    with contextlib.closing(stream(packed, workers=0, timeout_s=5, prefetch=1).batches(0, N)) as batches:
        assert len(next(batches)) == 4
        looks.release(100)


def test_an_idle_reader_ends_with_the_one_that_it_serves(packed: str) -> None:
    manifest = load_manifest(packed)
    source = SplitSource(packed, manifest, DataConfig(url=packed), tuple(manifest.select(None)), "train")
    reader = reader_process.ReaderProcess(source, "a reader", lambda what: None)
    assert reader.arrays(Request(torch.arange(3).numpy())).keys == ["train-000", "train-001", "train-002"]
    reader._connection.close()  # as the kernel does for a killed process
    assert reader._process.wait(60) == 0


def test_a_busy_reader_ends_with_the_one_that_it_serves(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, "time.sleep(600)")
    elsewhere = reader_process._START.replace("*map(int, sys.argv[1:])", "int(sys.argv[1]), 0")
    monkeypatch.setattr(reader_process, "_START", elsewhere)
    monkeypatch.setattr(prefetch, "_TRIES", 1)
    with pytest.raises(ReaderError, match="ended with code 0"):
        numbers(stream(packed).batches(0, N))


@pytest.mark.parametrize("shape", [(0, 3, 2), (5,), (3_000_000,)])
@pytest.mark.parametrize("dtype", [bool, np.float32, np.int64])
def test_arrays_of_any_size_travel_whole(shape: tuple[int, ...], dtype: type) -> None:
    """A socket takes about 200 kB at a time; a batch may be much larger."""
    array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=reader_process._send, args=[theirs.fileno(), array])
        sender.start()
        found = reader_process._receive(ours.fileno(), reader_process._ArrayHeader(array.dtype, array.shape))
        sender.join()
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert np.array_equal(found, array)


def test_closing_early_ends_a_busy_process(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, "return read(self, request, empty) if 'train' in str(request) else time.sleep(600)")
    batches = stream(packed, prefetch=2).batches(0, N)
    with contextlib.closing(batches):
        monkeypatch.setattr(prefetch._ReadAhead, "_wait_for", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            next(batches)
    assert not readers()


def test_reader_processes_load_neither_torch_nor_the_main_module() -> None:
    code = "import sys, maestro_dist.data.reader_process; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_for_a_gpu_are_pinned_by_the_readers_thread(
    packed: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    by: list[str] = []
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: by.append(threading.current_thread().name) or batch)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    manifest = load_manifest(packed)
    source = SplitSource(packed, manifest, DataConfig(url=packed), tuple(manifest.select(None)), "train")
    requests = [Request(torch.arange(3).numpy())] * 2
    list(read_ahead(source, requests, workers, Consumer(device=torch.device("cuda", 1))))
    assert by == ["read-ahead"] * 2
    list(read_ahead(source, requests, workers, Consumer(device=torch.device("cpu"))))
    assert len(by) == 2


def test_errors_of_ours_keep_their_kind(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, "from maestro_dist.data.storage import ObjectMissing; raise ObjectMissing('in one line')")
    with pytest.raises(MaestroError, match=r"^in one line$") as caught:
        numbers(stream(packed).batches(0, N))
    assert type(caught.value) is StorageError
