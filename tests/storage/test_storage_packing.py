"""Packing from and to a real S3 server that is faulty."""

from __future__ import annotations

import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy, Rule
from packing import digests, packed, parts

from maestro_dist.config.schema import SourceConfig
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.pack_records import RECORDS
from maestro_dist.data.prepare import prepare
from maestro_dist.data.storage import Storage
from maestro_dist.data.storage.settings import StorageSettings, configure
from maestro_dist.errors import DataError, StorageError

EXCERPTS = Path(__file__).parents[1] / "data"
FAULTS = {
    "503": Rule(requests=6, fault="status", status=503),
    "reset in the body": Rule("GET", requests=6, fault="reset", at=100),
    "truncated body": Rule("GET", requests=6, fault="truncate", at=100),
    "refused": Rule(lasts_s=0.7, fault="refuse"),
}


COUNTS = (5, 1, 0, 60, 1, 1, 1, 30)


@pytest.fixture(params=["s3fs", "obstore"])
def client(request: pytest.FixtureRequest) -> str:
    return used(request.param)


def used(client: str) -> str:
    """The client, in use from now on."""
    if client == "obstore":
        pytest.importorskip("obstore")
    configure(StorageSettings(patience_s=20, client=client))
    return client


def copied(url: str, target: Path) -> dict[str, str]:
    """Hashes of the objects below a URL."""
    for name in Storage(url).tree():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(Storage(url).read(name))
    return digests(target)


