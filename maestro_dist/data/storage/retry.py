"""The one retry policy of all remote calls: exponential back-off with full jitter, for a limited time.

Servers restart, networks fail for a while, and stores ask clients to slow down. Such failures pass: the call is
repeated until the time limit, however often that is. Full jitter (each pause is random between 0 and its limit) spreads
the requests of many ranks after an outage.

A 404 or 403 ends a call at once, unless the caller knows that the object exists (`expected`): a store that recovers
may deny or not find objects that it has. A 403 passes as well where this process has had access to the bucket before
(for a call that writes: where it has written to it). So does a 404 to a call that writes, which says that there is no
bucket.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from maestro_dist.errors import MaestroError, StorageError
from maestro_dist.system.redact import redact

T = TypeVar("T")

Heartbeat = Callable[[str], None]
"""Called with the current activity of a reader; each call shows that the reader is alive."""

_LOG = logging.getLogger(__name__)
_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 10.0
_QUIET_S = 2.0  # a failure that lasts longer is logged
_LOG_EVERY_S = 30.0
_JITTER = random.Random()  # of its own: the global generator belongs to the run
_LASTING_CODES = {
    "AuthorizationHeaderMalformed",  # another region
    "EntityTooLarge",
    "InvalidBucketName",
    "KeyTooLongError",
    "MethodNotAllowed",
    "NotImplemented",
    "PermanentRedirect",
    "301",
    "405",
    "501",
}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"}

_allowed: set[tuple[str, bool]] = set()  # (bucket, whether it was written to) of this process's successful calls
_logged = -_LOG_EVERY_S  # when a wait was logged last


class ObjectMissing(StorageError):
    """There is no object with this name. `asked` says how long it was asked for, as the end of a message."""

    def __init__(self, message: str, asked: str = "") -> None:
        super().__init__(f"{message}{asked}")
        self.asked = asked


class ObjectDamaged(StorageError):
    """What was read is not what was written. `problem` says why; `asked` is as in `ObjectMissing`."""

    def __init__(self, name: str, problem: str, asked: str = "") -> None:
        super().__init__(f"{name}: {problem}{asked}")
        self.problem, self.asked = problem, asked


class Damaged(Exception):
    """A call got wrong content. It passes where the connection, and not the object, is at fault."""


class NoSuchBucket(OSError):
    """A listing found no bucket. An empty folder is no error, so this is a wrong name, or a store that recovers."""


@dataclass(frozen=True)
class RemoteCall:
    """What a call does, for messages and for the choice of what is retried.

    verb      what is done to the object: read, write, list, ...
    name      URL of the object without credentials
    expected  whether the object is known to exist
    """

    verb: str
    name: str
    expected: bool = False

    @property
    def access(self) -> tuple[str, bool]:
        """The bucket, and whether the call changes it: keys that may read need not be allowed to write."""
        protocol, _, rest = self.name.partition("://")
        return f"{protocol}://{rest.split('/', 1)[0]}", self.verb in ("write", "remove")


def retried(call: Callable[[], T], what: RemoteCall, patience_s: float, heartbeat: Heartbeat | None = None) -> T:
    """The result of `call`, which is repeated for `patience_s` seconds after its first failure that may pass.

    `heartbeat` is called before each pause. A wait of more than 2 s is logged, at most every 30 s in a process.

    Raises:
        FileExistsError, MaestroError: from `call`, unchanged.
        ObjectMissing: there is no such object.
        ObjectDamaged: `call` raised `Damaged` to the end.
        StorageError: any other failure; the message names the object, and the time for which it was asked for.
    """
    attempts, waited, begun = 0, 0.0, 0.0
    while True:
        attempts += 1
        try:
            result = call()
        except (FileExistsError, MaestroError):
            raise
        except Exception as error:  # each backend has its own network errors
            failure, passes = _failure(error, what)
            if not passes:
                raise failure from error
            now = time.monotonic()
            begun = begun or now
            spent = max(waited, now - begun)
            if spent >= patience_s:
                asked = f" (after {attempts} attempts in {spent:.0f} s)"
                raise _last(failure, asked) from error
            limit = min(_FIRST_DELAY_S * 2 ** min(attempts - 1, 20), _LONGEST_DELAY_S, patience_s - spent)
            _tell(failure, spent, patience_s - spent, heartbeat)
            pause = _JITTER.uniform(0.0, limit)
            waited += pause
            time.sleep(pause)
        else:
            bucket, changes = what.access
            _allowed.update({(bucket, False), (bucket, changes)})
            return result


def _last(failure: StorageError, asked: str) -> StorageError:
    """The failure with how long it was asked for."""
    if isinstance(failure, ObjectMissing):
        return ObjectMissing(str(failure), asked)
    if isinstance(failure, ObjectDamaged):
        return ObjectDamaged(str(failure).removesuffix(f": {failure.problem}"), failure.problem, asked)
    return StorageError(f"{failure}{asked}")


def _tell(failure: StorageError, spent: float, left: float, heartbeat: Heartbeat | None) -> None:
    """Tell the log and the reader's owner what is waited for."""
    global _logged
    text = f"{failure}; asking again for up to {left:.0f} s"
    if heartbeat is not None:
        heartbeat(f"waiting for storage: {text}")
    if spent > _QUIET_S and time.monotonic() - _logged >= _LOG_EVERY_S:
        _logged = time.monotonic()
        _LOG.warning("%s", text)


def _failure(error: Exception, what: RemoteCall) -> tuple[StorageError, bool]:
    """The error for the caller, and whether the failure may pass."""
    if isinstance(error, Damaged):
        return ObjectDamaged(what.name, str(error)), True
    if isinstance(error, FileNotFoundError) and what.verb == "write":
        failure = StorageError(f"cannot write {what.name}: there is no such bucket")
        return failure, (what.access[0], False) in _allowed
    if isinstance(error, FileNotFoundError):
        known = ", but it must exist" if what.expected else ""
        return ObjectMissing(f"{what.name}: no such object{known}"), what.expected
    if isinstance(error, PermissionError) or type(error).__name__ in _NO_CREDENTIALS:
        denied = StorageError(f"cannot {what.verb} {what.name}: access denied; check the credentials")
        return denied, what.expected or what.access in _allowed
    failure = StorageError(f"cannot {what.verb} {what.name}: {_one_line(error)}")
    if isinstance(error, NoSuchBucket):
        return failure, what.access in _allowed
    return failure, not _is_lasting(error)


def _is_lasting(error: BaseException) -> bool:
    """Whether a retry is useless: unknown protocol, missing package, malformed URL (but not broken JSON)."""
    if isinstance(error, json.JSONDecodeError | UnicodeError):
        return False
    lasting = ImportError | ValueError | IsADirectoryError | NotADirectoryError | NotImplementedError
    return isinstance(error, lasting) or bool(error_codes(error) & _LASTING_CODES)


def error_codes(error: BaseException | None) -> set[str]:
    """The S3 error codes of an error and its causes."""
    codes = set()
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            codes.add(str(response.get("Error", {}).get("Code")))
        error = error.__cause__
    return codes


def _one_line(error: Exception) -> str:
    return redact(" ".join(str(error).split())) or type(error).__name__
