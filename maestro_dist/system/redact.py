"""Remove credentials in URLs from texts, for messages, logs and records."""

from __future__ import annotations

import re

_SCHEME = r"[A-Za-z][\w+.-]{0,40}://"
_NEXT = rf"(?<=[,;|'\"()<>{{}}]){_SCHEME}"  # in a list without spaces; any other `://` may be part of a password
_URL = re.compile(rf"({_SCHEME})((?:(?!{_NEXT})\S)*)")
_NAMED = re.compile(
    r"(?i)(?<![A-Za-z0-9])((?:[\w-]{0,40}[_-])?"
    r"(?:pass|password|passwd|passphrase|pwd|secret|token|sig|signature|credentials?|"
    r"(?:account|access|secret|shared_?access|api|private)_?key|shared_?access_?signature|ssl_?password))"
    r"=[^\s&;'\"]+"
)
_CONTAINER_AT_ACCOUNT = {"abfs://", "abfss://", "az://", "wasb://", "wasbs://"}  # Azure: not a password
_IPV6 = re.compile(r"\[[0-9A-Fa-f:.%]*\]")


def redact(text: str) -> str:
    """`text` without `user:password@` and query strings of its URLs. Values after `password=` and similar are masked.

    A password may contain `/` and `@`. If it could also be a port and a path with an `@`, everything up to the last
    `@` is removed: an incomplete name is better than a leaked secret.
    """
    return _NAMED.sub(r"\1=***", _URL.sub(lambda url: url[1] + _shown(url[1].lower(), url[2]), text))


def holds_password(url: str) -> bool:
    """Whether the URL has `user:password@` before its host name."""
    match = _URL.match(url)
    return match is not None and ":" in match[2][: _credentials(match[1].lower(), match[2])]


def _shown(scheme: str, rest: str) -> str:
    rest = rest[_credentials(scheme, rest) :]
    return rest.partition("?")[0]


def _credentials(scheme: str, rest: str) -> int:
    """Length of the credentials, including the last `@`, at the start of `rest`: a URL without its scheme."""
    path, _, query = rest.partition("?")
    authority = path.partition("/")[0]
    if _IPV6.match(authority):
        return 0
    if ":" not in authority:
        return 0 if scheme in _CONTAINER_AT_ACCOUNT else authority.rfind("@") + 1
    if "@" in path or re.fullmatch(r"[^:]*:\d{1,5}", authority):  # the latter: host and port before a query
        return path.rfind("@") + 1
    return rest.rfind("@") + 1 if "@" in query else 0
