"""Lint of a data set on a real S3 server: what lies there is looked at, not a copy of it."""

from __future__ import annotations

from pathlib import Path

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.lint import lint
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.storage import Storage


def test_damage_in_the_store_is_found_beside_a_good_copy(s3: str, synthetic: str, tmp_path: Path) -> None:
    url = f"{s3}/data"
    for path in Path(synthetic).iterdir():
        Storage(url).write(path.name, path.read_bytes())
    config = DataConfig(url=url, cache=str(tmp_path / "cache"))
    assert [remark for remark in lint(config) if remark.level == "error" and "people" not in remark.text] == []
    assert list((tmp_path / "cache").rglob("*.tar"))
    shard = load_manifest(url).split("train").shards[0]
    whole = Storage(url).read(shard.path)
    Storage(url).write(shard.path, whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    found = [(remark.where, remark.text) for remark in lint(config)]
    assert found == [(shard.path, "its sha256 is not that of the manifest; pack the data set again")]
