"""Ways to read all shards of a data set once: bare GET requests, the training stream, webdataset, local files."""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import io
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.s3_server import KEY, SECRET
from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.shard_index import load_index, member_name
from maestro_dist.data.storage import Storage
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream

SPLIT = "train"
_PARALLEL = 8
_PIECE = 1 << 20


@dataclass(frozen=True)
class Remote:
    """A data set on an S3 server: the server's endpoint, the bucket, and what the manifest says.

    batch  samples of a global batch
    """

    endpoint: str
    bucket: str
    manifest: Manifest
    batch: int

    @property
    def url(self) -> str:
        """URL of the data set."""
        return f"s3://{self.bucket}"

    @property
    def objects(self) -> list[str]:
        """Paths of the shards, with the bucket."""
        return [f"{self.bucket}/{shard.path}" for shard in self.manifest.split(SPLIT).shards]

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.manifest.split(SPLIT).shards)

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return self.manifest.split(SPLIT).samples

    @contextmanager
    def environment(self) -> Iterator[None]:
        """The server and its keys in the environment, where the package and its reader processes look for them."""
        values = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        before = {name: os.environ.get(name) for name in values}
        os.environ.update(values)
        _forget_connections()
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            _forget_connections()


# bare requests


def bare_ways(remote: Remote) -> dict[str, Callable[[], object]]:
    """The ways to get whole objects, 8 at a time, that are installed. Clients and signatures are made here, not timed.

    What they get is thrown away.
    """
    ways: dict[str, Callable[[], object]] = {"http.client": _plain_way(remote), "s3fs": _s3fs_way(remote)}
    if importlib.util.find_spec("obstore"):
        ways["obstore"] = _obstore_way(remote)
    return ways


def _plain_way(remote: Remote) -> Callable[[], object]:
    """One kept connection for each thread, and URLs that are signed."""
    import s3fs

    fs = s3fs.S3FileSystem()
    targets = [fs.sign(path, expiration=24 * 3600).removeprefix(remote.endpoint) for path in remote.objects]

    def serve(left: SimpleQueue[str]) -> None:
        connection = http.client.HTTPConnection(urlsplit(remote.endpoint).netloc)
        space = memoryview(bytearray(_PIECE))
        with closing(connection), suppress(Empty):
            while True:
                connection.request("GET", left.get_nowait())
                response = connection.getresponse()
                if response.status != 200:
                    raise OSError(f"the server answered {response.status}")
                while response.readinto(space):
                    pass

    def get() -> None:
        left = SimpleQueue[str]()
        for target in targets:
            left.put(target)
        _in_threads(serve, [left] * _PARALLEL)

    return get


def _s3fs_way(remote: Remote) -> Callable[[], object]:
    import s3fs

    fs = s3fs.S3FileSystem()
    return lambda: _in_threads(lambda path: len(fs.cat_file(path)), remote.objects)


def _obstore_way(remote: Remote) -> Callable[[], object]:
    from obstore.store import S3Store

    keys: dict[str, Any] = {"access_key_id": KEY, "secret_access_key": SECRET, "region": "us-east-1"}
    store: Any = S3Store(remote.bucket, endpoint=remote.endpoint, client_options={"allow_http": True}, **keys)
    names = [path.removeprefix(f"{remote.bucket}/") for path in remote.objects]
    return lambda: _in_threads(lambda name: len(store.get(name).bytes()), names)


def _in_threads(call: Callable[[Any], object], arguments: Sequence[Any]) -> None:
    with ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(call, arguments))


def _forget_connections() -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


# the training stream


@dataclass(frozen=True)
class Epochs:
    """Seconds from the start of a stream to its first batch, of its first epoch, and of all further epochs."""

    first_batch_s: float
    first_s: float
    further_s: float


def stream_epochs(remote: Remote, cache: Path, workers: int, further: int = 0) -> Epochs:
    """Read 1 + `further` epochs of the training stream, with shards in `cache`.

    Raises:
        RuntimeError: the stream did not give each sample once an epoch.
    """
    stream = training_stream(remote, cache, workers)
    begun, ends, first_batch, samples = time.perf_counter(), [], 0.0, 0
    for batch in stream.batches(0, (1 + further) * remote.samples):
        first_batch = first_batch or time.perf_counter()
        samples += len(batch.sample)
        if batch.position % remote.samples == 0:
            ends.append(time.perf_counter())
    if samples != (1 + further) * remote.samples:
        raise RuntimeError(f"the stream gave {samples} samples in {1 + further} epochs of {remote.samples}")
    return Epochs(first_batch - begun, ends[0] - begun, ends[-1] - ends[0])


def first_batch_s(remote: Remote, cache: Path) -> float:
    """Seconds from the start of a stream in the middle of an epoch to its first batch."""
    middle = remote.samples // 2 // remote.batch * remote.batch
    begun = time.perf_counter()
    batches = training_stream(remote, cache).batches(middle, remote.samples)
    next(batches)
    taken = time.perf_counter() - begun
    batches.close()
    return taken


