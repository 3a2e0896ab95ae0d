"""Arrays and pandas frames become the recordings that they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.frames import FramesAbout, pack_frames
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.errors import DataError

DRAW = np.random.default_rng(0)
START = pd.Timestamp("2024-05-01T10:00:00")


def arrays() -> dict[str, dict[str, Any]]:
    """Three recordings of 60 s: acc at 16 Hz, heart at 1 Hz with a gap, and the age."""
    found = {}
    for k in range(3):
        heart = 60 + DRAW.normal(size=60)
        heart[10:20] = np.nan
        found[f"P{k}"] = {"acc": DRAW.normal(size=(960, 3)).astype(np.float32), "heart": heart, "age": 30 + k}
    return found


def as_frames(given: dict[str, dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """The same with an index of times. Rows without a value are left out of the frame."""

    def index(steps: int, rate: float) -> pd.Index:
        seconds = np.arange(steps) / rate
        if kind == "seconds":
            return pd.Index(seconds + 5000)
        if kind == "timedeltas":
            return pd.to_timedelta(seconds, unit="s")
        dates = START + pd.to_timedelta(seconds, unit="s")
        return dates.tz_localize("Europe/Berlin") if kind == "zone" else dates

    return {
        key: {
            "acc": pd.DataFrame(of["acc"], index(960, 16), columns=["x", "y", "z"]),
            "heart": pd.Series(of["heart"], index(60, 1)).dropna(),
            "age": of["age"],
        }
        for key, of in given.items()
    }


def windows(url: Path, manifest: Manifest, split: str) -> dict[str, Any]:
    """All windows of a split by key, and their labels."""
    config = DataConfig.model_validate({"url": str(url)})
    cut = load_data(config)
    source = SplitSource(str(url), cut, config, tuple(cut.select(None)), split)
    count = cut.splits[split].samples
    batch = source.open().batch(Request(np.arange(count)))
    return {"keys": batch.keys, "target": batch.target, "values": batch.values, "present": batch.present}


@pytest.mark.parametrize("kind", ["seconds", "timedeltas", "dates", "zone"])
def test_frames_are_the_same_as_arrays(kind: str, tmp_path: Path) -> None:
    given = arrays()
    labels = {"P0": "ill", "P1": "well", "P2": "ill"}
    names = {"P0": "train", "P1": "validation", "P2": "test"}
    about = FramesAbout(rates_hz={"acc": 16, "heart": 1}, stride_s=10, splits=names)
    first = pack_frames(tmp_path / "a", given, labels, window_s=20, about=about)
    second = pack_frames(tmp_path / "b", as_frames(given, kind), labels, window_s=20, about=replace(about, rates_hz={}))
    assert [(m.name, m.variates, m.rate_hz, m.always) for m in first.modalities] == [
        ("acc", 3, 16, False), ("age", 1, 0.05, True), ("heart", 1, 1, False),
    ]  # fmt: skip
    assert first.modalities == second.modalities
    assert first.classes == second.classes == ["ill", "well"]
    for split in ("train", "validation", "test"):
        one, other = windows(tmp_path / "a", first, split), windows(tmp_path / "b", second, split)
        assert one["keys"] == other["keys"]
        assert len(one["keys"]) == 5
        np.testing.assert_array_equal(one["target"], other["target"])
        for name in ("acc", "heart", "age"):
            np.testing.assert_array_equal(one["values"][name], other["values"][name])
    window = windows(tmp_path / "a", first, "validation")["values"]
    np.testing.assert_array_equal(window["acc"][1], given["P1"]["acc"][160:480])
    np.testing.assert_array_equal(window["heart"][0][:, 0], given["P1"]["heart"][:20].astype(np.float32))


def test_one_frame_for_each_recording_is_divided_into_modalities(tmp_path: Path) -> None:
    index = pd.Index(np.arange(400) / 20)
    columns = ["acc_x", "acc_y", "acc_z", "pulse"]
    frames = {f"r{k}": pd.DataFrame(DRAW.normal(size=(400, 4)), index, columns=columns) for k in range(3)}
    manifest = pack_frames(tmp_path / "x", frames, window_s=5)
    assert [(m.name, m.variates, m.rate_hz) for m in manifest.modalities] == [("acc", 3, 20), ("pulse", 1, 20)]
    assert manifest.task == "none"


def test_labels_over_time_as_a_series_or_a_frame(tmp_path: Path) -> None:
    given = as_frames(arrays(), "dates")
    times = START + pd.to_timedelta(np.arange(60), unit="s")
    series = {key: pd.Series(["rest"] * 30 + ["walk"] * 30, times) for key in given}
    frame = pd.DataFrame(
        {"start": [START, START + pd.Timedelta(30, "s")], "end": [START + pd.Timedelta(s, "s") for s in (30, 60)],
         "label": ["rest", "walk"]}
    )  # fmt: skip
    splits = {"P0": "train", "P1": "validation", "P2": "test"}
    for number, labels in enumerate((series, dict.fromkeys(given, frame))):
        url = tmp_path / str(number)
        manifest = pack_frames(url, given, labels, window_s=10, about=FramesAbout(splits=splits))
        assert windows(url, manifest, "train")["target"].tolist() == [0, 0, 0, 1, 1, 1]


def test_whole_numbers_are_classes_and_others_targets(tmp_path: Path) -> None:
    given = arrays()
    about = FramesAbout(rates_hz={"acc": 16.0, "heart": 1.0})
    manifest = pack_frames(tmp_path / "a", given, {"P0": 2, "P1": 10, "P2": 1.0}, window_s=5, about=about)
    assert (manifest.task, manifest.classes) == ("classification", ["1", "2", "10"])
    manifest = pack_frames(tmp_path / "b", given, {"P0": 2.5, "P1": 10}, window_s=5, about=about)
    assert (manifest.task, manifest.classes) == ("regression", [])
    chosen = pack_frames(tmp_path / "c", given, {"P0": "b"}, window_s=5, about=replace(about, classes=["b", "a"]))
    assert chosen.classes == ["b", "a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recordings": {}}, "there are no recordings"),
        ({"recordings": {"a": [1, 2]}}, "recording a: .*not a pandas DataFrame or a dictionary"),
        ({"recordings": {"a": {"x": ["p", "q"]}}}, "recording a: x: .*not numbers"),
        ({"recordings": {"a": {"x": np.zeros((2, 2, 2))}}}, r"recording a: x: .* of shape \(2, 2, 2\)"),
        ({"recordings": {"a": {"x": np.zeros(9)}}}, r"x is an array; give its rate: FramesAbout\(rates_hz="),
        ({"recordings": {"a": {"x": pd.Series(["p", "q"])}}}, "recording a: x: not a table of numbers"),
        ({"recordings": {"a": {"x": pd.Series([1.0, 2], index=["p", "q"])}}}, "its index has text"),
        ({"recordings": {"a": {"x": pd.Series([1.0, 2, 3], index=[0, None, 2])}}}, "row 2 has no time"),
        ({"labels": {"P9": 1}}, "labels has 'P9', which is no recording"),
        ({"subjects": {"P9": "x"}}, "subject has 'P9', which is no recording"),
        ({"labels": {"P0": pd.DataFrame({"start": [0]})}, "classes": ["a", "b"]}, "there is no end"),
        ({"classes": ["b", "c"], "labels": {"P0": "a"}}, "label 'a' is no class"),
        ({"recordings": {"a": {"x": 1.0}, "b": {"x": np.zeros(9)}}, "rates_hz": {"x": 1}}, "one number in some"),
        (
            {"recordings": {"a": {"x": np.zeros(9)}, "b": {"x": np.zeros((9, 2))}}, "rates_hz": {"x": 1}},
            "another number of variates",
        ),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"recordings": arrays(), "labels": {"P0": "a", "P1": "b"}, "rates_hz": {"acc": 16, "heart": 1}}
    if "recordings" in change:
        given = {"labels": None}
    given = {**given, **change}
    options = {name: given.pop(name) for name in ("rates_hz", "subjects", "classes") if name in given}
    with pytest.raises(DataError, match=message) as caught:
        pack_frames(tmp_path / "x", **given, window_s=5, about=FramesAbout(**options))
    assert "\n" not in str(caught.value)


def held(url: Path, labels: Any) -> dict[str, set[str]]:
    """The labels of each window, of 10 s each."""
    names = ("fever", "low oxygen", "never")
    recordings = {key: {"heart": of["heart"]} for key, of in arrays().items()}
    about = FramesAbout(rates_hz={"heart": 1}, several=names, splits=dict.fromkeys(recordings, "train"))
    manifest = pack_frames(url, recordings, {"P0": labels}, window_s=10, about=about)
    assert (manifest.task, manifest.classes) == ("multilabel", list(names))
    found = windows(url, manifest, "train")
    return {
        key: {name for bit, name in enumerate(names) if int(target) >> bit & 1}
        for key, target in zip(found["keys"], found["target"], strict=True)
        if key.startswith("P0")
    }


FEVER, LOW = {"fever"}, {"low oxygen"}
EXPECTED = [FEVER, FEVER | LOW, set(), LOW, set()]  # of the window from 10 s on nothing was observed


def test_several_labels_at_a_time(tmp_path: Path) -> None:
    """As intervals that overlap, as columns of true and false, and as a list for the recording."""
    spans = [(0, 30, "fever"), (10, 30, "low oxygen"), (40, 50, "low oxygen")]
    intervals = pd.DataFrame(spans, columns=["start", "end", "label"])
    together = [(0, 10, "fever"), (10, 30, ["fever", "low oxygen"]), (40, 50, ["low oxygen"])]
    lists = pd.DataFrame(together, columns=["start", "end", "label"])
    seconds = np.arange(60)
    columns = pd.DataFrame({"fever": seconds < 30, "low oxygen": 0, "never": np.nan}, index=seconds)
    columns.loc[(seconds >= 10) & (seconds < 30) | (seconds >= 40) & (seconds < 50), "low oxygen"] = 1
    for number, labels in enumerate((intervals, lists, columns, columns.sample(frac=1, random_state=1))):
        assert list(held(tmp_path / str(number), labels).values()) == EXPECTED
    assert list(held(tmp_path / "list", ["low oxygen", "fever"]).values()) == [FEVER | LOW] * 5
    assert list(held(tmp_path / "none", []).values()) == [set()] * 5


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cough"], "cough"),
        (pd.Series(["fever"], index=[0]), "a Series has one label at a time"),
        (pd.DataFrame({"fever": [1], "low oxygen": [0]}, index=[0]), "there is no column never"),
        (pd.DataFrame({"fever": [2], "low oxygen": [0], "never": [0]}, index=[0]), "column fever has 2, not true"),
        (pd.DataFrame([(0, 9, "cough")], columns=["start", "end", "label"]), "cough"),
    ],
)
def test_other_labels_are_refused(labels: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        held(tmp_path / "data", labels)


def test_labels_are_of_one_kind(tmp_path: Path) -> None:
    about = FramesAbout(rates_hz={"heart": 1}, several=["a"], targets=["x", "y"])
    with pytest.raises(DataError, match="targets and several are given"):
        pack_frames(tmp_path / "data", {"P": {"heart": np.zeros(60)}}, {"P": ["a"]}, window_s=10, about=about)
