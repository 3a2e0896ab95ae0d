"""Cells that need other cells: where they begin, in which order they are run, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finished_cells import finish, make
from suite.archive import Archive
from suite.matrix import Plan

from maestro_dist.errors import ConfigError

DATA = {"set": {"url": "data/{fold}", "folds": 2, "metrics": ["accuracy"], "config": "configs/quickstart.yaml"}}
PRETRAIN: dict[str, Any] = {"set": ["task.kind=pretrain", "run.workers=1"], "data": {"set": {}}}
TUNED: dict[str, Any] = {"set": ["run.init_from={run:pretrain}", "run.workers=1"], "data": {"set": {}}}


def needing(storage: Path, models: dict[str, Any] | None = None, **values: Any) -> Plan:
    """A suite of these models on two folds; by default one that starts from a pre-training which is listed after it."""
    chosen = models or {"tuned": TUNED, "pretrain": PRETRAIN}
    return make(storage, **{"data": DATA, "models": chosen, "ablations": [], "seeds": [1, 2], **values})


def test_a_cell_begins_where_the_one_that_it_needs_lies(tmp_path: Path) -> None:
    plan = needing(tmp_path)
    cell = next(cell for cell in plan.cells if cell.name == "set.f1.tuned.s2")
    assert cell.needs == {"pretrain": "set.f1.pretrain.s2"}
    assert f"run.init_from={tmp_path}/set.f1.pretrain.s2" in cell.command
    assert cell.scored
    assert not plan.cells_of("pretrain", "set")[0].scored


def test_a_cell_learns_from_runs_of_other_seeds(tmp_path: Path) -> None:
    one = {"set": ["run.workers=1"], "seeds": [1, 2, 11, 12], "data": {"set": {}}}
    taught = {"set": ["run.workers=1", "task.teachers=[{run:one}, {run:one+10}]"], "data": {"set": {}}}
    plan = needing(tmp_path, {"taught": taught, "one": one})
    cell = next(cell for cell in plan.cells if cell.name == "set.f1.taught.s2")
    assert cell.needs == {"one": "set.f1.one.s2", "one+10": "set.f1.one.s12"}
    assert f"task.teachers=[{tmp_path}/set.f1.one.s2, {tmp_path}/set.f1.one.s12]" in cell.command
    assert cell.settings["task.teachers"] == ["{run:one}", "{run:one+10}"]
    assert (cell.settings["one: run.seed"], cell.settings["one+10: run.seed"]) == (2, 12)
    with pytest.raises(ConfigError, match=r"taught on set: \{run:one\+20\}: there is no cell set\.f0\.one\.s21"):
        needing(tmp_path, {"taught": {**taught, "set": ["task.teachers=[{run:one+20}]"]}, "one": one})


def test_what_is_needed_is_run_before(tmp_path: Path) -> None:
    names = [cell.name for cell in needing(tmp_path).cells]
    assert names[:2] == ["set.f0.pretrain.s1", "set.f0.tuned.s1"], "first what is needed, though it is listed last"


def test_a_cell_is_another_when_what_it_began_with_is_another(tmp_path: Path) -> None:
    plan = needing(tmp_path)
    finish(plan, plan.cells_of("tuned", "set")[0], right=0.8)
    (tmp_path / "set.f0.tuned.s1").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "moved").rename(tmp_path / "elsewhere" / "set.f0.tuned.s1")
    moved = needing(tmp_path / "elsewhere")
    tuned = moved.cells_of("tuned", "set")[0]
    assert Archive(moved).record(tuned) is not None
    assert Archive(moved).changes(tuned) == [], "the place of the storage is not a setting"
    longer = {**PRETRAIN, "set": [*PRETRAIN["set"], "optim.epochs=99"]}
    other = needing(tmp_path / "elsewhere", {"tuned": TUNED, "pretrain": longer})
    assert Archive(other).changes(other.cells_of("tuned", "set")[0]) == ["pretrain: optim.epochs 12 -> 99"]


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ({"tuned": {**TUNED, "set": ["run.init_from={run:pretrian}"]}}, "there is no cell set.f0.pretrian.s1"),
        ({"tuned": TUNED, "pretrain": {**PRETRAIN, "seeds": [1]}}, "there is no cell set.f0.pretrain.s2"),
        ({"tuned": {**TUNED, "set": ["run.init_from={run:tuned}"]}}, "tuned: it needs itself"),
        (
            {"tuned": TUNED, "pretrain": {**PRETRAIN, "set": ["run.init_from={run:other}"]}, "other": TUNED},
            "pretrain: it needs itself",
        ),
    ],
)
def test_impossible_needs_are_refused(models: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        needing(tmp_path, models)
