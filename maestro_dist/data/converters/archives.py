"""The members of an archive of a source.

Members of zip and plain tar archives are read where they are. A compressed tar can only be read from its start, so it
is read once, and the wanted members are copied to a place that all workers reach, under names of our own: no name in
an archive ever becomes the name of a file. An archive inside an archive, as UCI has them, is copied there, too.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

from maestro_dist.data.converters.source_file import BROKEN, StoredFile, damaged, open_binary
from maestro_dist.data.storage import ObjectMissing, Storage

_COPY_BYTES = 256 << 20  # a file of copies ends with the member that reaches this size
_READ = 16 << 20
_NAME = re.compile(r".+\.(tar(\.(gz|bz2|xz|lzma|zst|lz4|lz|z))?|tgz|tbz2?|txz|zip)", re.IGNORECASE)

Wanted = Callable[[PurePosixPath], bool]


@dataclass(frozen=True)
class Archive:
    """An archive. `name` is for messages, `version` differs for other content.

    content  the bytes themselves, of an archive inside an archive where there is no place for copies
    """

    name: str
    url: str
    version: str
    content: bytes | None = None

    def open(self) -> IO[bytes]:
        """The bytes as a stream."""
        return open_binary(self.url) if self.content is None else io.BytesIO(self.content)


@dataclass(frozen=True)
class Member:
    """A member of an archive; `file` is None for a link, which is not followed."""

    path: PurePosixPath
    name: str
    file: StoredFile | None


def is_archive(path: PurePosixPath) -> bool:
    """Whether a file is an archive, by its name."""
    return _NAME.fullmatch(path.name) is not None


def nested(path: PurePosixPath, file: StoredFile, copies: Storage | None) -> Archive:
    """The archive that is the member `path` of an archive. It becomes a file of its own in `copies`, as its members can
    only be found in one; None: it is kept in memory.

    Raises:
        DataError: the archive around it is damaged.
        StorageError: it cannot be read, or the copy cannot be written.
    """
    suffix = ".zip" if path.suffix.lower() == ".zip" else ""
    if copies is None:
        return Archive(file.name, f"{file.url}:{path.as_posix()}", file.version, file.read())
    key = hashlib.sha256(repr((file.url, file.version, file.entry, file.span)).encode()).hexdigest()[:16]
    name = f"{key}{suffix}"
    if not copies.exists(name):  # an earlier attempt has copied all of it
        with file.stream() as content, copies.writer(name) as target:
            shutil.copyfileobj(content, target, _READ)
    return Archive(file.name, f"{copies.url}/{name}", key)


def members(archive: Archive, wanted: Wanted, copies: Storage | None) -> Iterator[Member]:
    """The wanted files and links of an archive, in its order. `copies`: where members of a compressed tar go; None:
    they are kept in memory.

    Raises:
        DataError: the archive is damaged.
        StorageError: it cannot be read, or a copy cannot be written.
    """
    try:
        if archive.url.lower().endswith(".zip"):
            yield from _in_zip(archive, wanted)
            return
        with archive.open() as file:
            tar = _plain_tar(file)
            if tar is not None:
                yield from _in_tar(archive, tar, wanted)
                return
        yield from _copied(archive, wanted, copies)
    except BROKEN as error:
        raise damaged(archive.name, error) from error


def _in_zip(archive: Archive, wanted: Wanted) -> Iterator[Member]:
    with archive.open() as file, zipfile.ZipFile(file) as opened:
        for number, entry in enumerate(opened.infolist()):
            path = PurePosixPath(entry.filename.replace("\\", "/"))  # some Windows programs write it
            if not entry.is_dir() and wanted(path):
                name = f"{archive.name}:{entry.filename}"
                content = None if archive.content is None else opened.read(entry)
                yield Member(path, name, StoredFile(name, archive.url, archive.version, entry=number, content=content))


def _plain_tar(file: IO[bytes]) -> tarfile.TarFile | None:
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except tarfile.ReadError:  # it is compressed, or damaged
        return None


def _in_tar(archive: Archive, tar: tarfile.TarFile, wanted: Wanted) -> Iterator[Member]:
    for info in tar:
        path, name = PurePosixPath(info.name), f"{archive.name}:{info.name}"
        if not wanted(path):
            continue
        if info.isreg() and (archive.content is not None or info.issparse()):  # sparse: with holes that are not stored
            yield Member(path, name, StoredFile(name, archive.url, content=_opened(tar, info).read()))
        elif info.isreg():
            span = (info.offset_data, info.size)
            yield Member(path, name, StoredFile(name, archive.url, archive.version, span=span))
        elif info.issym() or info.islnk():
            yield Member(path, name, None)


def _copied(archive: Archive, wanted: Wanted, place: Storage | None) -> Iterator[Member]:
    if place is None:
        yield from _kept(archive, wanted)
        return
    key = hashlib.sha256(f"{archive.url}\n{archive.version}".encode()).hexdigest()[:16]
    try:
        rows = json.loads(place.read(f"{key}.json"))  # an earlier attempt has copied all of them
    except ObjectMissing:
        with _Copies(place, key) as copies:
            rows = [copies.row(name, member) for name, member in _streamed(archive, wanted)]
        place.write(f"{key}.json", json.dumps(rows).encode())
    for text, copy, start, size in rows:
        path, name = PurePosixPath(text), f"{archive.name}:{text}"
        if wanted(path):
            file = StoredFile(name, f"{place.url}/{copy}", span=(start, size)) if copy else None
            yield Member(path, name, file)


def _kept(archive: Archive, wanted: Wanted) -> Iterator[Member]:
    for text, member in _streamed(archive, wanted):
        name = f"{archive.name}:{text}"
        file = None if member is None else StoredFile(name, archive.url, content=member.read())
        yield Member(PurePosixPath(text), name, file)


def _streamed(archive: Archive, wanted: Wanted) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and content of each wanted file, in one pass; None for a link."""
    raw: Any = archive.open()
    with io.BufferedReader(raw, _READ) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
        for info in tar:
            if wanted(PurePosixPath(info.name)) and (info.isreg() or info.issym() or info.islnk()):
                yield info.name, _opened(tar, info) if info.isreg() else None


def _opened(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(info)
    assert content is not None
    return content


class _Copies:
    """Copies members one after the other to a few files."""

    def __init__(self, place: Storage, key: str) -> None:
        self._place, self._key, self._count = place, key, 0
        self._open: ExitStack | None = None
        self._file: Any = None

    def __enter__(self) -> _Copies:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._open is not None:
            self._open.__exit__(*error)

    def row(self, name: str, member: IO[bytes] | None) -> list[Any]:
        """Copy a member: its name, the file of its copy ("" for a link), first byte and number of bytes there."""
        if member is None:
            return [name, "", 0, 0]
        if self._open is None:
            self._open = ExitStack()
            self._file = self._open.enter_context(self._place.writer(f"{self._key}-{self._count:06d}"))
        start = self._file.tell()
        shutil.copyfileobj(member, self._file, 1 << 20)
        row = [name, f"{self._key}-{self._count:06d}", start, self._file.tell() - start]
        if self._file.tell() >= _COPY_BYTES:
            self._open.close()
            self._open, self._count = None, self._count + 1
        return row
