"""Packing part by part in this process: the same bytes as one after the other, and restarts from any point."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest
import runs
from packing import COUNTS, digests, made, packed, parts

from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.pack import pack
from maestro_dist.data.pack_parts import ThisProcess, check_not_packed
from maestro_dist.data.pack_records import RECORDS
from maestro_dist.data.parts import Remarks
from maestro_dist.data.shard_assembly import LocalSink
from maestro_dist.data.storage import Storage
from maestro_dist.errors import DataError, StorageError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of the files of a packing that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    packed(folder / "data", parts(folder / "log"))
    return digests(folder / "data")


def test_parts_give_the_shards_of_their_samples_in_order(tmp_path: Path, whole: dict[str, str]) -> None:
    together = [sample for part in parts(tmp_path / "log") for sample in part.samples(Remarks())]
    splits = ("train", "validation", "test")
    one = pack(str(tmp_path / "one"), packing.ABOUT, together, splits=splits, shard_bytes=packing.SHARD)
    found = digests(tmp_path / "one")
    assert {n: d for n, d in found.items() if n != "manifest.json"} == {
        n: d for n, d in whole.items() if n != "manifest.json"
    }
    assert len(one.splits["train"].shards) > 10
    many, remarks = packed(tmp_path / "many", parts(tmp_path / "log"))
    assert digests(tmp_path / "many") == whole
    for a, b in zip(one.modalities, many.modalities, strict=True):
        assert a.mean == pytest.approx(b.mean, rel=1e-12)
        assert a.std == pytest.approx(b.std, rel=1e-12)
    assert {**one.to_json(), "modalities": []} == {**many.to_json(), "modalities": []}
    assert remarks.counts == {"samples made": sum(COUNTS)}
    assert remarks.lines() == ["parts without samples (3): part-2, part-8, part-13"]


def test_the_place_of_a_cut_between_parts_changes_nothing_but_the_last_digits(tmp_path: Path) -> None:
    """Outliers and people of two splits are found in whichever part they are."""

    class Given:
        def __init__(self, name: str, samples: list[Any]) -> None:
            self.name, self._samples = name, samples

        def samples(self, remarks: Remarks) -> list[Any]:
            return self._samples

    samples = [s for part in parts(tmp_path / "log", (90,)) for s in part.samples(Remarks())]
    samples[28].values["ecg"][5:9] = -9999.0
    manifests = []
    for number, cuts in enumerate(([], [1], [30, 31, 60], list(range(1, 90)))):
        pieces = [list(piece) for piece in np.split(np.array(samples, dtype=object), cuts)]
        given = [Given(f"g{n}", piece) for n, piece in enumerate(pieces)]
        manifests.append(packed(tmp_path / str(number), given)[0].to_json())
    for manifest in manifests:
        assert manifest["outliers"] == manifests[0]["outliers"] != []
        assert manifest["shared_people"] == manifests[0]["shared_people"] != []
        for one, other in zip(manifest["modalities"], manifests[0]["modalities"], strict=True):
            assert one["std"] == pytest.approx(other["std"], rel=1e-12)


def test_a_bad_sample_in_part_7_ends_all_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"^numbered, train, sample s7-4: ecg has an infinite value; give NaN"):
        packed(tmp_path / "data", parts(tmp_path / "log", fault="bad", at=4))
    assert list(digests(tmp_path / "data")) == ["mine.txt"]
    assert not (tmp_path / "data" / RECORDS).exists()
    with pytest.raises(DataError, match=r"numbered: sample number 0 of wrong is of type int, not a RawSample"):
        packed(tmp_path / "data", [Wrong()])


class Wrong:
    name = "wrong"

    def samples(self, remarks: Remarks) -> list[Any]:
        return [3]


def test_one_key_twice_in_a_shard_is_found_across_parts(tmp_path: Path) -> None:
    twice = [packing.Numbered(1, 5, str(tmp_path / "log")), packing.Numbered(1, 5, str(tmp_path / "log"))]
    with pytest.raises(DataError, match=r"train, sample s1-0: this key is used twice in shard train-000000"):
        packed(tmp_path / "data", twice)
    with pytest.raises(DataError, match=r"numbered: there was no sample for any of the splits"):
        packed(tmp_path / "data", parts(tmp_path / "log", (0, 0)))


class Ending(ThisProcess):
    """Fails in place of shard number `at`, counted over all."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error, self.written = at, error, 0

    def sink(self, url: str) -> Any:
        sink: Any = super().sink(url)
        finish = sink.finish

        def counted(*arguments: Any) -> None:
            if self.written == self.at:
                raise self.error
            finish(*arguments)
            self.written += 1

        sink.finish = counted
        return sink