def put(folder: Path, url: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            Storage(url).write(path.relative_to(folder).as_posix(), path.read_bytes())


@pytest.mark.parametrize(
    ("client_name", "fault"),
    [
        ("s3fs", "503"),
        *(pytest.param("s3fs", fault, marks=pytest.mark.slow) for fault in FAULTS if fault != "503"),
        pytest.param("obstore", "503", marks=pytest.mark.slow),
    ],
)
def test_parts_are_packed_to_a_faulty_server(
    proxied_s3: str, proxy: FaultProxy, client_name: str, fault: str, tmp_path: Path
) -> None:
    used(client_name)
    packed(tmp_path / "data", parts(tmp_path / "log", COUNTS))
    proxy.add(FAULTS[fault])
    packed(f"{proxied_s3}/data", parts(tmp_path / "log", COUNTS))
    proxy.clear()
    assert copied(f"{proxied_s3}/data", tmp_path / "copy") == digests(tmp_path / "data")


def test_an_outage_ends_it_and_the_restart_uploads_no_shard_again(
    proxied_s3: str, proxy: FaultProxy, client: str, tmp_path: Path
) -> None:
    packed(tmp_path / "data", parts(tmp_path / "log", COUNTS))
    configure(StorageSettings(patience_s=1, client=client))
    proxy.add(Rule("PUT", r"train-000003\.tar", fault="status", status=503))
    with pytest.raises(StorageError, match=r"train-000003\.tar.*\(after \d+ attempts"):
        packed(f"{proxied_s3}/data", parts(tmp_path / "log", COUNTS))
    proxy.clear()
    done = [name for name in Storage(f"{proxied_s3}/data").list() if name.endswith(".tar")]
    assert len(done) > 3
    proxy.forget()
    packed(f"{proxied_s3}/data", parts(tmp_path / "log", COUNTS))
    uploaded = {path for method, path, *_ in proxy.counts() if method in ("PUT", "POST")}
    assert not [name for name in done if any(f"/data/{name}" in path for path in uploaded)]
    assert copied(f"{proxied_s3}/data", tmp_path / "copy") == digests(tmp_path / "data")


def members(folder: Path, kind: str, target: Path) -> Path:
    """The files of a folder as they are, or in one archive."""
    target.mkdir()
    if kind == ".zip":
        with zipfile.ZipFile(target / "raw.zip", "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
            for path in sorted(folder.rglob("*.*")):
                archive.write(path, path.relative_to(folder))
    elif kind:
        with tarfile.open(target / f"raw{kind}", f"w:{kind[5:]}") as tar:
            tar.add(folder, "raw")
    return target if kind else folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The excerpt of PhysioNet 2012, unpacked."""
    folder = tmp_path_factory.mktemp("raw")
    with tarfile.open(EXCERPTS / "physionet2012" / "PhysioNet2012_excerpt.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize(
    ("name", "kind", "whole"),
    [
        ("s3fs", ".zip", True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("s3fs", "", False),
                ("obstore", "", False),
                ("obstore", ".zip", False),
                ("s3fs", ".tar", False),
                ("s3fs", ".tar.gz", True),
            ]
        ),
    ],
)
def test_a_remote_source_is_read_as_a_local_one(
    proxied_s3: str, proxy: FaultProxy, name: str, kind: str, whole: bool, raw: Path, tmp_path: Path
) -> None:
    """`whole`: the source is the archive, not the folder that holds it."""
    used(name)
    prepare(SourceConfig(converter="physionet2012", path=str(raw)), str(tmp_path / "data"))
    put(members(raw, kind, tmp_path / "source"), f"{proxied_s3}/raw")
    proxy.add(Rule("GET", "raw", requests=2, fault="status", status=503), Rule("GET", "raw", requests=1, fault="reset"))
    url = f"{proxied_s3}/raw/raw{kind}" if whole else f"{proxied_s3}/raw"
    prepare(SourceConfig(converter="physionet2012", path=url), f"{proxied_s3}/data")
    proxy.clear()
    assert copied(f"{proxied_s3}/data", tmp_path / "copy") == digests(tmp_path / "data")
    assert not Storage(f"{proxied_s3}/data").join(RECORDS).tree()


@pytest.mark.slow
def test_a_remote_archive_is_not_read_as_a_whole(
    proxied_s3: str, proxy: FaultProxy, client: str, tmp_path: Path
) -> None:
    """Members that are of no use are passed over."""
    with zipfile.ZipFile(tmp_path / "big.zip", "w") as archive:
        archive.writestr("of_no_use.bin", bytes(30 << 20))
        with tarfile.open(EXCERPTS / "physionet2012" / "PhysioNet2012_excerpt.tar.xz") as tar:
            for info in tar:
                if info.isreg():
                    archive.writestr(info.name, tar.extractfile(info).read())  # type: ignore[union-attr]
    Storage(proxied_s3).write("big.zip", (tmp_path / "big.zip").read_bytes())
    proxy.forget()
    prepare(SourceConfig(converter="physionet2012", path=f"{proxied_s3}/big.zip"), str(tmp_path / "data"))
    assert load_manifest(str(tmp_path / "data")).splits["test"].samples == 20
    assert proxy.count("GET", "big.zip").bytes < 5 << 20


def test_what_is_not_there_or_damaged_is_named(proxied_s3: str, client: str, tmp_path: Path) -> None:
    configure(StorageSettings(patience_s=1, client=client))
    Storage(proxied_s3).write("raw/cut.zip", b"PK\3\4 and no more")
    Storage(proxied_s3).write("raw/cut.tar.xz", b"\xfd7zXZ\0 and no more")
    for path, message in (
        ("none", "none: no such folder or archive; check the URL of the source"),
        ("none.zip", "none.zip: no such folder or archive; check the URL of the source"),
        ("raw/cut.zip", "cut.zip: damaged or unreadable archive"),
        ("raw/cut.tar.xz", "cut.tar.xz: damaged or unreadable archive"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(SourceConfig(converter="physionet2012", path=f"{proxied_s3}/{path}"), str(tmp_path / "data"))
    assert digests(tmp_path) == {}


@pytest.mark.slow
def test_a_source_that_changes_meanwhile_is_another_one(
    proxied_s3: str, client: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import maestro_dist.data.pack_parts as module

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    put(raw, f"{proxied_s3}/raw")
    source = SourceConfig(converter="physionet2012", path=f"{proxied_s3}/raw")
    with monkeypatch.context() as patch:
        patch.setattr(module, "check_complete", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, str(tmp_path / "data"))
    name = min(path.name for path in (raw / "set-a").iterdir())
    text = (raw / "set-a" / name).read_text()
    Storage(f"{proxied_s3}/raw").write(f"set-a/{name}", text.replace("Age,", "Age,1", 1).encode())
    with pytest.raises(DataError, match="an unfinished packing is there, with other files"):
        prepare(source, str(tmp_path / "data"))
    Storage(f"{proxied_s3}/raw").write(f"set-a/{name}", text.encode())
    prepare(source, str(tmp_path / "data"))


def test_a_source_on_a_web_server(raw: Path, tmp_path: Path) -> None:
    handler: Any = partial(Quiet, directory=str(raw))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        prepare(SourceConfig(converter="physionet2012", path=url), str(tmp_path / "data"))
        with zipfile.ZipFile(raw / "all.zip", "w", strict_timestamps=False) as archive:
            for path in sorted(raw.rglob("*.txt")):
                archive.write(path, path.relative_to(raw))
        with pytest.raises(StorageError, match="a server that gives only whole files cannot be used for archives"):
            prepare(SourceConfig(converter="physionet2012", path=f"{url}/all.zip"), str(tmp_path / "other"))
        (raw / "all.zip").unlink()
        server.shutdown()
    prepare(SourceConfig(converter="physionet2012", path=str(raw)), str(tmp_path / "local"))
    assert digests(tmp_path / "data") == digests(tmp_path / "local")


class Quiet(SimpleHTTPRequestHandler):
    """A web server that gives whole files only, as Python's own does."""

    def log_message(self, *_: object) -> None: ...


@pytest.mark.slow
def test_two_workers_from_and_to_a_faulty_server(proxied_s3: str, proxy: FaultProxy, raw: Path, tmp_path: Path) -> None:
    import runpy

    tool = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "pack_dataset.py"))
    put(members(raw, ".tar.gz", tmp_path / "source"), f"{proxied_s3}/raw")
    proxy.add(FAULTS["503"], Rule("GET", "raw", requests=2, fault="reset", at=1000))
    line = ["physionet2012", "--source", f"{proxied_s3}/raw", "--out", f"{proxied_s3}/data", "--workers", "2"]
    assert tool["main"]([*line, f"s3.endpoint_url={proxy.url}", "run.storage_patience_s=30"]) == 0
    proxy.clear()
    prepare(SourceConfig(converter="physionet2012", path=str(raw)), str(tmp_path / "data"))
    assert copied(f"{proxied_s3}/data", tmp_path / "copy") == digests(tmp_path / "data")
