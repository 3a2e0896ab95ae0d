"""Several targets: what is refused, the rules of windows, and the ways through the tools; odd input of all kinds."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import runs

from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.compatibility import Answer, check_labels
from maestro_dist.data.findings import warning_lines
from maestro_dist.data.fragments import SampleRows
from maestro_dist.data.frames import FramesAbout, pack_frames
from maestro_dist.data.lint import lint
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.mixture.source import source_of
from maestro_dist.data.pack import Description, RawRecording, RawSample, pack, pack_recordings
from maestro_dist.data.pack_records import SampleSizes
from maestro_dist.data.reader import Request
from maestro_dist.data.shard_index import load_index, parse_index
from maestro_dist.data.storage import Storage
from maestro_dist.data.target_numbers import TargetMoments, target_row
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.types import Modality, TargetScale

NAN = float("nan")
NAMES = ("valence", "arousal")
ABOUT = Description(
    "feelings", "CC0", "", "a generator", task="regression", classes=(), target="feeling", window_s=4,
    modalities=(Modality("pulse", 1, 1.0, 4),), targets=NAMES,
)  # fmt: skip
CUT = replace(ABOUT, window=WindowConfig(length_s=4))


def sample(n: int, label: Any, split: str = "train") -> RawSample:
    values = {"pulse": np.random.default_rng(n).normal(size=(4, 1))}
    return RawSample(split, f"s{n}", label, f"p{n // 3}", f"r{n // 3}", 4.0 * (n % 3), 4.0, values)


def labels() -> list[Any]:
    """A few, all in another form."""
    given = [[1, 2.5], (3, NAN), np.array([NAN, 5]), {"arousal": 7, "valence": 6}, {"valence": 8}, [None, 9]]
    return [*given, [pd.NA, 10], [True, np.float32(1.5)], np.ma.masked_invalid([11, NAN])]


STORED = [[1, 2.5], [3, NAN], [NAN, 5], [6, 7], [8, NAN], [NAN, 9], [NAN, 10], [1, 1.5], [11, NAN]]


def some(split: str = "train") -> Iterator[RawSample]:
    yield from (sample(n, label, split) for n, label in enumerate(labels()))


def targets_of(url: str | Path, of: str = "train", **more: Any) -> tuple[Manifest, np.ndarray]:
    config = DataConfig.model_validate({"url": str(url)} | more)
    manifest = load_data(config)
    source = source_of(config.url, manifest, config, tuple(manifest.select(None)), of)
    batch = source.open().batch(Request(np.arange(manifest.splits[of].samples)))
    return manifest, np.asarray(batch.target)


def test_labels_of_all_forms_are_stored(tmp_path: Path) -> None:
    pack(tmp_path / "x", ABOUT, some())
    manifest, found = targets_of(tmp_path / "x")
    np.testing.assert_array_equal(found, np.array(STORED, dtype=np.float32))
    assert found.dtype == np.float32
    index = load_index(Storage(str(tmp_path / "x")), manifest.splits["train"].shards[0])
    np.testing.assert_array_equal(index.targets, STORED)
    again = parse_index(index.to_bytes(), manifest.splits["train"].shards[0], "x")
    np.testing.assert_array_equal(again.targets, STORED)
    assert index.some(np.arange(9) == 1).targets is not None
    np.testing.assert_array_equal(index.some(np.arange(9) == 1).targets, STORED[1:2])
    assert [entry.known for entry in manifest.splits["train"].targets or []] == [6, 6]
    assert [entry.known for entry in manifest.splits["test"].targets or []] == [0, 0]
    lines = warning_lines(manifest)
    assert lines[0].startswith(
        "unknown targets in the 9 samples of split 'train': valence in 3, arousal in 3; they take"
    )
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (3.0, "label 3.0 is neither a list of 2 numbers (valence, arousal) nor a dictionary by target"),
        ("12", "label '12' is neither a list"),
        (None, "label None is neither a list"),
        (np.float64(2), "is neither a list"),
        ([1], "has 1 numbers, not 2 (valence, arousal)"),
        ([1, 2, 3], "has 3 numbers, not 2"),
        ([], "has 0 numbers, not 2"),
        (np.zeros((1, 2)), "has 1 numbers, not 2"),
        (np.zeros((2, 1)), "target valence is"),
        ([NAN, None], "none of the targets valence, arousal is known"),
        ({}, "none of the targets valence, arousal is known"),
        ({"joy": 1, "valence": 2}, "target 'joy' is not one of valence, arousal"),
        ([1, "2"], "target arousal is '2', not a number"),
        ([float("inf"), 2], "target valence is inf, not a number"),
        ([1e39, 2], "target valence is 1e+39, not a number that float32 can hold"),
        ({1.0, 2.0}, "is neither a list"),
    ],
)
def test_wrong_labels_name_the_sample(label: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(said)) as error:
        pack(tmp_path / "x", ABOUT, [sample(0, [1, 2]), sample(7, label)])
    assert str(error.value).startswith("feelings, train, sample s7: ")
    if label is not None:
        with pytest.raises(DataError, match=r"^feelings, recording r, 0 s to 4 s: "):
            pack_recordings(tmp_path / "y", CUT, [RawRecording("r", {"pulse": np.ones((9, 1))}, [(0, 4, label)])])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"targets": ("a",)}, "targets names 'a' only; for one number say target='a' instead"),
        ({"targets": ("a", "A")}, "two targets are named 'a'"),
        ({"targets": ("a", "b c")}, "target 'b c': a name begins with a letter"),
        ({"targets": ("a", "x_missing_40")}, "without '_missing_'"),
        ({"targets": ("a", 3)}, "target 3: a name"),
        ({"targets": "ab"}, "targets"),
        ({"task": "none"}, "targets are given, but task is none"),
        ({"task": "classification", "classes": ("u", "v")}, "targets are given, but task is classification"),
    ],
)
def test_wrong_names_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        pack(tmp_path / "x", replace(ABOUT, **change), some())


def test_one_number_leaves_no_trace_of_several(tmp_path: Path) -> None:
    pack(tmp_path / "x", replace(ABOUT, targets=()), [sample(0, 1.5), sample(1, 2.5)])
    assert "targets" not in (tmp_path / "x" / "manifest.json").read_text()
    manifest, found = targets_of(tmp_path / "x")
    assert found.tolist() == [1.5, 2.5]
    assert manifest.splits["train"].target_mean == 2.0
    assert b"targets" not in (tmp_path / "x" / "train-000000.index").read_bytes()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean", [[2, 10], [6, NAN], [6, 30], [NAN, 30]]),
        ("center", [[2, NAN], [6, NAN], [NAN, 30], [NAN, 30]]),
        ("last", [[2, NAN], [6, NAN], [NAN, 30], [NAN, 30]]),
    ],
)
def test_rules_of_windows_hold_for_each_target(rule: str, expected: list[list[float]], tmp_path: Path) -> None:
    """valence: 2 in 0-4 s, 6 in 4-9 s; arousal: 10 in 0-2 s, 30 in 9-16 s. Nothing after that."""
    pairs = [(0, 2, (2, 10)), (2, 4, [2, NAN]), (4, 9, {"valence": 6}), (9, 16, {"arousal": 30})]
    window = WindowConfig.model_validate({"length_s": 4, "label": rule, "min_labelled": 0.2})
    given = [RawRecording("r", {"pulse": np.ones((24, 1))}, pairs, split="train")]
    pack_recordings(tmp_path / "x", replace(ABOUT, window=window), given)
    _, found = targets_of(tmp_path / "x")
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float32))


def test_windows_inside_intervals_and_labels_of_whole_recordings(tmp_path: Path) -> None:
    window = WindowConfig.model_validate({"length_s": 4, "label": "inside"})
    pairs = [(1, 9, (2, NAN)), (12, 17, (3, 4))]
    given = [
        RawRecording("r", {"pulse": np.ones((24, 1))}, pairs, split="train"),
        RawRecording("s", {"pulse": np.ones((8, 1))}, {"arousal": 5}, split="train"),
        RawRecording("t", {"pulse": np.ones((4, 1))}, np.array([6, 7]), split="train"),
        RawRecording("u", {"pulse": np.ones((4, 1))}, [], split="train"),
        RawRecording("v", {"pulse": np.ones((4, 1))}, None, split="train"),
        RawRecording("w", {"pulse": np.ones((4, 1))}, iter([(0, 4, (8, 9))]), split="train"),
    ]
    pack_recordings(tmp_path / "x", replace(ABOUT, window=window), given)
    manifest, found = targets_of(tmp_path / "x")
    expected = [[2, NAN], [2, NAN], [3, 4], [NAN, 5], [NAN, 5], [6, 7], [8, 9]]
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float32))
    assert [entry.known for entry in manifest.splits["train"].targets or []] == [5, 5]
    meta = (tmp_path / "x" / "recordings-000000.tar").read_bytes()
    assert b'"labels":[[1.0,9.0,2.0,null],[12.0,17.0,3.0,4.0]]' in meta


def test_intervals_of_a_recording_must_fit(tmp_path: Path) -> None:
    pulse = {"pulse": np.ones((24, 1))}
    for given, said in (
        ([(0, 4, (1, 2)), (3, 6, (1, NAN))], "recording r: two labels overlap from 3 s to 4 s"),
        ([(0, 4, (1, 2, 3))], "recording r, 0 s to 4 s: label (1, 2, 3) has 3 numbers, not 2"),
        ([(0, 4, 1, 2)], "recording r: labels has (0, 4, 1, 2), not (start_s, end_s, label)"),
        ([(4, 4, (1, 2))], "its end must be after its start"),
        ((1, 2, 3), "recording r: label (1, 2, 3) has 3 numbers"),
    ):
        with pytest.raises(DataError, match=re.escape(said)):
            pack_recordings(tmp_path / "x", CUT, [RawRecording("r", pulse, given)])


def test_statistics_do_not_depend_on_pieces() -> None:
    numbers = np.random.default_rng(0).normal(1e6, 1, size=(10_000, 2))
    numbers[::3, 0] = NAN
    whole, pieces = TargetMoments(2), TargetMoments(2)
    whole.add(np.asfortranarray(numbers))
    for part in np.split(numbers, np.sort(np.random.default_rng(1).integers(0, 10_000, 300))):
        pieces.add([tuple(row) for row in part.tolist()])
    found = whole.statistics()
    assert found == pieces.statistics()
    np.testing.assert_allclose([entry.mean for entry in found], np.nanmean(numbers, 0), rtol=1e-12)
    np.testing.assert_allclose([entry.std for entry in found], np.nanstd(numbers, 0), rtol=1e-9)
    assert [entry.known for entry in TargetMoments(3).statistics()] == [0, 0, 0]


def test_records_of_an_unfinished_packing_keep_all_numbers() -> None:
    rows = SampleRows(labels=[(1.0, NAN), (2.0, 3.0)], sizes=[10, 20])
    kept = SampleSizes()
    kept.add(rows)
    np.testing.assert_array_equal(np.array(kept.rows().labels), [[1, NAN], [2, 3]])
    one = SampleSizes()
    one.add(SampleRows(labels=[4, 5.5], sizes=[1, 2]))
    assert one.rows().labels == [4.0, 5.5]


def test_windows_are_divided_anew_with_their_statistics(tmp_path: Path) -> None:
    pack(tmp_path / "x", ABOUT, (sample(n, [n, NAN if n % 2 else -n]) for n in range(30)), shard_bytes=4_000)
    for by in ("subject", "recording"):
        split = {"by": by, "validation": ["p1", "p2"] if by == "subject" else ["r1"]}
        split |= {"test": ["p3"] if by == "subject" else ["r2"]}
        manifest, found = targets_of(tmp_path / "x", split=split)
        first = manifest.splits["train"].targets
        assert first is not None
        assert [entry.known for entry in first] == (~np.isnan(found)).sum(0).tolist()
        np.testing.assert_allclose([entry.mean for entry in first], np.nanmean(found, 0))


def test_a_mixture_has_the_statistics_of_all(tmp_path: Path) -> None:
    for name, shift in (("a", 0), ("b", 100)):
        pack(
            tmp_path / name, replace(ABOUT, name=name), [sample(n, [n + shift, NAN if n % 2 else n]) for n in range(8)]
        )
    sources = [{"url": str(tmp_path / name)} for name in "ab"]
    manifest, found = targets_of("", sources=sources)
    facts = manifest.splits["train"].targets or []
    np.testing.assert_array_equal(np.sort(found[:, 0]), np.sort([*range(8), *range(100, 108)]))
    np.testing.assert_allclose([entry.mean for entry in facts], np.nanmean(found, 0))
    np.testing.assert_allclose([entry.std for entry in facts], np.nanstd(found, 0))
    pack(tmp_path / "c", replace(ABOUT, targets=("arousal", "valence")), some())
    with pytest.raises(ConfigError, match=r"have other targets \(valence, arousal; arousal, valence\)"):
        targets_of("", sources=[sources[0], {"url": str(tmp_path / "c")}])


def test_frames_with_a_column_for_each_target(tmp_path: Path) -> None:
    pulse = pd.DataFrame({"pulse": np.arange(12.0)}, index=np.arange(12.0))
    times = pd.DataFrame({"arousal": [NAN, 4.0, 4.0], "note": "x", "valence": [1.0, 2.0, 2.0]}, index=[8.0, 0.0, 4.0])
    spans = pd.DataFrame({"start": [0, 4], "end": [4, 8], "valence": [5, None], "arousal": [6.0, NAN]})
    given = {"r0": times, "r1": spans, "r2": [7, 8], "r3": {"arousal": 9}, "r4": None, "r5": pd.Series({"valence": 3})}
    about = FramesAbout(targets=NAMES, splits=dict.fromkeys(given, "train"))
    manifest = pack_frames(tmp_path / "x", {name: {"pulse": pulse} for name in given}, given, window_s=4, about=about)
    assert manifest.targets == list(NAMES)
    _, found = targets_of(tmp_path / "x")
    expected = [[2, 4], [2, 4], [1, NAN], [5, 6], *[[7, 8]] * 3, *[[NAN, 9]] * 3, *[[3, NAN]] * 3]
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float32))
    about = FramesAbout(targets=NAMES)
    for wrong, said in (
        (times.drop(columns="valence"), "the labels of recording r0: there is no column valence"),
        (times.assign(valence="high"), "column valence has values of type"),
        (pd.Series([1.0, 2.0]), "a Series has one number at a time"),
        ([1, 2, 3], "has 3 numbers, not 2"),
    ):
        with pytest.raises(DataError, match=re.escape(said)):
            pack_frames(
                tmp_path / "y", {"r0": {"pulse": pulse}}, {"r0": wrong}, window_s=4, about=FramesAbout(targets=NAMES)
            )
    with pytest.raises(DataError, match="that FramesAbout"):
        pack_frames(
            tmp_path / "y", {"r0": {"pulse": pulse}, "r1": {"pulse": pulse}}, {"r0": 1.5, "r1": spans}, window_s=4
        )


def test_lint_and_preview_show_the_range_of_each_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [sample(n, label, "train") for n, label in enumerate(labels())]
    given += [sample(20 + n, [3, NAN], "test") for n in range(4)]
    pack(tmp_path / "x", ABOUT, given)
    said = {
        remark.where: (remark.level, remark.text)
        for remark in lint(DataConfig(url=str(tmp_path / "x")))
        if "target" in remark.where
    }
    assert said["train, target valence"] == ("note", "1 to 11, mean 5, deviation 3.69685; known in 6 of 9 samples")
    assert said["test, target valence"] == ("warning", "it is always 3; known in 4 of 4 samples")
    assert said["test, target arousal"] == ("warning", "it is unknown in all samples")
    main = runpy.run_path(str(runs.ROOT / "tools" / "preview.py"))["main"]
    assert main([str(tmp_path / "x"), "--out", str(tmp_path / "x.html")]) == 0
    page = (tmp_path / "x.html").read_text()
    assert "samples that have it" in page
    assert "6 of 9" in page
    assert "valence unknown, arousal 5" in page or "valence 3, arousal unknown" in page
    pairs = [(0, 8, (1, NAN)), (8, 16, (2, NAN)), (16, 20, (NAN, 3))]
    given_recordings = [
        RawRecording(f"r{n}", {"pulse": np.random.default_rng(n).normal(size=(24, 1))}, pairs if n else [4, NAN])
        for n in range(3)
    ]
    pack_recordings(tmp_path / "y", CUT, given_recordings)
    assert main([str(tmp_path / "y"), "--out", str(tmp_path / "y.html")]) == 0
    page = (tmp_path / "y.html").read_text()
    assert "label <bdi>valence 4, arousal unknown</bdi>" in page
    assert "Broken" not in page


def test_a_model_of_other_targets_does_not_fit(tmp_path: Path) -> None:
    manifest = pack(tmp_path / "x", ABOUT, some())
    scales = manifest.target_scales("train")
    answer = Answer("regression", name="feeling", targets=scales)
    assert check_labels(manifest, "train", answer) == []
    for targets, said in (
        ((), "has other targets: valence, arousal; the model was trained on one number"),
        (scales[::-1], "has the same targets in another order: valence, arousal"),
        ((*scales, TargetScale("joy")), "has other targets"),
        ((scales[0], TargetScale("arousal", 6e6, 3e6)), "target arousal is 6e\\+06"),
    ):
        with pytest.raises(DataError, match=said):
            check_labels(manifest, "train", replace(answer, targets=targets))
    alone = pack(tmp_path / "y", replace(ABOUT, targets=()), [sample(0, 1.5), sample(1, 2.5)])
    with pytest.raises(DataError, match="has other targets: one number; the model was trained on valence, arousal"):
        check_labels(alone, "train", answer)


@pytest.mark.parametrize("change", [lambda b: b["splits"]["train"].pop("targets"), lambda b: b.pop("targets"),
                                    lambda b: b["splits"]["train"]["targets"].pop(),
                                    lambda b: b["splits"]["train"]["targets"][0].update(known=99)])  # fmt: skip
def test_a_damaged_manifest_is_refused(change: Any, tmp_path: Path) -> None:
    pack(tmp_path / "x", ABOUT, some())
    body = json.loads((tmp_path / "x" / "manifest.json").read_text())
    change(body)
    (tmp_path / "x" / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(DataError, match="targets of split 'train'"):
        load_manifest(str(tmp_path / "x"))


def test_a_target_that_no_training_sample_knows_cannot_be_learned(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [sample(n, [n, NAN], "train") for n in range(6)]
    rows += [sample(10 + n, [n, 1], split) for split in ("validation", "test") for n in range(3)]
    pack(tmp_path / "x", ABOUT, rows)
    assert runs.train(tmp_path, str(tmp_path / "x"), "--dry-run") != 0
    assert "data.train: target arousal is unknown in all samples of split 'train'" in capfd.readouterr().err


def test_the_metric_of_a_target_needs_a_known_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [sample(n, [n, n % 3], "train") for n in range(6)]
    rows += [sample(10 + n, [n, NAN], "validation") for n in range(3)]
    rows += [sample(20 + n, [n, 1], "test") for n in range(3)]
    pack(tmp_path / "x", ABOUT, rows)
    name, other = ABOUT.targets
    assert runs.train(tmp_path, str(tmp_path / "x"), "--dry-run", f"evaluation.metric=rmse.{other}") != 0
    said = f"evaluation.metric=rmse.{other}: no sample of data.validation=validation has a known {other}; use another"
    assert said in capfd.readouterr().err
    assert runs.train(tmp_path, str(tmp_path / "x"), "--dry-run", f"evaluation.metric=rmse.{name}") == 0
    assert runs.train(tmp_path, str(tmp_path / "x"), "--dry-run", "evaluation.metric=mae.nobody") != 0
    assert f"this regression task has mae, rmse, loss, mae.{name}" in capfd.readouterr().err


def test_rows_of_many_kinds() -> None:
    for given, expected in zip(labels(), STORED, strict=True):
        np.testing.assert_array_equal(target_row(given, NAMES, "x"), expected)
