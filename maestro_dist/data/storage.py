"""Local folders and fsspec URLs alike: retried, atomic, with errors that name the URL and never its credentials.

Every object is written whole or not at all: local files through a temporary file and a rename, objects of a store by
one request. A `Storage` holds only its URL, so it can be pickled and used from any thread, fork or spawned process.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from maestro_dist.errors import StorageError

T = TypeVar("T")

_ATTEMPTS = 4
_FIRST_DELAY_S = 0.2
_RANGE = 16 << 20  # bytes of one ranged read: what s3fs is fastest with, and what one retry costs
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 2}},
    }
}
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "az", "memory"}


class ObjectMissing(StorageError):
    """There is no object of that name."""


def redact(text: str) -> str:
    """`text` without the credentials that its URLs may hold (`user:password@`, query strings)."""
    text = re.sub(r"(\w+://)(?:[^\s@/:]*:[^\s@]*|[^/\s@]+)@", r"\1", text)  # a secret may hold a slash
    return re.sub(r"(\w+://[^\s?]+)\?\S+", r"\1", text)


class Storage:
    """A folder (or one object) named by a path or an fsspec URL.

    All methods take a path relative to it ("" = itself). Failures raise `StorageError`, a missing object its subclass
    `ObjectMissing`; only a lost create raises `FileExistsError`.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") if url.rstrip("/") else "/"
        protocol, separator, rest = self.url.partition("://")
        self.protocol = protocol if separator else "file"
        if self.protocol in _OBJECT_STORES and re.match(r"\w+://[^/@]*:[^@]*@", self.url):
            raise StorageError(
                f"{redact(self.url)}: keys do not belong in a URL; set AWS_ACCESS_KEY_ID and the like instead"
            )
        self.local: Path | None = Path(rest if separator else self.url) if self.protocol == "file" else None

    def __repr__(self) -> str:
        return f"Storage({redact(self.url)!r})"

    def join(self, *parts: str) -> Storage:
        """The storage below this one."""
        return Storage(self._url("/".join(parts)))

    def name(self, path: str = "") -> str:
        """The URL of `path` as it may be shown to a person."""
        return redact(self._url(path))

    def local_path(self, path: str = "") -> Path | None:
        """The file of `path` on this machine; None when the storage is remote."""
        return None if self.local is None else self.local / path if path else self.local

    # reading

    def read(self, path: str = "") -> bytes:
        """The whole object."""
        local = self.local_path(path)
        if local is not None:
            return self._locally(path, "read", local.read_bytes)
        return self._retried(path, "read", lambda fs, key: fs.cat_file(key))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` (fewer at the object's end)."""
        local = self.local_path(path)
        if local is not None:
            return self._locally(path, "read", lambda: _read_local(local, start, length))
        return self._retried(path, "read", lambda fs, key: fs.cat_file(key, start=start, end=start + length))

    def size(self, path: str = "") -> int:
        """Bytes of the object."""
        local = self.local_path(path)
        if local is not None:
            return self._locally(path, "read", lambda: local.stat().st_size)
        return int(self._retried(path, "read", lambda fs, key: fs.info(key)["size"]))

    def exists(self, path: str = "") -> bool:
        """Whether there is an object or a folder of that name."""
        local = self.local_path(path)
        if local is not None:
            return local.exists()
        return bool(self._retried(path, "look for", lambda fs, key: fs.exists(key)))

    def list(self, path: str = "") -> list[str]:
        """Sorted names of the files and folders directly below, without hidden ones; empty where there is nothing."""
        local = self.local_path(path)
        if local is not None:
            return sorted(name for name in os.listdir(local) if name[0] != ".") if local.is_dir() else []
        try:
            found = self._retried(path, "list", lambda fs, key: (key, fs.ls(key, detail=False)))
        except ObjectMissing:
            return []
        folder, names = found[0].strip("/"), [str(name).strip("/") for name in found[1]]
        return sorted({name.rsplit("/", 1)[-1] for name in names if name != folder})

    def download(self, path: str, target: Path) -> None:
        """Copy the object to a local file, in ranges that are retried one by one."""
        size = self.size(path)
        with target.open("wb") as file:
            for start in range(0, size, _RANGE):
                file.write(self.read_range(path, start, min(_RANGE, size - start)))

    # writing

    def write(self, path: str, data: bytes, *, create: bool = False) -> None:
        """Write the whole object. With `create` exactly one of several writers succeeds.

        Raises:
            FileExistsError: with `create`, when the object is there already.
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
                        return  # an earlier attempt whose answer was lost did write it
                    raise FileExistsError(self.name(path)) from None
                if isinstance(error, FileNotFoundError) and self.protocol not in _OBJECT_STORES:
                    fs.makedirs(fs._parent(key), exist_ok=True)
                    fs.pipe_file(key, data, mode="create" if create else "overwrite")
                    return
                raise

        self._retried(path, "write", put)

    @contextmanager
    def writer(self, path: str) -> Iterator[IO[bytes]]:
        """A local, seekable file that becomes the object when the block ends well, and vanishes when it does not.

        Its own failures (a full disk) are `StorageError` too; what the block raises comes through unchanged.
        """
        local = self.local_path(path)
        if local is not None:
            self._locally(path, "write", lambda: _make_folder(local.parent))
        # the object itself is beside it, or far away: then it is this machine's own disk that may be full
        where = "" if local is not None else f" in {tempfile.gettempdir()} (TMPDIR names another place)"

        def failed(error: OSError) -> StorageError:
            return StorageError(f"cannot write {self.name(path)}: {error.strerror or error}{where}")

        try:
            made = tempfile.TemporaryDirectory(
                prefix=".writing-", dir=local.parent if local else None, ignore_cleanup_errors=True
            )
        except OSError as error:
            raise failed(error) from error
        with made as folder:
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
                with suppress(StorageError):  # what could not be written was told by then
                    file.close()
            if local is not None:
                self._locally(path, "write", lambda: os.replace(spool, local))
            else:
                self._retried(path, "write", lambda fs, key: fs.put_file(str(spool), key))

    def remove(self, path: str = "", *, recursive: bool = False) -> None:
        """Remove an object, or with `recursive` a whole folder. What is not there is no error."""
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
        """`call(file system, key)`, again after a growing pause where the failure may be passing."""
        for attempt in range(_ATTEMPTS):
            try:
                fs, key = _file_system(self._url(path))
                return call(fs, key)
            except FileExistsError:
                raise
            except FileNotFoundError as error:
                raise ObjectMissing(f"{self.name(path)}: no such object") from error
            except PermissionError as error:
                raise StorageError(f"cannot {verb} {self.name(path)}: access denied; check the credentials") from error
            except (ImportError, ValueError) as error:  # unknown protocol, its package is not installed, malformed URL
                raise StorageError(f"cannot {verb} {self.name(path)}: {_one_line(error)}") from error
            except Exception as error:  # each backend has its own classes for network errors
                if attempt == _ATTEMPTS - 1:
                    reason = f"{_one_line(error)} (after {_ATTEMPTS} attempts)"
                    raise StorageError(f"cannot {verb} {self.name(path)}: {reason}") from error
                time.sleep(_FIRST_DELAY_S * 2**attempt)
        raise AssertionError("unreachable")


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    protocol = url.partition("://")[0]
    fs, key = fsspec.core.url_to_fs(url, **_OPTIONS.get(protocol, {}))
    return fs, str(key)


def _one_line(error: Exception) -> str:
    return redact(" ".join(str(error).split())) or type(error).__name__


def _read_local(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)


class _Spool(io.FileIO):
    """A new file whose failed writes become the error that `failed` makes of them, wherever they are noticed."""

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
        raise NotADirectoryError(errno.ENOTDIR, "a file is where its folder should be") from error


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
            os.link(spool, path)  # fails where the name is taken: whole content, one winner
        else:
            os.replace(spool, path)
    finally:
        spool.unlink(missing_ok=True)
