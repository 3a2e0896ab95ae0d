"""What is kept of results is all that a report needs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_cells import finish, make_plan
from suite.collect import collect, keep
from suite.keep import Digest
from suite.plan import ROOT, Plan
from suite.record import Record, changes, chosen_settings, is_done, kept_of, read_record, run_of, write_record
from suite.report import write_report
from suite.work import sort_out
from test_suite_needs import PRETRAIN, TUNED, needing

from maestro_dist.data.storage import Storage
from maestro_dist.errors import DataError, RunError

FIGURES = [
    {"name": "mean", "value": {"entry": "two", "data": "set"}, "reach": 0.7},
    {"name": "ensemble", "value": {"entry": "two", "data": "set", "of": "ensemble", "missing": 0.4}},
]


def kept_plan(folder: Path, **changes: Any) -> Plan:
    return make_plan(folder / "runs", keep=str(folder / "kept"), figures=FIGURES, **changes)


def finish_all(plan: Plan) -> None:
    for cell in plan.cells:
        finish(plan, cell, right=0.8 if cell.entry == "two" else 0.6, lost=0.1, experts=cell.entry == "two")


def report(plan: Plan, out: Path) -> str:
    write_report(collect(plan), str(out), "the command")
    return (out / "RESULTS.md").read_text() + (out / "results.json").read_text()


def test_a_report_without_the_runs_is_the_same(tmp_path: Path) -> None:
    plan = kept_plan(tmp_path)
    finish_all(plan)
    expected = report(plan, tmp_path / "before")
    assert "not finished" not in expected
    assert keep(collect(plan)) == len(plan.cells) == 14
    shutil.rmtree(tmp_path / "runs")
    assert report(plan, tmp_path / "after") == expected
    assert keep(collect(plan)) == 0, "what was kept is not kept again"
    assert all(is_done(plan, cell) for cell in plan.cells)
    outcome, waiting = sort_out(plan, plan.cells)
    assert len(outcome.done) == 14
    assert waiting == []
    assert sum(path.stat().st_size for path in (tmp_path / "kept").rglob("*.npz")) < 14 * 5_000


def test_what_is_kept_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    plan = kept_plan(tmp_path)
    finish_all(plan)
    cell = plan.cells[0]
    run, record = run_of(plan, cell), read_record(run_of(plan, cell))
    assert record is not None
    assert str(ROOT) in record.command
    result = json.loads(run.read("result.json"))
    run.write("result.json", json.dumps({**result, "best_step": 7, "checkpoint": "/there/run", "model": "/m"}).encode())
    keep(collect(plan))
    kept = kept_of(plan, cell)
    assert kept is not None
    assert json.loads(kept.read("result.json")) == {**result, "best_step": 7}
    for path in (tmp_path / "kept" / cell.name).iterdir():
        assert str(ROOT).encode() not in path.read_bytes()


def test_a_setting_that_is_newer_than_a_result_is_taken_at_its_default(tmp_path: Path) -> None:
    plan = kept_plan(tmp_path)
    finish_all(plan)
    keep(collect(plan))
    shutil.rmtree(tmp_path / "runs")
    cell = plan.cells_of("one", "set")[0]
    kept = kept_of(plan, cell)
    assert kept is not None
    record = read_record(kept)
    assert record is not None
    older = {key: value for key, value in record.settings.items() if key not in ("baseline.trees", "run.seed")}
    write_record(kept, replace(record, settings={**older, "run.seed": cell.seed}))
    assert is_done(plan, cell)
    other = kept_plan(tmp_path, entries=[
        {"name": "one", "kind": "lightgbm", "data": ["set"], "set": ["baseline.trees=7"]},
        {"name": "two", "kind": "minirocket", "label": "The second", "data": ["set"]},
    ])  # fmt: skip
    assert not is_done(other, other.cells_of("one", "set")[0])


def test_what_is_new_stands_beside_what_was_kept(tmp_path: Path) -> None:
    plan = kept_plan(tmp_path)
    finish_all(plan)
    expected = report(plan, tmp_path / "before")
    keep(collect(plan))
    for cell in plan.cells_of("two", "set"):
        shutil.rmtree(run_of(plan, cell).url)
    again = plan.cells_of("two", "set")[0]
    finish(plan, again, right=0.8, lost=0.1, experts=True)
    assert report(plan, tmp_path / "after") == expected
    assert collect(plan).finished[again.name].kept is None


def test_an_ensemble_of_which_a_seed_is_gone_is_named(tmp_path: Path) -> None:
    plan = kept_plan(tmp_path)
    finish_all(plan)
    keep(collect(plan))
    shutil.rmtree(tmp_path / "kept" / "ensembles")
    shutil.rmtree(run_of(plan, plan.cells_of("two", "set")[0]).url)
    assert "Not shown: The second, of which the answers" in report(plan, tmp_path / "after")
    with pytest.raises(RunError, match="has not the 200 resamples of accuracy"):
        report(kept_plan(tmp_path, resamples=200), tmp_path / "more")


def test_what_was_kept_of_other_settings_or_is_damaged_does_not_count(tmp_path: Path) -> None:
    plan = kept_plan(tmp_path)
    finish_all(plan)
    keep(collect(plan))
    shutil.rmtree(tmp_path / "runs")
    changed, damaged, *_ = plan.cells
    place = kept_of(plan, changed)
    assert place is not None
    record = read_record(place)
    assert record is not None
    record.settings["seed"] = 99
    write_record(place, record)
    assert not is_done(plan, changed)
    assert is_done(plan, damaged)
    assert changed.name not in collect(plan).finished
    place = kept_of(plan, damaged)
    assert place is not None
    place.write("digest.npz", b"no archive")
    with pytest.raises(RunError, match=r"digest\.npz is damaged"):
        collect(plan)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"keys": "others"}, "other samples"),
        ({"modalities": ["acc_x"]}, "was tested with acc_x, a cell beside it with acc, gyro: .* packed in two ways"),
    ],
)
def test_another_test_set_is_told_apart(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    plan = kept_plan(tmp_path)
    finish_all(plan)
    keep(collect(plan))
    shutil.rmtree(tmp_path / "runs")
    place = kept_of(plan, plan.cells_of("two", "set")[0])
    assert place is not None
    digest = Digest.read(place, "digest.npz")
    assert digest is not None
    place.write("digest.npz", Digest(digest.about | changed, digest.numbers).to_bytes())
    results = collect(plan)
    with pytest.raises(DataError, match=said):
        [results.bootstrap(entry, "set", "accuracy", 0.0) for entry in ("one", "two")]


def test_a_digest_survives_its_file(tmp_path: Path) -> None:
    digest = Digest({"a": [1, None]}, {("auroc", 0.4): np.linspace(0, 1, 7), ("auroc", 0.0): np.array([0.5])})
    place = Storage(str(tmp_path))
    place.write("digest.npz", digest.to_bytes())
    assert digest.to_bytes() == digest.to_bytes()
    found = Digest.read(place, "digest.npz")
    assert found is not None
    assert found.about == digest.about
    assert found.numbers.keys() == digest.numbers.keys()
    np.testing.assert_allclose(found.numbers["auroc", 0.4], np.linspace(0, 1, 7), atol=1e-7)
    assert Digest.read(place, "other.npz") is None


def test_a_run_that_another_begins_with_is_run_again(tmp_path: Path) -> None:
    plan = needing(tmp_path / "runs", keep=str(tmp_path / "kept"))
    names = {name for cell in plan.cells for name in cell.needs.values()}
    for cell in plan.cells:
        place = kept_of(plan, cell)
        assert place is not None
        if cell.entry == "pretrain" or cell.name == "set.f0.tuned.s1":
            place.write("result.json", b"{}")
            write_record(place, Record(cell.command, cell.settings, {}, []))
    outcome, waiting = sort_out(plan, plan.cells)
    assert outcome.done == ["set.f0.pretrain.s1", "set.f0.tuned.s1"], "nobody waits for that pre-training"
    assert names - {cell.name for cell in waiting} == {"set.f0.pretrain.s1"}
    assert sorted(outcome.again) == sorted(names - {"set.f0.pretrain.s1"})
    assert outcome.left == {}
    outcome, waiting = sort_out(plan, [cell for cell in plan.cells if cell.name == "set.f1.tuned.s2"])
    assert [cell.name for cell in waiting] == ["set.f1.pretrain.s2", "set.f1.tuned.s2"], "also where it is not chosen"


def test_all_that_a_chain_begins_with_is_run_again(tmp_path: Path) -> None:
    further = {**TUNED, "name": "further", "set": ["run.init_from={run:tuned}", "run.workers=1"]}
    plan = needing(tmp_path / "runs", further, TUNED, PRETRAIN, keep=str(tmp_path / "kept"), seeds=[1])
    for cell in plan.cells:
        place = kept_of(plan, cell)
        assert place is not None
        if cell.entry != "further" and cell.fold == 0:
            place.write("result.json", b"{}")
            write_record(place, Record(cell.command, cell.settings, {}, []))
    outcome, waiting = sort_out(plan, plan.cells)
    assert [cell.name for cell in waiting if cell.fold == 0] == [
        "set.f0.pretrain.s1",
        "set.f0.tuned.s1",
        "set.f0.further.s1",
    ]
    assert outcome.done == []
    assert outcome.again == ["set.f0.tuned.s1", "set.f0.pretrain.s1"]


def test_a_run_of_other_settings_is_not_reported_and_leaves_what_was_kept(tmp_path: Path) -> None:
    plan = kept_plan(tmp_path)
    finish_all(plan)
    expected = report(plan, tmp_path / "before")
    keep(collect(plan))
    other = kept_plan(tmp_path, entries=[
        {"name": "one", "kind": "lightgbm", "data": ["set"], "set": ["baseline.trees=7"]},
        {"name": "two", "kind": "minirocket", "label": "The second", "data": ["set"]},
    ])  # fmt: skip
    assert "| one |" not in report(other, tmp_path / "other"), "its runs are not what the suite says now"
    assert "| one |" in expected
    stale = plan.cells_of("one", "set")[0]
    changed = other.cells_of("one", "set")[0]
    outcome, _ = sort_out(other, [changed])
    assert "baseline.trees" in outcome.failed[changed.name], "a finished baseline is not fitted over"
    write_record(
        run_of(plan, stale), replace(Record(**vars(read_record(run_of(plan, stale)))), settings=changed.settings)
    )
    finished = collect(plan).finished[stale.name]
    assert finished.kept is not None, "what was kept stands where the run is another's"
    assert keep(collect(plan)) == len(plan.cells) - 1
    shutil.rmtree(tmp_path / "runs")
    assert report(plan, tmp_path / "after") == expected


def test_a_stem_counts_and_a_newer_setting_of_what_was_needed_does_not(tmp_path: Path) -> None:
    stems = ({**PRETRAIN, "set": ["task.kind=pretrain", f"model.stem={stem}"]} for stem in ("{}", "null"))
    plan, bare = (needing(tmp_path / "runs", TUNED, pretrain) for pretrain in stems)
    cell = plan.cells_of("tuned", "set")[0]
    settings = {
        key: value
        for key, value in cell.settings.items()
        if key not in ("pretrain: model.stem.pool", "pretrain: optim.warmup", "model.pooling")
    }
    assert len(settings) == len(cell.settings) - 3
    write_record(run_of(plan, cell), Record(cell.command, settings, {}, []))
    assert changes(plan, cell) == []
    other = bare.cells_of("tuned", "set")[0]
    assert any("pretrain: model.stem" in change for change in changes(bare, other))
    write_record(run_of(plan, cell), Record(other.command, other.settings, {}, []))
    assert any("pretrain: model.stem" in change for change in changes(plan, cell))
    assert chosen_settings(cell) != chosen_settings(other)
    assert chosen_settings(replace(cell, settings=settings)) == chosen_settings(cell)
