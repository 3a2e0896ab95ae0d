"""Run a table of models x data sets x missing rates as Ray jobs: `python tools/run_suite.py SUITE [key=value ...]`.

Each (model, data set, fold, seed) is one cell and one job: `python -m maestro_dist.train ...` or
`python -m benchmarks.baselines ...`. A finished cell is not run again; after a stop (Ctrl-C, SIGTERM) the same command
continues. At the end RESULTS.md, results.json and pictures are written (`--report`: only this). Exit code: 0 all chosen
cells are done, 1 some failed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

# so that it starts as a file and as a module, from any folder
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from suite.archive import Archive
from suite.collect import collect
from suite.goals import GOALS
from suite.matrix import Cell, Plan, load_plan, select
from suite.report import REPORT_FILE, write_report

from maestro_dist.config.paths import expand_home
from maestro_dist.data.storage import Storage, redact
from maestro_dist.errors import DataError, run_main
from maestro_dist.run.lease import Lease
from maestro_dist.system.terminal import shielded


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", metavar="SUITE", help="YAML file; tools/suite/schema.py describes its keys")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change keys: models.lightgbm.seeds=[5]")
    parser.add_argument("--only", nargs="+", default=[], metavar="GLOB", help="cells whose name matches: 'uci_hapt.*'")
    parser.add_argument("--out", metavar="DIR", help="folder of the report; by default the suite's results")
    parser.add_argument("--list", action="store_true", help="show the cells and which are done; run nothing")
    parser.add_argument("--report", action="store_true", help="write the report; run nothing")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    given = parser.parse_args(arguments)
    return run_main(lambda: _run(given), debug=given.debug)


def _run(given: argparse.Namespace) -> int:
    plan = load_plan(given.suite, given.overrides)
    cells = select(plan.cells, given.only)
    if given.list:
        archive = Archive(plan)
        done = {cell.name for cell in cells if archive.is_done(cell)}
        for cell in cells:
            state = "done" if cell.name in done else "other settings" if archive.changes(cell) else "-"
            print(f"{cell.name:45}  {state}")
        print(f"{len(done)} of {len(cells)} done")
        return 0
    if given.report:
        _report(plan, given)
        return 0
    lease = Lease(plan.storage, otherwise="storage")  # one suite at a time
    try:
        return _work(plan, cells)
    finally:  # also where a user stops it
        with shielded():
            lease.release()
        _report(plan, given)


def _work(plan: Plan, cells: Sequence[Cell]) -> int:
    from suite.jobs import cells_to_run, job_server, run_cells

    from maestro_dist.tracking.run import check_server

    archive, failed, skipped = Archive(plan), dict[str, str](), dict[str, str]()
    waiting, done = cells_to_run(archive, cells), sum(map(archive.is_done, cells))
    print(f"{plan.suite.name}: {len(cells)} cells chosen, {done} done, in {redact(plan.storage)}", flush=True)
    if waiting:
        _pack(waiting)
        with job_server() as jobs:
            # creates the database once, before several cells do at the same time
            check_server(plan.tracking, plan.suite.name)
            failed, skipped = run_cells(archive, jobs, waiting)
    for name, reason in failed.items():
        print(f"\n{name} failed:\n  " + "\n  ".join(reason.splitlines()), file=sys.stderr, flush=True)
    for name, reason in skipped.items():
        print(f"\n{name} is skipped: {reason}", file=sys.stderr, flush=True)
    print(f"{sum(map(archive.is_done, cells))} done, {len(failed)} failed, {len(skipped)} skipped", flush=True)
    return 1 if failed else 0


def _pack(cells: Sequence[Cell]) -> None:
    """Pack the data sets that are not packed yet. Raises MaestroError where this fails."""
    from maestro_dist.data.prepare import prepare

    for url, source in {cell.url: cell.source for cell in cells}.items():
        if Storage(url).exists("manifest.json"):
            continue
        if source is None:
            raise DataError(f"{redact(url)}: there is no manifest; pack the data set first, or set its source")
        print(f"packing {source.path} ({source.converter}) to {redact(url)}", flush=True)
        prepare(source.model_copy(update={"path": expand_home(source.path, "source.path")}), url)


def _report(plan: Plan, given: argparse.Namespace) -> None:
    out = given.out or plan.results or plan.storage
    archive = Archive(plan)
    results = collect(archive)
    archive.save()  # first: it holds hours of work
    command = shlex.join(["python", "tools/run_suite.py", given.suite, *given.overrides, "--report"])
    goals = GOALS[plan.suite.name](results) if plan.suite.name in GOALS else []
    write_report(results, goals, out, command)
    print(f"report: {out.rstrip('/')}/{REPORT_FILE}; results of {len(archive.new)} cells are new", flush=True)


if __name__ == "__main__":
    sys.exit(main())
