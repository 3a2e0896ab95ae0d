"""Several labels at once: packed, cut, trained, evaluated and predicted."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, log_loss, roc_auc_score

from maestro_dist.config.learning import TaskConfig
from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.label_sets import ClassCounter, label_set, without_overlaps
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.pack import Description, RawRecording, RawSample, pack, pack_recordings
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.errors import DataError
from maestro_dist.evaluate import main as evaluate
from maestro_dist.inference.command import main as predict
from maestro_dist.inference.predictor import load_model
from maestro_dist.task import Labels, make_task
from maestro_dist.train import main as train
from maestro_dist.types import Modality, label_bits

LABELS = ("tachycardia", "low oxygen", "fever")
ABOUT = Description(
    "alarms", "CC0", "", "a generator", task="multilabel", classes=LABELS, target="alarms that hold", window_s=8,
    modalities=(Modality("pulse", 1, 4.0, 32), Modality("oxygen", 1, 4.0, 32), Modality("warmth", 1, 1.0, 8)),
    recording=True,
)  # fmt: skip
OF_LABEL = dict(zip(LABELS, ("pulse", "oxygen", "warmth"), strict=True))
SPLITS = {"train": range(12), "validation": range(12, 16), "test": range(16, 20)}


def recording(number: int, seconds: int = 80) -> tuple[dict[str, np.ndarray], list[tuple[float, float, str]]]:
    """Each alarm raises its own signal; alarms overlap, and begin and end at multiples of 8 s."""
    draw = np.random.default_rng(number)
    values = {m.name: draw.normal(size=(round(seconds * m.rate_hz), 1)) for m in ABOUT.modalities}
    alarms = []
    for label, name in OF_LABEL.items():
        rate = next(m.rate_hz for m in ABOUT.modalities if m.name == name)
        for place in np.flatnonzero(draw.random(seconds // 8) < 0.4).tolist():
            values[name][round(8 * place * rate) : round(8 * (place + 1) * rate)] += 4
            alarms.append((8.0 * place, 8.0 * place + 8, label))
    return values, alarms


def as_recordings() -> Iterator[RawRecording]:
    for split, numbers in SPLITS.items():
        for number in numbers:
            values, alarms = recording(number)
            yield RawRecording(f"r{number}", values, alarms, subject=f"p{number}", split=split)


def as_windows() -> Iterator[RawSample]:
    from maestro_dist.data.moments import causal_statistics

    rates = {m.name: m.rate_hz for m in ABOUT.modalities}
    for split, numbers in SPLITS.items():
        for number in numbers:
            values, alarms = recording(number)
            ends = {n: np.array([round(8 * (k + 1) * rate) for k in range(10)]) for n, rate in rates.items()}
            moments = {n: causal_statistics(values[n].astype(np.float32), ends[n]) for n in rates}
            for k in range(10):
                yield RawSample(
                    split=split, key=f"r{number}-{k:06d}", subject=f"p{number}", recording=f"r{number}",
                    label=[label for start, _, label in alarms if start == 8 * k], start_s=8 * k, duration_s=8,
                    values={n: values[n][round(8 * k * r) : round(8 * (k + 1) * r)] for n, r in rates.items()},
                    statistics={n: moments[n][k] for n in rates},
                )  # fmt: skip


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same windows, packed and as recordings."""
    folder = tmp_path_factory.mktemp("alarms")
    pack(folder / "windows", ABOUT, as_windows())
    pack_recordings(folder / "cut", replace(ABOUT, window=WindowConfig(length_s=8)), as_recordings())
    return {name: str(folder / name) for name in ("windows", "cut")}


def samples(url: str, split: str) -> tuple[Manifest, list[str], np.ndarray, dict[str, np.ndarray]]:
    config = DataConfig.model_validate({"url": url})
    manifest = load_data(config)
    source = SplitSource(url, manifest, config, tuple(manifest.select(None)), split)
    batch = source.open().batch(Request(np.arange(manifest.splits[split].samples)))
    values = {name: np.asarray(found) for name, found in batch.values.items()}
    return manifest, list(batch.keys), np.asarray(batch.target), values


