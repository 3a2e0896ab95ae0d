"""Labels at a rate of their own are stored as the intervals of equal labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.load import load_data
from maestro_dist.data.pack import Description, LabelTrack, RawRecording, pack_recordings
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.data.recordings.raw import RecordingChecker
from maestro_dist.errors import DataError
from maestro_dist.types import Modality

NAN, CLASSES = float("nan"), ("wake", "light", "deep")
TARGETS = ("high", "low")


def about(task: Any = "classification") -> Description:
    targets = TARGETS if task == "several" else ()
    return Description(
        "nights", "CC0", "", "a generator", task="regression" if targets else task,
        classes=CLASSES if task in ("classification", "multilabel") else (), target="stage", window_s=60,
        modalities=(Modality("eeg", 1, 1.0, 60),), recording=True, window=WindowConfig(length_s=60), targets=targets,
    )  # fmt: skip


def intervals(labels: Any, task: Any = "classification", seconds: int = 300) -> np.ndarray:
    """The intervals that are stored, [L, 2 + K]."""
    return RecordingChecker(about(task))._labels(labels, float(seconds), "nights, recording n")[1]


@pytest.mark.parametrize(
    ("task", "values", "given"),
    [
        ("classification", ["wake", "wake", None, "deep", "light"], ["wake", "wake", None, "deep", "light"]),
        ("classification", np.array([0, 0, NAN, 2, 1]), [0, 0, None, 2, 1]),
        ("classification", np.ma.masked_array([0, 0, 7, 2, 1], mask=[0, 0, 1, 0, 0]), [0, 0, None, 2, 1]),
        ("regression", np.array([60, 60, NAN, 61.5, 62], dtype=np.float32), [60, 60, None, 61.5, 62]),
        ("regression", [60, 60, None, 61.5, 62], [60, 60, None, 61.5, 62]),
        ("several", [[1, 2], [1, 2], [NAN, NAN], [NAN, 2], [3, NAN]], [(1, 2), (1, 2), None, (NAN, 2), (3, NAN)]),
    ],
)
def test_a_track_is_stored_as_its_intervals(task: Any, values: Any, given: list[Any]) -> None:
    found = intervals(LabelTrack(values, rate_hz=1 / 30, start_s=15), task)
    steps = [(15 + 30.0 * k, 45 + 30.0 * k, label) for k, label in enumerate(given) if label is not None]
    joined = [(15.0, 75.0, given[0]), *steps[2:]]
    np.testing.assert_allclose(found, intervals(joined, task))


def test_sets_of_labels_are_unknown_where_one_is() -> None:
    values = np.array([[1, 0, 0], [1, 1, 0], [NAN, 1, 0], [0, 0, 0], [0, 0, 0]])
    found = intervals(LabelTrack(values, rate_hz=0.1), "multilabel")
    np.testing.assert_allclose(found, [[0, 10, 1], [10, 20, 3], [30, 50, 0]])
    np.testing.assert_array_equal(intervals(LabelTrack(values[:2] == 1, rate_hz=0.1), "multilabel"), found[:2])


@pytest.mark.parametrize(
    ("task", "track", "said"),
    [
        ("classification", LabelTrack(["wake", "REM"], 1), "'REM' is no class; they are wake, light, deep"),
        ("classification", LabelTrack([0, 3], 1), "label 3 is not one of 0..2"),
        ("classification", LabelTrack([0.5], 1), r"label 0\.5 is not one of"),
        ("classification", LabelTrack([[0], [1]], 1), r"shape \[2, 1\], not \[steps\]"),
        ("classification", LabelTrack(np.array([[1], {}], dtype=object), 1), "a label of a step is"),
        ("classification", LabelTrack(1, 1), r"shape \[\], not \[steps\]"),
        ("classification", LabelTrack([0, 1], 0), "0, is not a positive number"),
        ("classification", LabelTrack([0, 1], 1, NAN), "is not a number of seconds"),
        ("regression", LabelTrack([1.0, np.inf], 1), "label inf is not a finite number"),
        ("regression", LabelTrack(["a"], 1), "not numbers"),
        ("regression", LabelTrack([1e39], 1), "not a finite number that float32 can hold"),
        ("several", LabelTrack([1.0, 2.0], 1), r"shape \[2\], not \[steps, 2\]"),
        ("several", LabelTrack([[1.0], [2.0, 3.0]], 1), "its labels are no array"),
        ("multilabel", LabelTrack([[0, 2, 0]], 1), "label 2 of a step is not true or false"),
    ],
)
def test_what_is_no_label_is_named(task: Any, track: LabelTrack, said: str) -> None:
    with pytest.raises(DataError, match=f"nights, recording n: .*{said}"):
        intervals(track, task)


def test_nothing_known_and_nothing_at_all_are_no_intervals() -> None:
    assert intervals(LabelTrack([], 1.0)).shape == (0, 3)
    assert intervals(LabelTrack([NAN, NAN], 1.0)).shape == (0, 3)
    assert intervals(LabelTrack(np.empty((0, 2)), 1.0), "several").shape == (0, 4)


def test_windows_have_the_labels_of_a_long_track(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    stages = np.repeat(draw.integers(0, 3, 200), draw.integers(1, 9, 200))
    seconds = 30 * len(stages)
    eeg = np.zeros((seconds, 1))
    given = (RawRecording(f"n{n}", {"eeg": eeg}, LabelTrack(stages, 1 / 30), split="train") for n in range(2))
    pack_recordings(tmp_path / "nights", about(), given)
    window = {"length_s": 60, "label_every_s": 30}
    given_split = {"by": "given"}
    config = DataConfig.model_validate({"url": str(tmp_path / "nights"), "split": given_split, "window": window})
    manifest = load_data(config)
    source = SplitSource(config.url, manifest, config, tuple(manifest.select(None)), "train")
    found = np.asarray(source.open().batch(Request(np.arange(manifest.splits["train"].samples))).target)
    whole = len(stages) // 2 * 2
    np.testing.assert_array_equal(found, np.tile(stages[:whole].reshape(-1, 2), (2, 1)))
