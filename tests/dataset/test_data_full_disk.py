"""Places that cannot be written: the error is one line that names them, and no file is left behind."""

from __future__ import annotations

import errno
import resource
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import describe

from maestro_dist.data.pack import RawSample, pack
from maestro_dist.data.storage import Storage
from maestro_dist.errors import StorageError

LIMIT = 50_000


@pytest.fixture
def full() -> Iterator[None]:
    """No file of this process may grow beyond `LIMIT` bytes: a write fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("size", [LIMIT + 1, 4 * LIMIT])  # noticed when flushed, or at once
def test_a_full_disk(tmp_path: Path, size: int) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(StorageError, match=r"cannot write .*/data: File too large"), storage.writer("data") as file:
        file.write(bytes(size))
    with pytest.raises(StorageError, match=r"cannot write .*/other: File too large"):
        storage.write("other", bytes(size))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("full")
def test_a_full_disk_of_this_machine_on_the_way_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    storage = Storage(f"memory://{uuid.uuid4()}")
    with (
        pytest.raises(StorageError, match=rf"File too large in {tmp_path} \(TMPDIR names another place\)"),
        storage.writer("data") as file,
    ):
        file.write(bytes(2 * LIMIT))


@pytest.mark.usefixtures("full")
def test_packing_to_a_full_disk(tmp_path: Path, samples: list[RawSample]) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*train-000000\.tar: File too large"):
        pack(str(tmp_path), describe(), samples, shard_bytes=10 * LIMIT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("full")
def test_on_a_full_disk_too_the_error_of_the_samples_comes_through(tmp_path: Path, samples: list[RawSample]) -> None:
    def broken() -> Iterator[RawSample]:
        yield from samples[:10]
        raise OSError(errno.EIO, "mine")

    with pytest.raises(OSError, match="mine"):
        pack(str(tmp_path), describe(), broken())
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_nothing_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match=r"cannot write .*/file/data: .*a file has the name of its folder"),
        Storage(str(tmp_path / "file")).writer("data"),
    ):
        pass
    monkeypatch.setattr(tempfile, "TemporaryDirectory", read_only)
    with pytest.raises(StorageError, match=r"/data: Read-only file system$"), Storage(str(tmp_path)).writer("data"):
        pass


def test_what_the_block_raises_comes_through_unchanged(tmp_path: Path) -> None:
    mine = OSError(errno.ENOSPC, "mine")

    def broken() -> None:
        with Storage(str(tmp_path)).writer("data") as file:
            file.write(b"some")
            raise mine

    with pytest.raises(OSError, match="mine") as caught:
        broken()
    assert caught.value is mine
    assert list(tmp_path.iterdir()) == []
