"""Secrets in URLs never appear in messages; the rest of the URL stays readable."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maestro_dist.system.redact import holds_password, redact

SECRET = st.text(string.ascii_letters + string.digits + "/@:%+=.-_~!$*#[]", min_size=1, max_size=12).map("Zq".__add__)
USER = st.text(string.ascii_letters + string.digits + ".%-_", min_size=1, max_size=8)
HOST = st.sampled_from(["host", "db.example.org:5432", "[::1]:9000", "[fe80::1%25eth0]", "10.0.0.1"])
SCHEME = st.sampled_from(["sftp", "http", "postgresql+psycopg2", "s3", "abfs"])


@given(SCHEME, USER, SECRET, HOST)
@example("postgresql", "user", "pa/ss@wd", "host")
@example("postgresql", "user", "12/34", "host")
@example("sftp", "user", "pa?ss", "host")
def test_a_password_is_never_shown(scheme: str, user: str, secret: str, host: str) -> None:
    url = f"{scheme}://{user}:{secret}@{host}/folder"
    assert redact(f"cannot read {url}: gone") == f"cannot read {scheme}://{host}/folder: gone"
    assert holds_password(url)
    two = redact(f"('{url}',{url}) {url}")
    assert "Zq" not in two
    assert two.count(f"{scheme}://{host}/folder") == 3


@given(SCHEME, st.sampled_from(["password", "sig", "token", "X-Amz-Signature", "client_secret", "x"]), SECRET)
@example("postgresql", "password", "a@b")
@example("postgresql", "password", "a?b&c=d")
def test_a_query_is_never_shown(scheme: str, name: str, secret: str) -> None:
    assert redact(f"{scheme}://db:5432/x?{name}={secret}, then") == f"{scheme}://db:5432/x then"
    assert "Zq" not in redact(f"{scheme}://me:pa@db:5432/x?{name}={secret}")


@pytest.mark.parametrize(
    "name", ["AccountKey", "SharedAccessSignature", "aws_secret_access_key", "password", "PWD", "api_key", "sig"]
)
def test_named_values_are_masked_outside_of_urls_too(name: str) -> None:
    text = redact(f"DefaultEndpointsProtocol=https;AccountName=me;{name}=abC+/d@1==;EndpointSuffix=core.windows.net")
    assert text == f"DefaultEndpointsProtocol=https;AccountName=me;{name}=***;EndpointSuffix=core.windows.net"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/key@v2",
        "s3://bucket/a@b:c",
        "abfs://container@account.dfs.core.windows.net/path",
        "abfss://container@account.dfs.core.windows.net/path@2",
        "wasbs://container@account.blob.core.windows.net",
        "http://[::1]:5000/a@b",
        "http://127.0.0.1:5000/#/experiments/1/runs/2",
        "sqlite:////home/me@work/mlflow.db",
        "/data/exp:1/me@work",
        "mail me@example.org: 3 tokens=4, key=5, model.pass_through=2",
        "2 x 3 at 10:30",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
    assert not holds_password(text)


@pytest.mark.parametrize("filler", ["a", "-", "a-", "=", "://", "a://", "@", "x=", "u:p@"])
def test_a_long_text_takes_no_time_out_of_proportion(filler: str) -> None:
    """A pattern that tries each start with each end would take minutes."""
    assert "Zq" not in redact(filler * 20_000 + " sftp://me:Zq@host token=Zq")
