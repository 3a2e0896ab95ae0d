"""How many requests this process has sent to remote storage, and how many bytes it has received."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

KINDS = ("GET", "HEAD", "PUT", "LIST", "DELETE")

_KIND_OF_OPERATION = {
    "Get": "GET",
    "Head": "HEAD",
    "List": "LIST",
    "Delete": "DELETE",
    "Abort": "DELETE",
}  # all other operations of S3 write


@dataclass(frozen=True)
class RequestCounts:
    """Requests by kind, and bytes of the objects that were received. Each attempt of a retried call is a request."""

    requests: dict[str, int] = field(default_factory=dict)
    received_bytes: int = 0

    @property
    def total(self) -> int:
        """Number of all requests."""
        return sum(self.requests.values())

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {self.requests[kind]:,}" for kind in KINDS if self.requests.get(kind))
        by_kind = f" ({kinds})" if kinds else ""
        return f"{self.total:,} requests{by_kind}, {self.received_bytes / 1e6:,.1f} MB read"

    def as_list(self) -> list[int]:
        """The numbers in a fixed order: each kind, then the bytes."""
        return [*(self.requests.get(kind, 0) for kind in KINDS), self.received_bytes]

    @classmethod
    def from_list(cls, numbers: Iterable[int]) -> RequestCounts:
        """What `as_list` returned."""
        *requests, received = (int(number) for number in numbers)
        return cls(dict(zip(KINDS, requests, strict=True)), received)

    def __add__(self, other: RequestCounts) -> RequestCounts:
        pairs = zip(self.as_list(), other.as_list(), strict=True)
        return RequestCounts.from_list(one + two for one, two in pairs)

    def __sub__(self, other: RequestCounts) -> RequestCounts:
        pairs = zip(self.as_list(), other.as_list(), strict=True)
        return RequestCounts.from_list(one - two for one, two in pairs)


_lock = threading.Lock()
_requests: Counter[str] = Counter()
_received = 0


def request_counts() -> RequestCounts:
    """The requests of this process so far, and those of its reader processes that have ended."""
    with _lock:
        return RequestCounts(dict(_requests), _received)


def count_request(kind: str) -> None:
    """Count one request."""
    with _lock:
        _requests[kind] += 1


def count_received(data: bytes) -> bytes:
    """Count the bytes of an object, and return them."""
    global _received
    with _lock:
        _received += len(data)
    return data


def add_counts(counts: RequestCounts) -> None:
    """Add what another process, which belongs to this one, has counted."""
    global _received
    with _lock:
        _requests.update(counts.requests)
        _received += counts.received_bytes


def count_botocore_requests(client: Any) -> None:
    """Count each request that a botocore client sends, also hidden ones and retries of botocore itself."""

    def before_send(event_name: str, **_: Any) -> None:
        operation = event_name.rsplit(".", 1)[-1]
        kind = next((kind for start, kind in _KIND_OF_OPERATION.items() if operation.startswith(start)), "PUT")
        count_request(kind)

    client.meta.events.register_first("before-send.s3", before_send, unique_id="maestro_dist-counts")
