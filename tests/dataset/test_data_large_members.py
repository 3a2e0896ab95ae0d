"""Members of more than 2, 4 and 8 GiB: packed, indexed and read."""

from __future__ import annotations

import tarfile
from contextlib import closing
from pathlib import Path

import numpy as np
import packing
import pytest
from tiny import source_of

from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.pack import RawSample, pack
from maestro_dist.data.reader import Request
from maestro_dist.data.shard_index import index_tar, load_index
from maestro_dist.data.storage import Storage
from maestro_dist.data.tar_blocks import end_of_tar, sample_blocks
from maestro_dist.types import Modality

GIB = 1 << 30


SLOW = [pytest.param(size, marks=pytest.mark.slow) for size in (2 * GIB + 1, 8 * GIB - 1, 8 * GIB, 9 * GIB + 5)]


@pytest.mark.parametrize("size", [4 * GIB, *SLOW])
def test_offsets_and_sizes_beyond_32_bits(size: int, tmp_path: Path) -> None:
    """A file with a hole instead of the content: it takes no room on the disk."""
    content = np.zeros(size, dtype=np.uint8)  # never touched, so it takes no memory either
    with (tmp_path / "train-000000.tar").open("w+b") as file:
        for key in ("a", "b"):
            for block in sample_blocks(key, {"ecg.npy": [content.data], "json": [b"{}"]}):
                file.seek(len(block), 1) if len(block) == size else file.write(block)
        file.write(end_of_tar(file.tell()))
        assert file.tell() % tarfile.RECORDSIZE == 0
        file.seek(0)
        index = index_tar(file)
        assert (index.keys, index.members) == (["a", "b"], ["ecg.npy", "json"])
        assert index.sizes.tolist() == [[size, 2], [size, 2]]
        for offset in index.offsets[:, 1]:
            file.seek(offset)
            assert file.read(2) == b"{}"
        for offset in index.offsets[:, 0]:  # the entry right before the content has the member's name
            file.seek(offset - 512)
            assert file.read(9) in (b"a.ecg.npy", b"b.ecg.npy")
        total = file.seek(0, 2)
    (tmp_path / "train-000000.index").write_bytes(index.to_bytes())
    sizes = {"samples": 2, "bytes": total, "index_sha256": None}
    shard = load_manifest(_one(tmp_path)).splits["train"].shards[0].model_copy(update=sizes)
    read = load_index(Storage(str(tmp_path)), shard)
    assert read.offsets.tolist() == index.offsets.tolist()


def _one(tmp_path: Path) -> str:
    packing.packed(tmp_path / "small", packing.parts(tmp_path / "log", (5,)))
    return str(tmp_path / "small")


@pytest.mark.slow
def test_a_window_of_more_than_2_gib_is_packed_and_read(tmp_path: Path) -> None:
    steps = 560_000_000  # 2.24 GB
    about = packing.Description(
        **{**vars(packing.ABOUT), "window_s": float(steps), "modalities": (Modality("ecg", 1, 1.0, steps, "mV"),)}
    )
    values = np.zeros((steps, 1), dtype=np.float32)
    values[::1000] = 2.0
    values[-1] = 7.0

    def samples() -> list[RawSample]:
        return [RawSample("train", key, 0, "p", "r", 0.0, float(steps), {"ecg": values}) for key in ("a",)]

    manifest = pack(str(tmp_path / "data"), about, samples())
    assert manifest.splits["train"].shards[0].bytes > 2 * GIB
    assert manifest.modalities[0].mean[0] == pytest.approx((2 * steps / 1000 + 7) / steps, rel=1e-9)
    with closing(source_of(str(tmp_path / "data")).open()) as reader:
        batch = reader.batch(Request(np.array([0])))
    window = batch.values["ecg"]
    assert window.shape == (1, steps, 1)
    assert float(window[0, -1, 0]) == 7.0
    assert float(window[0, 1000, 0]) == 2.0
    assert float(window[0, steps - 560, 0]) == 0.0
