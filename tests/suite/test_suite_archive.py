"""What is kept of results is all that a report needs; settings decide which results count."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_cells import finish, make, results_of
from suite import archive as module
from suite.archive import Archive, Kept, Record, differences
from suite.collect import collect
from suite.goals import Goal
from suite.jobs import cells_to_run
from suite.matrix import ROOT, Plan
from suite.report import write_report
from test_suite_needs import PRETRAIN, TUNED, needing

from maestro_dist.data.storage import Storage
from maestro_dist.errors import DataError, RunError


def kept_plan(folder: Path, **changes: Any) -> Plan:
    return make(folder / "runs", results=str(folder / "kept"), **changes)


def finish_all(plan: Plan) -> None:
    for cell in plan.cells:
        finish(plan, cell, right=0.8 if cell.model == "two" else 0.6, lost=0.1, experts=cell.model == "two")


def keep_all(plan: Plan) -> int:
    archive = Archive(plan)
    collect(archive)
    archive.save()
    return len(archive.new)


def kept_and_gone(folder: Path) -> Plan:
    """A plan whose cells are finished and kept, without the runs."""
    plan = kept_plan(folder)
    finish_all(plan)
    assert keep_all(plan) == len(plan.cells) == 14
    shutil.rmtree(folder / "runs")
    return plan


def change(plan: Plan, name: str, **values: Any) -> None:
    """Change what is kept of a cell."""
    place = Storage(str(plan.results))
    kept = Kept.read(place, "set")
    kept.cells[name] |= values
    kept.write(place, "set")


def report(plan: Plan, out: Path) -> str:
    results = results_of(plan)
    write_report(
        results, [Goal("mean", results.mean("two", "set", "accuracy", 0.0), "accuracy", 0.7)], str(out), "the command"
    )
    return (out / "RESULTS.md").read_text() + (out / "results.json").read_text()


def test_a_report_without_the_runs_is_the_same(tmp_path: Path) -> None:
    plan = kept_plan(tmp_path)
    finish_all(plan)
    expected = report(plan, tmp_path / "before")
    assert "not finished" not in expected
    assert keep_all(plan) == 14
    shutil.rmtree(tmp_path / "runs")
    assert report(plan, tmp_path / "after") == expected
    assert keep_all(plan) == 0, "kept results are not kept again"
    archive = Archive(plan)
    assert all(archive.is_done(cell) for cell in plan.cells)
    assert cells_to_run(archive, plan.cells) == []
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["set.npz"]
    assert (tmp_path / "kept" / "set.npz").stat().st_size < 14 * 5_000


def test_a_new_cell_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    plan = kept_and_gone(tmp_path)
    place = Storage(str(plan.results))
    before = Kept.read(place, "set")
    cell = plan.cells_of("two", "set")[0]
    finish(plan, cell, right=0.3)
    assert keep_all(plan) == 1
    after = Kept.read(place, "set")
    assert after.cells.keys() == before.cells.keys()
    assert {name for name in before.cells if before.cells[name] != after.cells[name]} == {cell.name}
    same = [name for name in after.arrays if np.array_equal(before.arrays[name], after.arrays[name])]
    assert {*before.arrays} - {*same} == {cell.name, "ensemble two"}
    assert after.ensembles == {"one": before.ensembles["one"]}, "the other one was of the old cell"
    assert ("two", "set") not in results_of(plan).ensembles


def test_kept_results_name_no_folder_of_the_machine(tmp_path: Path) -> None:
    plan = kept_plan(tmp_path)
    finish_all(plan)
    archive, cell = Archive(plan), plan.cells[0]
    assert str(ROOT) in " ".join(cell.command)
    run = archive.run(cell)
    result = json.loads(run.read("result.json"))
    run.write("result.json", json.dumps({**result, "best_step": 7, "checkpoint": "/there/run", "model": "/m"}).encode())
    keep_all(plan)
    kept = Archive(plan).kept[cell.data].cells[cell.name]
    assert kept["result"] == {**result, "best_step": 7}
    assert str(ROOT) not in json.dumps(Kept.read(Storage(str(plan.results)), "set").cells)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    plan = kept_and_gone(tmp_path)
    (tmp_path / "kept" / "set.npz").write_bytes(b"no archive")
    with pytest.raises(RunError, match=r"set\.npz is damaged"):
        Archive(plan)


def test_what_runs_from_a_kept_cell_needs_its_run_again(tmp_path: Path) -> None:
    plan = needing(tmp_path / "runs", results=str(tmp_path / "kept"))
    cells = [cell for cell in plan.cells if cell.model == "pretrain" or cell.name == "set.f0.tuned.s1"]
    content = {cell.name: {"record": vars(Record("", cell.settings, {}, []))} for cell in cells}
    Kept(content).write(Storage(str(plan.results)), "set")
    names = [cell.name for cell in cells_to_run(Archive(plan), plan.cells)]
    assert "set.f0.pretrain.s1" not in names, "no cell waits for this pre-training"
    assert names[:2] == ["set.f0.pretrain.s2", "set.f0.tuned.s2"]
    assert len(names) == 6


def test_a_setting_that_is_newer_than_a_result_counts_with_its_default(tmp_path: Path) -> None:
    plan = kept_and_gone(tmp_path)
    cell = plan.cells_of("one", "set")[0]
    record = Archive(plan).kept[cell.data].cells[cell.name]["record"]
    older = {key: value for key, value in record["settings"].items() if key != "baseline.trees"}
    change(plan, cell.name, record=record | {"settings": older})
    assert Archive(plan).is_done(cell)
    models = {
        "one": {"kind": "lightgbm", "set": ["baseline.trees=7"], "data": {"set": {}}},
        "two": {"kind": "minirocket", "data": {"set": {}}},
    }
    other = kept_plan(tmp_path, models=models)
    assert not Archive(other).is_done(other.cells_of("one", "set")[0])


def test_a_renamed_key_is_the_same_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = {"model.oldname": 7, "pretrain: model.oldname": 2, "model.width": 32}
    now = {"model.heads": 7, "pretrain: model.heads": 2, "model.width": 32}
    assert len(differences(recorded, now)) == 4
    monkeypatch.setattr(module, "RENAMED", {"model.oldname": "model.heads"})
    assert differences(recorded, now) == []
    assert differences(recorded, now | {"pretrain: model.heads": 4}) == ["pretrain: model.heads 2 -> 4"]


def test_results_of_a_run_stand_beside_kept_ones(tmp_path: Path) -> None:
    plan = kept_plan(tmp_path)
    finish_all(plan)
    expected = report(plan, tmp_path / "before")
    keep_all(plan)
    for cell in plan.cells_of("two", "set"):
        shutil.rmtree(Archive(plan).run(cell).url)
    again = plan.cells_of("two", "set")[0]
    finish(plan, again, right=0.8, lost=0.1, experts=True)
    assert report(plan, tmp_path / "after") == expected
    assert keep_all(plan) == 0, "it is kept already"


def test_more_resamples_need_the_runs(tmp_path: Path) -> None:
    kept_and_gone(tmp_path)
    with pytest.raises(RunError, match=r"do not have 200 resamples of accuracy@0\.0"):
        results_of(kept_plan(tmp_path, resamples=200))


def test_kept_results_of_other_settings_do_not_count(tmp_path: Path) -> None:
    plan = kept_and_gone(tmp_path)
    changed, same, *_ = plan.cells
    record = Archive(plan).kept["set"].cells[changed.name]["record"]
    change(plan, changed.name, record=record | {"settings": record["settings"] | {"seed": 99}})
    archive = Archive(plan)
    assert not archive.is_done(changed)
    assert archive.is_done(same)
    assert changed.name not in collect(archive).finished


@pytest.mark.parametrize("changed", [{"keys": "others"}, {"modalities": ["acc_x"]}])
def test_another_test_set_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    plan = kept_and_gone(tmp_path)
    cell = plan.cells_of("two", "set")[0]
    change(plan, cell.name, tested=Archive(plan).kept["set"].cells[cell.name]["tested"] | changed)
    with pytest.raises(DataError, match="was tested on other samples"):
        results_of(plan)


def test_a_run_of_other_settings_is_not_reported_and_leaves_what_is_kept(tmp_path: Path) -> None:
    plan = kept_plan(tmp_path)
    finish_all(plan)
    expected = report(plan, tmp_path / "before")
    keep_all(plan)
    models = {
        "one": {"kind": "lightgbm", "set": ["baseline.trees=7"], "data": {"set": {}}},
        "two": {"kind": "minirocket", "label": "The second", "data": {"set": {}}},
    }
    other = kept_plan(tmp_path, models=models)
    assert "| one |" not in report(other, tmp_path / "other"), "its runs have other settings"
    assert "| one |" in expected
    stale, changed = plan.cells_of("one", "set")[0], other.cells_of("one", "set")[0]
    assert Archive(other).changes(changed) == ["baseline.trees 1000 -> 7"]
    archive = Archive(plan)
    record = archive.record(stale)
    assert record is not None
    replace(record, settings=changed.settings).write(archive.run(stale))
    assert stale.name in results_of(plan).finished, "kept results count where the run has other settings"
    assert keep_all(plan) == 0
    shutil.rmtree(tmp_path / "runs")
    assert report(plan, tmp_path / "after") == expected


def test_a_stem_is_a_difference_and_a_newer_setting_of_a_needed_cell_is_not(tmp_path: Path) -> None:
    plan, bare = (
        needing(tmp_path / "runs", {"tuned": TUNED, "pretrain": {**PRETRAIN, "set": [*PRETRAIN["set"], change]}})
        for change in ("model.stem={}", "model.stem=null")
    )
    cell, other = plan.cells_of("tuned", "set")[0], bare.cells_of("tuned", "set")[0]
    newer = ("pretrain: model.stem.pool", "pretrain: optim.warmup", "model.pooling")
    settings = {key: value for key, value in cell.settings.items() if key not in newer}
    assert len(settings) == len(cell.settings) - 3
    assert differences(settings, cell.settings) == []
    assert any("pretrain: model.stem" in text for text in differences(settings, other.settings))
    assert any("pretrain: model.stem" in text for text in differences(other.settings, cell.settings))