def training_stream(remote: Remote, cache: Path, workers: int = 0, rank: DataRank | None = None) -> TrainStream:
    """The stream of a run with default settings."""
    modalities = tuple(remote.manifest.select(None))
    config = DataConfig(url=remote.url, cache=str(cache), loader_workers=workers)
    schedule = TrainSchedule(seed=0, global_batch=remote.batch, total_steps=10**6)
    source = SplitSource(remote.url, remote.manifest, config, modalities, SPLIT)
    return TrainStream(source, schedule, rank or DataRank())


# other ways to arrays


def read_webdataset(remote: Remote) -> None:
    """Plain webdataset: shards one after the other, each a file of s3fs with default settings, members decoded."""
    import s3fs
    from webdataset.tariterators import group_by_keys, tar_file_expander

    fs = s3fs.S3FileSystem()

    def files() -> Iterator[dict[str, Any]]:
        for path in remote.objects:
            with fs.open(path, "rb") as file:
                yield {"url": path, "stream": file}

    samples = 0
    for sample in group_by_keys(tar_file_expander(files())):
        json.loads(sample["json"])
        for name, data in sample.items():
            if name.endswith(".npy"):
                np.load(io.BytesIO(data), allow_pickle=False)
        samples += 1
    if samples != remote.samples:
        raise RuntimeError(f"webdataset gave {samples} samples of {remote.samples}")


# the least work with local files


def write_files(remote: Remote, folder: Path) -> None:
    """Write as many bytes as the shards have, to new files."""
    piece = memoryview(os.urandom(_PIECE))
    for number, shard in enumerate(remote.manifest.split(SPLIT).shards):
        with (folder / str(number)).open("wb", buffering=0) as file:
            for left in range(shard.bytes, 0, -_PIECE):
                file.write(piece[:left])


def touch_memory(folder: Path, size: int) -> None:
    """Write a file of this size and remove it.

    A virtual machine may get memory from its host only when a page is first touched, at 350 to 500 MB/s here. On a
    machine that has run for a while that is over; so it is over before anything that fills a new cache is timed.
    """
    piece, path = memoryview(os.urandom(_PIECE)), folder / "touched"
    with path.open("wb", buffering=0) as file:
        for left in range(size, 0, -_PIECE):
            file.write(piece[:left])
    path.unlink()
    os.sync()


def hash_files(remote: Remote, folder: Path) -> None:
    """The sha256 of each shard in the local `folder`."""
    for shard in remote.manifest.split(SPLIT).shards:
        with (folder / shard.path).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                raise RuntimeError(f"{shard.path} has changed")


class LocalFiles:
    """The least work from local shards to the batches of the stream: one read of each member, straight into its array.

    They are the same batches, in the same order, and as many of them are kept as the stream keeps: what is copied to
    memory that was just used is copied faster.
    """

    def __init__(self, folder: Path, remote: Remote) -> None:
        self._modalities = remote.manifest.select(None)
        names = [member_name(modality.name) for modality in self._modalities]
        stream = training_stream(remote, folder)
        order = stream.order(0)
        self._batches = [order.batch(number) for number in range(order.steps)]
        self._kept = DataConfig.model_fields["prefetch"].default + 1  # and the one that is used
        self._paths = [folder / shard.path for shard in remote.manifest.split(SPLIT).shards]
        indexes = [load_index(Storage(str(folder)), shard) for shard in remote.manifest.split(SPLIT).shards]
        self._shard = np.repeat(np.arange(len(indexes)), [len(index.keys) for index in indexes])
        tables = [index.columns(names) for index in indexes]
        self._offsets, self._sizes = (np.concatenate([table[part] for table in tables]) for part in range(2))

    def read(self, epochs: int = 1) -> None:
        """Read all samples."""
        kept: deque[dict[str, np.ndarray]] = deque(maxlen=self._kept)
        for _ in range(epochs):
            kept.extend(self.batches())

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of all samples by modality; no label is read and nothing is checked."""
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb", buffering=0)).fileno() for path in self._paths]
            for numbers in self._batches:
                yield self._read_batch(files, numbers)

    def _read_batch(self, files: Sequence[int], numbers: np.ndarray) -> dict[str, np.ndarray]:
        arrays = {}
        offsets, sizes, shards = self._offsets[numbers], self._sizes[numbers], self._shard[numbers]
        for column, modality in enumerate(self._modalities):
            holders = np.flatnonzero(sizes[:, column])
            array = np.empty((len(holders), modality.steps, modality.variates), dtype=np.float32)
            ends = (offsets[:, column] + sizes[:, column])[holders].tolist()
            for values, end, shard in zip(array, ends, shards[holders].tolist(), strict=True):
                # the values are the last bytes of an npy file
                os.preadv(files[shard], [values.data], end - values.nbytes)
            arrays[modality.name] = array
        return arrays
