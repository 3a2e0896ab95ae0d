"""What the repository says of accuracy is what its kept results say."""

from __future__ import annotations

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
