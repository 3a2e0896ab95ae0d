"""Several targets of a regression: packed, cut, trained, evaluated and predicted; some are unknown in some samples."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.moments import causal_statistics
from maestro_dist.data.pack import Description, RawRecording, RawSample, pack, pack_recordings
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.evaluate import main as evaluate
from maestro_dist.inference.command import main as predict
from maestro_dist.inference.predictor import load_model
from maestro_dist.train import main as train
from maestro_dist.types import Modality

NAMES = ("systolic", "diastolic")
ABOUT = Description(
    "pressure", "CC0", "", "a generator", task="regression", classes=(), target="blood pressure, mmHg", window_s=8,
    modalities=(Modality("pulse", 1, 4.0, 32), Modality("warmth", 1, 1.0, 8)), recording=True, targets=NAMES,
)  # fmt: skip
SPLITS = {"train": range(12), "validation": range(12, 16), "test": range(16, 20)}
NAN = float("nan")


def recording(number: int, windows: int = 10) -> tuple[dict[str, np.ndarray], list[tuple[float, float, Any]]]:
    """The mean of each signal tells one pressure, which changes every 8 s and is unknown now and then."""
    draw = np.random.default_rng(number)
    high, low = np.round(draw.normal(120, 15, size=windows)), np.round(draw.normal(80, 10, size=windows))
    pulse = draw.normal(size=(windows, 32)) + (high[:, None] - 120) / 5
    warmth = draw.normal(size=(windows, 8)) + (low[:, None] - 80) / 3
    lacks = draw.random((windows, 2)) < 0.2
    pairs = [(8.0 * k, 8.0 * k + 8, (NAN if lacks[k, 0] else high[k], NAN if lacks[k, 1] else low[k]))
             for k in range(windows) if not lacks[k].all()]  # fmt: skip
    return {"pulse": pulse.reshape(-1, 1), "warmth": warmth.reshape(-1, 1)}, pairs


def as_recordings() -> Iterator[RawRecording]:
    for split, numbers in SPLITS.items():
        for number in numbers:
            values, pairs = recording(number)
            yield RawRecording(f"r{number}", values, pairs, subject=f"p{number}", split=split)


def as_windows() -> Iterator[RawSample]:
    rates = {m.name: m.rate_hz for m in ABOUT.modalities}
    for split, numbers in SPLITS.items():
        for number in numbers:
            values, pairs = recording(number)
            ends = {n: np.array([round(8 * (k + 1) * rate) for k in range(10)]) for n, rate in rates.items()}
            moments = {n: causal_statistics(values[n].astype(np.float32), ends[n]) for n in rates}
            for start, _, pair in pairs:
                k = round(start / 8)
                yield RawSample(
                    split=split, key=f"r{number}-{k:06d}", subject=f"p{number}", recording=f"r{number}",
                    label=dict(zip(NAMES, pair, strict=True)) if k % 2 else pair, start_s=8 * k, duration_s=8,
                    values={n: values[n][round(8 * k * r) : round(8 * (k + 1) * r)] for n, r in rates.items()},
                    statistics={n: moments[n][k] for n in rates},
                )  # fmt: skip


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same windows, packed and as recordings."""
    folder = tmp_path_factory.mktemp("pressure")
    pack(folder / "windows", ABOUT, as_windows())
    pack_recordings(folder / "cut", replace(ABOUT, window=WindowConfig(length_s=8)), as_recordings())
    return {name: str(folder / name) for name in ("windows", "cut")}


def truth(split: str) -> np.ndarray:
    return np.array([pair for number in SPLITS[split] for _, _, pair in recording(number)[1]])


def samples(url: str, split: str, **more: Any) -> tuple[Manifest, list[str], np.ndarray, dict[str, np.ndarray]]:
    config = DataConfig.model_validate({"url": url} | more)
    manifest = load_data(config)
    source = SplitSource(url, manifest, config, tuple(manifest.select(None)), split)
    batch = source.open().batch(Request(np.arange(manifest.splits[split].samples)))
    values = {name: np.asarray(found) for name, found in batch.values.items()}
    return manifest, list(batch.keys), np.asarray(batch.target), values