def test_a_restart_from_any_point_repeats_no_shard(tmp_path: Path, whole: dict[str, str]) -> None:
    shards = sum(name.endswith(".tar") for name in whole)
    for at in (0, 1, 7, 16, shards - 1):
        folder = tmp_path / str(at)
        with pytest.raises(StorageError, match="unplugged"):
            packed(folder / "data", parts(folder / "log"), Ending(at, StorageError("unplugged")))
        before = {path.name: path.stat().st_mtime_ns for path in (folder / "data").glob("*.tar")}
        assert len(before) == at
        again = Ending(shards, StorageError("more than there are"))
        packed(folder / "data", parts(folder / "log"), again)
        assert again.written == shards - at
        assert digests(folder / "data") == whole
        after = {path.name: path.stat().st_mtime_ns for path in (folder / "data").glob("*.tar")}
        assert {name: after[name] for name in before} == before


def test_complete_parts_are_not_converted_again(tmp_path: Path, whole: dict[str, str]) -> None:
    data, log = tmp_path / "data", tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        packed(data, parts(log, (30, 30, 30, 1, 1, 1, 1, 30), fault="stop", at=28))
    assert made(log) == dict.fromkeys(range(8), 1)
    again: list[tuple[int, int, int]] = []
    packed(
        data, parts(log, (30, 30, 30, 1, 1, 1, 1, 30)), progress=lambda p: again.append((p.parts, p.samples, p.shards))
    )
    found = made(log)
    assert (found[0], found[7]) == (1, 2)
    assert sum(found.values()) < 8 + 8
    assert again[-1][:2] == (8, 124)
    packed(tmp_path / "other", parts(log, (30, 30, 30, 1, 1, 1, 1, 30)))
    assert digests(data) == digests(tmp_path / "other")


def test_three_attempts_in_a_row(tmp_path: Path, whole: dict[str, str]) -> None:
    for at, error in ((3, StorageError("first")), (9, KeyboardInterrupt()), (20, StorageError("third"))):
        with pytest.raises(type(error)):
            packed(tmp_path / "data", parts(tmp_path / "log"), Ending(at, error))
    packed(tmp_path / "data", parts(tmp_path / "log"))
    assert digests(tmp_path / "data") == whole


def interrupted(tmp_path: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        packed(tmp_path / "data", parts(tmp_path / "log"), Ending(12, KeyboardInterrupt()), request={"window": 8})
    return tmp_path / "data"


def test_another_request_is_refused_or_starts_anew(tmp_path: Path, whole: dict[str, str]) -> None:
    data = interrupted(tmp_path)
    kept = digests(data)
    with pytest.raises(
        DataError, match=r"an unfinished packing is there, with other window; .*--overwrite .*\.packing"
    ):
        packed(data, parts(tmp_path / "log"), request={"window": 9})
    with pytest.raises(DataError, match=r"with other shard_bytes, window"):
        packed(data, parts(tmp_path / "log"), shard_bytes=900_000)
    assert digests(data) == kept
    (data / "train-000999.tar").write_text("of the earlier one, not recorded")
    packed(data, parts(tmp_path / "log"), request={"window": 9}, overwrite=True)
    assert digests(data) == whole


@pytest.mark.parametrize("damage", ["gone", "cut", "no index", "not json"])
def test_what_was_recorded_but_is_not_there_is_made_again(tmp_path: Path, whole: dict[str, str], damage: str) -> None:
    data = interrupted(tmp_path)
    shard = data / "train-000001.tar"
    if damage == "gone":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-512])
    elif damage == "no index":
        shard.with_suffix(".index").unlink()
    else:
        (data / RECORDS / "request.json").write_text("{")
        with pytest.raises(DataError, match="with other format"):
            packed(data, parts(tmp_path / "log"), request={"window": 8})
    packed(data, parts(tmp_path / "log"), request={"window": 8}, overwrite=damage == "not json")
    assert digests(data) == whole


