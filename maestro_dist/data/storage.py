"""One interface to local folders and fsspec URLs. Errors name the URL, never its credentials.

An object is written completely or not at all: a local file through a temporary file and a rename, a remote object by
one request. Remote calls are retried. A `Storage` stores only its URL, so that any thread or process can use it.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from maestro_dist.errors import StorageError
from maestro_dist.system.redact import holds_password, redact

__all__ = ["ObjectMissing", "Storage", "redact"]

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_PATIENCE_S = 60.0
_ATTEMPTS = 20  # a limit for attempts that fail immediately
_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 5.0
_QUIET_S = 2.0  # a failure that lasts longer is logged
_JITTER = random.Random()  # ranks must not retry at the same moment; not the global generator
_RANGE = 16 << 20  # bytes of one ranged read, which is also what one retry repeats
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 2}},
    }
}
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "wasb", "wasbs", "memory"}
_ALIASES = {"wasb": "abfs", "wasbs": "abfs"}  # protocols that fsspec does not know


class ObjectMissing(StorageError):
    """There is no object with this name."""


class Storage:
    """A folder (or one object), given by a path or an fsspec URL.

    All methods take a path relative to it; "" is the folder itself. A failed call to a remote store is retried for
    `patience_s` seconds, because servers restart and networks fail temporarily.

    Raises:
        ObjectMissing: from all methods that read, if there is no such object.
        StorageError: from all methods, for any other failure.
    """

    def __init__(self, url: str, *, patience_s: float = _PATIENCE_S) -> None:
        self.patience_s = patience_s
        self.url = url.rstrip("/") if url.rstrip("/") else "/"
        protocol, separator, rest = self.url.partition("://")
        self.protocol = protocol if separator else "file"
        if self.protocol in _OBJECT_STORES and holds_password(self.url):
            raise StorageError(
                f"{redact(self.url)}: keys do not belong in a URL; set environment variables such as AWS_ACCESS_KEY_ID"
            )
        self.local: Path | None = Path(rest if separator else self.url) if self.protocol == "file" else None

    def __repr__(self) -> str:
        return f"Storage({redact(self.url)!r})"

    def join(self, *parts: str) -> Storage:
        """The storage of a folder below this one."""
        return Storage(self._url("/".join(parts)), patience_s=self.patience_s)

    def name(self, path: str = "") -> str:
        """The URL of `path` without credentials, for messages."""
        return redact(self._url(path))

    def local_path(self, path: str = "") -> Path | None:
        """The local file of `path`; None if the storage is remote."""
        return None if self.local is None else self.local / path if path else self.local

    # reading

    def read(self, path: str = "") -> bytes:
        """The complete object."""
        local = self.local_path(path)
        if local is not None:
            return self._locally(path, "read", local.read_bytes)
        return self._retried(path, "read", lambda fs, key: fs.cat_file(key))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; fewer at the end of the object."""
        local = self.local_path(path)
        if local is not None:
            return self._locally(path, "read", lambda: _read_local(local, start, length))
        return self._retried(path, "read", lambda fs, key: fs.cat_file(key, start=start, end=start + length))

    def size(self, path: str = "") -> int:
        """Size of the object in bytes."""
        local = self.local_path(path)
        if local is not None:
            return self._locally(path, "read", lambda: local.stat().st_size)
        return int(self._retried(path, "read", lambda fs, key: fs.info(key)["size"]))

    def exists(self, path: str = "") -> bool:
        """Whether there is an object or a folder with this name."""
        local = self.local_path(path)
        if local is not None:
            return local.exists()
        try:
            self._retried(path, "look for", lambda fs, key: fs.info(key))  # `fs.exists` returns False for any failure
        except ObjectMissing:
            return False
        return True

    def list(self, path: str = "") -> list[str]:
        """Sorted names of the files and folders directly below, without hidden ones; empty for a missing folder."""
        local = self.local_path(path)
        if local is not None:
            return sorted(name for name in os.listdir(local) if name[0] != ".") if local.is_dir() else []
        try:
            listing = self._retried(path, "list", lambda fs, key: (key, fs.ls(key, detail=False)))
        except ObjectMissing:
            return []
        folder, names = listing[0].strip("/"), [str(name).strip("/") for name in listing[1]]
        return sorted({name.rsplit("/", 1)[-1] for name in names if name != folder})

    def download(self, path: str, target: Path, progress: Callable[[int, int], None] = lambda done, size: None) -> None:
        """Copy the object to a local file, in ranges that are retried one by one.

        `progress` is called after each range with the bytes that are copied, and all bytes.
        """
        size = self.size(path)
        with target.open("wb") as file:
            for start in range(0, size, _RANGE):
                end = min(start + _RANGE, size)
                file.write(self._retried(path, "read", partial(_complete_range, start=start, end=end)))
                progress(end, size)

    # writing

    def write(self, path: str, data: bytes, *, create: bool = False) -> None:
        """Write the complete object. With `create` only one of several writers succeeds.

        Raises:
            FileExistsError: with `create`, if the object exists already.
        """
        local = self.local_path(path)
        if local is not None:
            self._locally(path, "write", lambda: _write_local(local, data, create))
            return
        attempts = 0

        def put(fs: Any, key: str) -> None:
            nonlocal attempts
            attempts += 1
            try:
                fs.pipe_file(key, data, mode="create" if create else "overwrite")
            except OSError as error:
                taken = isinstance(error, FileExistsError) or (
                    error.errno == errno.EINVAL and fs.exists(key)
                )  # s3fs: 412
                if create and taken:
                    if attempts > 1 and fs.cat_file(key) == data:
                        return  # an earlier attempt wrote it, but its answer was lost
                    raise FileExistsError(self.name(path)) from None
                if isinstance(error, FileNotFoundError) and self.protocol not in _OBJECT_STORES:
                    fs.makedirs(fs._parent(key), exist_ok=True)
                    fs.pipe_file(key, data, mode="create" if create else "overwrite")
                    return
                raise

        self._retried(path, "write", put)

    @contextmanager
    def writer(self, path: str) -> Iterator[IO[bytes]]:
        """A local, seekable file that becomes the object when the block ends without an error; else it is removed.

        Its own failures (a full disk) raise `StorageError`; errors of the block are raised unchanged.
        """
        local = self.local_path(path)
        if local is not None:
            self._locally(path, "write", lambda: _make_folder(local.parent))
        # for a remote object the temporary file is on the disk of this machine, which may be full
        where = "" if local is not None else f" in {tempfile.gettempdir()} (TMPDIR names another place)"

        def failed(error: OSError) -> StorageError:
            return StorageError(f"cannot write {self.name(path)}: {error.strerror or error}{where}")

        try:
            temporary = tempfile.TemporaryDirectory(
                prefix=".writing-", dir=local.parent if local else None, ignore_cleanup_errors=True
            )
        except OSError as error:
            raise failed(error) from error
        with temporary as folder:
            spool = Path(folder) / "object"
            try:
                raw = _Spool(spool, failed)
            except OSError as error:
                raise failed(error) from error
            file = io.BufferedRandom(raw)
            try:
                yield file
                file.flush()
                try:
                    os.fsync(file.fileno())
                except OSError as error:
                    raise failed(error) from error
            finally:
                with suppress(StorageError):  # a failed write has raised its error already
                    file.close()
            if local is not None:
                self._locally(path, "write", lambda: os.replace(spool, local))
            else:
                self._retried(path, "write", lambda fs, key: fs.put_file(str(spool), key))

    def remove(self, path: str = "", *, recursive: bool = False) -> None:
        """Remove an object, or with `recursive` a folder. A missing object is not an error."""
        local = self.local_path(path)
        if local is not None:
            if recursive and local.is_dir():
                self._locally(path, "remove", lambda: shutil.rmtree(local))
            else:
                self._locally(path, "remove", lambda: local.unlink(missing_ok=True))
            return
        try:
            self._retried(path, "remove", lambda fs, key: fs.rm(key, recursive=recursive))
        except ObjectMissing:
            return

    # helpers

    def _url(self, path: str) -> str:
        return f"{self.url.rstrip('/')}/{path}" if path else self.url

    def _locally(self, path: str, verb: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except FileExistsError:
            raise
        except FileNotFoundError as error:
            raise ObjectMissing(f"{self.name(path)}: no such file") from error
        except OSError as error:
            raise StorageError(f"cannot {verb} {self.name(path)}: {error.strerror or error}") from error

    def _retried(self, path: str, verb: str, call: Callable[[Any, str], T]) -> T:
        """`call(file system, key)`, retried with growing pauses if the failure may be temporary."""
        attempt, waited, begun = 0, 0.0, time.monotonic()
        while True:
            try:
                fs, key = _file_system(self._url(path))
                return call(fs, key)
            except FileExistsError:
                raise
            except FileNotFoundError as error:
                raise ObjectMissing(f"{self.name(path)}: no such object") from error
            except PermissionError as error:
                raise StorageError(f"cannot {verb} {self.name(path)}: access denied; check the credentials") from error
            except Exception as error:  # each backend has its own network errors
                problem, attempt = f"cannot {verb} {self.name(path)}: {_one_line(error)}", attempt + 1
                if _is_lasting(error):
                    raise StorageError(problem) from error
                spent = max(waited, time.monotonic() - begun)
                if spent >= self.patience_s or attempt == _ATTEMPTS:
                    raise StorageError(f"{problem} (after {attempt} attempts in {spent:.0f} s)") from error
                if waited > _QUIET_S:
                    _LOG.warning("%s; retried for another %.0f s", problem, self.patience_s - spent)
                pause = min(_FIRST_DELAY_S * 2 ** (attempt - 1), _LONGEST_DELAY_S) * _JITTER.uniform(0.75, 1.0)
                waited += pause
                time.sleep(pause)


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    protocol, separator, rest = url.partition("://")
    protocol = _ALIASES.get(protocol, protocol)
    fs, key = fsspec.core.url_to_fs(f"{protocol}{separator}{rest}", **_OPTIONS.get(protocol, {}))
    return fs, str(key)


def _complete_range(fs: Any, key: str, start: int, end: int) -> bytes:
    data: bytes = fs.cat_file(key, start=start, end=end)
    if len(data) != end - start:
        raise OSError(f"{len(data)} bytes came instead of {end - start}, the connection was lost")
    return data


def _is_lasting(error: Exception) -> bool:
    """Whether a retry is useless: unknown protocol, missing package, malformed URL (but not broken JSON)."""
    garbled = isinstance(error, json.JSONDecodeError | UnicodeError)
    return isinstance(error, ImportError | ValueError | IsADirectoryError | NotADirectoryError) and not garbled


def _one_line(error: Exception) -> str:
    return redact(" ".join(str(error).split())) or type(error).__name__


def _read_local(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)


class _Spool(io.FileIO):
    """A new file; a failed write raises the error that `failed` returns."""

    def __init__(self, path: Path, failed: Callable[[OSError], StorageError]) -> None:
        super().__init__(path, "w+")
        self._failed = failed

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise self._failed(error) from error


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file has the name of its folder") from error


def _write_local(path: Path, data: bytes, create: bool) -> None:
    _make_folder(path.parent)
    if create and path.exists():
        raise FileExistsError(str(path))
    spool = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with spool.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if create:
            os.link(spool, path)  # fails if the name exists, so only one writer succeeds
        else:
            os.replace(spool, path)
    finally:
        spool.unlink(missing_ok=True)
