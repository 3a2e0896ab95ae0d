"""Odd recordings: labels of other types, splits that runs would not find, modalities that could be misread."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maestro_dist.config.identity import run_identity
from maestro_dist.config.schema import Config, DataConfig
from maestro_dist.config.windows import SplitConfig, WindowConfig
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.pack import Description, RawRecording, pack_recordings
from maestro_dist.data.recordings.cut_data import usual_windows
from maestro_dist.data.recordings.windowing import load_table
from maestro_dist.data.split_checks import check_splits
from maestro_dist.errors import ConfigError, DataError, RunError
from maestro_dist.run.record import RunRecord, check_same
from maestro_dist.types import Modality

HEART, AGE = Modality("heart", 1, 1.0, 0), Modality("age", 1, 1.0, 1, always=True)
ABOUT = Description(
    "odd", "", "", "", task="classification", classes=("u", "v"), target="t", window_s=10, modalities=(HEART, AGE),
    window=WindowConfig(length_s=10),
)  # fmt: skip
STEPS = np.arange(60.0)[:, None]


def label_of(url: Path, label: Any, about: Description = ABOUT) -> float:
    pack_recordings(url, about, [RawRecording("a", {"heart": STEPS}, label)])
    facts = load_table(str(url), load_manifest(str(url))).facts(0)
    return float(facts.whole if len(facts.intervals) == 0 else facts.intervals[0, 2])


@pytest.mark.parametrize(
    "label",
    [1, 1.0, np.int8(1), np.array(1), np.array("v"), np.str_("v"), True, np.True_, [(0, 60, True)], [(0, 9, np.True_)]],
)
def test_labels_may_be_of_any_type_that_holds_them(tmp_path: Path, label: Any) -> None:
    assert label_of(tmp_path / "a", label) == 1.0
    if not isinstance(label, str) and np.asarray(label).dtype.kind != "U":
        about = replace(ABOUT, task="regression", classes=())
        assert label_of(tmp_path / "b", label, about) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "Train"}, "split 'Train': write it 'train'"),
        ({"split": "../x"}, "split '../x': a name has up to 40 letters"),
        ({"values": {"age": [[30]]}}, "it has no sensor with a time, so its length is not known; give length_s"),
    ],
)
def test_what_no_run_could_use_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        pack_recordings(tmp_path, ABOUT, [replace(RawRecording("a", {"heart": STEPS}, 1), **changes)])
    assert message in str(caught.value)


def test_a_modality_with_time_that_is_always_known_does_not_lose_its_time(tmp_path: Path) -> None:
    """Of one step in a window it would be taken for one value of the recording: its first step, in all windows."""
    dose = Modality("dose", 1, 0.5, 0, always=True)
    about = replace(ABOUT, modalities=(HEART, dose))
    pack_recordings(tmp_path, about, [RawRecording("a", {"heart": STEPS, "dose": STEPS[:30]}, 1)])
    manifest = load_manifest(str(tmp_path))
    assert [m.steps for m in usual_windows(str(tmp_path), manifest, WindowConfig(length_s=4)).modalities] == [2, 4]
    with pytest.raises(ConfigError, match=r"data\.window\.length_s: modality 'dose' is always known, .* has one step"):
        usual_windows(str(tmp_path), manifest, WindowConfig(length_s=2))
    with pytest.raises(DataError, match=r"modality 'dose' is always known, .* use a longer window"):
        pack_recordings(tmp_path / "b", replace(about, window=WindowConfig(length_s=2)), [])


def test_a_set_of_one_person_says_how_it_can_be_divided(tmp_path: Path) -> None:
    one = RawRecording("a", {"heart": np.repeat(STEPS, 10, axis=0)}, 1, subject="p")
    pack_recordings(tmp_path / "set", ABOUT, [one])
    config = DataConfig(url=str(tmp_path / "set"), cache=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"data\.train: .*of one or two people none is left .*data\.split\.by=time"):
        check_splits(config, load_data(config))
    by_time = config.model_copy(update={"split": SplitConfig(by="time", allow_shared_people=True)})
    check_splits(by_time, load_data(by_time))


@pytest.mark.parametrize(
    ("key", "value"), [("window", {"length_s": 20}), ("split", {"by": "time", "allow_shared_people": True})]
)
def test_a_run_that_goes_on_with_other_windows_is_told_so(tmp_path: Path, key: str, value: dict[str, Any]) -> None:
    people = [RawRecording(f"r{n}", {"heart": np.repeat(STEPS, 10, axis=0)}, n % 2, subject=f"p{n}") for n in range(4)]
    pack_recordings(tmp_path / "set", ABOUT, people)
    data = {"url": str(tmp_path / "set"), "cache": str(tmp_path / "cache")}
    config = Config.model_validate({"data": data})
    begun = RunRecord(identity=run_identity(config), data=load_data(config.data).fingerprint(), token="")
    check_same(config, load_data(config.data), begun)
    other = Config.model_validate({"data": {**data, key: value}})
    with pytest.raises(ConfigError, match=rf"begun with another configuration: data\.{key}.*choose another run\.name"):
        check_same(other, load_data(other.data), begun)
    pack_recordings(tmp_path / "set", ABOUT, people[:3], overwrite=True)
    with pytest.raises(RunError, match="was started on other data"):
        check_same(config, load_data(config.data), begun)


def test_classes_have_no_mean(tmp_path: Path) -> None:
    pack_recordings(tmp_path, ABOUT, [RawRecording("a", {"heart": STEPS}, [(0, 14, "u"), (14, 60, "v")])])
    with pytest.raises(ConfigError, match=r"data\.window\.label: mean is for numbers, but the labels of 'odd' are"):
        usual_windows(str(tmp_path), load_manifest(str(tmp_path)), WindowConfig(length_s=10, label="mean"))