def test_windows_and_cut_recordings_have_the_same_labels(urls: dict[str, str]) -> None:
    for split, numbers in SPLITS.items():
        one, keys, target, values = samples(urls["windows"], split)
        other, cut_keys, cut_target, cut_values = samples(urls["cut"], split)
        assert keys == cut_keys
        np.testing.assert_array_equal(target, cut_target)
        for name in OF_LABEL.values():
            np.testing.assert_array_equal(values[name], cut_values[name])
        truth = [[any(a == 8 * k and label == name for a, _, label in recording(n)[1]) for name in LABELS]
                 for n in numbers for k in range(10)]  # fmt: skip
        np.testing.assert_array_equal(label_bits(target, 3), truth)
        assert one.splits[split].class_counts == other.splits[split].class_counts == np.sum(truth, axis=0).tolist()
        assert target.dtype == np.int64


def run(url: str, name: str, storage: Path, *more: str) -> dict[str, Any]:
    words = [f"data.url={url}", f"run.name={name}", f"run.storage={storage}", "run.launcher=inline", "optim.epochs=12"]
    words += [
        "model.width=32",
        "optim.global_batch=40",
        "evaluation.test_rates=[0,0.4]",
        "evaluation.draws=[0]",
        "optim.lr=3e-3",
    ]
    assert train([*words, *more]) == 0
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
    model = load_model(tmp_path / "windows")
    assert list(model.classes) == list(LABELS)
    _, _, target, values = samples(urls["windows"], "test")
    truth = label_bits(target, 3)
    given = [{name: values[name][row] for name in OF_LABEL.values()} for row in range(len(target))]
    found = model.predict(given)
    area = roc_auc_score(truth, found, average="macro")
    assert complete["auroc"] == pytest.approx(area, abs=1e-6)
    assert area > 0.9
    assert evaluate([str(tmp_path / "windows")]) == 0
    assert "AUPRC" in capsys.readouterr().out
    out = tmp_path / "x.csv"
    assert predict([str(tmp_path / "windows"), urls["windows"], "--out", str(out)]) == 0
    rows = list(csv.reader(out.open()))
    assert rows[0][-3:] == list(LABELS)
    assert len(rows) == 41


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["augment.mixup=0.4"], ["task.class_weights=balanced", "task.label_smoothing=0.1"], ["missing.consistency=0.5"],
        ["data.label_share=0.3"], ["evaluation.metric=macro_f1"], ["data.class_balance=1", "augment.mixup=0.4"],
    ],
    ids=lambda more: more[0],
)  # fmt: skip
def test_other_ways_to_train_work(
    more: list[str], urls: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(urls["windows"], "x", tmp_path, *more, "optim.max_steps=3")
    said = capsys.readouterr().out
    assert ("data.class_balance 1: training sees " in said) == ("data.class_balance=1" in more)
    assert set(result["evaluation"]["scenarios"][0]["metrics"]) == {"auroc", "auprc", "macro_f1", "accuracy", "loss"}


def test_metrics_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    truth = draw.random((300, 3)) < (0.5, 0.1, 0.3)
    logits = draw.normal(size=(300, 3)).astype(np.float32) + truth
    task = make_task(TaskConfig(), Labels("multilabel", LABELS, truth.sum(0).tolist(), 300))
    sets = (truth * (1, 2, 4)).sum(1)
    found = task.metrics(logits, sets)
    chance = task.predictions(logits)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, logits, average="macro"))
    assert found["auprc"] == pytest.approx(average_precision_score(truth, logits, average="macro"))
    assert found["macro_f1"] == pytest.approx(f1_score(truth, logits > 0, average="macro"))
    assert found["accuracy"] == pytest.approx((truth == (logits > 0)).mean())
    assert found["loss"] == pytest.approx(np.mean([log_loss(truth[:, c], chance[:, c]) for c in range(3)]), rel=1e-6)
    loss = task.sample_loss(torch.from_numpy(logits), torch.from_numpy(sets))
    assert loss.mean().item() == pytest.approx(found["loss"], rel=1e-5)
    only = task.metrics(logits[:5], np.zeros(5, dtype=np.int64))
    assert "auroc" not in only


