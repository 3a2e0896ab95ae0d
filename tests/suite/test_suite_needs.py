"""Cells that need other cells: where they begin, in which order they are run, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finished_cells import finish, make_plan
from suite.plan import Plan
from suite.record import changes, read_record, run_of
from suite.work import Outcome, leave_behind, sort_out

from maestro_dist.errors import ConfigError

DATA = [{"name": "set", "url": "data/{fold}", "folds": 2, "metrics": ["accuracy"]}]
TRAIN = {"kind": "maestro", "config": "configs/quickstart.yaml", "data": ["set"]}
PRETRAIN = {**TRAIN, "name": "pretrain", "set": ["task.kind=pretrain", "run.workers=1"], "minutes": 5}
TUNED = {**TRAIN, "name": "tuned", "set": ["run.init_from={run:pretrain}", "run.workers=1"], "minutes": 5}


def needing(storage: Path, *entries: dict[str, Any], **values: Any) -> Plan:
    """A suite of these entries on two folds; by default one that starts from a pre-training which comes after it."""
    chosen = list(entries) or [TUNED, PRETRAIN]
    return make_plan(storage, **{"data": DATA, "entries": chosen, "ablations": [], "seeds": [1, 2], **values})


def test_a_cell_begins_where_the_one_that_it_needs_lies(tmp_path: Path) -> None:
    plan = needing(tmp_path)
    cell = next(cell for cell in plan.cells if cell.name == "set.f1.tuned.s2")
    assert cell.needs == {"pretrain": "set.f1.pretrain.s2"}
    assert f"run.init_from={tmp_path}/set.f1.pretrain.s2" in cell.arguments
    assert cell.scored
    assert not plan.cells_of("pretrain", "set")[0].scored


def test_a_cell_learns_from_runs_of_other_seeds(tmp_path: Path) -> None:
    one = {**TRAIN, "name": "one", "set": ["run.workers=1"], "seeds": [1, 2, 11, 12], "minutes": 5}
    taught = {**TRAIN, "name": "taught", "set": ["run.workers=1", "task.teachers=[{run:one}, {run:one+10}]"]}
    plan = needing(tmp_path, taught, one)
    cell = next(cell for cell in plan.cells if cell.name == "set.f1.taught.s2")
    assert cell.needs == {"one": "set.f1.one.s2", "one+10": "set.f1.one.s12"}
    assert f"task.teachers=[{tmp_path}/set.f1.one.s2, {tmp_path}/set.f1.one.s12]" in cell.arguments
    assert cell.settings["task.teachers"] == ["{run:one}", "{run:one+10}"]
    assert (cell.settings["one: run.seed"], cell.settings["one+10: run.seed"]) == (2, 12)
    with pytest.raises(ConfigError, match="'one' has no seed 21 on 'set' in fold 0"):
        needing(tmp_path, {**taught, "set": ["task.teachers=[{run:one+20}]"]}, one)
    with pytest.raises(ConfigError, match="'x' is no number to add to the seed"):
        needing(tmp_path, {**taught, "set": ["task.teachers=[{run:one+x}]"]}, one)


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
    assert read_record(run_of(moved, tuned)) is not None
    assert changes(moved, tuned) == [], "where the storage lies is no setting"
    longer = {**PRETRAIN, "set": [*PRETRAIN["set"], "optim.epochs=99"]}  # type: ignore[misc]
    other = needing(tmp_path / "elsewhere", TUNED, longer)
    assert changes(other, other.cells_of("tuned", "set")[0]) == ["pretrain: optim.epochs 12 -> 99"]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([{**TUNED, "set": ["run.init_from={run:pretrian}"]}, PRETRAIN], "no entry 'pretrian' on 'set'; did you mean"),
        ([TUNED, {**PRETRAIN, "seeds": [1]}], "'pretrain' has no seed 2 on 'set' in fold 0, which 'tuned' has"),
        ([TUNED, {**PRETRAIN, "folds": [0]}], "'pretrain' has no seed 1 on 'set' in fold 1, which 'tuned' has"),
        ([{**TUNED, "set": ["run.init_from={run:tuned}"]}], "entries.tuned.set: it needs itself: tuned -> tuned"),
        (
            [TUNED, {**PRETRAIN, "set": ["run.init_from={run:other}"]}, {**TUNED, "name": "other"}],
            "set: it needs itself: pretrain -> other -> pretrain$",
        ),
    ],
)
def test_needs_that_cannot_be_are_refused(entries: list[dict[str, Any]], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        needing(tmp_path, *entries)


def test_a_cell_whose_need_is_not_finished_is_left_and_says_so(tmp_path: Path) -> None:
    plan = needing(tmp_path)
    tuned = plan.cells_of("tuned", "set")
    finish(plan, plan.cells_of("pretrain", "set")[0], right=0.5)
    outcome, todo = sort_out(plan, tuned)
    assert [cell.name for cell in todo] == ["set.f0.tuned.s1"]
    assert list(outcome.left) == ["set.f0.tuned.s2", "set.f1.tuned.s1", "set.f1.tuned.s2"]
    assert outcome.left["set.f1.tuned.s2"] == "it needs set.f1.pretrain.s2, which is not finished"
    outcome, todo = sort_out(plan, plan.cells)
    assert len(todo) == 7
    assert outcome.left == {}, "what they need is run now"


def test_what_needs_a_cell_that_is_left_is_left_too(tmp_path: Path) -> None:
    further = {**TUNED, "name": "further", "set": ["run.init_from={run:tuned}"], "seeds": [1], "folds": [0]}
    plan = needing(tmp_path, further, TUNED, PRETRAIN)
    cells = [cell for cell in plan.cells if cell.seed == 1 and cell.fold == 0 and cell.entry != "pretrain"]
    outcome = Outcome(failed={"set.f0.pretrain.s1": "no memory"})
    assert [cell.entry for cell in leave_behind(cells, outcome, set())] == ["tuned", "further"]
    assert cells == []
    assert outcome.left == {
        "set.f0.tuned.s1": "it needs set.f0.pretrain.s1, which has failed",
        "set.f0.further.s1": "it needs set.f0.tuned.s1, which is not finished",
    }


def test_a_need_of_other_settings_is_not_taken(tmp_path: Path) -> None:
    plan = needing(tmp_path)
    finish(plan, plan.cells_of("pretrain", "set")[0], right=0.5)
    longer = {**PRETRAIN, "set": [*PRETRAIN["set"], "optim.epochs=99"]}  # type: ignore[misc]
    other = needing(tmp_path, TUNED, longer)
    outcome, todo = sort_out(other, other.cells_of("tuned", "set")[:1])
    assert todo == []
    assert outcome.left == {"set.f0.tuned.s1": "it needs set.f0.pretrain.s1, which is not finished"}
    outcome, todo = sort_out(other, other.cells)
    assert "optim.epochs 12 -> 99" in outcome.failed["set.f0.pretrain.s1"]
    assert outcome.left == {"set.f0.tuned.s1": "it needs set.f0.pretrain.s1, which has failed"}
