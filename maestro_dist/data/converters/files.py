"""The files of a source: those of a folder, of the archives directly in it, or of one archive; each of them once."""

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
_BESIDE = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found"}


def is_ghost(path: PurePosixPath) -> bool:
    """Whether a program left this file or folder: it is hidden (`._EDA.csv`, `.DS_Store`), in `__MACOSX` or in the bin
    of a file server, or a backup that ends with `~`. It is nobody's data then."""
    hidden = (part.startswith(".") and part not in (".", "..") for part in path.parts)
    return path.name.endswith("~") or not _BESIDE.isdisjoint(path.parts) or any(hidden)


def listed(names: Sequence[str], limit: int = 20) -> str:
    """Names in one line of bounded length."""
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit:,} more" if len(names) > limit else shown


def missing(names: Sequence[str], where: str = "") -> str:
    """That all these are missing, the first of them in front."""
    others = f" ({len(names):,} are: {listed(names)})" if len(names) > 1 else ""
    return f"{names[0]} is missing{where}{others}"


class SourceFiles:
    """Reads the files of `source`, a folder or an archive, and collects what a person should be warned of.

    Links to files and folders are followed, but not to a folder around them; a folder is read once under each of its
    names. So a loop of links ends. Archives are streamed through memory: no member, whatever its name, is ever written
    to disk, and the links in them are passed over. So are ghosts (`is_ghost`).
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self._warnings: dict[str, list[str]] = {}

    def read(self, role: Callable[[PurePosixPath], Role | None]) -> Iterator[tuple[Role, str, bytes]]:
        """(role, name, content) of each file that has a role, which says what it is in the data set.

        What is there twice, in a folder and in an archive of it, for instance, comes once.

        Raises:
            DataError: the source is missing, a part of it cannot be read, or two files with one role differ.
        """
        first: dict[Role, tuple[str, bytes]] = {}
        for what, name, content in self._members(role):
            digest = hashlib.sha256(content).digest()
            if what not in first:
                first[what] = name, digest
                if content.strip() and not content.endswith((b"\n", b"\r")):
                    self._warn("the last line is not ended (was the file cut short?)", name)
                yield what, name, content
            elif first[what][1] != digest:
                raise DataError(
                    f"{name}: there is another file of that name with other content, {first[what][0]}; "
                    "leave one of them in the source"
                )

    def warnings(self) -> list[str]:
        """What was met while reading, a line each."""
        return [f"{text}: {listed(names)}" for text, names in self._warnings.items()]

    def error(self, text: str) -> DataError:
        """An error of the whole source, with what was met while reading, which often says why a file is missing."""
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
                if (what := role(below)) is None:
                    continue
                if path.is_symlink() and not path.exists():
                    raise self.error("a file is missing")
                yield what, str(path), _content(path)
            for path in _entries(self.source):
                if path.is_file() and _ARCHIVE.fullmatch(path.name):
                    yield from self._archive(path, role)
        else:
            raise DataError(f"{self.source}: no such folder or archive; check the path of the source")

    def _walk(
        self, folder: Path, below: PurePosixPath, above: tuple[str, ...], seen: set[tuple[str, str]]
    ) -> Iterator[tuple[PurePosixPath, Path]]:
        """(path below the source, path) of each file, and of each link to nothing; `above` are the folders around."""
        here = os.path.realpath(folder)
        if (here, folder.name) in seen or self._around(here, above):
            return
        seen.add((here, folder.name))
        for path in _entries(folder):
            if path.is_dir():
                yield from self._walk(path, below / path.name, (*above, here), seen)
            elif path.is_file():
                yield below / path.name, path
            elif path.is_symlink():
                self._warn("a link that leads nowhere is passed over", f"{path} -> {os.readlink(path)}")
                yield below / path.name, path

    def _around(self, folder: str, above: tuple[str, ...]) -> bool:
        """Whether a folder is one of those around, or holds the whole source: a link back to it makes a loop."""
        return folder in above or (bool(above) and Path(above[0]).is_relative_to(folder))

    def _archive(self, source: Path, role: Callable[[PurePosixPath], Role | None]) -> Iterator[tuple[Role, str, bytes]]:
        try:
            if source.suffix.lower() == ".zip":
                with zipfile.ZipFile(source) as archive:
                    for entry in archive.infolist():
                        path = PurePosixPath(entry.filename.replace("\\", "/"))  # as some programs of Windows write it
                        if not entry.is_dir() and not is_ghost(path) and (what := role(path)) is not None:
                            yield what, f"{source}:{entry.filename}", archive.read(entry)
                return
            with tarfile.open(source, mode="r|*") as tar:
                for info in tar:
                    path = PurePosixPath(info.name)
                    if is_ghost(path) or (what := role(path)) is None:
                        continue
                    if info.isreg():
                        content = tar.extractfile(info)
                        assert content is not None
                        yield what, f"{source}:{info.name}", content.read()
                    elif info.issym() or info.islnk():
                        self._warn("a link inside an archive is passed over", f"{source}:{info.name}")
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error, OSError, RuntimeError) as e:
            raise DataError(f"{source}: damaged or unreadable archive ({e}); fetch it again") from e


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, without ghosts."""
    try:
        paths = [path for path in sorted(folder.iterdir()) if not is_ghost(PurePosixPath(path.name))]
        for path in paths:
            path.is_dir()  # not to be known where the folder may be listed, but not entered
        return paths
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror})") from error


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
