"""The files of a source: a folder with the archives in it, or one archive. Each file is read once."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from maestro_dist.errors import DataError

Role = TypeVar("Role", bound=Hashable)

_ARCHIVE = re.compile(r".+\.(tar(\.(gz|bz2|xz|lzma|zst|lz4|lz|z))?|tgz|tbz2?|txz|zip)", re.IGNORECASE)
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found"}


def is_leftover(path: PurePosixPath) -> bool:
    """Whether a file is not part of the data: hidden (`._EDA.csv`, `.DS_Store`), a backup that ends with `~`, or in a
    folder of an operating system (`__MACOSX`, the recycle bin of a file server)."""
    hidden = (part.startswith(".") and part not in (".", "..") for part in path.parts)
    return path.name.endswith("~") or not _SYSTEM_FOLDERS.isdisjoint(path.parts) or any(hidden)


def join_names(names: Sequence[str], limit: int = 20) -> str:
    """At most `limit` names on one line, and how many more there are."""
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit:,} more" if len(names) > limit else shown


def missing_text(names: Sequence[str], where: str = "") -> str:
    """The message that these names are missing; it starts with the first name."""
    others = f" ({len(names):,} are: {join_names(names)})" if len(names) > 1 else ""
    return f"{names[0]} is missing{where}{others}"


class SourceFiles:
    """Reads the files of `source`, a folder or an archive, and collects warnings.

    Links to files and folders are followed, except to a folder that contains the link, so that loops end. Archives are
    read as streams in memory: no member is ever written to disk, for any name. Links inside archives and files
    that are not part of the data (`is_leftover`) are skipped.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self._warnings: dict[str, list[str]] = {}

    def read(self, role: Callable[[PurePosixPath], Role | None]) -> Iterator[tuple[Role, str, bytes]]:
        """(role, name, content) of each file. `role(path)` is the role of a file in the data set; None: it is not read.

        Two files with the same role and content, for instance in a folder and in its archive, are yielded once.

        Raises:
            DataError: the source is missing, a file cannot be read, or two files with the same role differ.
        """
        first: dict[Role, tuple[str, bytes]] = {}
        for file_role, name, content in self._members(role):
            digest = hashlib.sha256(content).digest()
            if file_role not in first:
                first[file_role] = name, digest
                if content.strip() and not content.endswith((b"\n", b"\r")):
                    self._warn("the last line is not ended (was the file cut short?)", name)
                yield file_role, name, content
            elif first[file_role][1] != digest:
                raise DataError(
                    f"{name}: there is another file with this name and other content, {first[file_role][0]}; "
                    "keep one of them in the source"
                )

    def warnings(self) -> list[str]:
        """Warnings about the files read so far, one line each."""
        return [f"{text}: {join_names(names)}" for text, names in self._warnings.items()]

    def error(self, text: str) -> DataError:
        """An error about the source, with the warnings, which often explain why a file is missing."""
        return DataError("; ".join([f"{self.source}: {text}", *self.warnings()]))

    def _warn(self, text: str, name: str) -> None:
        names = self._warnings.setdefault(text, [])
        if name not in names:  # a source may be read twice
            names.append(name)

    def _members(self, role: Callable[[PurePosixPath], Role | None]) -> Iterator[tuple[Role, str, bytes]]:
        if self.source.is_file():
            yield from self._archive(self.source, role)
        elif self.source.is_dir():
            for below, path in self._walk(self.source, PurePosixPath(), (), set()):
                if (file_role := role(below)) is None:
                    continue
                if path.is_symlink() and not path.exists():
                    raise self.error("a file is missing")
                yield file_role, str(path), _content(path)
            for path in _entries(self.source):
                if path.is_file() and _ARCHIVE.fullmatch(path.name):
                    yield from self._archive(path, role)
        else:
            raise DataError(f"{self.source}: no such folder or archive; check the path of the source")

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
                self._warn("a broken link is skipped", f"{path} -> {os.readlink(path)}")
                yield below / path.name, path

    def _makes_loop(self, folder: str, above: tuple[str, ...]) -> bool:
        """Whether a folder contains the current one, or the complete source: a link to it makes a loop."""
        return folder in above or (bool(above) and Path(above[0]).is_relative_to(folder))

    def _archive(self, source: Path, role: Callable[[PurePosixPath], Role | None]) -> Iterator[tuple[Role, str, bytes]]:
        try:
            if source.suffix.lower() == ".zip":
                with zipfile.ZipFile(source) as archive:
                    for entry in archive.infolist():
                        path = PurePosixPath(entry.filename.replace("\\", "/"))  # some Windows programs write it
                        if not entry.is_dir() and not is_leftover(path) and (file_role := role(path)) is not None:
                            yield file_role, f"{source}:{entry.filename}", archive.read(entry)
                return
            with tarfile.open(source, mode="r|*") as tar:
                for info in tar:
                    path = PurePosixPath(info.name)
                    if is_leftover(path) or (file_role := role(path)) is None:
                        continue
                    if info.isreg():
                        content = tar.extractfile(info)
                        assert content is not None
                        yield file_role, f"{source}:{info.name}", content.read()
                    elif info.issym() or info.islnk():
                        self._warn("a link inside an archive is skipped", f"{source}:{info.name}")
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error, OSError, RuntimeError) as e:
            raise DataError(f"{source}: damaged or unreadable archive ({e}); fetch it again") from e


def _entries(folder: Path) -> list[Path]:
    """Files and folders in a folder, without leftovers."""
    try:
        paths = [path for path in sorted(folder.iterdir()) if not is_leftover(PurePosixPath(path.name))]
        for path in paths:
            path.is_dir()  # raises if the folder may be listed, but not entered
        return paths
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror})") from error


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
