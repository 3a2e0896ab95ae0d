"""Run a table of models x data sets x missing rates as Ray jobs: `python tools/run_suite.py SUITE [key=value ...]`.

Each (model, data set, fold, seed) is one cell and one job: `python -m maestro_dist.train ...` or
`python -m benchmarks.baselines ...`. A finished cell is not run again; after a stop the same command continues. At the
end RESULTS.md, results.json and pictures are written (`--report`: only this). Exit code: 0 all chosen cells are done,
1 some failed, 3 the time is over, or a cell needs one that is not finished.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

# so that it starts as a file and as a module, from any folder
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[0]))

from benchmarks.common import cores
from suite.archive import Archive
from suite.collect import collect, keep
from suite.goals import GOALS
from suite.matrix import Cell, Plan, load_plan, select
from suite.report import REPORT_FILE, check_place, write_report

from maestro_dist.data.storage import Storage, redact
from maestro_dist.errors import MaestroError, run_main
from maestro_dist.run.lease import Lease
from maestro_dist.system.terminal import interruptible, never_fail_to_print, shielded

_STAGE_HOURS = 100 / 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    never_fail_to_print()
    given = _parse(arguments)
    return run_main(lambda: _run(given), debug=given.debug)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", metavar="SUITE", help="YAML file; tools/suite/schema.py describes its keys")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change keys: models.lightgbm.seeds=[5]")
    parser.add_argument("--address", metavar="URL", help="job server of a cluster; by default a local Ray is started")
    parser.add_argument("--parallel", type=int, metavar="N", help="cells at a time; by default as many as cores here")
    parser.add_argument("--only", nargs="+", default=[], metavar="GLOB", help="cells whose name matches: 'uci_hapt.*'")
    parser.add_argument("--stage", type=int, metavar="N", help="the cells of one stage; stops after 100 minutes")
    parser.add_argument("--hours", type=float, metavar="H", help="stop after this time; run again to continue")
    parser.add_argument("--out", metavar="DIR", help="folder of the report; by default the suite's results")
    parser.add_argument("--list", action="store_true", help="show the cells and which are done; run nothing")
    parser.add_argument("--report", action="store_true", help="write the report; run nothing")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    given = parser.parse_args(arguments)
    if given.parallel is not None and given.parallel < 1:
        parser.error("--parallel must be at least 1")
    if given.hours is not None and given.hours <= 0:
        parser.error("--hours must be more than 0")
    return given


def _run(given: argparse.Namespace) -> int:
    plan = load_plan(given.suite, given.overrides)
    given.out = given.out or plan.results or plan.storage
    cells = select(plan.cells, given.only, given.stage)
    if given.list:
        _list(plan, cells)
        return 0
    check_place(plan.suite.name, given.out)
    if given.report:
        _report(plan, given)
        return 0
    hours = given.hours or (_STAGE_HOURS if given.stage is not None else None)
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    lease = Lease(plan.storage, otherwise="storage")  # one suite at a time
    try:
        try:
            with interruptible():
                code = _work(plan, cells, given, deadline)
        except BaseException:  # also where a person stops it, or the job server is gone
            try:
                _report(plan, given)
            except MaestroError as error:  # the first error is the one to show
                print(f"no report: {error}", file=sys.stderr, flush=True)
            raise
        _report(plan, given)
        return code
    finally:
        with shielded():
            lease.release()


def _work(plan: Plan, cells: Sequence[Cell], given: argparse.Namespace, deadline: float | None) -> int:
    from suite.jobs import Jobs, head, snapshot
    from suite.work import Worker, sort_out

    from maestro_dist.tracking.run import check_server

    started, archive = time.monotonic(), Archive(plan)
    outcome, todo = sort_out(archive, cells)
    _say(f"{plan.suite.name}: {len(cells)} cells chosen, {len(outcome.done)} done, in {redact(plan.storage)}")
    if outcome.again:
        _say(f"run again, because other cells start from their runs, which are gone: {', '.join(outcome.again)}")
    unpacked = _pack(plan, todo)
    outcome.failed |= {cell.name: unpacked[cell.url] for cell in todo if cell.url in unpacked}
    todo = [cell for cell in todo if cell.url not in unpacked]
    if todo:
        cpus = 1 << 20 if given.address else cores()  # a cluster starts a job when its cores are free
        with contextlib.ExitStack() as stack:
            code = stack.enter_context(snapshot(todo))
            # creates the database once, before several cells do at the same time; fails early where no server answers
            track = partial(check_server, plan.tracking, plan.suite.experiment or plan.suite.name)
            if given.address:
                track()
            address = given.address or stack.enter_context(head(cpus, track))
            worker = Worker(archive, Jobs(address, plan.storage, code), outcome, todo, _say)
            worker.work(given.parallel or cores(), cpus, deadline)
    for name, reason in outcome.failed.items():
        print(f"\n{name} failed:\n  " + "\n  ".join(reason.splitlines()), file=sys.stderr, flush=True)
    for name, reason in outcome.left.items():
        if reason:
            print(f"\n{name} is left: {reason}", file=sys.stderr, flush=True)
    _say(
        f"{len(outcome.done)} done, {len(outcome.failed)} failed, {len(outcome.left)} left "
        f"after {(time.monotonic() - started) / 60:.1f} minutes"
    )
    return 1 if outcome.failed else 3 if outcome.left else 0


def _pack(plan: Plan, cells: Sequence[Cell]) -> dict[str, str]:
    """Pack the data sets that are not packed yet. Returns the errors by URL."""
    from maestro_dist.data.prepare import prepare

    failed = {}
    for url, source in plan.sources(cells).items():
        if Storage(url).exists("manifest.json"):
            continue
        if source is None:
            failed[url] = f"{redact(url)}: there is no manifest; pack the data set first, or set its source"
            continue
        _say(f"packing {source.path} ({source.converter}) to {redact(url)}")
        try:
            prepare(source, url)
        except MaestroError as error:
            failed[url] = str(error)
    return failed


def _list(plan: Plan, cells: Sequence[Cell]) -> None:
    archive, done = Archive(plan), 0
    width = max(len(cell.name) for cell in cells)
    for cell in cells:
        record = archive.record(cell) if archive.has_run(cell) else archive.kept_record(cell) or archive.record(cell)
        state = "begun" if record else "-"
        if archive.is_done(cell):
            state, done = "done", done + 1
        elif archive.changes(cell):
            state = "other settings"
        taken = f"{record.seconds / 60:6.1f} min" if record else f"({cell.minutes:g} min)"
        print(f"{cell.stage:3}  {cell.name:{width}}  {state:14}  {taken}")
    print(f"{done} of {len(cells)} done; stages {cells[0].stage} to {cells[-1].stage}")


def _report(plan: Plan, given: argparse.Namespace) -> None:
    command = shlex.join(["python", "tools/run_suite.py", given.suite, *given.overrides, "--report"])
    archive = Archive(plan)
    results = collect(archive)
    for cell in plan.cells:
        if archive.changes(cell) and not archive.is_done(cell):
            print(f"warning: {cell.name} is not in the report: its run has other settings", file=sys.stderr)
    kept = keep(archive, results)  # first: it holds hours of work
    if kept:
        _say(f"kept the results of {kept} cells in {redact(plan.results or '')}")
    write_report(results, GOALS.get(plan.suite.name, ()), given.out, command)
    _say(f"report: {given.out.rstrip('/')}/{REPORT_FILE}")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
