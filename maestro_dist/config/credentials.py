"""Credentials in a configuration are refused in the text of every key, and the errors never show them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from maestro_dist.errors import ConfigError

CREDENTIALS = (
    "holds credentials, which would appear in logs and files; give them in the environment (AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, AZURE_STORAGE_SAS_TOKEN, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD or "
    "MLFLOW_TRACKING_TOKEN, PGPASSWORD)"
)
_CHAIN = re.compile(r"::(?=[\w+.-]{1,40}://)")  # zip://a.csv::s3://bucket/b.zip
_CONTAINER_AT_ACCOUNT = ("abfs", "abfss", "wasb", "wasbs", "az", "adl")  # Azure: the @ follows a container, not a user
_USER = re.compile(r"[^/@?#]+@")
_PORT = re.compile(r"\[|[^/@:]*:\d*([/?#]|$)")  # of host:80/..., or of an IPv6 address
_PASSWORD = re.compile(r"[^/@?#]*:[^@]*@")  # a password may hold /, ? and @; the first @ is enough
_SETTING = re.compile(r"[?&;#]([^=?&;#]+)=[^&;#]")
_CONNECTION = re.compile(r"(?:^|;)\s*(AccountKey|Shared\w*|Password|Pwd)\s*=\s*[^;\s]", re.IGNORECASE)
_SECRET = re.compile(
    r"passw|passphrase|secret(?!ar)|token(?!s)|signature|credential|(api|access|account|private|shared)[-_.]?key"
    r"|(^|[-_.])(pass|pwd|sig|sas|auth|authorization|key|jwt|cred|creds)($|[-_.])",
    re.IGNORECASE,
)


def has_credentials(text: str) -> bool:
    """Whether a text holds a URL with a user, password, key or token, before the host or as a parameter (`?sig=`).

    File names with `@` or `?` are no credentials. Neither is `abfs://container@account...` of Azure.
    """
    if _CONNECTION.search(text):
        return True
    for match in re.finditer("://", text):
        rest = _CHAIN.split(text[match.end() :], maxsplit=1)[0]
        if any(_SECRET.search(unquote(name)) for name in _SETTING.findall(rest)):
            return True
        if _PORT.match(rest):
            continue
        azure = text[: match.start()].lower().endswith(_CONTAINER_AT_ACCOUNT)
        if _PASSWORD.match(rest) or (_USER.match(rest) and not azure):
            return True
    return False


def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All (key, text) in a tree of plain values. Names of keys are texts too."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield key, str(name)
            yield from texts(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for child in value:
            yield from texts(child, key)
    elif isinstance(value, str):
        yield key, value


def refuse_credentials(tree: Any, where: str = "") -> None:
    """Raise `ConfigError` if a text of the tree holds credentials. The error names the key and shows no text.

    where  start of the message
    """
    for key, text in texts(tree):
        if has_credentials(text):
            raise ConfigError(f"{where}{key or 'a key'}: {CREDENTIALS}")
