"""`RESULTS.md`, `results.json` and the pictures, from what the cells left and from nothing else."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from typing import Any

from maestro_dist.data.storage import ObjectMissing, Storage, redact
from maestro_dist.errors import ConfigError, RunError
from suite.collect import Results
from suite.figures import Found, figure_rows
from suite.pictures import draw_pictures
from suite.plan import Plan
from suite.record import Record
from suite.tables import ablation_table, duration, ensemble_table, expert_table, score_tables, table

REPORT_FILE = "RESULTS.md"
ROWS_FILE = "results.json"


def write_report(results: Results, out: str, command: str) -> None:
    """Write all three below `out`. The same results give the same bytes."""
    place = Storage(out)
    labels = labels_of(results.plan)
    found = figure_rows(results)
    pictures = draw_pictures(results, place, labels)
    records = [item.record for item in results.finished.values() if item.record is not None]
    place.write(REPORT_FILE, _markdown(results, found, pictures, labels, records, command).encode())
    place.write(ROWS_FILE, (json.dumps(_rows(results.plan, found, records), indent=1) + "\n").encode())


def check_place(plan: Plan, out: str) -> None:
    """Raises ConfigError where the report of another suite lies, which nobody wants to lose."""
    try:
        first = Storage(out).read(REPORT_FILE).decode(errors="replace").partition("\n")[0]
    except ObjectMissing:
        return
    if first != f"# {plan.suite.name}":
        raise ConfigError(f"{Storage(out).name(REPORT_FILE)} is not of this suite ({plan.suite.name}); choose --out")


def check_loss(results: Results, out: str) -> None:
    """Raises RunError where a report of finished cells would be replaced by one of none: most likely a wrong folder."""
    plan, place = results.plan, Storage(out)
    if results.finished or not place.exists(REPORT_FILE):
        return
    text = place.read(REPORT_FILE).decode(errors="replace")
    if re.search(r"^[1-9]\d* of \d+ cells are finished", text, re.MULTILINE):
        where = " or ".join(redact(url) for url in (plan.storage, plan.kept) if url)
        raise RunError(
            f"{place.name(REPORT_FILE)} tells of finished cells, and none is in {where}: start the suite in the folder "
            "that storage and keep are relative to, or remove that report"
        )


def labels_of(plan: Plan) -> dict[str, str]:
    """The entries of the main tables, with their names for people."""
    return {entry.name: entry.label or entry.name for entry in plan.suite.entries}


def _markdown(
    results: Results,
    found: Sequence[Found],
    pictures: dict[str, str],
    labels: dict[str, str],
    records: Sequence[Record],
    command: str,
) -> str:
    suite = results.plan.suite
    lines = [f"# {suite.name}", ""]
    lines += [suite.about.strip(), ""] if suite.about else []
    lines += [f"Made by `{command}` from the runs' own files; not edited by hand.", ""]
    lines += _where(results, records)
    if found:
        lines += ["## Figures", "", *_figures(found), ""]
    for data in suite.data:
        lines += [f"## {data.name}", "", *_data(results, data.name), ""]
        tables = score_tables(results, data.name, labels)
        if not tables:
            lines += ["Nothing is finished yet.", ""]
            continue
        for title, rows in tables.items():
            lines += [f"### {title}", "", *rows, ""]
        if data.name in pictures:
            lines += [f"![{data.name}]({pictures[data.name]})", ""]
        for title, rows in {
            "Ensembles (the seeds' probabilities averaged)": ensemble_table(results, data.name, labels),
            "What parts are worth": _worth(ablation_table(results, data.name, labels)),
            "Experts and missing sets": expert_table(results, data.name),
        }.items():
            lines += [f"### {title}", "", *rows, ""] if rows else []
    lines += ["## Durations", "", *_durations(results, labels), ""]
    return "\n".join(lines).rstrip() + "\n"


def _where(results: Results, records: Sequence[Record]) -> list[str]:
    total, done = len(results.plan.cells), len(results.finished)
    lines = [f"{done} of {total} cells are finished."]
    if records:
        days = sorted({_day(record.finished) for record in records})
        seconds = sum(record.seconds for record in records)
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        lines[0] += f" They took {duration(seconds)} one after the other, {when}; so many run at a time as have cores."
        for text in dict.fromkeys(_machine(record.machine) for record in records):
            lines += ["", f"Machine: {text}."]
    resamples = results.plan.suite.resamples
    lines += [
        "",
        "A number is the mean over seeds (and folds, and the draws of what is missing) and, after ±, the standard "
        f"deviation over the seeds. Intervals hold the middle 95 % of {resamples:,} resamples of the test subjects, "
        "the same for all models of a data set. Each cell chose its weights, penalties and trees on validation data.",
        "",
    ]
    return lines


def _data(results: Results, name: str) -> list[str]:
    data = results.plan.data(name)
    cells = [item for item in results.finished.values() if item.cell.data == name and item.cell.scored]
    if not cells:
        return []
    folds = {item.cell.fold: item for item in cells}
    samples = sum(item.evaluation.samples for item in folds.values())
    split = "one fixed split" if data.folds is None else f"{len(folds)} of {data.folds} folds by subject"
    modalities = cells[0].tested["modalities"]
    return [
        f"{samples:,} test samples of {results.subjects(name):,} subjects, {split}; "
        f"{len(modalities)} modalities: {', '.join(modalities)}."
    ]


def _figures(found: Sequence[Found]) -> list[str]:
    rows = []
    for item in found:
        row, figure = item.row, item.figure
        if row is None:
            rows.append([figure.name, "", item.said or "not finished", ""])
            continue
        shown = "g" if figure.count is not None else ".3f"
        reach = "none" if row.reach is None else f"{'less than' if item.strict else row.sense} {row.reach:{shown}}"
        reach += f" ({item.said})" if item.said else ""
        reach += "" if item.aim is None else f"; aim {item.aim:.3g}"
        holds = "" if row.holds is None else "yes" if row.holds else "**no**"
        rows.append([figure.name, reach, f"{row.value:{shown}} {row.unit}".strip(), holds])
    lines = table(["figure", "reach", "measured", "reached"], rows)
    missed = [item.figure for item in found if item.row is not None and item.row.holds is False]
    whys = [f"* {figure.name}: {' '.join((figure.why or 'no reason is given.').split())}" for figure in missed]
    return [*lines, "", "Not reached:", "", *whys] if whys else lines


def _worth(rows: list[str]) -> list[str]:
    said = "Worth: the model that was changed, less the changed one. Above 0 the change costs, below 0 it gains."
    return [said, "", *rows] if rows else []


def _durations(results: Results, labels: dict[str, str]) -> list[str]:
    rows, whole = [], 0.0
    for data in results.plan.suite.data:
        for entry in dict.fromkeys(cell.entry for cell in results.plan.cells if cell.data == data.name):
            cells = [results.finished.get(cell.name) for cell in results.plan.cells_of(entry, data.name)]
            taken = [item.record.seconds for item in cells if item is not None and item.record is not None]
            if taken:
                mean = duration(sum(taken) / len(taken))
                rows.append([data.name, labels.get(entry, entry), str(len(taken)), mean, duration(sum(taken))])
                whole += sum(taken)
    return table(["data set", "entry", "cells", "a cell", "all"], [*rows, ["all", "", "", "", duration(whole)]])


def _rows(plan: Plan, found: Sequence[Found], records: Sequence[Record]) -> dict[str, Any]:
    newest = max(records, key=lambda record: record.finished, default=None)
    machine = {} if newest is None else newest.machine | {"date": _time(newest.finished).isoformat(timespec="seconds")}
    notes = [f"{item.said or 'not finished'}: {item.figure.name}" for item in found if item.row is None]
    rows = [item.to_json() for item in found if item.row is not None]
    return {"benchmark": plan.suite.name, "machine": machine, "notes": notes, "rows": rows}


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    gpu = f", {machine['gpu']}" if "gpu" in machine else ""
    return f"{machine['processor']}, {machine['cores']} cores{gpu}, {machine['system']}; {versions}"


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _day(seconds: float) -> str:
    return _time(seconds).date().isoformat()
