"""Run cells as jobs, some at a time, until they are done, have failed, or the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from maestro_dist.data.storage import Storage
from maestro_dist.errors import MaestroError
from suite.cells import Cell
from suite.jobs import Jobs
from suite.plan import Plan
from suite.record import (
    LOG_FILE,
    RESULT_FILE,
    Record,
    begin_attempt,
    changes,
    has_run,
    is_done,
    run_of,
    settings_digest,
    write_record,
)

_POLL_S = 0.5
_NOTE_S = 15.0  # between two notes of how long a cell has run: what a killed suite knows of it
_TAIL = 12


@dataclass
class Outcome:
    """Cells by how they ended; of those that failed, why, with the last lines of the job's log; of those that were
    left, what they need that is not there ("" where the time was over). `again`: those that had a result, but whose run
    others need, chosen or not."""

    done: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


@dataclass
class _Running:
    cell: Cell
    job: str
    record: Record
    since: float
    noted: float


def sort_out(plan: Plan, cells: Sequence[Cell]) -> tuple[Outcome, list[Cell]]:
    """What is done already, cannot be what the suite asks for, or needs what is not there; and what is to be run."""
    outcome, chosen = Outcome(), set()
    for cell in cells:
        if is_done(plan, cell):
            outcome.done.append(cell.name)
        elif refused := _refused(plan, cell):
            outcome.failed[cell.name] = refused
        else:
            chosen.add(cell.name)
    _add_needed(plan, chosen, outcome)
    waiting = [cell for cell in plan.cells if cell.name in chosen]
    there = needed_before(plan, waiting, outcome)
    leave_behind(waiting, outcome, there)
    return outcome, waiting


def _refused(plan: Plan, cell: Cell) -> str:
    """Why a cell cannot be run where its run would lie; "" where it can."""
    run = run_of(plan, cell)
    begun = cell.kind == "maestro" or run.exists(RESULT_FILE)  # a baseline that has no result begins anew
    changed = changes(plan, cell) if begun else []
    said = f"{run.name()} was begun with other settings: {'; '.join(changed)}; "
    return said + "give the entry another name, or remove that folder" if changed else ""


def _add_needed(plan: Plan, chosen: set[str], outcome: Outcome) -> None:
    """Choose what chosen cells need, and has a result of which only what reports need was kept: it is run again."""
    by_name = {cell.name: cell for cell in plan.cells}
    looked_at = [cell.name for cell in plan.cells if cell.name in chosen]
    for name in looked_at:  # which grows: what is needed may need others
        for other in (by_name[need] for need in by_name[name].needs.values()):
            if other.name in chosen or has_run(plan, other) or not is_done(plan, other):
                continue
            if other.name in outcome.done:
                outcome.done.remove(other.name)
            if refused := _refused(plan, other):
                outcome.failed[other.name] = refused
                continue
            outcome.again.append(other.name)
            chosen.add(other.name)
            looked_at.append(other.name)


def needed_before(plan: Plan, cells: Sequence[Cell], outcome: Outcome) -> set[str]:
    """Of what these cells need and nobody has chosen, what is done."""
    chosen = {*(cell.name for cell in cells), *outcome.done, *outcome.failed}
    others = {name for cell in cells for name in cell.needs.values()} - chosen
    done = {cell.name for cell in plan.cells if cell.name in others and has_run(plan, cell)}
    return done | set(outcome.done)


def leave_behind(cells: list[Cell], outcome: Outcome, there: set[str]) -> list[Cell]:
    """Take out the cells that need what is not `there` and not among them; `outcome` says why. Returns them."""
    left = []
    for cell in [cell for cell in cells if cell.needs]:  # in their order: what a needed one needs is seen first
        coming = there | {other.name for other in cells}
        missing = next((name for name in cell.needs.values() if name not in coming), None)
        if missing is not None:
            state = "has failed" if missing in outcome.failed else "is not finished"
            outcome.left[cell.name] = f"it needs {missing}, which {state}"
            cells.remove(cell)
            left.append(cell)
    return left


def work(
    plan: Plan,
    cells: Sequence[Cell],
    jobs: Jobs,
    outcome: Outcome,
    *,
    parallel: int,
    cpus: int,
    deadline: float | None,
    say: Callable[[str], None],
) -> None:
    """Run cells, and note in `outcome` how they end.

    At most `parallel` run at a time, and no more than have `cpus` cores together (one does always). A cell waits for
    those that it needs; it is left where they have failed, or are neither done nor to be run. Cells that run at
    `deadline` (on `time.monotonic`) are stopped, and go on when the suite is started again.
    """
    waiting = list(cells)
    worker = _Worker(plan, cells, jobs, outcome, say)
    try:
        worker.adopt(waiting)
        while (waiting or worker.running) and (deadline is None or time.monotonic() < deadline):
            worker.leave(waiting)
            while (cell := worker.ready(waiting)) is not None and worker.has_room(cell, parallel, cpus):
                waiting.remove(cell)
                worker.start(cell)
            worker.look()
            time.sleep(_POLL_S)
        if worker.running:
            say("the time is over; what runs is stopped, and goes on when the suite is started again")
    finally:  # also when a person stops the suite
        outcome.left |= dict.fromkeys(
            [*(item.cell.name for item in worker.running), *(cell.name for cell in waiting)], ""
        )
        worker.stop()


class _Worker:
    def __init__(
        self, plan: Plan, cells: Sequence[Cell], jobs: Jobs, outcome: Outcome, say: Callable[[str], None]
    ) -> None:
        self.plan, self.jobs, self.outcome, self.say = plan, jobs, outcome, say
        self.total = len(cells) + len(outcome.done)
        self.running: list[_Running] = []
        self.before = needed_before(plan, cells, outcome)

    def adopt(self, waiting: list[Cell]) -> None:
        """Take over jobs that an earlier start of the suite has left on a cluster; stop those with other settings."""
        jobs = self.jobs.running()
        for cell in [cell for cell in waiting if cell.name in jobs]:
            job, settings = jobs[cell.name]
            if settings != settings_digest(cell):
                self.say(f"{cell.name} still runs with other settings; that job is stopped")
                self.jobs.stop([job])
                continue
            waiting.remove(cell)
            self._watch(cell, job, "goes on")

    def leave(self, waiting: list[Cell]) -> None:
        """Take out the cells whose needs will not be there."""
        running = {item.cell.name for item in self.running}
        for cell in leave_behind(waiting, self.outcome, running | self.before | set(self.outcome.done)):
            self.say(f"{cell.name} is left: {self.outcome.left[cell.name]}")

    def ready(self, waiting: Sequence[Cell]) -> Cell | None:
        """The first cell whose needs are there."""
        return next((cell for cell in waiting if all(map(self._is_there, cell.needs.values()))), None)

    def _is_there(self, name: str) -> bool:
        return name in self.before or name in self.outcome.done

    def has_room(self, cell: Cell, parallel: int, cpus: int) -> bool:
        busy = sum(item.cell.cpus for item in self.running)
        return not self.running or (len(self.running) < parallel and busy + cell.cpus <= cpus)

    def start(self, cell: Cell) -> None:
        try:
            self._watch(cell, self.jobs.submit(cell), "starts")
        except MaestroError as error:
            self._failed(cell, str(error))

    def _watch(self, cell: Cell, job: str, word: str) -> None:
        now = time.monotonic()
        self.running.append(_Running(cell, job, begin_attempt(self.plan, cell), now, now))
        self.say(f"{cell.name} {word}: {cell.command}")

    def look(self) -> None:
        """See to cells that have ended."""
        for item in list(self.running):
            status = self.jobs.status(item.job)
            if status in ("PENDING", "RUNNING"):
                if time.monotonic() - item.noted > _NOTE_S:
                    item.noted = time.monotonic()
                    self._note(item, "running")
                continue
            self.running.remove(item)
            self._note(item, status.lower())
            log = self.jobs.log(item.job)
            run = run_of(self.plan, item.cell)
            run.write(LOG_FILE, log.encode())
            if has_run(self.plan, item.cell):
                self.outcome.done.append(item.cell.name)
                count = f"{len(self.outcome.done)} of {self.total}"
                self.say(f"{item.cell.name} done in {time.monotonic() - item.since:,.0f} s ({count})")
            else:
                self._failed(item.cell, _tail(log, run) or self.jobs.why(item.job))

    def stop(self) -> None:
        """Stop what still runs."""
        self.jobs.stop([item.job for item in self.running])
        for item in self.running:
            self._note(item, "stopped")
        self.running = []

    def _note(self, item: _Running, status: str) -> None:
        item.record.attempts[-1] |= {"seconds": round(time.monotonic() - item.since, 1), "status": status}
        write_record(run_of(self.plan, item.cell), item.record)

    def _failed(self, cell: Cell, why: str) -> None:
        self.outcome.failed[cell.name] = why
        self.say(f"{cell.name} FAILED: {why.splitlines()[-1] if why else 'without a word'}")


def _tail(log: str, run: Storage) -> str:
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    return "\n".join([*lines[-_TAIL:], f"(all of it: {run.name(LOG_FILE)})"]) if lines else ""
