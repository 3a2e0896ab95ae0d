"""Credentials are refused without being shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from maestro_dist.config.check import check
from maestro_dist.config.credentials import has_credentials
from maestro_dist.config.load import load_config
from maestro_dist.config.schema import Config
from maestro_dist.errors import ConfigError
from maestro_dist.train import main

SECRET = "hunter2"
BEARING = [
    f"s3://AKIA:{SECRET}@bucket/x",
    f"http://me:{SECRET}@host:5000/x",
    f"https://{SECRET}@host/x",
    f"sftp://me:pa/{SECRET}@host/x",
    f"https://me:p@{SECRET}@host/x",
    f"https://me:p?{SECRET}#@host/x",
    f"http://me:{SECRET}@[::1]:5000/",
    f"postgresql+psycopg2://me:{SECRET}@h/db",
    f"postgresql://h/db?user=me&password={SECRET}",
    f"postgresql://h:5432/db?sslpassword={SECRET}",
    f"https://account.blob.core.windows.net/c?sv=1&sig={SECRET}",
    f"https://h/x?TOKEN={SECRET}",
    f"https://h/x?access_token={SECRET}",
    f"https://h/x?pass%77ord={SECRET}",
    f"https://h/x#token={SECRET}",
    f"https://b.s3.amazonaws.com/k?X-Amz-Credential=a&X-Amz-Signature={SECRET}",
    f"https://h/x?apiKey={SECRET}",
    f"abfs://container@account.dfs.core.windows.net/x?sig={SECRET}",
    f"abfs://me:{SECRET}@account.dfs.core.windows.net/x",
    f"simplecache::s3://AKIA:{SECRET}@bucket/x",
    f"zip://a.csv::https://me:{SECRET}@host/x.zip",
    f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={SECRET}",
    f"jdbc:postgresql://h/db;password={SECRET}",
]
FREE = [
    "abfs://container@account.dfs.core.windows.net/path",
    "abfss://container@account.dfs.core.windows.net/path",
    "wasb://container@account.blob.core.windows.net/path",
    "wasbs://container@account.blob.core.windows.net/p@th",
    "az://container@account/path",
    "s3://bucket/key@v2",
    "s3://bucket/a:b@v2",
    "s3://bucket/what?versionId=3",
    "s3://bucket/design?design=1&monkey=2",
    "sqlite:////p@th/x?y",
    "sqlite:////data/key=1/x.db?timeout=5",
    "http://mlflow.lan:5000/team@x",
    "http://[::1]:5000/team@x",
    "zip://a.csv::s3://bucket/key@v2.zip",
    "file:///data/me@home:8/x",
    "/data/me@home/what?token=1",
    "me:you@there",
    "/data/token=1/x",
    "ICU: sepsis @ night",
]
TEXT_KEYS = [
    "run.storage={}", "run.init_from={}", "run.name={}", "data.url={}", "data.cache={}", "data.test={}",
    "data.modalities=[a, '{}']", "data.source={{converter: uci_hapt, path: '{}'}}", "data.source.path={}",
    "data.source.options.x={}", "task.teachers=['{}']", "tracking.uri={}", "tracking.experiment={}", "optim.lr={}",
    "model.word={{'{}': 8}}", "no.such={}",
]  # fmt: skip


@pytest.mark.parametrize("text", BEARING)
def test_credentials_are_seen_and_never_shown(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert has_credentials(text)
    path = tmp_path / "x.yaml"
    path.write_text(f"tracking: {{uri: '{text}'}}\n")
    for arguments in ([text], [f"tracking.uri={text}"], [f"{text}=3"], [str(path)], [str(path), text]):
        assert main([*arguments, "--print-config"]) == 2
        said = "".join(capsys.readouterr())
        assert "holds credentials" in said
        assert SECRET not in said


@pytest.mark.parametrize("key", TEXT_KEYS)
@pytest.mark.parametrize("text", [BEARING[0], BEARING[8]])
def test_credentials_are_refused_in_every_key(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=r"holds credentials.*give them in the environment") as caught:
        load_config(None, [key.format(text)])
    assert SECRET not in str(caught.value)
    assert str(caught.value).startswith(key.partition("=")[0] + ": ")


def test_credentials_in_a_configuration_made_in_python_are_refused() -> None:
    for tree in ({"run": {"storage": BEARING[0]}}, {"task": {"teachers": ["a", BEARING[8]]}}):
        with pytest.raises(ConfigError, match=r"(run\.storage|task\.teachers): holds credentials"):
            check(Config.model_validate({"data": {"url": "d"}} | tree))


@pytest.mark.parametrize("text", FREE)
def test_names_that_only_look_like_it_are_let_through(text: str) -> None:
    assert not has_credentials(text)
    check(load_config(None, [f"data.url={text}", f"tracking.uri={text}", f"tracking.experiment={text}"]))