def test_windows_and_cut_recordings_have_the_same_targets(urls: dict[str, str]) -> None:
    for split in SPLITS:
        one, keys, target, values = samples(urls["windows"], split)
        other, cut_keys, cut_target, cut_values = samples(urls["cut"], split)
        assert keys == cut_keys
        np.testing.assert_array_equal(target, truth(split).astype(np.float32))
        np.testing.assert_array_equal(cut_target, target)
        for name in values:
            np.testing.assert_array_equal(values[name], cut_values[name])
        assert one.splits[split].targets == other.splits[split].targets
        facts = one.splits[split].targets or []
        assert [entry.known for entry in facts] == (~np.isnan(truth(split))).sum(0).tolist()
        np.testing.assert_allclose([entry.mean for entry in facts], np.nanmean(truth(split), 0))
        np.testing.assert_allclose([entry.std for entry in facts], np.nanstd(truth(split), 0))
        assert target.dtype == np.float32
    assert one.targets == other.targets == list(NAMES)


def run(url: str, name: str, storage: Path, *more: str) -> dict[str, Any]:
    words = [f"data.url={url}", f"run.name={name}", f"run.storage={storage}", "run.launcher=inline", "optim.epochs=25"]
    words += ["model.width=32", "optim.global_batch=20", "evaluation.test_rates=[0,0.4]", "evaluation.draws=[0]"]
    assert train([*words, "optim.lr=3e-3", *more]) == 0
    return json.loads((storage / name / "result.json").read_text())


