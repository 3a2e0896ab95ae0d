"""The predictions that an evaluation records, and their file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic as synthetic_data
from test_evaluation_split import LOADS, PRESENT, SAMPLES, TARGET, TASK, evaluate

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.missing import evaluation_mask
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.storage import Storage
from maestro_dist.data.subjects import keys_and_subjects
from maestro_dist.errors import DataError
from maestro_dist.evaluation import Predictions


def test_nothing_is_kept_unless_asked_for() -> None:
    assert evaluate().predictions is None
    kept = evaluate(keep_predictions=True)
    assert kept.predictions is not None
    assert kept.to_json() == evaluate().to_json()


def test_kept_answers_give_the_metrics_of_every_scenario() -> None:
    found = evaluate(keep_predictions=True)
    kept = found.predictions
    assert kept is not None
    assert np.array_equal(kept.target, TARGET)
    assert list(zip(kept.rate, kept.draw, strict=True)) == [(s.rate, s.draw) for s in found.scenarios]
    assert kept.scenarios(0.4).tolist() == [1, 2, 3]
    for scenario, logits in zip(found.scenarios, kept.logits, strict=True):
        assert TASK.metrics(logits, kept.target) == scenario.metrics
    masks = [PRESENT, *(evaluation_mask(PRESENT, 0.4, draw) for draw in range(3))]
    assert np.array_equal(kept.kept, masks)
    assert kept.experts is not None
    assert np.array_equal(kept.experts, [LOADS * mask.sum(1)[:, None] for mask in masks])


def test_the_file_there_and_back(tmp_path: Path) -> None:
    kept = evaluate(keep_predictions=True).predictions
    assert kept is not None
    named = replace(kept, key=np.array([f"k{n}" for n in range(SAMPLES)]), modalities=np.array(["a", "b", "c"]))
    for folder in ("one", "two"):
        named.write(Storage(str(tmp_path)).join(folder))
    content = (tmp_path / "one" / "predictions.npz").read_bytes()
    assert content == (tmp_path / "two" / "predictions.npz").read_bytes()
    again = Predictions.read(Storage(str(tmp_path / "one")))
    for name, array in vars(named).items():
        assert np.array_equal(getattr(again, name), array), name
    replace(kept, experts=None).write(Storage(str(tmp_path)))
    assert Predictions.read(Storage(str(tmp_path))).experts is None


@pytest.mark.parametrize("damage", ["cut", "other", "pickle"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    kept = evaluate(keep_predictions=True).predictions
    assert kept is not None
    kept.write(Storage(str(tmp_path)))
    path = tmp_path / "predictions.npz"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "other":
        replace(kept, target=kept.target[1:]).write(Storage(str(tmp_path)))
    else:
        np.savez(path, **{name: np.array([{}]) for name in ("target", "rate", "draw", "logits", "kept")})
    with pytest.raises(DataError, match=r"predictions\.npz"):
        Predictions.read(Storage(str(tmp_path)))


def test_roster_names_samples_and_people(synthetic: str) -> None:
    manifest = load_manifest(synthetic)
    source = SplitSource(synthetic, manifest, DataConfig(url=synthetic), tuple(manifest.select(None)), "test")
    keys, subjects = keys_and_subjects(source)
    expected = [sample for sample in synthetic_data.samples() if sample.split == "test"]
    assert keys.tolist() == [sample.key for sample in expected]
    assert subjects.tolist() == [sample.subject for sample in expected]
