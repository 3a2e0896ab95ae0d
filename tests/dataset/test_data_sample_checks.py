"""What a sample may hold: numbers of any library with an exact value; anything else is an error that names it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import describe

from maestro_dist.data.description import checked_description
from maestro_dist.data.pack import RawSample, pack
from maestro_dist.data.sample_checks import SampleChecker
from maestro_dist.errors import DataError

TEMP = np.arange(8.0)[:, None]


def intake(**changes: Any) -> SampleChecker:
    return SampleChecker(checked_description(describe(recording=False, **changes)), ["train", "test"])


def sample(**changes: Any) -> RawSample:
    return dataclasses.replace(RawSample("train", "k1", 1, "p1", "r1", 0.0, 2.0, {"temp": TEMP}), **changes)


def meta(given: RawSample, **about: Any) -> dict[str, Any]:
    return json.loads(intake(**about).checked(given, 0).meta)


@pytest.mark.parametrize(
    "label", [2, 2.0, np.int64(2), np.uint8(2), np.float32(2), np.array(2), torch.tensor(2), np.longdouble(2)]
)
def test_labels_with_an_exact_meaning(label: Any) -> None:
    assert meta(sample(label=label))["label"] == 2


def test_truth_values_are_labels_of_two_classes() -> None:
    assert [meta(sample(label=value))["label"] for value in (True, np.bool_(False))] == [1, 0]


@pytest.mark.parametrize(
    "label", [-1, 3, 1.5, float("nan"), None, "1", "walking", [1], np.array([1]), np.datetime64(1, "ns"), np.ma.masked]
)
def test_labels_without_one_are_refused(label: Any) -> None:
    with pytest.raises(DataError, match=r"sample k1: label .* is not one of 0\.\.2"):
        intake().checked(sample(label=label), 0)


def test_the_name_of_a_class_is_answered_with_its_number() -> None:
    with pytest.raises(DataError, match="label 'walk' is the name of a class; give its number, 1"):
        intake().checked(sample(label="walk"), 0)


@pytest.mark.parametrize("target", [2.5, np.float32(2.5), np.array(2.5), torch.tensor(2.5)])
def test_targets(target: Any) -> None:
    assert meta(sample(label=target), task="regression", classes=())["label"] == 2.5


@pytest.mark.parametrize("target", [np.nan, np.float32("inf"), 1e39, 10**400, "2.5", None, np.timedelta64(1, "ns")])
def test_targets_that_are_none(target: Any) -> None:
    with pytest.raises(DataError, match="is not a finite number that float32 can hold"):
        intake(task="regression", classes=()).checked(sample(label=target), 0)


@pytest.mark.parametrize(
    ("subject", "name"),
    [(0, "0"), ("0", "0"), (np.int64(0), "0"), (0.0, "0"), (np.str_("p"), "p"), ("", ""), (None, ""), ("  ", "")],
)
def test_who_a_subject_is(subject: Any, name: str) -> None:
    found = intake().checked(sample(subject=subject, recording=subject), 0)
    assert (found.subject, json.loads(found.meta)["subject"], json.loads(found.meta)["recording"]) == (name, name, name)


@pytest.mark.parametrize("field", ["subject", "recording", "key"])
@pytest.mark.parametrize("value", ["a\x07b", "x" * 10_000_000, "\ud800", True, 1.5, float("nan"), b"p", ["p"], pd.NA])
def test_ids_that_are_none(field: str, value: Any) -> None:
    with pytest.raises(DataError) as caught:
        intake().checked(sample(**{field: value}), 0)
    assert field in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_s": float("nan")}, "start_s nan is not a finite number"),
        ({"start_s": "0"}, "start_s '0' is not a finite number"),
        ({"start_s": np.datetime64(1, "ns")}, "start_s .* is not a finite number"),
        ({"duration_s": -1.0}, "duration_s -1.0 is not a number of seconds from 0"),
        ({"duration_s": None}, "duration_s None is not a number"),
        ({"split": 1}, "split 1 is not one of train, test"),
        ({"key": "a/b"}, "a key has up to 50"),
        ({"values": [TEMP]}, "values is of type list, not a dictionary"),
        ({"values": {1: TEMP}}, "modality 1 is not in the description; it has ecg, acc, temp"),
    ],
)
def test_other_fields(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        intake().checked(sample(**changes), 0)


def test_numbers_of_numpy_are_stored_as_plain_ones() -> None:
    found = meta(sample(start_s=np.float32(0.5), duration_s=np.int16(2), key=np.str_("k")))
    assert (found["start_s"], found["duration_s"]) == (0.5, 2)
    assert json.dumps(meta(sample(start_s=3, duration_s=2.0)), separators=(",", ":")) == (
        '{"label":1,"subject":"p1","recording":"r1","start_s":3,"duration_s":2.0}'
    )


def test_something_else_than_a_sample() -> None:
    with pytest.raises(DataError, match="sample number 4 is of type dict, not a RawSample"):
        intake().checked({}, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "array",
    [
        TEMP.tolist(),
        TEMP.astype(np.int8),
        TEMP.astype(">f8"),
        np.asfortranarray(TEMP.astype(np.float16)),
        torch.tensor(TEMP),
        pd.DataFrame(TEMP),
        np.ma.array(TEMP),
    ],
    ids=lambda array: type(array).__name__,
)
def test_arrays_of_real_numbers(array: Any) -> None:
    found = intake().checked(sample(values={np.str_("temp"): array}), 0).arrays["temp"]
    assert (found.dtype.str, found.flags.c_contiguous) == ("<f4", True)
    assert np.array_equal(found, TEMP)


def test_none_is_an_absent_modality() -> None:
    assert intake().checked(sample(values={"temp": None, "ecg": np.zeros((128, 1))}), 0).arrays.keys() == {"ecg"}


def test_truth_values_are_0_and_1() -> None:
    assert intake().checked(sample(values={"temp": TEMP > 3}), 0).arrays["temp"].sum() == 4


@pytest.mark.parametrize(
    "array",
    [
        np.ma.masked_equal(TEMP, 5),
        np.ma.masked_equal(TEMP.astype(np.int32), 5),
        list(np.ma.masked_equal(TEMP, 5)),
        np.ma.array(np.where(TEMP == 5, np.inf, TEMP), mask=TEMP == 5),
    ],
)
def test_what_is_masked_is_missing(array: Any) -> None:
    before = np.ma.getdata(array).copy() if isinstance(array, np.ma.MaskedArray) else None
    found = intake().checked(sample(values={"temp": array}), 0).arrays["temp"]
    assert np.array_equal(found, np.where(TEMP == 5, np.nan, TEMP), equal_nan=True)
    assert before is None or np.array_equal(before, array.data)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (TEMP.astype("datetime64[s]"), r"temp is an array of datetime64\[s\]"),
        (TEMP.astype("timedelta64[ms]"), r"temp is an array of timedelta64\[ms\]"),
        (TEMP.astype(complex), "temp is an array of complex128"),
        (TEMP.astype(object), "temp is an array of object"),
        (TEMP.astype(str), "temp is an array of <U"),
        ([[1.0], [None]] * 4, "temp is an array of object"),
        ([[1.0], [1.0, 2.0]], "temp is of type list and not an array of numbers"),
        (torch.zeros(8, 1, requires_grad=True), "temp is of type Tensor and not an array of numbers"),
        (TEMP * 1e39, r"temp has 1e\+39, which is too large for float32"),
        (TEMP - np.inf, "temp has an infinite value"),
        (TEMP[:, 0], r"temp has shape \(8,\), not 8 steps x 1"),
        (1.0, r"temp has shape \(\), not 8 steps x 1"),
    ],
)
def test_arrays_that_are_refused(array: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        intake().checked(sample(values={"temp": array}), 0)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({}, r"temp has no recording statistics; give statistics\['temp'\] of shape \(1, 2\)"),
        ({"temp": [[0.0, -1.0]]}, "must be finite, and the std not negative"),
        ({"temp": [[np.nan, 1.0]]}, "must be finite"),
        ({"temp": [[0.0, 1e39]]}, "too large for float32"),
        ({"temp": [0.0, 1.0]}, r"have shape \(2,\), not \(1, 2\)"),
        ({"temp": [["a", "b"]]}, "is an array of <U1"),
        ({"temp": [[0.0, 1.0]], "ppg": [[0.0, 1.0]]}, "modality 'ppg' is not in the description"),
        (None, "statistics is of type NoneType, not a dictionary"),
    ],
)
def test_statistics_of_recordings(statistics: Any, message: str) -> None:
    checks = SampleChecker(checked_description(describe()), ["train"])
    with pytest.raises(DataError, match=message):
        checks.checked(sample(statistics=statistics), 0)
    good = checks.checked(sample(statistics={"temp": np.array([[1 / 3, 0.0]], np.float32)}), 0)
    assert json.loads(good.meta)["recording_mean"] == {"temp": [0.33333334]}


def test_numbers_inside_a_shard_are_those_of_the_sample_when_its_memory_is_used_again(tmp_path: Path) -> None:
    buffer = np.zeros((8, 1), np.float32)

    def samples() -> Any:
        for number in range(4):
            buffer[:] = number
            yield sample(key=f"k{number}", values={"temp": buffer})

    manifest = pack(str(tmp_path), describe(recording=False), samples())
    assert manifest.select(["temp"])[0].mean == (1.5,)
