"""`Storage`: one interface to local folders and fsspec URLs. Errors name the URL, never its credentials.

An object is written completely or not at all: a local file through a temporary file and a rename, a remote object by
one request. Remote calls are retried. A `Storage` stores only its URL, so that any thread or process can use it.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from maestro_dist.data.storage.client import FileSystemClient
from maestro_dist.data.storage.copies import Hashed, ObjectCopy, Writable
from maestro_dist.data.storage.local_files import (
    SpoolFile,
    local_sizes,
    make_folder,
    read_range,
    spool_folder,
    write_file,
)
from maestro_dist.data.storage.open_client import OBJECT_STORES, open_client
from maestro_dist.data.storage.retry import Damaged, Heartbeat, ObjectDamaged, ObjectMissing, RemoteCall, retried
from maestro_dist.data.storage.settings import storage_settings
from maestro_dist.errors import StorageError
from maestro_dist.system.redact import holds_password, redact

T = TypeVar("T")


class Storage:
    """A folder (or one object), given by a path or an fsspec URL.

    All methods take a path relative to it; "" is the folder itself. A failed call to a remote store is retried for
    `patience_s` seconds (by default `run.storage_patience_s`), because servers restart and networks fail temporarily.
    With `expected`, a caller says that the object is known to exist; then also "no such object" and "access denied" are
    retried. `heartbeat` is called while a call waits for the store; a pickled `Storage` does not keep it.

    Raises:
        ObjectMissing: from all methods that read, if there is no such object.
        StorageError: from all methods, for any other failure.
    """

    def __init__(self, url: str, *, patience_s: float | None = None, heartbeat: Heartbeat | None = None) -> None:
        self.patience_s, self._heartbeat = patience_s, heartbeat
        self.url = url.rstrip("/") if url.rstrip("/") else "/"
        protocol, separator, rest = self.url.partition("://")
        self.protocol = protocol if separator else "file"
        if self.protocol in OBJECT_STORES and holds_password(self.url):
            raise StorageError(
                f"{redact(self.url)}: keys do not belong in a URL; set environment variables such as AWS_ACCESS_KEY_ID"
            )
        self.local: Path | None = Path(rest if separator else self.url) if self.protocol == "file" else None

    def __repr__(self) -> str:
        return f"Storage({redact(self.url)!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return partial(Storage, patience_s=self.patience_s), (self.url,)

    def join(self, *parts: str) -> Storage:
        """The storage of a folder below this one."""
        return Storage(self._url("/".join(parts)), patience_s=self.patience_s, heartbeat=self._heartbeat)

    def with_heartbeat(self, heartbeat: Heartbeat) -> Storage:
        """The same storage, which calls `heartbeat` while it waits."""
        return Storage(self.url, patience_s=self.patience_s, heartbeat=heartbeat)

    @property
    def longest_wait_s(self) -> float:
        """For how many seconds a call that fails is repeated."""
        return storage_settings().patience_s if self.patience_s is None else self.patience_s

    def name(self, path: str = "") -> str:
        """The URL of `path` without credentials, for messages."""
        return redact(self._url(path))

    def local_path(self, path: str = "") -> Path | None:
        """The local file of `path`; None if the storage is remote."""
        return None if self.local is None else self.local / path if path else self.local

    # reading

    def read(self, path: str = "", *, expected: bool = False) -> bytes:
        """The complete object."""
        local = self.local_path(path)
        if local is not None:
            return self._locally(path, "read", local.read_bytes)
        return self._remotely(path, "read", lambda client, key: client.read(key), expected=expected)

    def parsed(self, path: str, parse: Callable[[bytes], T], *, expected: bool = False) -> T:
        """What `parse` makes of the complete object. It raises ValueError for content that is damaged.

        A connection may change bytes: a damaged remote object is read again, as long as an outage may last.

        Raises:
            ObjectDamaged: `parse` raised ValueError.
        """
        if self.local is not None:
            try:
                return parse(self.read(path))
            except ValueError as error:
                raise ObjectDamaged(self.name(path), str(error)) from error

        def read(client: FileSystemClient, key: str) -> T:
            data = client.read(key)
            try:
                return parse(data)
            except ValueError as error:
                raise Damaged(str(error)) from error

        return self._remotely(path, "read", read, expected=expected)

    def read_range(self, path: str, start: int, length: int, *, expected: bool = False) -> bytes:
        """`length` bytes from `start`; fewer at the end of the object."""
        local = self.local_path(path)
        if local is not None:
            return self._locally(path, "read", lambda: read_range(local, start, length))
        return self._remotely(
            path, "read", lambda client, key: client.read_range(key, start, start + length), expected=expected
        )

    def size(self, path: str = "", *, expected: bool = False) -> int:
        """Size of the object in bytes."""
        local = self.local_path(path)
        if local is not None:
            return self._locally(path, "read", lambda: local.stat().st_size)
        return self._remotely(path, "read", lambda client, key: client.size(key), expected=expected)

    def exists(self, path: str = "") -> bool:
        """Whether there is an object or a folder with this name."""
        local = self.local_path(path)
        if local is not None:
            return local.exists()
        try:
            self._remotely(path, "look for", lambda client, key: client.find(key))
        except ObjectMissing:
            return False
        return True

    def list(self, path: str = "", *, expected: bool = False) -> list[str]:
        """Sorted names of the files and folders directly below, without hidden ones; empty for a missing folder."""
        return sorted(self.sizes(path, expected=expected))

    def sizes(self, path: str = "", *, expected: bool = False) -> dict[str, int]:
        """Sizes in bytes of the files directly below, by name, without hidden ones; empty for a missing folder.

        Folders are in it too, with a size that means nothing. One request gives up to 1000 names.
        """
        local = self.local_path(path)
        if local is not None:
            return self._locally(path, "list", lambda: local_sizes(local))
        try:
            return self._remotely(path, "list", lambda client, key: client.sizes(key), expected=expected)
        except ObjectMissing:
            return {}

    def details(self, path: str = "", *, expected: bool = False) -> tuple[int | None, str]:
        """Size of the object in bytes (None: unknown), and a text that differs for other content ("": unknown)."""
        local = self.local_path(path)
        if local is not None:
            status = self._locally(path, "read", local.stat)
            return status.st_size, str(status.st_mtime_ns)
        return self._remotely(path, "read", lambda client, key: client.details(key), expected=expected)

    def tree(self) -> dict[str, tuple[int | None, str]]:
        """`details` of all objects below this remote folder, by their path below it; empty for a missing folder."""
        try:
            return self._remotely("", "list", lambda client, key: client.tree(key))
        except ObjectMissing:
            return {}

    def download(
        self,
        path: str,
        target: Path,
        progress: Callable[[int, int], None] = lambda done, size: None,
        *,
        size: int | None = None,
        expected: bool = False,
        digest: Any = None,
    ) -> None:
        """Copy the object to a local file. After a failure it goes on where it was.

        `size` is the object's size in bytes where it is known; else it is asked for first. `progress` is called after
        each piece with the bytes that are copied, and all bytes. `digest` (of hashlib) is updated with all bytes.

        Raises:
            ObjectDamaged: the object has another size.
            OSError: the local file cannot be written.
        """
        size = self.size(path, expected=expected) if size is None else size
        with target.open("wb") as file:
            try:
                self.copy_part(path, Hashed(file, digest), 0, size, progress, expected=expected)
            except StorageError as error:
                self.raise_other_size(path, size, error)
                raise

    def copy_part(
        self,
        path: str,
        file: Writable,
        start: int,
        end: int,
        progress: Callable[[int, int], None] = lambda done, size: None,
        *,
        expected: bool = False,
    ) -> None:
        """Write the bytes from `start` up to `end` of the object to `file`, as `download` does.

        `progress` is called with the place in the object that is reached, and `end`.

        Raises:
            OSError: `file` raised it.
        """
        copy = ObjectCopy(file, start, end, progress)
        while copy.done < end and copy.failed is None:
            before = copy.done
            try:
                self._remotely(path, "read", copy.go_on, expected=expected)
            except StorageError:
                if copy.done == before:
                    raise
        if copy.failed is not None:
            raise copy.failed

    def raise_other_size(self, path: str, size: int, error: StorageError) -> None:
        """Raise ObjectDamaged if a download has failed because the object does not have this size."""
        try:
            found = Storage(self.url, patience_s=0).size(path)
        except StorageError:  # it cannot be asked for
            return
        if found != size:
            asked = f" (asked for {self.longest_wait_s:.0f} s)"
            raise ObjectDamaged(self.name(path), f"{found} bytes instead of {size}", asked) from error

    # writing

    def write(self, path: str, data: bytes, *, create: bool = False, guard: Callable[[], None] = lambda: None) -> None:
        """Write the complete object. With `create` only one of several writers, of different data, succeeds.

        `guard` is called right before each attempt: what it raises ends the call, and nothing is written.

        Raises:
            FileExistsError: with `create`, if the object exists already.
        """
        local = self.local_path(path)
        if local is not None:
            guard()
            self._locally(path, "write", lambda: write_file(local, data, create=create))
            return

        def put(client: FileSystemClient, key: str) -> None:
            guard()
            try:
                client.write(key, data, create=create)
            except FileExistsError:
                # an earlier attempt may have written it: its answer was lost, or the HTTP client has tried twice
                if client.read(key) == data:
                    return
                raise FileExistsError(self.name(path)) from None

        self._remotely(path, "write", put)

    @contextmanager
    def writer(self, path: str) -> Iterator[IO[bytes]]:
        """A local, seekable file that becomes the object when the block ends without an error; else it is removed.

        Its own failures (a full disk) raise `StorageError`; errors of the block are raised unchanged.
        """
        local = self.local_path(path)
        if local is not None:
            self._locally(path, "write", lambda: make_folder(local.parent))
        # for a remote object the temporary file is on the disk of this machine, which may be full
        where = "" if local is not None else f" in {tempfile.gettempdir()} (TMPDIR names another place)"

        def failed(error: OSError) -> StorageError:
            return StorageError(f"cannot write {self.name(path)}: {error.strerror or error}{where}")

        with ExitStack() as stack:
            try:
                folder = stack.enter_context(spool_folder(local.parent if local else None))
            except OSError as error:
                raise failed(error) from error
            spool = folder / "object"
            try:
                raw = SpoolFile(spool, failed)
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
                self._remotely(path, "write", lambda client, key: client.upload(spool, key))

    def remove(self, path: str = "", *, recursive: bool = False) -> None:
        """Remove an object, or with `recursive` a folder. A missing object is not an error."""
        local = self.local_path(path)
        if local is not None:
            if recursive and local.is_dir():
                self._locally(path, "remove", lambda: shutil.rmtree(local))
            else:
                self._locally(path, "remove", lambda: local.unlink(missing_ok=True))
            return
        with suppress(ObjectMissing):
            if recursive:
                self._remotely(path, "remove", lambda client, key: client.remove_folder(key))
            else:
                self._remotely(path, "remove", lambda client, key: client.remove(key))

    def remove_many(self, paths: Sequence[str]) -> None:
        """Remove objects, up to 1000 by one request of S3. Missing ones are not an error."""
        if self.local is not None:
            for path in paths:
                self.remove(path)
        elif paths:
            keys = [self._url(path) for path in paths]
            self._remotely(paths[0], "remove", lambda client, _: client.remove_many([_key(url) for url in keys]))

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

    def _remotely(
        self, path: str, verb: str, call: Callable[[FileSystemClient, str], T], *, expected: bool = False
    ) -> T:
        """`call(client, key)`, retried while its failure may pass."""
        what = RemoteCall(verb, self.name(path), expected)
        return retried(lambda: call(*open_client(self._url(path))), what, self.longest_wait_s, self._heartbeat)


def _key(url: str) -> str:
    return url.partition("://")[2]
