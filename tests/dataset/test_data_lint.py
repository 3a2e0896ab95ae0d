"""What is wrong or odd in a data set is found and named; what is right is not."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recordings as made

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.description import Description
from maestro_dist.data.lint import lint
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.pack import pack, pack_recordings
from maestro_dist.data.sample_checks import RawSample
from maestro_dist.types import Modality

ABOUT = Description(
    name="set",
    licence="",
    citation="",
    source="",
    task="classification",
    classes=("a", "b"),
    target="x",
    window_s=4.0,
    modalities=(Modality("ecg", 1, 16.0, 64), Modality("acc", 2, 8.0, 32)),
)
TOOL = Path(__file__).parents[2] / "tools" / "lint_shards.py"


def samples() -> list[RawSample]:
    draw, found = np.random.default_rng(0), []
    for number in range(60):
        split = "train" if number < 40 else "validation" if number < 50 else "test"
        values = {"ecg": draw.normal(size=(64, 1)), "acc": draw.normal(5, 2, size=(32, 2))}
        person = f"{split}-{number % 5}"
        found.append(RawSample(split, f"w{number}", number % 2, person, "", 0.0, 4.0, values))
    return found


def remarks(url: Path, given: list[RawSample]) -> list[str]:
    pack(url, ABOUT, given, shard_bytes=20_000)
    return [f"{remark.level}: {remark.where}: {remark.text}" for remark in lint(DataConfig(url=str(url)))]


def test_nothing_is_said_of_a_good_set(tmp_path: Path) -> None:
    assert remarks(tmp_path / "windows", samples()) == []
    pack_recordings(tmp_path / "recordings", made.ABOUT, made.recordings())
    assert list(lint(DataConfig(url=str(tmp_path / "recordings")))) == []


def changed(number: int, **changes: Any) -> list[RawSample]:
    given = samples()
    given[number] = replace(given[number], **changes)
    return given


def of_split(split: str, change: Any) -> list[RawSample]:
    return [change(sample) if sample.split == split else sample for sample in samples()]


def with_acc(sample: RawSample, change: Any) -> RawSample:
    return replace(sample, values=sample.values | {"acc": change(sample.values["acc"].copy())})


def dead(acc: np.ndarray) -> np.ndarray:
    acc[:, 1] = 3.0
    return acc


def still(acc: np.ndarray) -> np.ndarray:
    acc[:] = acc[0]
    return acc


def mostly_missing(acc: np.ndarray) -> np.ndarray:
    acc[2:, 0] = np.nan
    return acc


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (changed(3, subject="test-1"), "error: train and test: 1 people are in both: test-1"),
        (changed(55, values=samples()[3].values), "error: test and train: 2 samples have the same windows: w3 = w55"),
        (changed(4, values=samples()[3].values), "warning: train: 2 samples have the same windows: w3 = w4"),
        (
            changed(4, values={name: values + 1e-5 for name, values in samples()[3].values.items()}),
            "warning: train: 2 samples have nearly the same windows: w3 = w4",
        ),
        (of_split("test", lambda s: with_acc(s, dead)), "warning: test, acc, variate 1: it is always 3: a dead"),
        (of_split("train", lambda s: with_acc(s, still)), "warning: train, acc, variate 0: it does not change within"),
        (of_split("train", lambda s: with_acc(s, lambda a: np.minimum(a, 7))), "exactly the largest one, 7: clipped?"),
        (of_split("test", lambda s: with_acc(s, lambda a: a * 1000)), "that of training 4.93797: another unit"),
        (of_split("test", lambda s: with_acc(s, lambda a: 5 + (a - 5) / 50)), "its deviation is"),
        (
            of_split("test", lambda s: with_acc(s, mostly_missing)),
            "warning: acc, variate 0: most of its values are missing: 94% in test",
        ),
        (
            of_split("test", lambda s: replace(s, values={"ecg": s.values["ecg"]})),
            "warning: test, acc: no sample has it",
        ),
        (of_split("validation", lambda s: replace(s, label=0)), "warning: validation: no sample of b"),
    ],
)
def test_what_is_odd_is_named(tmp_path: Path, given: list[RawSample], expected: str) -> None:
    found = remarks(tmp_path, given)
    assert any(expected in line for line in found), found
    assert len(found) <= 4
    assert sum("samples have" in line for line in found) <= 1  # the same windows are not nearly the same, too


def test_damage_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(tmp_path, ABOUT, samples(), shard_bytes=20_000)
    main = runpy.run_path(str(TOOL))["main"]
    assert main([str(tmp_path)]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    shard = load_manifest(str(tmp_path)).split("train").shards[1]
    path = tmp_path / shard.path
    whole = path.read_bytes()
    path.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    assert main([str(tmp_path), "--json"]) == 1
    remark = json.loads(capsys.readouterr().out)
    assert (remark["level"], remark["where"]) == ("error", shard.path)
    assert "sha256" in remark["text"]
    path.write_bytes(whole[:-512])
    assert main([str(tmp_path)]) == 1
    assert f"{shard.path}: {len(whole) - 512:,} bytes" in capsys.readouterr().out
    path.write_bytes(whole)
    other = tmp_path / load_manifest(str(tmp_path)).split("train").shards[0].index
    other.write_bytes((tmp_path / shard.index).read_bytes())
    assert main([str(tmp_path)]) == 1
    assert other.name in capsys.readouterr().out


def test_warnings_count_if_asked(tmp_path: Path) -> None:
    pack(tmp_path, ABOUT, of_split("validation", lambda s: replace(s, label=0)))
    main = runpy.run_path(str(TOOL))["main"]
    assert (main([str(tmp_path)]), main([str(tmp_path), "--strict"])) == (0, 1)


def test_windows_and_splits_may_be_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys may follow an option."""
    pack_recordings(tmp_path / "data", made.ABOUT, made.recordings())
    main = runpy.run_path(str(TOOL))["main"]
    shared = ["data.split.by=time", "data.split.allow_shared_people=true"]
    assert main([str(tmp_path / "data"), "--json", "data.window.length_s=3", *shared]) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any("people are in both" in remark["text"] for remark in found)
    assert main([str(tmp_path / "data"), "data.split.test=[nobody]", "data.split.by=subject"]) == 1
    assert "nobody" in capsys.readouterr().out


def test_people_without_any_measurement_may_have_the_same_age(tmp_path: Path) -> None:
    about = replace(ABOUT, modalities=(*ABOUT.modalities, Modality("age", 1, 0.25, 1, always=True)))
    age, given = {"age": np.array([[70.0]])}, samples()
    for number in (3, 55):
        given[number] = replace(given[number], values={})
    pack(tmp_path, about, [replace(sample, values={**sample.values, **age}) for sample in given])
    found = [f"{remark.level}: {remark.where}: {remark.text}" for remark in lint(DataConfig(url=str(tmp_path)))]
    assert found == []
