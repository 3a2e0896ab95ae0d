"""Cells that need other cells: where they begin, in which order they are run, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finished_cells import finish, make
from suite.archive import Archive
from suite.matrix import Plan
from suite.work import Outcome, leave_behind, sort_out

from maestro_dist.errors import ConfigError

DATA = {"set": {"url": "data/{fold}", "folds": 2, "metrics": ["accuracy"], "config": "configs/quickstart.yaml"}}
PRETRAIN: dict[str, Any] = {"set": ["task.kind=pretrain", "run.workers=1"], "minutes": 5, "data": {"set": {}}}
TUNED: dict[str, Any] = {"set": ["run.init_from={run:pretrain}", "run.workers=1"], "minutes": 5, "data": {"set": {}}}


def needing(storage: Path, models: dict[str, Any] | None = None, **values: Any) -> Plan:
    """A suite of these models on two folds; by default one that starts from a pre-training which is listed after it."""
    chosen = models or {"tuned": TUNED, "pretrain": PRETRAIN}
    return make(storage, **{"data": DATA, "models": chosen, "ablations": [], "seeds": [1, 2], **values})


def test_a_cell_begins_where_the_one_that_it_needs_lies(tmp_path: Path) -> None:
    plan = needing(tmp_path)
    cell = next(cell for cell in plan.cells if cell.name == "set.f1.tuned.s2")
    assert cell.needs == {"pretrain": "set.f1.pretrain.s2"}
    assert f"run.init_from={tmp_path}/set.f1.pretrain.s2" in cell.arguments
    assert cell.scored
    assert not plan.cells_of("pretrain", "set")[0].scored


def test_a_cell_learns_from_runs_of_other_seeds(tmp_path: Path) -> None:
    one = {"set": ["run.workers=1"], "seeds": [1, 2, 11, 12], "minutes": 5, "data": {"set": {}}}
    taught = {"set": ["run.workers=1", "task.teachers=[{run:one}, {run:one+10}]"], "data": {"set": {}}}
    plan = needing(tmp_path, {"taught": taught, "one": one})
    cell = next(cell for cell in plan.cells if cell.name == "set.f1.taught.s2")
    assert cell.needs == {"one": "set.f1.one.s2", "one+10": "set.f1.one.s12"}
    assert f"task.teachers=[{tmp_path}/set.f1.one.s2, {tmp_path}/set.f1.one.s12]" in cell.arguments
    assert cell.settings["task.teachers"] == ["{run:one}", "{run:one+10}"]
    assert (cell.settings["one: run.seed"], cell.settings["one+10: run.seed"]) == (2, 12)
    with pytest.raises(ConfigError, match=r"taught on set: \{run:one\+20\}: there is no cell set\.f0\.one\.s21"):
        needing(tmp_path, {"taught": {**taught, "set": ["task.teachers=[{run:one+20}]"]}, "one": one})
    with pytest.raises(ConfigError, match="'x' is not a number to add to the seed"):
        needing(tmp_path, {"taught": {**taught, "set": ["task.teachers=[{run:one+x}]"]}, "one": one})


def test_what_is_needed_is_run_before_also_in_stages(tmp_path: Path) -> None:
    plan = needing(tmp_path, stage_minutes=15)
    names = [cell.name for cell in plan.cells]
    assert names[:2] == ["set.f0.pretrain.s1", "set.f0.tuned.s1"], "first what is needed, though it is listed last"
    stages = {cell.name: cell.stage for cell in plan.cells}
    assert list(stages.values()) == [1, 1, 1, 2, 2, 2, 3, 3]
    assert all(stages[need] <= cell.stage for cell in plan.cells for need in cell.needs.values())


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
        ({"tuned": {**TUNED, "set": ["run.init_from={run:tuned}"]}}, "tuned: it needs itself: tuned -> tuned"),
        (
            {"tuned": TUNED, "pretrain": {**PRETRAIN, "set": ["run.init_from={run:other}"]}, "other": TUNED},
            "it needs itself: tuned -> pretrain -> other -> pretrain$",
        ),
    ],
)
def test_impossible_needs_are_refused(models: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        needing(tmp_path, models)


def test_a_cell_whose_need_is_not_finished_is_left_and_says_so(tmp_path: Path) -> None:
    plan = needing(tmp_path)
    tuned = plan.cells_of("tuned", "set")
    finish(plan, plan.cells_of("pretrain", "set")[0], right=0.5)
    outcome, todo = sort_out(Archive(plan), tuned)
    assert [cell.name for cell in todo] == ["set.f0.tuned.s1"]
    assert list(outcome.left) == ["set.f0.tuned.s2", "set.f1.tuned.s1", "set.f1.tuned.s2"]
    assert outcome.left["set.f1.tuned.s2"] == "it needs set.f1.pretrain.s2, which is not finished"
    outcome, todo = sort_out(Archive(plan), plan.cells)
    assert len(todo) == 7
    assert outcome.left == {}, "what they need is run now"


def test_what_needs_a_cell_that_is_left_is_left_too(tmp_path: Path) -> None:
    further = {**TUNED, "set": ["run.init_from={run:tuned}"], "seeds": [1]}
    plan = needing(tmp_path, {"further": further, "tuned": TUNED, "pretrain": PRETRAIN})
    cells = [cell for cell in plan.cells if cell.seed == 1 and cell.fold == 0 and cell.model != "pretrain"]
    outcome = Outcome(failed={"set.f0.pretrain.s1": "no memory"})
    assert [cell.model for cell in leave_behind(cells, outcome, set())] == ["tuned", "further"]
    assert cells == []
    assert outcome.left == {
        "set.f0.tuned.s1": "it needs set.f0.pretrain.s1, which has failed",
        "set.f0.further.s1": "it needs set.f0.tuned.s1, which is not finished",
    }


def test_a_need_of_other_settings_is_not_taken(tmp_path: Path) -> None:
    plan = needing(tmp_path)
    finish(plan, plan.cells_of("pretrain", "set")[0], right=0.5)
    longer = {**PRETRAIN, "set": [*PRETRAIN["set"], "optim.epochs=99"]}
    other = needing(tmp_path, {"tuned": TUNED, "pretrain": longer})
    outcome, todo = sort_out(Archive(other), other.cells_of("tuned", "set")[:1])
    assert todo == []
    assert outcome.left == {"set.f0.tuned.s1": "it needs set.f0.pretrain.s1, which is not finished"}
    outcome, todo = sort_out(Archive(other), other.cells)
    assert "optim.epochs 12 -> 99" in outcome.failed["set.f0.pretrain.s1"]
    assert outcome.left == {"set.f0.tuned.s1": "it needs set.f0.pretrain.s1, which has failed"}