@pytest.mark.slow
def test_a_model_learns_them_and_can_be_used(
    urls: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same result packed and cut; then evaluation and prediction with the exported model."""
    result = run(urls["windows"], "windows", tmp_path)
    scenarios = result["evaluation"]["scenarios"]
    assert run(urls["cut"], "cut", tmp_path)["evaluation"]["scenarios"] == scenarios
    complete = scenarios[0]["metrics"]
    _, keys, target, values = samples(urls["windows"], "test")
    model = load_model(tmp_path / "windows")
    assert model.columns == NAMES
    found = model.predict([{name: values[name][row] for name in values} for row in range(len(keys))])
    error = np.nanmean(np.abs(found - target), axis=0)
    for column, name in enumerate(NAMES):
        assert complete[f"mae.{name}"] == pytest.approx(error[column], rel=1e-4)
        assert error[column] < 0.5 * np.nanmean(np.abs(target[:, column] - np.nanmean(target[:, column])))
    assert complete["mae"] == pytest.approx(error.mean(), rel=1e-4)
    assert result["metric"] == "mae"
    capsys.readouterr()
    assert evaluate([str(tmp_path / "windows")]) == 0
    printed = capsys.readouterr().out
    known = (~np.isnan(target)).sum(0)
    assert f"by target (systolic in {known[0]}, diastolic in {known[1]} of the samples)" in printed
    assert result["evaluation"]["known"] == dict(zip(NAMES, known.tolist(), strict=True))
    assert printed.count("\nnone     diastolic  ") == 1
    out = tmp_path / "x.csv"
    assert predict([str(tmp_path / "windows"), urls["cut"], "--out", str(out)]) == 0
    rows = list(csv.reader(out.open()))
    assert rows[0] == ["sample", *NAMES]
    np.testing.assert_allclose(np.array([row[1:] for row in rows[1:]], dtype=float), found, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [["augment.mixup=0.4"], ["missing.consistency=0.5"], ["data.label_share=0.3"],
     ["data.loader_workers=2", "augment.mixup=0.4", "augment.jitter=0.1"], ["evaluation.metric=loss"],
     ["data.split.by=recording", "data.split.folds=5", "data.split.fold=1"], ["model.head=pooled"]],
    ids=lambda more: more[0],
)  # fmt: skip
def test_other_ways_to_train_work(more: list[str], urls: dict[str, str], tmp_path: Path) -> None:
    result = run(urls["windows"], "x", tmp_path, *more, "optim.max_steps=3")
    expected = {f"{metric}{name}" for metric in ("mae", "rmse", "loss") for name in ("", ".systolic", ".diastolic")}
    assert set(result["evaluation"]["scenarios"][0]["metrics"]) == expected


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["mae.systolic", "loss.diastolic"])
def test_the_metric_of_one_target_chooses_the_weights(
    metric: str, urls: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It decides the best step and the early stop, and is named in the summary, the figures and MLflow."""
    import mlflow

    more = [f"evaluation.metric={metric}", "evaluation.patience=2", "optim.lr=2e-2", "evaluation.rates=[0]"]
    result = run(urls["windows"], "x", tmp_path, *more)
    record = json.loads((tmp_path / "x" / "run.json").read_text())
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    history = client.get_metric_history(record["mlflow_run"], f"validation/{metric}")
    values = [entry.value for entry in history]
    best = int(np.argmin(values))
    assert result["metric"] == metric
    assert (result["best_step"], result["best_score"]) == (history[best].step, pytest.approx(values[best]))
    assert len(values) == best + 3 < 25  # it stopped after two validations that were not better
    score = client.get_metric_history(record["mlflow_run"], "validation/score")
    assert [entry.value for entry in score] == pytest.approx(values)
    printed = capsys.readouterr()
    assert f"validation {metric} {values[best]:.3f}" in printed.out
    assert f"validation  {metric} {values[0]:.4f} complete" in printed.out + printed.err


@pytest.mark.slow
def test_pre_training_needs_no_target(urls: dict[str, str], tmp_path: Path) -> None:
    """And a run of several targets starts with its weights."""
    run(urls["windows"], "before", tmp_path, "task.kind=pretrain", "optim.max_steps=3", "model.embedding=ordinal")
    more = [f"run.init_from={tmp_path / 'before'}", "optim.max_steps=3", "model.embedding=ordinal"]
    assert "mae.systolic" in run(urls["cut"], "after", tmp_path, *more)["evaluation"]["metrics"]


@pytest.mark.slow
def test_teachers_tracking_and_the_logged_model(urls: dict[str, str], tmp_path: Path) -> None:
    """A student of a teacher; the metrics in MLflow, and the model that MLflow loads."""
    import mlflow

    run(urls["windows"], "teacher", tmp_path, "optim.max_steps=5")
    more = [f"task.teachers=[{tmp_path / 'teacher'}]", "task.teacher_share=0.5", "optim.max_steps=5"]
    result = run(urls["windows"], "student", tmp_path, *more)
    record = json.loads((tmp_path / "student" / "run.json").read_text())
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    metrics = mlflow.MlflowClient(uri).get_run(record["mlflow_run"]).data.metrics
    complete = result["evaluation"]["scenarios"][0]["metrics"]
    for name, value in complete.items():
        assert metrics[f"test/{name}"] == pytest.approx(value)
        assert f"test/{name}_missing_40" in metrics
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        loaded = mlflow.pyfunc.load_model(result["mlflow_model"])
    finally:
        mlflow.set_tracking_uri(before)
    assert [column.name for column in loaded.metadata.signature.outputs] == list(NAMES)
    _, _, _, values = samples(urls["windows"], "test")
    answers = loaded.predict({name: [values[name][row].tolist() for row in range(3)] for name in values})
    assert list(answers.columns) == list(NAMES)
    given = [{name: values[name][row] for name in values} for row in range(3)]
    np.testing.assert_allclose(answers.to_numpy(), load_model(tmp_path / "student").predict(given), rtol=1e-5)
    description = json.loads((tmp_path / "student" / "model" / "model.json").read_text())
    assert [target["name"] for target in description["task"]["targets"]] == list(NAMES)
    alone = replace(ABOUT, targets=())
    pack(tmp_path / "one", alone, (replace(s, label=1.0 + n) for n, s in enumerate(as_windows())))
    words = [
        f"data.url={tmp_path / 'one'}",
        "run.name=z",
        f"run.storage={tmp_path}",
        "run.launcher=inline",
        "--dry-run",
    ]
    assert train([*words, f"task.teachers=[{tmp_path / 'teacher'}]", "task.teacher_share=0.5"]) != 0
