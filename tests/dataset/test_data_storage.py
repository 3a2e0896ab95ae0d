from __future__ import annotations

import json
import pickle
import threading
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tiny import source_of

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.storage import ObjectMissing, Storage, retry
from maestro_dist.data.storage import client as client_module
from maestro_dist.data.storage.settings import StorageSettings, configure
from maestro_dist.data.stream import DataRank, evaluation_batches
from maestro_dist.errors import RunError, StorageError
from maestro_dist.parallel.failure import report_of


class FlakyFileSystem(MemoryFileSystem):
    """The memory file system behind a bad network: the next `failures` calls fail, some of them after their work."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012
    failures = 0
    after = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://"))

    def _fail(self) -> None:
        cls = type(self)
        if cls.failures:
            cls.failures -= 1
            raise TimeoutError("connection lost at http://user:secret@host/x")

    def info(self, path: str, **kwargs: Any) -> Any:
        self._fail()
        return super().info(path, **kwargs)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> Any:
        self._fail()
        return super().cat_file(path, start, end, **kwargs)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if not self.after:
            self._fail()
        super().pipe_file(path, value, mode=mode, **kwargs)
        self._fail()


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> type[FlakyFileSystem]:
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    monkeypatch.setattr(retry, "_FIRST_DELAY_S", 0.0)
    FlakyFileSystem.failures, FlakyFileSystem.after = 0, False
    return FlakyFileSystem


@pytest.fixture(params=["path", "file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    urls = {"path": str(tmp_path / "s"), "file": f"file://{tmp_path}/s", "memory": f"memory://{uuid.uuid4()}/s"}
    return Storage(urls[request.param])


def test_objects(store: Storage) -> None:
    assert store.list() == []
    store.write("a/one.json", b"0123456789")
    store.write("a/one.json", b"9876543210")
    store.write("a/b/two", b"2")
    assert store.read("a/one.json") == store.join("a", "one.json").read() == b"9876543210"
    assert store.read_range("a/one.json", 2, 3) == b"765"
    assert store.size("a/one.json") == 10
    assert (store.list(), store.list("a"), store.list("none")) == (["a"], ["b", "one.json"], [])
    assert (store.exists("a"), store.exists("a/one.json"), store.exists("a/two")) == (True, True, False)
    with store.writer("a/big") as file:
        file.write(b"x" * 1000)
        file.seek(0)
        file.write(b"y")
    assert store.read("a/big") == b"y" + b"x" * 999
    store.remove("a/one.json")
    store.remove("a/one.json")
    store.remove("a", recursive=True)
    store.remove("a", recursive=True)
    assert store.list() == []
    with pytest.raises(ObjectMissing, match=r"a/one\.json"):
        store.read("a/one.json")
    assert pickle.loads(pickle.dumps(store)).url == store.url


def test_a_writer_that_fails_leaves_nothing(store: Storage) -> None:
    def fail() -> None:
        with store.writer("half") as file:
            file.write(b"x")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not store.exists("half")
    assert store.list() == []


def test_create_has_one_winner(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    start, winners = threading.Barrier(8), []

    def race(number: int) -> None:
        start.wait()
        try:
            store.write("lease", b"%d" % number * 1000, create=True)
            winners.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert store.read("lease") == b"%d" % winners[0] * 1000


def test_create_fails_where_something_is(store: Storage) -> None:
    store.write("lease", b"1", create=True)
    with pytest.raises(FileExistsError):
        store.write("lease", b"2", create=True)
    assert store.read("lease") == b"1"


def test_passing_failures_are_retried(flaky: type[FlakyFileSystem]) -> None:
    store = Storage(f"flaky://{uuid.uuid4()}")
    flaky.failures = 3
    store.write("x", b"1")
    flaky.failures = 3
    assert store.read("x") == b"1"
    assert flaky.failures == 0


def test_a_create_whose_answer_is_lost_is_still_ours(flaky: type[FlakyFileSystem]) -> None:
    store = Storage(f"flaky://{uuid.uuid4()}")
    flaky.failures, flaky.after = 1, True
    store.write("lease", b"mine", create=True)
    with pytest.raises(FileExistsError):
        store.write("lease", b"other", create=True)


def test_lasting_failures_name_the_url_and_no_secret(flaky: type[FlakyFileSystem]) -> None:
    flaky.failures = 10**9
    with pytest.raises(
        StorageError, match=r"cannot read flaky://b/x: connection lost at http://host/x \(after"
    ) as caught:
        Storage("flaky://user:secret@b", patience_s=0.05).read("x")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_urls(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="keys do not belong in a URL") as caught:
        Storage("s3://AKIA:sec/ret@bucket/x")
    assert "ret" not in str(caught.value)
    with pytest.raises(StorageError, match="Protocol not known: ss3"):
        Storage("ss3://bucket").read("x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file has the name of its folder"):
        Storage(str(tmp_path / "file")).write("x", b"1")


@pytest.mark.parametrize(
    "url",
    ["abfs://container@account.dfs.core.windows.net/path", "abfss://c@a.dfs.core.windows.net", "wasbs://c@a.net/x"],
)
def test_a_container_at_an_account_is_no_password(url: str) -> None:
    assert Storage(url).name("x@y") == f"{url}/x@y"
    with pytest.raises(StorageError, match="keys do not belong in a URL"):
        Storage(url.replace("@", ":key/@1@"))


def test_an_outage_is_waited_for_as_long_as_is_allowed(flaky: type[FlakyFileSystem]) -> None:
    url = f"flaky://{uuid.uuid4()}"
    Storage(url).write("x", b"1")
    flaky.failures = 3
    with pytest.raises(StorageError, match=r"connection lost .* \(after 1 attempts"):
        Storage(url, patience_s=0.0).join("a").read("x")
    assert flaky.failures == 2
    assert Storage(url).read("x") == b"1"


@pytest.mark.parametrize("error", [UnicodeDecodeError("utf-8", b"", 0, 1, "x"), json.JSONDecodeError("x", "<html>", 0)])
def test_a_garbled_answer_is_asked_for_again(
    error: Exception, flaky: type[FlakyFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, errors = Storage(f"flaky://{uuid.uuid4()}"), [error]
    store.write("x", b"1")
    read = flaky.cat_file
    monkeypatch.setattr(
        flaky, "cat_file", lambda *a, **k: read(*a, **k) if not errors else (_ for _ in ()).throw(errors.pop())
    )
    assert store.read("x") == b"1"


def test_a_range_that_comes_short_is_asked_for_again(
    flaky: type[FlakyFileSystem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, lost, told = Storage(f"flaky://{uuid.uuid4()}"), [1, 7], []
    store.write("x", b"0123456789" * 10)
    monkeypatch.setattr(client_module, "_RANGE", 40)
    read = flaky.cat_file
    monkeypatch.setattr(flaky, "cat_file", lambda *a, **k: read(*a, **k)[: -lost.pop() if lost else None])
    store.download("x", tmp_path / "copy", lambda *there: told.append(there))
    assert (tmp_path / "copy").read_bytes() == b"0123456789" * 10
    assert told == [(40, 100), (80, 100), (100, 100)]


def test_an_outage_while_a_data_set_is_read_is_worth_another_start(
    packed: str, flaky: type[FlakyFileSystem], tmp_path: Path
) -> None:
    configure(StorageSettings(patience_s=0))
    url = f"flaky://{uuid.uuid4()}"
    for file in Path(packed).iterdir():
        Storage(url).write(file.name, file.read_bytes())

    def read() -> None:
        list(evaluation_batches(source, 8, DataRank()))

    source = source_of(url, config=DataConfig(url=url, cache=str(tmp_path), read_ahead_mb=0))
    for call in (lambda: load_manifest(url), read):
        flaky.failures = 100
        with pytest.raises(StorageError, match=r"connection lost .* \(after 1 attempts") as caught:
            call()
        flaky.failures = 0
        assert not report_of(0, caught.value).final


def test_an_outage_is_not_taken_for_an_object_that_is_missing(flaky: type[FlakyFileSystem]) -> None:
    store = Storage(f"flaky://{uuid.uuid4()}")
    store.write("folder/x", b"1")
    flaky.failures = 2
    assert store.exists("folder/x")
    assert (store.exists("folder"), store.exists("folder/y"), flaky.failures) == (True, False, 0)


def test_a_guard_is_asked_before_each_attempt(flaky: type[FlakyFileSystem]) -> None:
    """Another driver takes over while the store does not answer: the write that waited must not come through."""
    store, asked = Storage(f"flaky://{uuid.uuid4()}"), []

    def guard() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise RunError("another driver has taken over")

    flaky.failures = 2
    with pytest.raises(RunError, match="taken over"):
        store.write("record", b"late", guard=guard)
    assert (flaky.failures, store.exists("record")) == (0, False)


def test_pauses_have_full_jitter_and_end_with_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def uniform(low: float, high: float) -> float:
        assert low == 0.0
        limits.append(high)
        return high

    def call() -> None:
        raise ConnectionRefusedError("nobody listens")

    monkeypatch.setattr(retry._JITTER, "uniform", uniform)
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)
    with pytest.raises(StorageError, match=r"nobody listens \(after 12 attempts in 60 s\)"):
        retry.retried(call, retry.RemoteCall("read", "s3://b/x"), 60.0)
    assert limits[:8] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0])
    assert sum(limits) == pytest.approx(60.0, abs=0.1)
