"""Home folders and absolute paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from maestro_dist.config.check import check
from maestro_dist.config.load import load_config
from maestro_dist.config.paths import with_absolute_paths
from maestro_dist.config.schema import Config
from maestro_dist.errors import ConfigError


@pytest.mark.parametrize(
    ("typed", "place"), [("~/x", "{home}/x"), ("~", "{home}"), ("x", "{here}/x"), ("s3://b/~", "s3://b/~")]
)
def test_every_path_key_knows_home_and_where_it_was_typed(
    typed: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = place.format(home=tmp_path / "home", here=tmp_path / "here")
    keys = ("run.storage", "data.url", "tracking.uri", "data.source.path")
    optional = () if typed == "~" else ("run.init_from", "data.cache")  # ~ alone is null there
    config = with_absolute_paths(
        load_config(
            None,
            [
                "data.source.converter=uci_hapt",
                f"task.teachers=['{typed}', '{typed}']",
                *(f"{key}={typed}" for key in (*keys, *optional) if (key, typed) != ("tracking.uri", "~")),
            ],
        )
    )
    assert config.data.source is not None
    assert {config.run.storage, config.data.url, config.data.source.path, *config.task.teachers} == {place}
    if optional:
        assert [config.run.init_from, config.data.cache, config.tracking.uri] == [place] * 3


def test_a_database_may_lie_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed, uri in (
        ("sqlite:///~/x.db", f"sqlite:///{tmp_path}/x.db"),
        ("sqlite:////data/x.db", "sqlite:////data/x.db"),
        ("http://h:5000", "http://h:5000"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
    ):
        assert with_absolute_paths(load_config(None, [f"tracking.uri={typed}"])).tracking.uri == uri


def test_a_home_that_nobody_has_is_named() -> None:
    with pytest.raises(ConfigError, match=r"run\.storage: ~no-such-user/x: no home folder is known for ~no-such-user"):
        with_absolute_paths(load_config(None, ["run.storage=~no-such-user/x"]))


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_a_storage_that_the_database_of_mlflow_cannot_lie_in_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    for overrides in ([f"run.storage=/{name}"], [f"run.storage={name}/runs"]):
        with pytest.raises(ConfigError, match=r"run\.storage: MLflow finds no database in /.*; set tracking.uri"):
            check(load_config(None, ["data.url=d", *overrides]))
        check(load_config(None, ["data.url=d", "tracking.uri=http://h", *overrides]))
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(ConfigError, match=r"run\.storage: MLflow finds no database"):
        check(load_config(None, ["data.url=d", "run.storage=s3://b/x"]))


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"run\.storage: 'a\\x00b' holds a null character"):
        check(Config.model_validate({"data": {"url": "d"}, "run": {"storage": "a\0b"}}))
