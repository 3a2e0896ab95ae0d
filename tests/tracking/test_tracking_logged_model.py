"""Exported models: used directly and as an MLflow pyfunc, with any subset of sensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from exported_models import CLASSES, FULL, MODALITIES, SAMPLES, as_lists, exported

from maestro_dist.errors import CheckpointError, DataError
from maestro_dist.inference.exported_model import TaskDescription
from maestro_dist.inference.predictor import Predictor, load_model
from maestro_dist.model import Maestro
from maestro_dist.tracking import open_run
from maestro_dist.tracking.logged_model import log_model
from maestro_dist.types import Batch


def oracle(model: Maestro, sample: dict[str, np.ndarray]) -> np.ndarray:
    """The model asked for one sample, by hand."""
    values, rows = {}, {}
    for modality in MODALITIES:
        array = sample.get(modality.name)
        shape = (0, modality.steps, modality.variates)
        values[modality.name] = torch.zeros(shape) if array is None else torch.from_numpy(array)[None]
        rows[modality.name] = torch.arange(0 if array is None else 1)
    present = torch.tensor([[sample.get(modality.name) is not None for modality in MODALITIES]])
    batch = Batch(values=values, rows=rows, present=present, sample=torch.zeros(1).long(), target=torch.zeros(1))
    with torch.no_grad():
        return model(batch)["logits"].double().softmax(1).numpy()[0]


def test_any_subset_of_sensors(tmp_path: Path) -> None:
    model, predictor = exported(tmp_path), load_model(str(tmp_path))
    expected = np.stack([oracle(model, sample) for sample in SAMPLES])
    for batch in (1, 3, 256):
        assert predictor.predict(SAMPLES, batch=batch) == pytest.approx(expected, abs=1e-6)
    assert np.abs(expected[0] - expected[1]).max() > 1e-4, "a sensor that is gone changes the answer"
    assert predictor.classes == CLASSES
    assert predictor.predict([]).shape == (0, 3)


def test_regression_answers_in_the_unit_of_the_target(tmp_path: Path) -> None:
    task = TaskDescription("regression", target="heart rate (1/min)", target_mean=70.0, target_std=9.0)
    model = exported(tmp_path, task)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.head.bias.fill_(1.0)
    assert Predictor(model, task).predict([FULL]) == pytest.approx([79.0])
    assert load_model(str(tmp_path)).predict([FULL]).shape == (1,)


def test_wrong_samples_are_named(tmp_path: Path) -> None:
    exported(tmp_path)
    predictor = load_model(str(tmp_path))
    with pytest.raises(DataError, match=r"sample 1, eda: shape \[15, 1\] should be \[16, 1\] \(steps, variates\)"):
        predictor.predict([FULL, {"eda": FULL["eda"][1:]}])
    with pytest.raises(DataError, match=r"sample 0: no modality 'ecg'; the model has acc, eda"):
        predictor.predict([{"ecg": FULL["eda"]}])
    with pytest.raises(DataError, match=r"sample 0, eda: not an array of numbers \[16, 1\]"):
        predictor.predict([{"eda": [["high"]] * 16}])


def test_recording_statistics_are_asked_for(tmp_path: Path) -> None:
    exported(tmp_path, normalize="recording")
    predictor = load_model(str(tmp_path))
    with pytest.raises(DataError, match="normalizes by recording"):
        predictor.predict([FULL])
    statistics = {m.name: np.tile([0.0, 1.0], (m.variates, 1)) for m in MODALITIES}
    moved = {name: values + np.array([5.0, 1.0]) for name, values in statistics.items()}
    first, second = predictor.predict([FULL, FULL], [statistics, moved])
    assert np.abs(first - second).max() > 1e-5


def test_damage_is_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no exported model"):
        load_model(str(tmp_path))
    exported(tmp_path)
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        load_model(str(tmp_path))
    (tmp_path / "model.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(CheckpointError, match="format 'other' is not 'maestro_dist/model/1'"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("normalize", ["dataset", "recording"])
def test_pyfunc_gives_the_same_answers(
    uri: str, tmp_path: Path, normalize: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    exported(tmp_path / "exported", normalize=normalize)
    recording = normalize == "recording"
    run = open_run(uri, "study", "one")
    before = mlflow.get_tracking_uri()
    logged = log_model(
        uri, run.run_id, tmp_path / "exported", modalities=MODALITIES, columns=CLASSES, recording=recording
    )
    assert logged is not None
    assert capfd.readouterr() == ("", "")
    assert mlflow.get_tracking_uri() == before
    assert mlflow.MlflowClient(uri).get_run(run.run_id).info.status == "RUNNING"
    mlflow.set_tracking_uri(uri)
    try:
        path = Path(mlflow.artifacts.download_artifacts(logged, dst_path=str(tmp_path / "downloaded")))
    finally:
        mlflow.set_tracking_uri(before)
    files = [file for file in path.rglob("*") if file.is_file()]
    assert not [file for file in files if file.suffix in {".pkl", ".pickle", ".pyc"}], "no pickles, no bytecode"
    assert (path / "code" / "maestro_dist" / "predict.py").exists()

    loaded = mlflow.pyfunc.load_model(str(path))
    statistics = {m.name: np.tile([0.2, 1.5], (m.variates, 1)) for m in MODALITIES}
    samples = SAMPLES[:3]
    direct = load_model(str(tmp_path / "exported")).predict(samples, [statistics] * 3 if recording else None)
    columns = {name: [as_lists(sample.get(name)) for sample in samples] for name in FULL}
    if recording:
        columns |= {f"{name}_recording": [values.tolist()] * 3 for name, values in statistics.items()}
    for given in (columns, pd.DataFrame(columns), pd.DataFrame(columns).to_dict("records")):
        answers = loaded.predict(given)
        assert list(answers.columns) == list(CLASSES)
        assert answers.to_numpy() == pytest.approx(direct, abs=1e-12)
    only_eda = {name: cells[2:] for name, cells in columns.items() if name.startswith("eda")}
    assert loaded.predict(only_eda).to_numpy()[0] == pytest.approx(direct[2], abs=1e-6)
    assert loaded.metadata.metadata["modalities"][1]["steps"] == 16
    whole_numbers = {"eda": [[[2]] * 16], **{name: cells for name, cells in only_eda.items() if name != "eda"}}
    assert loaded.predict(whole_numbers).shape == (1, 3)
    with pytest.raises(mlflow.MlflowException, match=r"sample 0, eda: shape \[2, 1\] should be \[16, 1\]"):
        loaded.predict({**only_eda, "eda": [[[1.0], [2.0]]]})
    with pytest.raises(mlflow.MlflowException, match="no column is one of the sensors acc, eda"):
        loaded.predict({"edaa": [[[1.0]]]})
    full = {name: cells[0] for name, cells in columns.items()}
    for bad, said in (
        ({"edaa": [[1.0]]}, "sample 1: none of acc, eda was observed"),
        ({"eda": [[None]] * 16}, "sample 1: none of acc, eda was observed"),
        ({**full, "eda": 5.0}, r"sample 1, eda: shape \[\] should be \[16, 1\]"),
        ({**full, "eda": "high"}, r"sample 1, eda: not an array of numbers \[16, 1\]"),
        ({**full, "eda": [[1e300]] * 16}, "sample 1, eda: contains an infinite value"),
    ):
        with pytest.raises(mlflow.MlflowException, match=said) as caught:
            loaded.predict([full, bad])
        assert caught.value.get_http_status_code() == 400
