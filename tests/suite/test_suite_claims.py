"""What the repository says of accuracy is what its kept results say."""

from __future__ import annotations

import json
import re
from pathlib import Path

from suite.collect import collect
from suite.plan import ROOT, load_plan
from suite.report import write_report

SUITE, COMMAND = "configs/suite.yaml", "python tools/run_suite.py configs/suite.yaml --report"
ROCKETS = ["MiniRocket + ridge", "MiniRocket + ridge, drop"]
STATISTICS = ["LightGBM on statistics", "LightGBM on statistics, drop"]
RECORDING = ["LightGBM, recording norm", "LightGBM, recording norm, drop"]
ROWS = {
    "uci_hapt": ["maestro", *ROCKETS, *STATISTICS],
    "stress_predict": ["maestro", *ROCKETS, *RECORDING],
    "physionet2012": ["maestro", *ROCKETS, *STATISTICS],
}
"""Rows of RESULTS.md in the order of the README's numbers."""
DATA = {"A": "uci_hapt", "B": "stress_folds", "C": "physionet2012"}


def test_the_report_is_what_its_command_writes(tmp_path: Path) -> None:
    plan = load_plan(str(ROOT / SUITE), [f"storage={tmp_path / 'runs'}", f"keep={ROOT / 'results/cells'}"])
    write_report(collect(plan), str(tmp_path), COMMAND)
    for name in ("RESULTS.md", "results.json"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), f"{name}: run {COMMAND}"


def test_each_number_of_the_readmes_table_is_in_the_report() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| [A-Z], `(\w+)`, .*?, (\w+) \|(.*)\|(.*)\|$", readme, re.MULTILINE)
    assert [name for name, *_ in rows] == list(ROWS)
    for name, metric, *cells in rows:
        table = measured(name.replace("stress_predict", "stress_folds"), metric)
        for cell, missing in zip(cells, ("complete", "40 % missing"), strict=True):
            said = re.findall(r"\.\d{3}", cell)
            assert said == [table[model, missing] for model in ROWS[name]], (name, missing)


def test_docstrings_say_the_worth_of_each_ablation_and_no_other() -> None:
    said: dict[str, set[tuple[float, float]]] = {letter: set() for letter in DATA}
    for name in ("model", "learning"):
        text = " ".join((ROOT / f"maestro_dist/config/{name}.py").read_text().split())
        for letter, complete, missing in re.findall(r"\b([ABC]) ([+-]\.\d{3}), ([+-]\.\d{3})", text.split('"""', 2)[2]):
            said[letter].add((float(complete), float(missing)))
    assert said == {letter: effects(data) for letter, data in DATA.items()}


def test_each_figure_of_a_recipes_head_is_in_the_report() -> None:
    for data in DATA.values():
        recipe = (ROOT / f"configs/{data.replace('stress_folds', 'stress_predict')}.yaml").read_text()
        head = recipe[: recipe.index("\nrun:")]
        said = re.findall(r"(?<!\d)\.\d{3}", head)
        assert said
        report = (ROOT / "RESULTS.md").read_text().split(f"\n## {data}\n")[1].split("\n## ")[0]
        assert not [number for number in said if f" 0{number} " not in report], data


def test_what_was_missed_has_a_reason() -> None:
    plan = load_plan(str(ROOT / SUITE))
    rows = json.loads((ROOT / "results.json").read_text())["rows"]
    missed = {row["name"] for row in rows if row["holds"] is False}
    assert {figure.name for figure in plan.suite.figures if figure.why is None} & missed == set()


def test_the_suite_takes_what_it_says(tmp_path: Path) -> None:
    plan = load_plan(str(ROOT / SUITE), [f"storage={tmp_path / 'runs'}", f"keep={ROOT / 'results/cells'}"])
    finished = collect(plan).finished
    seconds = 0.0
    for cell in plan.cells:  # what is not finished yet takes what the suite says of it
        record = finished[cell.name].record if cell.name in finished else None
        seconds += 60 * cell.minutes if record is None else record.seconds
    assert seconds / 2 < 6 * 3600, "on two cores"


def effects(data: str) -> set[tuple[float, float]]:
    """What the changes of a data set's ablations did, complete and with 40 % missing: worth, the other way round."""
    report = (ROOT / "RESULTS.md").read_text()
    table = report.split(f"\n## {data}\n")[1].split("\n### What parts are worth\n")[1].split("\n### ")[0]
    worths = re.findall(r"\| ([+-]0\.\d{3}) \([^)]*\) \| ([+-]0\.\d{3}) \([^)]*\) \|$", table, re.MULTILINE)
    return {(-float(complete), -float(missing)) for complete, missing in worths}


def measured(data: str, metric: str) -> dict[tuple[str, str], str]:
    """Means of a table of RESULTS.md, by model and column, as the README writes them."""
    report = (ROOT / "RESULTS.md").read_text()
    head, _, *lines = report.split(f"\n## {data}\n")[1].split(f"\n### {metric}\n\n")[1].split("\n\n")[0].splitlines()
    columns = [column.strip() for column in head.strip("|").split("|")]
    found = {}
    for line in lines:
        model, *values = (value.strip() for value in line.strip("|").split("|"))
        for column, value in zip(columns[1:], values, strict=True):
            found[model, column] = value.split(" ")[0].removeprefix("0")
    return found
