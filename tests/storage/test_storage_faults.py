"""The retry policy, the settings and the counts of remote storage, against a real S3 server behind a faulty proxy."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import runs
import synthetic
from fault_proxy import FaultProxy, Rule

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.shard_cache import ShardCache, local_shard
from maestro_dist.data.storage import ObjectMissing, Storage, retry
from maestro_dist.data.storage.request_counts import request_counts
from maestro_dist.data.storage.settings import StorageSettings, configure
from maestro_dist.data.stream import DataRank, evaluation_batches
from maestro_dist.errors import StorageError

DATA = bytes(range(256)) * 4000  # about 1 MB
CLIENTS = ["s3fs", "obstore"]


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A client of S3, in a process that has had no access to any bucket yet."""
    if request.param == "obstore":
        pytest.importorskip("obstore")
    monkeypatch.setattr(retry, "_allowed", set())
    patience(request.param, 4)
    return str(request.param)


def patience(client: str, seconds: float, **more: str) -> None:
    configure(StorageSettings(patience_s=seconds, client=client, **more))


FAULTS = {
    "503": Rule("GET", "thing", requests=3, fault="status", status=503),
    "500": Rule("GET", "thing", requests=3, fault="status", status=500),
    "429": Rule("GET", "thing", requests=3, fault="status", status=429),
    "refused": Rule(lasts_s=0.7, fault="refuse"),
    "reset in the body": Rule("GET", "thing", requests=3, fault="reset", at=300_000),
    "truncated body": Rule("GET", "thing", requests=3, fault="truncate", at=300_000),
    "reset before the body": Rule("GET", "thing", requests=2, fault="reset", at=0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_read_outlives_faults(proxied_s3: str, proxy: FaultProxy, client: str, fault: str) -> None:
    storage = Storage(proxied_s3)
    storage.write("thing", DATA)
    proxy.add(FAULTS[fault])
    assert storage.read("thing") == DATA
    assert proxy.count("GET", "thing").requests >= (FAULTS[fault].requests or 0) + 1


def test_a_body_that_stalls_is_asked_for_again(proxied_s3: str, proxy: FaultProxy, client: str) -> None:
    storage = Storage(proxied_s3)
    storage.write("thing", DATA)
    patience(client, 1)  # also the time limit of an attempt
    proxy.add(Rule("GET", "thing", requests=1, fault="stall", at=300_000, stall_s=60))
    assert storage.read("thing") == DATA


def test_a_download_outlives_cut_ranges_and_counts_its_bytes(
    proxied_s3: str, proxy: FaultProxy, client: str, tmp_path: Path
) -> None:
    storage = Storage(proxied_s3)
    storage.write("thing", DATA)
    before = request_counts()
    proxy.add(Rule("GET", "thing", requests=2, fault="truncate", at=1000))
    storage.download("thing", tmp_path / "copy", size=len(DATA), expected=True)
    assert (tmp_path / "copy").read_bytes() == DATA
    counts = request_counts() - before
    assert (counts.requests["GET"], counts.requests["HEAD"]) == (3, 0)
    assert counts.received_bytes == len(DATA)


def test_answers_in_another_order_stay_apart(proxied_s3: str, proxy: FaultProxy, client: str) -> None:
    """The first requests of several threads are answered last."""
    storage, found = Storage(proxied_s3), {}
    for number in range(6):
        storage.write(f"thing-{number}", b"%d" % number * 1000)
        proxy.add(Rule("GET", f"thing-{number}", latency_s=0.3 - 0.05 * number))

    def read(number: int) -> None:
        found[number] = storage.read(f"thing-{number}")

    threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: b"%d" % number * 1000 for number in range(6)}


@pytest.mark.parametrize("status", [403, 404])
def test_an_object_that_must_exist_is_asked_for_again(
    proxied_s3: str, proxy: FaultProxy, client: str, status: int
) -> None:
    storage = Storage(proxied_s3)
    proxy.add(Rule("GET", "thing", requests=1, fault="status", status=status))
    with pytest.raises(StorageError, match="access denied" if status == 403 else "no such object$"):
        storage.read("thing")
    storage.write("thing", DATA)
    proxy.clear()
    proxy.add(Rule("GET", "thing", requests=2, fault="status", status=status))
    assert storage.read("thing", expected=True) == DATA
    patience(client, 0.3)
    proxy.add(Rule("GET", "thing", fault="status", status=status))
    with pytest.raises(StorageError, match=r"thing: .* \(after \d+ attempts in \d+ s\)") as caught:
        storage.read("thing", expected=True)
    assert isinstance(caught.value, ObjectMissing) is (status == 404)


def test_a_denied_access_passes_where_there_was_access_before(proxied_s3: str, proxy: FaultProxy, client: str) -> None:
    storage, denied = Storage(proxied_s3), Rule("GET|PUT", "thing", requests=2, fault="status", status=403)
    proxy.add(denied)
    with pytest.raises(StorageError, match=r"access denied; check the credentials$"):
        storage.write("thing", DATA)
    proxy.clear()
    assert storage.list() == []
    proxy.add(denied)
    with pytest.raises(StorageError, match=r"access denied; check the credentials$"):
        storage.write("thing", DATA)  # who may read need not be allowed to write
    proxy.clear()
    storage.write("thing", DATA)
    proxy.add(denied)
    storage.write("thing", DATA)
    proxy.clear()
    proxy.add(denied)
    assert storage.read("thing") == DATA


def test_a_wait_is_told_to_the_log_and_to_the_owner_of_a_reader(
    proxied_s3: str,
    proxy: FaultProxy,
    client: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "_QUIET_S", 0.0)
    monkeypatch.setattr(retry, "_logged", -1e9)
    told: list[str] = []
    Storage(proxied_s3).write("thing", DATA)
    proxy.add(Rule("GET", "thing", requests=4, fault="status", status=503))
    assert Storage(proxied_s3, heartbeat=told.append).join("thing").read() == DATA
    assert len(told) == 4
    assert all(text.startswith(f"waiting for storage: cannot read {proxied_s3}/thing: ") for text in told)
    with caplog.at_level(logging.WARNING):
        lines = [record.getMessage() for record in caplog.records if "asking again for up to" in record.getMessage()]
    assert len(lines) == 1  # at most one every 30 s


def test_many_attempts_do_not_end_the_wait(proxied_s3: str, proxy: FaultProxy, client: str) -> None:
    storage = Storage(proxied_s3)
    storage.write("thing", DATA)
    proxy.add(Rule("GET", "thing", requests=40, fault="status", status=503))
    patience(client, 60)
    retry_limit = retry._LONGEST_DELAY_S
    retry._LONGEST_DELAY_S = 0.02
    try:
        assert storage.read("thing") == DATA
    finally:
        retry._LONGEST_DELAY_S = retry_limit
    assert proxy.count("GET", "thing").requests == 41


def kinds(proxy: FaultProxy) -> Counter[str]:
    """What the proxy counted, by the kind of the request."""
    found: Counter[str] = Counter()
    for method, target, requests, _ in proxy.counts():
        kind = "LIST" if method == "GET" and "list-type=2" in target else method
        found["DELETE" if method == "POST" and "delete" in target else kind] += requests
    return found


def test_each_request_is_counted_also_hidden_ones(
    proxied_s3: str, proxy: FaultProxy, client: str, tmp_path: Path
) -> None:
    storage, before = Storage(proxied_s3), request_counts()
    storage.write("a/one", b"1")
    storage.write("a/two", b"2", create=True)
    with storage.writer("a/three") as file:
        file.write(b"3" * 1000)
    proxy.add(Rule("GET", "a/one", requests=2, fault="status", status=503))
    storage.read("a/one")
    assert storage.read_range("a/three", 10, 5) == b"33333"
    assert storage.size("a/three") == 1000
    assert storage.exists("a")
    assert not storage.exists("b")
    assert storage.sizes("a") == {"one": 1, "two": 1, "three": 1000}
    assert storage.list("none") == []
    storage.download("a/two", tmp_path / "two")
    storage.remove("a/one")
    storage.remove("a/one")
    storage.remove_many(["a/two", "a/none"])
    storage.remove("a", recursive=True)
    assert storage.list("a") == []
    counts = request_counts() - before
    assert {kind: number for kind, number in counts.requests.items() if number} == dict(kinds(proxy))
    assert str(counts).startswith(f"{counts.total} requests (GET {counts.requests['GET']}, HEAD ")


def test_one_of_many_creates_wins_with_each_client(proxied_s3: str, client: str) -> None:
    storage, won = Storage(proxied_s3), []

    def create(number: int) -> None:
        try:
            storage.write("once", b"%d" % number, create=True)
            won.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read("once") == b"%d" % won[0]


def test_the_settings_say_how_the_server_is_reached(
    proxied_s3: str, proxy: FaultProxy, client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.s3_server import KEY, SECRET

    Storage(proxied_s3).write("thing", b"1")
    for name in ("ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "DEFAULT_REGION"):
        monkeypatch.delenv(f"AWS_{name}")
    keys = tmp_path / "credentials"
    keys.write_text(f"[lab]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patience(client, 0, endpoint_url=proxy.url, region="us-east-1")
    monkeypatch.setattr(retry, "_allowed", set())
    with pytest.raises(StorageError, match="check the credentials"):
        Storage(proxied_s3).read("thing")
    patience(client, 4, endpoint_url=proxy.url, region="us-east-1", profile="lab")
    assert Storage(proxied_s3).read("thing") == b"1"
    monkeypatch.setattr(retry, "_allowed", set())
    configure(StorageSettings(4, proxy.url, "us-east-1", None, True, client))
    with pytest.raises(StorageError, match="check the credentials"):
        Storage(proxied_s3).read("thing")  # this server answers nobody who is unknown


def test_a_client_that_is_not_installed_is_named(proxied_s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    patience("obstore", 60)
    begun = time.monotonic()
    with pytest.raises(StorageError, match=r"s3\.client: obstore is not installed; pip install obstore, or use s3fs"):
        Storage(f"{proxied_s3}-of-nobody").read("thing")
    assert time.monotonic() - begun < 30


def test_reader_processes_have_the_settings_and_are_counted(
    proxied_s3: str, proxy: FaultProxy, client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic.write(proxied_s3)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    patience(client, 20, endpoint_url=proxy.url)
    manifest = load_manifest(proxied_s3)
    config = DataConfig(url=proxied_s3, cache=str(tmp_path), loader_workers=1)
    source = SplitSource(proxied_s3, manifest, config, tuple(manifest.select(None)), "test")
    proxy.add(Rule("GET", r"test-.*\.tar", requests=3, fault="status", status=404))
    before = request_counts()
    proxy.forget()
    keys = [key for batch in evaluation_batches(source, 8, DataRank()) for key in batch.keys]
    assert len(keys) == synthetic.SAMPLES["test"]
    assert (request_counts() - before).requests["GET"] == kinds(proxy)["GET"] > 3


def test_a_shard_whose_bytes_are_wrong_is_downloaded_again(
    proxied_s3: str, proxy: FaultProxy, client: str, tmp_path: Path
) -> None:
    synthetic.write(proxied_s3)
    shard = load_manifest(proxied_s3).split("test").shards[0]
    proxy.add(Rule("GET", shard.path, requests=1, fault="flip", at=2000))
    path = local_shard(Storage(proxied_s3), shard, ShardCache(str(tmp_path)))
    assert path.stat().st_size == shard.bytes
    assert proxy.count("GET", shard.path).requests == 2


@pytest.mark.slow
def test_a_run_makes_few_requests_and_says_how_many(
    proxied_s3: str, proxy: FaultProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 epochs, each with a validation and a checkpoint, on 25 shards; some requests fail on the way."""
    synthetic.write(f"{proxied_s3}/data")
    proxy.forget()
    for kind, path in (("GET", r"\.tar"), ("GET", "index"), ("PUT", "checkpoint.json"), ("PUT", "safetensors")):
        proxy.add(Rule(kind, path, requests=2, fault="status", status=503))
    extra = ["optim.epochs=8", f"data.cache={tmp_path}/cache", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    assert runs.train(f"{proxied_s3}/runs", f"{proxied_s3}/data", *extra, "data.loader_workers=1") == 0
    counted, said = kinds(proxy), capsys.readouterr()
    line = next(line for line in (said.out + said.err).splitlines() if "storage: " in line and "requests" in line)
    assert f"storage: {sum(counted.values())} requests (GET {counted['GET']}," in line
    beats = proxy.count("PUT|GET", "leases").requests  # each looks for a newer attempt first
    assert sum(counted.values()) - beats < 150
    assert counted["HEAD"] == 0


@pytest.mark.slow
def test_workers_of_ray_have_the_settings_and_are_counted(
    proxied_s3: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, 8 checkpoints; the server is named in the configuration only, and is away for a while."""
    synthetic.write(f"{proxied_s3}/data")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    proxy.forget()
    extra = [*runs.RAY, "checkpoint.every_steps=7", "optim.epochs=8", f"s3.endpoint_url={proxy.url}"]
    extra += [f"data.cache={tmp_path}/cache", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    process = runs.start(f"{proxied_s3}/runs", f"{proxied_s3}/data", *extra)
    runs.wait_for(lambda: proxy.count("PUT", "checkpoint.json").requests >= 2, process)
    proxy.add(Rule(lasts_s=8, fault="refuse"), Rule(lasts_s=8, fault="status", status=503))
    said = runs.finish(process)
    line = next(line for line in said.splitlines() if "storage: " in line and "requests" in line)
    total = int(line.partition("storage: ")[2].split()[0])
    assert sum(kinds(proxy).values()) <= total < 300  # connections that were refused are counted by the run only
    assert "started again" not in said
