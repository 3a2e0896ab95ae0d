"""The files of a source: a folder with the archives in it, or one archive, on a disk or behind an fsspec URL."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from maestro_dist.data.converters.archives import Archive, is_archive, members, nested
from maestro_dist.data.converters.source_file import SourceFile, StoredFile
from maestro_dist.data.parts import Remarks, join_names
from maestro_dist.data.storage import ObjectMissing, Storage, redact
from maestro_dist.errors import DataError

__all__ = ["Remarks", "Source", "SourceFile", "SourceFiles", "is_leftover", "join_names", "missing_text"]

Role = TypeVar("Role", bound=Hashable)

_NESTED_PARTS = 2  # PhysioNet has all files in one folder of its archives, UCI in none
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found"}


def is_leftover(path: PurePosixPath) -> bool:
    """Whether a file is not part of the data: hidden (`._EDA.csv`, `.DS_Store`), a backup that ends with `~`, or in a
    folder of an operating system (`__MACOSX`, the recycle bin of a file server)."""
    hidden = (part.startswith(".") and part not in (".", "..") for part in path.parts)
    return path.name.endswith("~") or not _SYSTEM_FOLDERS.isdisjoint(path.parts) or any(hidden)


def missing_text(names: Sequence[str], where: str = "") -> str:
    """The message that these names are missing; it starts with the first name."""
    others = f" ({len(names):,} are: {join_names(names)})" if len(names) > 1 else ""
    return f"{names[0]} is missing{where}{others}"


@dataclass(frozen=True)
class Source:
    """Where raw files are.

    path    folder or archive, or an fsspec URL of one
    copies  a place for the members of compressed tar archives, which all processes that read them reach; None: they are
            kept in memory, for small sources
    """

    path: str
    copies: Storage | None = None


AnySource = Source | str | os.PathLike[str]
"""A source, or its path alone."""


class SourceFiles:
    """Finds the files of a source, and collects remarks.

    Links to files and folders are followed, except to a folder that contains the link, so that loops end. No member of
    an archive is ever written to disk under its own name. Links inside archives and files that are not part of the data
    (`is_leftover`) are skipped.
    """

    def __init__(self, source: AnySource) -> None:
        source = source if isinstance(source, Source) else Source(os.fspath(source))
        self.path, self._copies = source.path, source.copies
        self.remarks = Remarks()
        self._seen: set[tuple[str, str]] = set()
        self._tops: set[str] = set()  # the first folder of each file that was found; "" outside of archives

    def find(self, role: Callable[[PurePosixPath], Role | None]) -> dict[Role, SourceFile]:
        """The files by role. `role(path)` is the role of a file in the data set; None: it is of no use.

        Call it once: each call reads compressed archives again. Nothing but those is read.

        Raises:
            DataError: the source is missing, a folder cannot be listed, or an archive is damaged.
            StorageError: a remote source cannot be reached.
        """
        found: dict[Role, list[StoredFile]] = {}
        for file_role, file in self._files(role):
            found.setdefault(file_role, []).append(file)
        return {file_role: SourceFile(tuple(copies)) for file_role, copies in found.items()}

    def read(self, role: Callable[[PurePosixPath], Role | None]) -> Iterator[tuple[Role, str, bytes]]:
        """(role, name, content) of each file, one file in memory at a time. See `find` and `SourceFile.read`."""
        for file_role, file in self.find(role).items():
            yield file_role, file.name, file.read(self.remarks)

    def listing(self) -> str:
        """A text that differs where names, sizes or times of the files found so far differ."""
        return hashlib.sha256("\n".join(f"{name} {about}" for name, about in sorted(self._seen)).encode()).hexdigest()

    @property
    def wrapper(self) -> str:
        """The folder that all files found so far are in, if they are from archives, which usually have one; else "".

        It says nothing of the files, like the name of a folder that is a source.
        """
        return next(iter(self._tops)) if len(self._tops) == 1 else ""

    def warnings(self) -> list[str]:
        """Warnings about the files so far, one line each."""
        return self.remarks.lines()

    def error(self, text: str) -> DataError:
        """An error about the source, with the warnings, which often explain why a file is missing."""
        return DataError("; ".join([f"{redact(self.path)}: {text}", *self.warnings()]))

    def _files(self, role: Callable[[PurePosixPath], Role | None]) -> Iterator[tuple[Role, StoredFile]]:
        local = Storage(self.path).local
        if local is None:
            yield from self._remote(role)
        elif local.is_file():
            yield from self._archive(local.absolute().as_posix(), str(local), "", role)
        elif local.is_dir():
            for below, path in self._walk(local, PurePosixPath(), (), set()):
                if (file_role := role(below)) is None:
                    continue
                if path.is_symlink() and not path.exists():
                    raise self.error("a file is missing")
                url = path.absolute().as_posix()  # for workers, whose folder may be another one
                self._tops.add("")
                yield file_role, StoredFile(str(path), url, self._note(str(below), url))
            for path in _entries(local):
                if path.is_file() and is_archive(PurePosixPath(path.name)):
                    yield from self._archive(path.absolute().as_posix(), str(path), path.name, role)
        else:
            raise DataError(f"{self.path}: no such folder or archive; check the path of the source")

    def _remote(self, role: Callable[[PurePosixPath], Role | None]) -> Iterator[tuple[Role, StoredFile]]:
        storage = Storage(self.path)
        name = PurePosixPath(storage.url.partition("?")[0]).name
        tree = {} if is_archive(PurePosixPath(name)) else storage.tree()
        if not tree:
            try:
                yield from self._archive(storage.url, storage.name(), "", role)
            except ObjectMissing as error:
                raise DataError(f"{storage.name()}: no such folder or archive; check the URL of the source") from error
            return
        files = {below: about for below, about in sorted(tree.items()) if not is_leftover(PurePosixPath(below))}
        for below, about in files.items():
            if not below.endswith("/") and (file_role := role(PurePosixPath(below))) is not None:
                self._seen.add((below, repr(about)))
                self._tops.add("")
                yield file_role, StoredFile(storage.name(below), f"{storage.url}/{below}", repr(about))
        for below in files:
            if "/" not in below and is_archive(PurePosixPath(below)):
                yield from self._archive(f"{storage.url}/{below}", storage.name(below), below, role)

    def _archive(
        self, url: str, name: str, below: str, role: Callable[[PurePosixPath], Role | None]
    ) -> Iterator[tuple[Role, StoredFile]]:
        yield from self._members(Archive(name, url, self._note(below, url)), role, may_nest=True)

    def _members(
        self, archive: Archive, role: Callable[[PurePosixPath], Role | None], *, may_nest: bool
    ) -> Iterator[tuple[Role, StoredFile]]:
        """The files of an archive, and those of the archives at its top or in a folder there."""

        def wanted(path: PurePosixPath) -> bool:
            inner = may_nest and len(path.parts) <= _NESTED_PARTS and is_archive(path)
            return not is_leftover(path) and (inner or role(path) is not None)

        for member in members(archive, wanted, self._copies):
            file_role = role(member.path)
            if member.file is None:
                self.remarks.warn("a link inside an archive is skipped", member.name)
            elif file_role is not None:
                self._tops.add(member.path.parts[0] if len(member.path.parts) > 1 else "")
                yield file_role, member.file
            else:
                yield from self._nested(member.path, member.file, role)

    def _nested(
        self, path: PurePosixPath, file: StoredFile, role: Callable[[PurePosixPath], Role | None]
    ) -> Iterator[tuple[Role, StoredFile]]:
        """The files of an archive inside an archive; it need not be of the data set, so it may be unreadable."""
        found = False
        try:
            inside = nested(path, file, self._copies)
            for item in self._members(inside, role, may_nest=False):
                found = True
                yield item
        except DataError as error:
            if found:
                raise
            self.remarks.warn("an archive inside the archive cannot be read", str(error))

    def _note(self, below: str, url: str) -> str:
        """The version of a file, which becomes part of the listing."""
        version = repr(Storage(url).details())
        self._seen.add((below, version))
        return version

    def _walk(
        self, folder: Path, below: PurePosixPath, parents: tuple[str, ...], seen: set[tuple[str, str]]
    ) -> Iterator[tuple[PurePosixPath, Path]]:
        """(path below the source, path) of each file and broken link; `parents`: the folders that contain `folder`."""
        real = os.path.realpath(folder)
        if (real, folder.name) in seen or self._makes_loop(real, parents):
            return
        seen.add((real, folder.name))
        for path in _entries(folder):
            if path.is_dir():
                yield from self._walk(path, below / path.name, (*parents, real), seen)
            elif path.is_file():
                yield below / path.name, path
            elif path.is_symlink():
                self.remarks.warn("a broken link is skipped", f"{path} -> {os.readlink(path)}")
                yield below / path.name, path

    def _makes_loop(self, folder: str, above: tuple[str, ...]) -> bool:
        """Whether a folder contains the current one, or the complete source: a link to it makes a loop."""
        return folder in above or (bool(above) and Path(above[0]).is_relative_to(folder))


def _entries(folder: Path) -> list[Path]:
    """Files and folders in a folder, without leftovers."""
    try:
        paths = [path for path in sorted(folder.iterdir()) if not is_leftover(PurePosixPath(path.name))]
        for path in paths:
            path.is_dir()  # raises if the folder may be listed, but not entered
        return paths
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror})") from error
