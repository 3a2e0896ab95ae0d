"""`data.window.label_every_s`: labels over time, cut, counted, trained, evaluated, predicted and exported."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preview_pages import preview
from pydantic import ValidationError

from maestro_dist.config.schema import Config, DataConfig
from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.lint import lint
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.pack import Description, RawRecording, pack_recordings
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.errors import ConfigError
from maestro_dist.evaluate import main as evaluate
from maestro_dist.evaluation.result import Evaluation, Scenario
from maestro_dist.evaluation.table import results_table
from maestro_dist.inference.command import main as predict
from maestro_dist.inference.predictor import load_model
from maestro_dist.task.over_time import OverTime
from maestro_dist.train import main as train
from maestro_dist.training.builder import build_task
from maestro_dist.types import Modality

CLASSES = ("rest", "walk", "run")
STREAMS = (Modality("acc", 2, 8.0, 160), Modality("pulse", 1, 1.0, 20))
WINDOW = {"length_s": 20, "label_every_s": 2}
SPLITS = {"train": range(16), "validation": range(16, 20), "test": range(20, 24)}
NAN = float("nan")


def about(task: str, **more: Any) -> Description:
    classes = () if task == "regression" else CLASSES
    return Description(
        "motion", "CC0", "", "a generator", task=task, classes=classes, target="activity", window_s=20,
        modalities=STREAMS, recording=True, window=WindowConfig(length_s=20), **more,
    )  # fmt: skip


def recording(number: int, task: str) -> RawRecording:
    """Activities of 3 to 9 s, which shift the signals; a few are not labelled. Some recordings are short."""
    draw = np.random.default_rng(number)
    length = 12.0 if number % 8 == 3 else 100.0
    acc, pulse = draw.normal(size=(int(8 * length), 2)), draw.normal(size=(int(length), 1))
    begin, labels = 0.0, []
    while begin < length:
        end = min(length, begin + float(draw.integers(3, 10)))
        kind = int(draw.integers(3))
        acc[int(8 * begin) : int(8 * end), 0] += 3 * kind
        pulse[int(begin) : int(end)] += kind
        if draw.random() > 0.15:
            of: Any = {"regression": 10.0 * kind, "multilabel": [[], [0], [1, 2]][kind]}.get(task, kind)
            labels.append((begin, end, (of, of + 1.0) if task == "several" else of))
        begin = end
    split = next(name for name, own in SPLITS.items() if number in own)
    return RawRecording(f"r{number}", {"acc": acc, "pulse": pulse}, labels, subject=f"p{number}", split=split)


def recordings(task: str) -> Iterator[RawRecording]:
    return (recording(number, task) for own in SPLITS.values() for number in own)


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = {}
    for task in ("classification", "regression", "multilabel"):
        found[task] = str(tmp_path_factory.mktemp(task))
        pack_recordings(found[task], about(task), recordings(task), shard_bytes=20_000)
    return found


def targets(url: str, split: str, **window: Any) -> tuple[Manifest, list[str], np.ndarray]:
    config = DataConfig.model_validate({"url": url, "window": window, "split": {"by": "given"}})
    manifest = load_data(config)
    source = SplitSource(url, manifest, config, tuple(manifest.select(None)), split)
    batch = source.open().batch(Request(np.arange(manifest.splits[split].samples)))
    return manifest, list(batch.keys), np.asarray(batch.target)


@pytest.mark.parametrize("task", ["classification", "regression", "multilabel"])
@pytest.mark.parametrize("rule", [None, "center"])
def test_each_part_has_the_label_of_a_short_window(urls: dict[str, str], task: str, rule: str | None) -> None:
    manifest, keys, found = targets(urls[task], "train", **WINDOW, stride_s=10, label=rule)
    assert (manifest.label_steps, found.shape, found.dtype) == (10, (len(keys), 10), np.float32)
    _, short_keys, short = targets(urls[task], "train", length_s=2, label=rule)
    of = dict(zip(short_keys, short.tolist(), strict=True))
    expected = np.full(found.shape, NAN)
    for row, key in enumerate(keys):
        name, _, number = key.rpartition("-")
        for part in range(10):
            expected[row, part] = of.get(f"{name}-{5 * int(number) + part:06d}", NAN)
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    assert np.isnan(found).any()
    assert not np.isnan(found).all(1).any(), "a window without any label is left out"
    split, known = manifest.split("train"), found[~np.isnan(found)]
    assert split.labelled == len(known) < found.size
    if task == "classification":
        assert split.class_counts == np.bincount(known.astype(int), minlength=3).tolist()
    elif task == "regression":
        assert split.target_mean == pytest.approx(known.mean(), rel=1e-6)
        assert split.target_std == pytest.approx(known.std(), rel=1e-6)
    else:
        assert split.class_counts == [int((known.astype(int) >> k & 1).sum()) for k in range(3)]


def test_parts_beyond_a_short_recording_have_no_label(urls: dict[str, str]) -> None:
    _, keys, found = targets(urls["classification"], "train", **WINDOW)
    (short,) = (row for row, key in enumerate(keys) if key.startswith("r3-"))
    assert np.isnan(found[short, 6:]).all()


def test_one_label_of_a_recording_is_that_of_all_its_parts(tmp_path: Path) -> None:
    given = (
        RawRecording(f"r{n}", {"acc": np.ones((8 * (13 if n else 40), 2))}, n % 2, subject=f"p{n}", split="train")
        for n in range(2)
    )
    pack_recordings(tmp_path / "whole", about("classification"), given)
    _, _, found = targets(str(tmp_path / "whole"), "train", **WINDOW)
    np.testing.assert_array_equal(found[:2], np.zeros((2, 10)))
    np.testing.assert_array_equal(found[2], [1] * 7 + [NAN] * 3)


@pytest.mark.parametrize("rule", ["majority", "last", "center", "any"])
@pytest.mark.parametrize(("length", "labelled"), [(12.75, 7), (0.5, 1), (12.0, 6)])
def test_the_last_part_of_a_short_recording_ends_with_it(
    tmp_path: Path, rule: str, length: float, labelled: int
) -> None:
    values = {"acc": np.ones((int(8 * length), 2))}
    given = [RawRecording("r", values, [(0, length, 1)], subject="p", split="train")]
    pack_recordings(tmp_path / "short", about("classification"), given)
    _, _, found = targets(str(tmp_path / "short"), "train", **WINDOW, label=rule)
    np.testing.assert_array_equal(found, [[1] * labelled + [NAN] * (10 - labelled)])


@pytest.mark.parametrize(
    ("window", "said"),
    [
        ({"length_s": 20, "label_every_s": 3}, "3 s do not divide a window of 20 s"),
        ({"length_s": 20, "label_every_s": 20}, "into 2 to 100,000 equal parts"),
        ({"length_s": 20, "label_every_s": 1e-5}, "into 2 to 100,000 equal parts"),
        ({"length_s": 20, "label_every_s": 2, "label": "inside"}, "lies inside one label"),
    ],
)
def test_windows_that_cannot_be_divided_are_refused(window: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        WindowConfig.model_validate(window)


def test_data_without_labels_over_time_keep_their_fingerprint(urls: dict[str, str]) -> None:
    manifest = load_data(DataConfig(url=urls["classification"]))
    assert "label_every_s" not in json.dumps(manifest.to_json())
    again = Manifest.model_validate(manifest.to_json())
    assert again.fingerprint() == manifest.fingerprint()
    timed, _, _ = targets(urls["classification"], "train", **WINDOW)
    assert Manifest.model_validate(timed.to_json()) == timed


@pytest.mark.parametrize("task", ["classification", "regression", "multilabel"])
def test_the_preview_and_the_checks_show_labels_over_time(
    urls: dict[str, str], tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["data.window.length_s=20", "data.window.label_every_s=2", "data.split.by=given"]
    text = preview(urls[task], *more, folder=tmp_path).text
    if task == "regression":
        assert " to " in text
    else:
        assert "Labelled parts of samples of each class" in text
        assert " from 0 s, " in text
    config = DataConfig.model_validate({"url": urls[task], "window": WINDOW, "split": {"by": "given"}})
    # not "347% of its samples are of rest"
    assert [remark.text for remark in lint(config)] == []


def test_balanced_weights_count_labelled_parts(urls: dict[str, str]) -> None:
    config = Config.model_validate(
        {
            "data": {"url": urls["multilabel"], "window": WINDOW, "split": {"by": "given"}},
            "task": {"class_weights": "balanced"}, "augment": {"shift": 0, "time_warp": 0},
        }
    )  # fmt: skip
    manifest, _, found = targets(urls["multilabel"], "train", **WINDOW)
    task = build_task(config, manifest)
    assert isinstance(task, OverTime)
    logits, known = torch.zeros(1, 30), found[~np.isnan(found)].astype(int)
    having = [float(task.inner.sample_loss(logits[:, :3], torch.tensor([1 << label]))) for label in range(3)]
    shares = [(known >> label & 1).mean() for label in range(3)]
    lacking = sum(0.5 / (1 - share) for share in shares)
    expected = [np.log(2) / 3 * (lacking - 0.5 / (1 - share) + 0.5 / share) for share in shares]
    assert having == pytest.approx(expected, rel=1e-5)


def words(url: str, storage: Path, *more: str) -> list[str]:
    given = [f"data.url={url}", "run.name=timed", f"run.storage={storage}", "run.launcher=inline", "optim.epochs=20"]
    given += ["model.width=32", "model.word=4", "optim.global_batch=10", "optim.lr=3e-3", "evaluation.test_rates=[0]"]
    given += [f"data.window.{key}={value}" for key, value in WINDOW.items()]
    return [*given, "data.window.stride_s=5", "data.split.by=given", "evaluation.every_epochs=5", *more]


def test_what_does_not_go_together_is_refused(
    urls: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = {
        "augment.shift=0.1": "augment.shift moves values in time but not labels",
        "augment.time_warp=0.1": "augment.time_warp moves values",
        "data.class_balance=1": "data.class_balance: not possible with labels over time",
    }
    for word, said in refused.items():
        assert train(words(urls["classification"], tmp_path, word)) != 0
        assert said in capsys.readouterr().err
    config = {"sources": [{"url": urls["classification"]}] * 2, "window": WINDOW, "split": {"by": "given"}}
    with pytest.raises(ConfigError, match=r"labels over time .* are for one data set only"):
        load_data(DataConfig.model_validate(config))


def test_a_result_says_how_many_parts_have_a_label() -> None:
    numbers = {f"{metric}{target}": 1.0 for metric in ("mae", "loss") for target in ("", ".high", ".low")}
    found = Evaluation(
        split="test", samples=3, metrics=list(numbers), scenarios=[Scenario(0.0, 0, numbers)],
        known={"high": 28, "low": 20}, labels=28,
    )  # fmt: skip
    lines = results_table(found).splitlines()
    assert lines[0] == "test: 3 samples, 28 labelled parts"
    assert "by target (low in 20 of the 28 labelled parts)" in lines


@pytest.mark.slow
def test_a_run_finds_when_activities_change(
    urls: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = urls["classification"]
    more = ["missing.consistency=0.1", "augment.mixup=0.2", "evaluation.predictions=true"]
    assert train(words(url, tmp_path, *more)) == 0
    result = json.loads((tmp_path / "timed" / "result.json").read_text())["evaluation"]
    accuracy = next(s["metrics"]["accuracy"] for s in result["scenarios"] if s["rate"] == 0)
    _, keys, target = targets(url, "test", **WINDOW, stride_s=5)
    known = ~np.isnan(target)
    assert result["labels"] == known.sum() == sum(result["class_counts"]) == np.sum(result["confusion"])
    same = [len(set(row[own])) == 1 for row, own in zip(target, known, strict=True)]
    assert np.mean(same) < 0.3, "most windows have several activities"
    assert accuracy > 0.85
    with np.load(tmp_path / "timed" / "predictions.npz") as file:
        logits = file["logits"][0].reshape(len(keys), 10, 3)
        np.testing.assert_array_equal(file["target"], target)
    assert (logits.argmax(2) == target)[known].mean() == pytest.approx(accuracy)

    capsys.readouterr()
    assert evaluate([str(tmp_path / "timed")]) == 0
    assert f"{accuracy:.3f}" in capsys.readouterr().out
    assert predict([str(tmp_path / "timed"), url, "--out", str(tmp_path / "out.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert list(rows[0]) == ["sample", "start_s", *CLASSES]
    assert [(row["sample"], float(row["start_s"])) for row in rows[:11]] == [
        *((keys[0], 2.0 * part) for part in range(10)), (keys[1], 0.0)
    ]  # fmt: skip
    odds = np.array([[float(row[name]) for name in CLASSES] for row in rows]).reshape(-1, 10, 3)
    assert (odds.argmax(2) == target)[known].mean() == pytest.approx(accuracy, abs=0.01)
    assert predict([str(tmp_path / "timed"), url, "--out", str(tmp_path / "out.jsonl")]) == 0
    line = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[11])
    assert (line["sample"], line["start_s"], list(line["answer"])) == (keys[1], 2.0, list(CLASSES))

    model = load_model(tmp_path / "timed")
    assert (model.starts_s[:3], model.columns) == ((0.0, 2.0, 4.0), CLASSES)
    assert model.task.flat_columns[:4] == ("rest at 0 s", "walk at 0 s", "run at 0 s", "rest at 2 s")
    one = model.predict({"acc": np.zeros((160, 2)), "pulse": np.zeros((20, 1))})
    assert one.shape == (1, 10, 3)
    np.testing.assert_allclose(one.sum(2), 1.0)

    other = tmp_path / "other"  # a model without its run cuts recordings as it needs them, whatever is usual for them
    pack_recordings(other, replace(about("classification"), window=WindowConfig(length_s=10)), recordings("classes"))
    shutil.copytree(tmp_path / "timed" / "model", tmp_path / "model")
    assert evaluate([str(tmp_path / "model"), "--data", str(other)]) == 0
    _, _, whole = targets(url, "test", **WINDOW)
    assert f"{np.isfinite(whole).sum():,} labelled parts" in capsys.readouterr().out
    assert predict([str(tmp_path / "model"), str(other), "--out", str(tmp_path / "out.csv")]) == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + whole.size

    taught = ["run.name=taught", f"task.teachers=[{tmp_path / 'timed'}]", "optim.epochs=2", "augment.mixup=0"]
    assert train(words(url, tmp_path, *taught)) == 0
    assert train(words(url, tmp_path, *taught, "run.name=other", "data.window.label_every_s=4")) != 0
    assert "predicts 10 parts of each window, the data has labels of 5 parts" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_numbers_and_sets_are_learned_over_time(urls: dict[str, str], tmp_path: Path, task: str) -> None:
    assert train(words(urls[task], tmp_path, "model.head=pooled", "model.head_hidden=1")) == 0
    result = json.loads((tmp_path / "timed" / "result.json").read_text())["evaluation"]
    (metrics,) = (s["metrics"] for s in result["scenarios"] if s["rate"] == 0)
    if task == "regression":
        _, _, target = targets(urls[task], "test", **WINDOW, stride_s=5)
        assert metrics["mae"] < 0.5 * np.nanmean(np.abs(target - np.nanmean(target)))
    else:
        assert metrics["auroc"] > 0.85


@pytest.mark.slow
def test_several_numbers_over_time(tmp_path: Path) -> None:
    given = about("regression", targets=("high", "low"))
    pack_recordings(tmp_path / "several", given, recordings("several"))
    url = str(tmp_path / "several")
    manifest, _, found = targets(url, "train", **WINDOW)
    assert found.shape[1] == manifest.target_width == 20
    known = found.reshape(-1, 2)[~np.isnan(found.reshape(-1, 2)).any(1)]
    np.testing.assert_array_equal(known[:, 1], known[:, 0] + 1)
    facts = manifest.split("train").targets or []
    assert [entry.known for entry in facts] == [len(known)] * 2
    assert train(words(url, tmp_path, "optim.epochs=2")) == 0
    assert load_model(tmp_path / "timed").predict({"acc": np.zeros((160, 2))}).shape == (1, 10, 2)