def test_killed_after_the_last_step_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import maestro_dist.data.pack_parts as module

    data = tmp_path / "data"
    monkeypatch.setattr(module, "_clean", lambda *_: None)  # a kill between the manifest and the end
    packed(data, parts(tmp_path / "log"))
    monkeypatch.undo()
    before, conversions = digests(data), sum(made(tmp_path / "log").values())
    check_not_packed(str(data))
    manifest, remarks = packed(data, parts(tmp_path / "log"), overwrite=True)
    assert manifest == load_manifest(str(data))
    assert remarks.counts == {"samples made": sum(COUNTS)}
    assert sum(made(tmp_path / "log").values()) == conversions
    assert digests(data) == {name: digest for name, digest in before.items() if RECORDS not in name}
    with pytest.raises(DataError, match="is there already"):
        packed(data, parts(tmp_path / "log"))


def test_the_records_hold_no_secret_and_are_plain(tmp_path: Path) -> None:
    data = interrupted(tmp_path)
    request = json.loads((data / RECORDS / "request.json").read_text())
    assert request["window"] == 8
    assert {path.suffix for path in (data / RECORDS / "parts").iterdir()} == {".gz"}
    assert all(path.stat().st_size == 0 for path in (data / RECORDS / "shards").iterdir())


def test_two_attempts_at_a_time_do_no_harm(tmp_path: Path, whole: dict[str, str]) -> None:
    """The second starts, and ends, while the first is in its middle."""
    data, log = tmp_path / "data", tmp_path / "log"

    class Overtaken(ThisProcess):
        def sink(self, url: str) -> Any:
            sink: Any = super().sink(url)
            finish, done = sink.finish, []

            def overtaken(*arguments: Any) -> None:
                finish(*arguments)
                done.append(arguments)
                if len(done) == 5:
                    packed(data, parts(log))

            sink.finish = overtaken
            return sink

    packed(data, parts(log), Overtaken())
    assert digests(data) == whole


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{runs.ROOT}{os.pathsep}{runs.ROOT / 'tests'}"}


def test_kill_9_and_restart(tmp_path: Path, whole: dict[str, str], environment: dict[str, str]) -> None:
    data, log = tmp_path / "data", tmp_path / "log"
    command = [sys.executable, "-m", "packing", str(data), "0", str(log)]
    process = subprocess.Popen(
        [*command, "", "0.005"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    runs.wait_for(lambda: len(list(data.glob("*.index"))) >= 9, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (data / "manifest.json").exists()
    before = [path.name for path in (data / RECORDS / "shards").iterdir() if path.name[0] != "."]  # complete ones
    times = {path.name: path.stat().st_mtime_ns for path in data.glob("*.tar")}
    assert len(before) >= 8
    packed(data, parts(log, pause_s=0.005))
    kept = [name for name, time in times.items() if (data / name).stat().st_mtime_ns == time]
    assert len(kept) >= len(before)
    assert digests(data) == whole
    assert [path.name for path in data.iterdir() if path.name[0] == "."] == []


def test_more_shards_than_open_files(tmp_path: Path, environment: dict[str, str]) -> None:
    code = (
        "import resource, sys, packing; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); "
        "packing.packed(sys.argv[1], packing.parts(sys.argv[2]), shard_bytes=1)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "data"), str(tmp_path / "log")], env=environment, check=True
    )
    assert sum(len(split.shards) for split in load_manifest(str(tmp_path / "data")).splits.values()) > 100


def test_a_part_that_reads_nothing_twice_needs_no_memory_for_all(tmp_path: Path) -> None:
    """A part of 600 samples is packed while it is made: its first shard is there long before its end."""
    seen: list[int] = []

    class Long:
        name = "long"

        def samples(self, remarks: Remarks) -> Iterator[Any]:
            for sample in packing.Numbered(0, 600, str(tmp_path / "log")).samples(remarks):
                seen.append(len(Storage(str(tmp_path / "data")).list()))
                yield sample

    packed(tmp_path / "data", [Long()])
    assert seen[200] > 0
    assert seen[590] > seen[400] > seen[200]


def test_a_sink_that_is_stopped_leaves_no_file(tmp_path: Path) -> None:
    from maestro_dist.data.shard_files import ShardId

    sink = LocalSink(Storage(str(tmp_path)))
    sink.append(ShardId("train", 0), np.zeros(1024, dtype=np.uint8), 0, 512)
    sink.abort(KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []
