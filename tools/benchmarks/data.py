"""Reading a training split from an S3 server, on loopback and over a link like a network: rates, requests, start.

A data set of 20 shards is on a real server (SeaweedFS). In turns it is read by bare GET requests, by the training
stream (empty cache, then filled), by plain webdataset, and from local files. Then the same goes through a proxy with
30 ms of latency and 40 MB/s for each connection. Ratios are medians over the turns, each of figures of the same turn.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.common import Options, Row, at_least, at_most
from benchmarks.data_scale import index_row, scale_rows
from benchmarks.data_set import FULL, QUICK, Size, packed
from benchmarks.data_ways import (
    LocalFiles,
    Remote,
    bare_ways,
    first_batch_s,
    hash_files,
    read_webdataset,
    stream_epochs,
    touch_memory,
    training_stream,
    write_files,
)
from benchmarks.fault_proxy import FaultProxy, Rule
from benchmarks.s3_server import s3_server
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.stream import DataRank
from maestro_dist.system.memory import keep_freed_memory

_LINK = Rule(latency_s=0.03, rate_mb_s=40.0)
_LOOPBACK, _WIRE = "loopback", "30 ms and 40 MB/s a connection"
_WORKERS = (0, 1, 2)
_COLD_SHARE = {_LOOPBACK: 0.60, _WIRE: 0.85}
_KINDS = {
    "HEAD": ("HEAD", ""),
    "lists": ("GET", r"list-type="),
    "GET of the manifest": ("GET", r"/manifest\.json"),
    "GET of indexes": ("GET", r"\.index(\.json)?$"),
    "GET of shards": ("GET", r"\.tar"),
}

Rates = dict[str, list[float]]
"""Bytes a second of each way to read, one for each turn."""


def run(options: Options) -> list[Row]:
    """All figures. Raises `RuntimeError` where SeaweedFS is not installed."""
    if options.device != "cpu":
        raise RuntimeError("data measures the reading side, which needs no GPU; leave --device out")
    keep_freed_memory()  # as in a training worker
    size, promised = (QUICK, False) if options.quick else (FULL, True)
    with tempfile.TemporaryDirectory(prefix="benchmark-data-") as name:
        folder = Path(name)
        for part in ("packed", "server", "cache", "many"):
            (folder / part).mkdir()
        manifest = packed(folder / "packed", size)
        rows = [_data_row(manifest)]
        with s3_server(folder / "server") as server, FaultProxy(server) as proxy:
            direct = Remote(server, "benchmark", manifest, size.batch)
            through = replace(direct, endpoint=proxy.url)
            with direct.environment():
                _upload(folder / "packed", direct)
            rows += _requests(through, proxy, folder / "cache", promised)
            proxy.add(_LINK)
            for link, remote, turns in zip((_LOOPBACK, _WIRE), (direct, through), size.repetitions, strict=True):
                with remote.environment():
                    rows += _reading(link, remote, folder, size, turns, promised)
        rows.append(index_row(folder / "packed", manifest))
        return rows + scale_rows(folder / "many", manifest, size, promised=promised)


def _data_row(manifest: Manifest) -> Row:
    split = manifest.split("train")
    name = f"data/the data set: {len(split.shards)} shards, {split.samples} samples"
    return Row(name, sum(shard.bytes for shard in split.shards) / 1e6, "MB")


def _upload(folder: Path, remote: Remote) -> None:
    import s3fs

    fs = s3fs.S3FileSystem()
    fs.mkdir(remote.bucket)
    for path in sorted(folder.iterdir()):
        fs.put_file(str(path), f"{remote.bucket}/{path.name}")


def _reading(link: str, remote: Remote, folder: Path, size: Size, turns: int, promised: bool) -> list[Row]:
    """All ways to read over one link, in turns."""
    local = LocalFiles(folder / "packed", remote)
    bare = bare_ways(remote)
    rates: Rates = defaultdict(list)
    firsts: list[float] = []

    def note(way: str, seconds: float, epochs: int = 1) -> None:
        rates[way].append(epochs * remote.bytes / seconds)

    for _ in range(turns):
        for way, get in bare.items():
            note(way, _seconds(get))
        for workers in _WORKERS:
            touch_memory(folder / "cache", remote.bytes)
            with tempfile.TemporaryDirectory(dir=folder / "cache") as cache:
                note(_cold(workers), stream_epochs(remote, Path(cache), workers).first_s)
                os.sync()  # else the disk is still written to
                again = stream_epochs(remote, Path(cache), workers, size.warm_epochs)
                note(_warm(workers), again.further_s, size.warm_epochs)
        note("webdataset", _seconds(lambda: read_webdataset(remote)))
        local.read()  # as the stream's first epoch, it gets memory from the operating system
        note("local", _seconds(partial(local.read, size.warm_epochs)), size.warm_epochs)
        note("hash", _seconds(lambda: hash_files(remote, folder / "packed")))
        touch_memory(folder / "cache", remote.bytes)
        with tempfile.TemporaryDirectory(dir=folder / "cache") as cache:
            note("write", _seconds(partial(write_files, remote, Path(cache))))
        touch_memory(folder / "cache", remote.bytes)
        with tempfile.TemporaryDirectory(dir=folder / "cache") as cache:
            firsts.append(first_batch_s(remote, Path(cache)))
    name = f"data/{link}"
    first = at_most(
        f"{name}, first batch in mid-epoch, empty cache", statistics.median(firsts), "s", 2.0, promised=promised
    )
    return [*_rate_rows(name, remote, rates, list(bare)), *_ratio_rows(link, rates, list(bare), promised), first]


def _rate_rows(name: str, remote: Remote, rates: Rates, bare: list[str]) -> list[Row]:
    """Each way's MB/s, and samples/s where it makes arrays of samples."""
    titles = {way: f"bare GET, {way}" for way in bare}
    for workers in _WORKERS:
        readers = ("reader thread", "1 reader process")[workers] if workers < 2 else f"{workers} reader processes"
        titles |= {_cold(workers): f"stream, empty cache, {readers}", _warm(workers): f"stream, full cache, {readers}"}
    titles |= {"webdataset": "plain webdataset", "local": "local files"}
    work = {"hash": "sha256 of local files", "write": "writing files to the cache's disk"}
    rows = []
    for way, title in (titles | work).items():
        rate = statistics.median(rates[way])
        rows.append(Row(f"{name}, {title}", rate / 1e6, "MB/s"))
        if way not in bare and way not in work:
            rows.append(Row(f"{name}, {title}, samples", rate / remote.bytes * remote.samples, "samples/s"))
    return rows


