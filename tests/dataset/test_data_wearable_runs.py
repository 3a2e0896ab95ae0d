"""Short runs on each of the wearable data sets: packed from raw files, trained, tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import runs
import wearable_trees as trees

EXCERPT = Path(__file__).parents[1] / "data" / "uea"
SMALL = ["model.word=50", "model.encoder_layers=1", "model.fusion_layers=1", "optim.epochs=1", "optim.global_batch=4"]
STATES = ((1, 12), (4, 12))


def wesad(folder: Path) -> Path:
    return trees.write_people(folder, trees.wesad_person, [2, 13, 16])


def dalia(folder: Path) -> Path:
    return trees.write_people(folder, trees.dalia_person, [1, 11, 14])


def dsads(folder: Path) -> Path:
    return trees.dsads(folder, [1, 19], [1, 6, 8])


def pam(folder: Path) -> Path:
    return trees.pamap(folder, [101, 105, 106], STATES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tree", "options", "metric"),
    [
        ("uea", lambda _: EXCERPT, "{rate: 10, groups: 'acc=1-3,gyro=4-6'}", "accuracy"),
        ("wesad", wesad, "{}", "accuracy"),
        ("ppg_dalia", dalia, "{}", "mae"),
        ("ppg_dalia", dalia, "{target: activity, chest: none}", "accuracy"),
        ("dsads", dsads, "{}", "accuracy"),
        ("pam", pam, "{}", "accuracy"),
    ],
)
def test_a_run_trains_and_tests(
    name: str, tree: Callable[[Path], Path], options: str, metric: str, tmp_path: Path
) -> None:
    source = tree(tmp_path / "raw")
    data = [f"data.source.converter={name}", f"data.source.path={source}", f"data.source.options={options}"]
    word = (
        ["model.word=10"] if name in ("uea", "dsads") else ["model.word=4" if name == "ppg_dalia" else "model.word=30"]
    )
    assert runs.train(tmp_path / "runs", str(tmp_path / "data"), *data, *SMALL, *word) == 0
    (result,) = (tmp_path / "runs").rglob("result.json")
    assert metric in json.dumps(json.loads(result.read_text()))
