"""Run a table of models x data sets x missing rates as Ray jobs: `python tools/run_suite.py SUITE [key=value ...]`.

Each (entry, data set, fold, seed) is one cell, a job of its own: `python -m maestro_dist.train ...` or
`python -m benchmarks.baselines ...`. A cell whose result is there is done; a suite that was stopped or killed goes on
where it was. At the end RESULTS.md, results.json and results/ are written from what the cells left (`--report`: only
that). Exit code: 0 all chosen cells are done, 1 some failed, 3 the time was over, or a cell needs one that is not done.
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

# it starts as a file and as a module, from any folder, with the package that lies beside it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[0]))

from suite.cells import Cell, select
from suite.collect import collect, keep
from suite.plan import Plan, load_plan, sources
from suite.record import changes, is_done, read_record, result_of, run_of
from suite.report import REPORT_FILE, check_loss, check_place, write_report

from maestro_dist.data.storage import redact
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
    parser.add_argument("suite", metavar="SUITE", help="YAML file (see tools/suite/schema.py)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the suite")
    parser.add_argument("--address", metavar="URL", help="job server of a cluster; by default a head node of its own")
    parser.add_argument("--parallel", type=int, metavar="N", help="cells at a time; by default as many as have CPUs")
    parser.add_argument("--only", nargs="+", default=[], metavar="GLOB", help="cells whose name fits: 'uci_hapt.*'")
    parser.add_argument("--stage", type=int, metavar="N", help="cells of one stage; each takes 100 minutes at most")
    parser.add_argument("--hours", type=float, metavar="H", help="stop after this time, to go on later")
    parser.add_argument("--out", default=".", metavar="DIR", help="where the report goes (default: here)")
    parser.add_argument("--list", action="store_true", help="show the cells and what is done; run nothing")
    parser.add_argument("--report", action="store_true", help="write the report; run nothing")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors and debug messages")
    given = parser.parse_args(arguments)
    if given.parallel is not None and given.parallel < 1:
        parser.error("--parallel is at least 1")
    if given.hours is not None and given.hours <= 0:
        parser.error("--hours is more than 0")
    return given


def _run(given: argparse.Namespace) -> int:
    plan = load_plan(given.suite, given.overrides)
    if not given.list:
        check_place(plan, given.out)
    if given.report:
        _report(plan, given)
        return 0
    cells = select(plan.cells, given.only, given.stage)
    if given.list:
        _list(plan, cells)
        return 0
    hours = given.hours or (_STAGE_HOURS if given.stage is not None else None)
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    lease = Lease(plan.storage, otherwise="storage")  # two suites would pack, fit and report the same
    try:
        try:
            with interruptible():
                code = _work(plan, cells, given, deadline)
        except BaseException:  # also where a person has stopped it, or the job server is gone
            try:
                _report(plan, given)
            except MaestroError as error:  # raised, it would hide why the suite has ended
                print(f"no report: {error}", file=sys.stderr, flush=True)
            raise
        _report(plan, given)
        return code
    finally:
        with shielded():
            lease.release()


def _work(plan: Plan, cells: Sequence[Cell], given: argparse.Namespace, deadline: float | None) -> int:
    from suite.jobs import Jobs, cluster_cores, head, snapshot
    from suite.work import sort_out, work

    from maestro_dist.tracking.run import check_server

    started = time.monotonic()
    outcome, todo = sort_out(plan, cells)
    _say(f"{plan.suite.name}: {len(cells)} cells chosen, {len(outcome.done)} done, in {redact(plan.storage)}")
    if outcome.again:
        _say(f"run again, as others begin with their runs, which are gone: {', '.join(outcome.again)}")
    unpacked = _pack(plan, todo)
    outcome.failed |= {cell.name: unpacked[cell.url] for cell in todo if cell.url in unpacked}
    todo = [cell for cell in todo if cell.url not in unpacked]
    if todo:
        cpus = cluster_cores(given.address)
        with contextlib.ExitStack() as stack:
            code = stack.enter_context(snapshot(todo))
            # This makes the database once, before several cells would at a time; a dead server is told before all fail.
            track = partial(check_server, plan.tracking, plan.experiment)
            if given.address:
                track()
            address = given.address or stack.enter_context(head(cpus, track))
            jobs = Jobs(address, plan.storage, code)
            parallel = given.parallel or cpus
            work(plan, todo, jobs, outcome, parallel=parallel, cpus=cpus, deadline=deadline, say=_say)
    for name, why in outcome.failed.items():
        print(f"\n{name} failed:\n  " + "\n  ".join(why.splitlines()), file=sys.stderr, flush=True)
    for name, why in outcome.left.items():
        if why:
            print(f"\n{name} is left: {why}", file=sys.stderr, flush=True)
    _say(
        f"{len(outcome.done)} done, {len(outcome.failed)} failed, {len(outcome.left)} left "
        f"after {(time.monotonic() - started) / 60:.1f} minutes"
    )
    return 1 if outcome.failed else 3 if outcome.left else 0


def _pack(plan: Plan, cells: Sequence[Cell]) -> dict[str, str]:
    """Pack what is not packed yet. Returns what went wrong, by URL: its cells cannot run."""
    from maestro_dist.data.prepare import prepare
    from maestro_dist.data.storage import Storage

    failed = {}
    for url, source in sources(plan, cells):
        if Storage(url).exists("manifest.json"):
            continue
        if source is None:
            failed[url] = f"{redact(url)}: no manifest there; pack the data set first, or name its source"
            continue
        _say(f"packing {source.path} ({source.converter}) to {redact(url)}")
        try:
            prepare(source, url)
        except MaestroError as error:
            failed[url] = str(error)
    return failed


def _list(plan: Plan, cells: Sequence[Cell]) -> None:
    width = max(len(cell.name) for cell in cells)
    done = 0
    for cell in cells:
        record = read_record(result_of(plan, cell) or run_of(plan, cell))
        if is_done(plan, cell):
            state, done = "done", done + 1
        elif changes(plan, cell):
            state = "other settings"
        else:
            state = "begun" if record else "-"
        taken = f"{record.seconds / 60:6.1f} min" if record else f"({cell.minutes:g} min)"
        print(f"{cell.stage:3}  {cell.name:{width}}  {state:14}  {taken}")
    print(f"{done} of {len(cells)} done; stages {cells[0].stage} to {cells[-1].stage}")


def _report(plan: Plan, given: argparse.Namespace) -> None:
    command = shlex.join(["python", "tools/run_suite.py", given.suite, *given.overrides, "--report"])
    results = collect(plan)
    for cell in plan.cells:
        if changes(plan, cell) and not is_done(plan, cell):
            print(f"warning: {cell.name} is not in the report: it was run with other settings", file=sys.stderr)
    check_loss(results, given.out)
    kept = keep(results)  # first: hours of work are in it
    if kept:
        _say(f"kept of {kept} cells what reports need, in {redact(plan.kept or '')}")
    write_report(results, given.out, command)
    _say(f"report: {given.out.rstrip('/')}/{REPORT_FILE}")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