def _ratio_rows(link: str, rates: Rates, bare: list[str], promised: bool) -> list[Row]:
    """The figures to reach. Default settings (a reader thread) are held to them."""
    fastest = max(bare, key=lambda way: statistics.median(rates[way]))
    name = f"data/{link}"

    def reached(title: str, way: str, other: str, reach: float) -> Row:
        return at_least(f"{name}, {title}", _ratio(rates, way, other), "x", reach, promised=promised)

    rows = [reached(f"stream, empty cache, of bare GET ({fastest})", _cold(0), fastest, _COLD_SHARE[link])]
    rows += [
        Row(f"{name}, the same, reader processes: {workers}", _ratio(rates, _cold(workers), fastest), "x")
        for workers in _WORKERS[1:]
    ]
    rows.append(reached("stream, empty cache, times plain webdataset", _cold(0), "webdataset", 1.5))
    rows.append(reached("stream, full cache, of local files", _warm(0), "local", 0.90))
    rows.append(reached("stream, full cache, 2 reader processes, times the thread", _warm(2), _warm(0), 1.0))
    return rows


def _requests(remote: Remote, proxy: FaultProxy, cache: Path, promised: bool) -> list[Row]:
    """What a complete epoch asks the server for, with an empty cache; and the bytes for one node of 4."""
    rows = []
    with remote.environment(), tempfile.TemporaryDirectory(dir=cache) as one:
        proxy.forget()
        load_manifest(remote.url)
        stream_epochs(remote, Path(one), workers=0)
        counts = {kind: proxy.count(*pattern) for kind, pattern in _KINDS.items()}
        everything = proxy.count()
    rows += [Row(f"data/an epoch, requests: {kind}", count.requests, "requests") for kind, count in counts.items()]
    others = everything.requests - sum(count.requests for count in counts.values())
    rows.append(Row("data/an epoch, requests: others", others, "requests"))
    rows.append(Row("data/an epoch, bytes from the server, of the shards", everything.bytes / remote.bytes, "x"))
    with remote.environment(), tempfile.TemporaryDirectory(dir=cache) as quarter:
        proxy.forget()
        stream = training_stream(remote, Path(quarter), rank=DataRank(0, 4))
        with closing(stream.batches(0, remote.samples)) as batches:
            for _ in batches:
                pass
        share = proxy.count("GET", r"\.tar").bytes / remote.bytes
    name = "data/an epoch, bytes from the server for a node of 4, of the shards"
    rows.append(at_most(name, 100 * share, "%", 27.0, promised=promised))
    return rows


def _ratio(rates: Rates, way: str, other: str) -> float:
    return statistics.median(mine / its for mine, its in zip(rates[way], rates[other], strict=True))


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _cold(workers: int) -> str:
    return f"cold, {workers}"


def _warm(workers: int) -> str:
    return f"warm, {workers}"
