"""What `predict` takes for a sample, and what it refuses by name: never silently an answer from nothing."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from exported_models import FULL, MODALITIES, SAMPLES, as_lists, exported

from maestro_dist.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from maestro_dist.inference.predictor import Predictor, load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported")
    exported(path)
    return path


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return load_model(folder)


EDA = FULL["eda"]
GAPS = EDA.copy()
GAPS[4:6] = np.nan


def masked(values: np.ndarray) -> np.ma.MaskedArray:
    """What is not known is hidden by the mask; below it are numbers."""
    return np.ma.MaskedArray(np.where(np.isnan(values), -3268.0, values), mask=np.isnan(values))


@pytest.mark.parametrize(
    "given",
    [
        GAPS[:, 0],  # [T] for one variate
        GAPS.astype(np.float64),
        GAPS.tolist(),
        as_lists(GAPS),  # null in JSON
        [None if np.isnan(value) else float(value) for value in GAPS[:, 0]],
        [None if np.isnan(row[0]) else row for row in GAPS.tolist()],  # null for a whole step
        masked(GAPS),
        [*masked(GAPS)],
        torch.from_numpy(GAPS),
        pd.Series(GAPS[:, 0]),
        pd.DataFrame(GAPS),
    ],
    ids=["1d", "float64", "lists", "null", "null1d", "nullstep", "masked", "maskedlist", "tensor", "series", "frame"],
)
def test_gaps_in_any_form_are_gaps(predictor: Predictor, given: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(predictor.predict([{"eda": given}]), predictor.predict([{"eda": GAPS}]))


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.bool_, np.float16])
def test_whole_numbers_and_short_floats_are_numbers(predictor: Predictor, dtype: type) -> None:
    values = (np.arange(16).reshape(16, 1) % 2).astype(dtype)
    expected = predictor.predict({"eda": values.astype(np.float32)})
    assert np.array_equal(predictor.predict({"eda": values}), expected)
    assert np.array_equal(predictor.predict({"eda": values.tolist()}), expected)


def test_one_sample_is_a_list_of_one(predictor: Predictor) -> None:
    many = predictor.predict(SAMPLES)
    for number, sample in enumerate(SAMPLES):
        assert predictor.predict(sample) == pytest.approx(many[number : number + 1], abs=1e-6)
    for several in (tuple(SAMPLES), iter(SAMPLES)):
        assert np.array_equal(predictor.predict(several), many)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("acc", "give a sample (a dict: modality -> array) or a list of samples, not str"),
        (None, "not NoneType"),
        (EDA, "sample 0: ndarray is not a dict: modality -> array"),
        ([FULL, None], "sample 1: NoneType is not a dict"),
        ([FULL, {"EDA": EDA}], "sample 1: no modality 'EDA' (did you mean 'eda'?); the model has acc, eda"),
        ({3: EDA, "eda": EDA}, "sample 0: no modality 3; the model has acc, eda"),
        ({"eda": EDA[1:]}, "sample 0, eda: shape [15, 1] should be [16, 1] (steps, variates): 4 s at 4 Hz"),
        ({"acc": FULL["acc"].T}, "sample 0, acc: shape [3, 32] should be [32, 3]"),
        ({"acc": FULL["acc"].ravel()}, "sample 0, acc: shape [96] should be [32, 3]"),
        ({"eda": [[1.0], [2.0, 3.0]]}, "sample 0, eda: not an array of numbers [16, 1]"),
        ({"eda": np.where(EDA > 0, np.inf, EDA)}, "sample 0, eda: contains an infinite value"),
        ({"eda": np.full((16, 1), 1e39)}, "sample 0, eda: contains an infinite value"),
        ({"eda": np.zeros((16, 1), "datetime64[s]")}, "not an array of numbers [16, 1] (dtype datetime64[s])"),
        ({"eda": np.zeros((16, 1), "timedelta64[s]")}, "(dtype timedelta64[s])"),
        ({"eda": np.zeros((16, 1), complex)}, "(dtype complex128)"),
        ({"eda": EDA.astype(object)}, "(dtype object)"),
        ({"eda": EDA.astype(str)}, "(dtype <U"),
        ({"eda": [["1.5"]] * 16}, "(dtype <U3)"),
        ({"eda": [["NaN"]] + [[1.0]] * 15}, "not an array of numbers"),
        ({"eda": [[None]] + [[{}]] * 15}, "(dict in it)"),
        ({"eda": [[10**400]] * 16}, "(int too large to convert to float)"),
        ({"eda": {"0": 1.0}}, "not an array of numbers"),
        ({"eda": 5.0}, "sample 0, eda: shape [] should be [16, 1]"),
    ],
)
def test_what_is_no_sample_is_named(predictor: Predictor, given: Any, said: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError) as caught:
            predictor.predict(given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


NOTHING = {"eda": np.full((16, 1), np.nan), "acc": None}


@pytest.mark.parametrize("sample", [{}, NOTHING, {"acc": [[None] * 3] * 32}, {"eda": masked(NOTHING["eda"])}])
def test_an_answer_needs_something_observed(predictor: Predictor, sample: dict[str, Any]) -> None:
    for batch in (1, 256):
        with pytest.raises(DataError, match="sample 1: none of acc, eda was observed; a prediction needs"):
            predictor.predict([FULL, sample, FULL], batch=batch)
    answers = predictor.predict([FULL, sample, FULL], unobserved="nan")
    assert np.isnan(answers).all(axis=1).tolist() == [False, True, False]


def test_a_window_without_an_observation_is_an_absent_one(predictor: Predictor) -> None:
    one = {"acc": FULL["acc"], "eda": NOTHING["eda"]}
    assert np.array_equal(predictor.predict(one), predictor.predict({"acc": FULL["acc"]}))


def test_an_answer_that_is_no_number_is_refused(folder: Path) -> None:
    predictor = load_model(folder)
    with torch.no_grad():
        predictor.model.head.bias.fill_(np.nan)  # type: ignore[union-attr]
    with pytest.raises(NonFiniteError, match="sample 0: the model's output is not a finite number"):
        predictor.predict(FULL)


def test_recording_statistics_are_checked(tmp_path: Path) -> None:
    exported(tmp_path, normalize="recording")
    predictor = load_model(tmp_path)
    good = {m.name: np.tile([0.0, 1.0], (m.variates, 1)) for m in MODALITIES}
    assert predictor.predict({"eda": EDA}, {"eda": [0.0, 1.0]}).shape == (1, 3)
    for recording, said in (
        (None, r"normalizes by recording: .* \(1 samples, 0 recordings\)"),
        ([good, good], r"\(1 samples, 2 recordings\)"),
        ({}, "sample 0, acc, its recording: mean and standard deviation are missing"),
        ({**good, "edd": good["eda"]}, r"recording 0: no modality 'edd' \(did you mean 'eda'\?\)"),
        ({**good, "acc": good["eda"]}, r"sample 0, acc, its recording: shape \[1, 2\] should be \[3, 2\]"),
        ({**good, "eda": [[0.0, -1.0]]}, "sample 0, eda, its recording: a mean is not finite, or"),
        ({**good, "eda": [[None, 1.0]]}, "sample 0, eda, its recording: a mean is not finite, or"),
    ):
        with pytest.raises(DataError, match=said):
            predictor.predict(FULL, recording)


def test_a_run_is_taken_for_its_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / "mine" / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (tmp_path / "mine", "~/mine", f"file://{tmp_path}/mine/model/"):
        assert load_model(place).names == ["acc", "eda"]
    with pytest.raises(ConfigError, match="device 'nosuch'"):
        load_model(folder, device="nosuch")


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: [tree],
        lambda tree: {**tree, "model": {**tree["model"], "widht": 3}},
        lambda tree: {**tree, "modalities": [{"name": "acc"}]},
        lambda tree: {**tree, "task": None},
        lambda tree: {name: value for name, value in tree.items() if name != "weights"},
        lambda tree: {**tree, "model": {**tree["model"], "width": 32}},
    ],
    ids=["list", "key", "modality", "task", "weights", "width"],
)
def test_a_damaged_description_is_one_line(folder: Path, tmp_path: Path, change: Any) -> None:
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (damaged / "model.json").write_text(json.dumps(change(json.loads((folder / "model.json").read_text()))))
    with pytest.raises(CheckpointError, match=r"model\.(json|safetensors): ") as caught:
        load_model(damaged)
    assert "\n" not in str(caught.value)
