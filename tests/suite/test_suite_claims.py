"""The accuracy that the repository claims is in its kept results."""

from __future__ import annotations

import re
from pathlib import Path

from finished_cells import results_of
from suite.goals import GOALS
from suite.matrix import ROOT, load_plan
from suite.report import write_report

SUITE, COMMAND = "configs/suite.yaml", "python tools/run_suite.py configs/suite.yaml --report"
RESULTS = ROOT / "tools" / "suite" / "results"
ROWS = {
    "MAESTRO": ("maestro", "maestro", "maestro"),
    "MiniRocket + ridge": ("MiniRocket + ridge",) * 3,
    "MiniRocket + ridge, trained with modalities missing": ("MiniRocket + ridge, drop",) * 3,
    "LightGBM": ("LightGBM on statistics", "LightGBM, recording norm", "LightGBM on statistics"),
    "LightGBM, trained with modalities missing": (
        "LightGBM on statistics, drop", "LightGBM, recording norm, drop", "LightGBM on statistics, drop",
    ),
}  # fmt: skip
"""Rows of the README's table: the row of RESULTS.md for each data set."""
METRICS = ("accuracy", "AUROC", "AUROC")
DATA = ("uci_hapt", "stress_folds", "physionet2012")


def test_the_report_is_what_its_command_writes(tmp_path: Path) -> None:
    plan = load_plan(str(ROOT / SUITE), [f"storage={tmp_path / 'runs'}", f"results={RESULTS}"])
    results = results_of(plan)
    write_report(results, GOALS["suite"](results), str(tmp_path), COMMAND)
    for name in ("RESULTS.md", "results.json"):
        assert (tmp_path / name).read_text() == (RESULTS / name).read_text(), f"{name}: run {COMMAND}"


def test_each_number_of_the_readmes_table_is_in_the_report() -> None:
    readme = (ROOT / "README.md").read_text().split("\n## Results\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \|([^|]*\.\d{3}[^|]*)\|([^|]*)\|([^|]*)\|$", readme, re.MULTILINE)
    assert [name for name, *_ in rows] == list(ROWS)
    tables = [measured(data, metric) for data, metric in zip(DATA, METRICS, strict=True)]
    for name, *cells in rows:
        for cell, model, table in zip(cells, ROWS[name], tables, strict=True):
            said = re.findall(r"\.\d{3}", cell)
            assert said == [table[model, "complete"], table[model, "40 % missing"]], (name, cell)


def test_each_number_of_a_recipes_head_is_in_the_report() -> None:
    for data in DATA:
        recipe = (ROOT / f"configs/{data.replace('stress_folds', 'stress_predict')}.yaml").read_text()
        head = recipe[: recipe.index("\nrun:")]
        said = re.findall(r"(?<!\d)\.\d{3}", head)
        report = (RESULTS / "RESULTS.md").read_text().split(f"\n## {data}\n")[1].split("\n## ")[0]
        assert not [number for number in said if f" 0{number} " not in report], data


def test_a_missed_goal_has_a_reason(tmp_path: Path) -> None:
    results = results_of(load_plan(str(ROOT / SUITE), [f"storage={tmp_path / 'runs'}", f"results={RESULTS}"]))
    for goal in GOALS["suite"](results):
        assert goal.row is not None
        assert goal.row.holds or goal.why, goal.name


def test_all_cells_are_kept_and_take_six_hours_of_two_cores(tmp_path: Path) -> None:
    plan = load_plan(str(ROOT / SUITE), [f"storage={tmp_path / 'runs'}", f"results={RESULTS}"])
    records = [item.record for item in results_of(plan).finished.values()]
    assert len(records) == len(plan.cells)
    assert sum(record.seconds for record in records) / 2 < 6 * 3600


def measured(data: str, metric: str) -> dict[tuple[str, str], str]:
    """Means of a table of RESULTS.md, by model and column, as the README writes them."""
    report = (RESULTS / "RESULTS.md").read_text()
    head, _, *lines = report.split(f"\n## {data}\n")[1].split(f"\n### {metric}\n\n")[1].split("\n\n")[0].splitlines()
    columns = [column.strip() for column in head.strip("|").split("|")]
    found = {}
    for line in lines:
        model, *values = (value.strip() for value in line.strip("|").split("|"))
        for column, value in zip(columns[1:], values, strict=True):
            found[model, column] = value.split(" ")[0].removeprefix("0")
    return found