def test_balanced_weights_count_both_sides_equally() -> None:
    """For a constant answer of one half, samples that have a rare label weigh as much as those that lack it."""
    truth = np.arange(100)[:, None] < np.array([10, 50, 0])
    task = make_task(
        TaskConfig.model_validate({"class_weights": "balanced"}), Labels("multilabel", LABELS, [10, 50, 0], 100)
    )
    sets = torch.from_numpy((truth * (1, 2, 4)).sum(1))
    for column in range(2):
        logits = torch.zeros(100, 3, requires_grad=True)
        task.sample_loss(logits, sets).sum().backward()
        assert logits.grad is not None
        pull = logits.grad[:, column]
        assert pull[truth[:, column]].sum().item() == pytest.approx(-pull[~truth[:, column]].sum().item(), rel=1e-5)


def test_sets_of_labels() -> None:
    assert label_set(["fever", 0], LABELS, "x") == 5
    assert label_set([], LABELS, "x") == 0
    many = tuple(f"l{k}" for k in range(52))
    everything = label_set(range(52), many, "x")
    assert int(np.float64(everything)) == everything == (1 << 52) - 1
    assert label_bits(np.array([everything]), 52).all()
    assert ClassCounter(3, several=True).counts(np.array([0.0, 5, 4])) == [1, 0, 2]
    assert ClassCounter(3).counts(np.array([0.0, 2, 2])) == [1, 0, 2]
    assert ClassCounter().counts(np.array([0.5])) == []


@pytest.mark.parametrize("given", ["fever", 3, None, ["cough"], [3], [-1], [0.5], [True], [None]])
def test_what_is_no_set_is_named(given: Any) -> None:
    with pytest.raises(DataError, match=r"label .* is (not a list|none of tachycardia, low oxygen, fever)"):
        label_set(given, LABELS, "x")


def test_overlapping_intervals_become_sets() -> None:
    found = without_overlaps([(2.0, 6.0, 1), (4.0, 8.0, 2), (8.0, 9.0, 2)], 12.0)
    assert found.tolist() == [[0, 2, 0], [2, 4, 1], [4, 6, 3], [6, 9, 2], [9, 12, 0]]
    assert without_overlaps([], 5.0).tolist() == [[0, 5, 0]]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("majority", [1, 3, 2, 0]), ("any", [1, 3, 3, 2]), ("center", [1, 3, 2, 0]), ("last", [1, 3, 2, 0])],
)
def test_rules_of_windows(rule: str, expected: list[int], tmp_path: Path) -> None:
    """Label 1 holds 0-9 s, label 2 holds 5-13 s; windows of 4 s."""
    window = WindowConfig.model_validate({"length_s": 4, "label": rule})
    values = {"pulse": np.zeros((64, 1)), "oxygen": np.ones((64, 1)), "warmth": np.ones((16, 1))}
    alarms = [(0, 9, "tachycardia"), (5, 13, "low oxygen")]
    given = [RawRecording(f"r{k}", values, alarms, split="train") for k in range(1)]
    pack_recordings(tmp_path / "x", replace(ABOUT, window=window), given)
    assert samples(str(tmp_path / "x"), "train")[2].tolist() == expected


def test_no_more_labels_than_a_number_holds(tmp_path: Path) -> None:
    many = replace(ABOUT, classes=tuple(f"l{k}" for k in range(53)))
    with pytest.raises(DataError, match="multilabel has 1 to 52 labels, not 53"):
        pack(tmp_path / "x", many, as_windows())
    assert load_manifest  # the message comes before anything is written
    assert not (tmp_path / "x").exists()
