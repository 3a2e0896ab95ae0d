"""Read objects of S3 by signed URLs with urllib3, in the calling thread.

s3fs reads in one event loop for all threads of a process, which takes four to five times the CPU time. A signed URL is
a secret for as long as it is valid: it is in no message.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from typing import Any

from maestro_dist.data.storage.settings import StorageSettings

_PIECE = 1 << 20  # bytes
_CONNECTIONS = 64  # to a server that are kept open
_CODE = re.compile(rb"<Code>(\w+)</Code>")


class SignedReader:
    """Reads parts of objects. Any number of threads may use it."""

    def __init__(self, settings: StorageSettings) -> None:
        self._settings = settings
        self._pools: dict[str, Any] = {}
        self._lock = threading.Lock()

    def pieces(self, url: str, name: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to `end` of the object at a signed URL, in pieces; `name` is for messages.

        Raises:
            FileNotFoundError: there is no such object.
            PermissionError: access is denied.
            OSError: any other failure.
        """
        from urllib3.exceptions import HTTPError

        answer = None
        try:
            headers = {"Range": f"bytes={start}-{end - 1}"}
            answer = self._pool(url).request(
                "GET", url, headers=headers, preload_content=False, decode_content=False, retries=False, redirect=False
            )
            if answer.status != 206 and (answer.status != 200 or start > 0):  # 200: the complete object
                raise _failure(answer.status, answer.read(4096), name)
            while piece := answer.read(_PIECE):
                yield piece
        except HTTPError as error:
            raise OSError(f"{type(error).__name__}: {_without_query(str(error))}") from None
        finally:
            if answer is not None:
                if answer.closed:  # all was read: another request may use the connection
                    answer.release_conn()
                else:
                    answer.close()

    def _pool(self, url: str) -> Any:
        """The connections for a URL, through a proxy where the environment names one."""
        import urllib3
        from botocore.httpsession import get_cert_path
        from botocore.utils import get_environ_proxies

        scheme = url.partition("://")[0]
        with self._lock:
            if scheme not in self._pools:
                connect, answer = self._settings.time_limits_s
                options: dict[str, Any] = {
                    "maxsize": _CONNECTIONS,
                    "timeout": urllib3.Timeout(connect=connect, read=answer),
                    "ca_certs": get_cert_path(os.environ.get("AWS_CA_BUNDLE") or True),
                }
                proxy = get_environ_proxies(url).get(scheme)
                self._pools[scheme] = (
                    urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
                )
            return self._pools[scheme]


def _failure(status: int, body: bytes, name: str) -> OSError:
    found = _CODE.search(body)
    code = found[1].decode() if found else "no code"
    if status == 404:
        return FileNotFoundError(name)
    if status in (401, 403):
        return PermissionError(f"{name}: {code}")
    return OSError(f"the server answered {status} ({code})")


def _without_query(text: str) -> str:
    return re.sub(r"\?\S*", "", text)
