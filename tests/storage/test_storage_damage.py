"""A damaged data set on a real S3 server: what is wrong is named, as on disk, and not asked for without end."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from test_data_damage import BAD, MEMBERS, TEXTS, edit_manifest, read_all, shard, train_epoch, twice
from test_data_damaged_indexes import change_index, renamed
from tiny import SIZES, describe, raw_samples, rewrite

from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.pack import pack
from maestro_dist.data.storage import Storage
from maestro_dist.data.storage.settings import StorageSettings, configure
from maestro_dist.errors import DataError


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    pack(str(folder), describe(), raw_samples(), shard_bytes=20_000)
    return folder


def upload(folder: Path, url: str) -> str:
    for file in folder.iterdir():
        Storage(url).write(f"set/{file.name}", file.read_bytes())
    return f"{url}/set"


def cut(url: str) -> None:
    shard(url).write_bytes(shard(url).read_bytes()[:3000])


def cut_at_a_sample(url: str) -> None:
    with tarfile.open(shard(url)) as tar:
        end = next(info.offset for info in tar if info.name.startswith("train-002."))
    shard(url).write_bytes(shard(url).read_bytes()[:end])


def longer(url: str) -> None:
    shard(url).write_bytes(shard(url).read_bytes() + b"\0" * 512)
    edit_manifest(url, lambda raw: raw["splits"]["train"]["shards"][0].update(bytes=shard(url).stat().st_size))


def flip(url: str) -> None:
    data = bytearray(shard(url).read_bytes())
    data[1000] ^= 1
    shard(url).write_bytes(data)


def cut_index(url: str) -> None:
    path = Path(url, "train-000001.index")
    path.write_bytes(path.read_bytes()[:-1])


def member(content: bytes, name: str = "acc.npy") -> Callable[[str], None]:
    def change(key: str, members: dict[str, bytes]) -> None:
        if key == BAD:
            members[name] = content

    return lambda url: rewrite(url, change)


DAMAGES: dict[str, tuple[Callable[[str], None], str]] = {
    "cut": (cut, r"train-000000\.tar: 3000 bytes instead of"),
    "cut at a sample": (cut_at_a_sample, r"train-000000\.tar: \d+ bytes instead of"),
    "longer": (longer, r"train-000000\.tar: its sha256 is not that of the manifest"),
    "flip": (flip, r"train-000000\.tar: its sha256 is not that of the manifest"),
    "no shard": (lambda url: shard(url).unlink(), r"train-000000\.tar: the shard is missing"),
    "no index": (lambda url: Path(url, "train-000001.index").unlink(), "index of shard .* is missing"),
    "cut index": (cut_index, r"train-000001\.index: its sha256 is not that of the manifest"),
    "index twice": (lambda url: change_index(url, renamed("a", "a")), "names sample a twice"),
    "manifest": (lambda url: Path(url, "manifest.json").write_text("[" * 9999) and None, "not valid JSON"),
    "shard twice": (lambda url: edit_manifest(url, twice), r"it names shard train-000000\.tar twice"),
    "pickle": (member(MEMBERS["pickle"][0]), f"sample {BAD}: acc is object"),
    "bomb": (member(MEMBERS["bomb"][0]), f"sample {BAD}: acc has shape"),
    "deep": (member(TEXTS["deep"][0], "json"), f"sample {BAD}: its json has no label"),
}
OF_A_SAMPLE = ("pickle", "bomb", "deep")


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_on_a_server_is_named(good: Path, s3: str, tmp_path: Path, case: str) -> None:
    damage, message = DAMAGES[case]
    shutil.copytree(good, tmp_path / "data")
    damage(str(tmp_path / "data"))
    url = upload(tmp_path / "data", s3)
    configure(StorageSettings(patience_s=0.3))
    with pytest.raises(DataError, match=message) as caught:
        read_all(url, cache=str(tmp_path / "cache"))
    assert "\n" not in str(caught.value)
    assert url in str(caught.value)
    if case in OF_A_SAMPLE:
        batches = train_epoch(url, cache=str(tmp_path / "cache"), max_bad_samples=1)
        assert sum(len(batch) for batch in batches) == SIZES["train"] - 1
        assert sum(len(batch.bad) for batch in batches) == 1
    elif case != "manifest":
        with pytest.raises(DataError, match=message):  # data.max_bad_samples is for samples
            train_epoch(url, cache=str(tmp_path / "cache"), max_bad_samples=100)


def test_the_good_one_is_read(good: Path, s3: str, tmp_path: Path) -> None:
    url = upload(good, s3)
    assert load_manifest(url) == load_manifest(str(good))
    assert sum(map(len, read_all(url, cache=str(tmp_path)))) == SIZES["train"]
