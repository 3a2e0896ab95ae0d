"""Run cells as jobs, some at a time, until they are done, have failed, or the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from maestro_dist.data.storage import Storage
from maestro_dist.errors import MaestroError
from suite.archive import LOG_FILE, RESULT_FILE, Archive, Record, settings_digest
from suite.jobs import Jobs
from suite.matrix import Cell

_POLL_S = 0.5
_NOTE_S = 15.0  # how often the duration of a running cell is written: a killed suite keeps it
_TAIL = 12


@dataclass
class Outcome:
    """Names of cells by how they ended.

    again   done, but other cells need their run, of which only the kept results are left
    failed  with the reason: the last lines of the job's log
    left    with the cell that they need and that is not finished; "" where the time was over
    """

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


def sort_out(archive: Archive, cells: Sequence[Cell]) -> tuple[Outcome, list[Cell]]:
    """The chosen cells that need no job (done, failed or left), and the cells to run in their order."""
    outcome, chosen, names = Outcome(), set[str](), {cell.name for cell in cells}
    by_name = {cell.name: cell for cell in archive.plan.cells}
    needed: set[str] = set()
    for cell in reversed(archive.plan.cells):  # a cell comes after those that it needs
        # where only results are kept, but a chosen cell needs the run, it runs again
        again = cell.name in needed and not archive.has_run(cell) and archive.is_done(cell)
        if not again and cell.name not in names:
            continue
        if not again and archive.is_done(cell):
            outcome.done.append(cell.name)
        elif refused := _refused(archive, cell):
            outcome.failed[cell.name] = refused
        else:
            chosen.add(cell.name)
            needed |= set(cell.needs.values())
            outcome.again += [cell.name] if again else []
    outcome.done.reverse()
    waiting = [by_name[name] for name in by_name if name in chosen]
    leave_behind(waiting, outcome, finished_needs(archive, waiting, outcome))
    return outcome, waiting


def _refused(archive: Archive, cell: Cell) -> str:
    """Why a cell cannot run in its folder; "" where it can."""
    run = archive.run(cell)
    begun = cell.kind == "maestro" or run.exists(RESULT_FILE)  # an unfinished baseline starts anew
    changed = archive.changes(cell) if begun else []
    text = f"{run.name()} was begun with other settings: {'; '.join(changed)}; "
    return text + "rename the model, or remove that folder" if changed else ""


def finished_needs(archive: Archive, cells: Sequence[Cell], outcome: Outcome) -> set[str]:
    """Names of all finished cells that these may need."""
    needed = {name for cell in cells for name in cell.needs.values()}
    needed -= {*(cell.name for cell in cells), *outcome.done, *outcome.failed}
    return {cell.name for cell in archive.plan.cells if cell.name in needed and archive.has_run(cell)} | {*outcome.done}


def leave_behind(cells: list[Cell], outcome: Outcome, finished: set[str]) -> list[Cell]:
    """Move cells to `outcome.left` that need a cell which is neither finished nor among them. Returns these."""
    left = []
    for cell in [cell for cell in cells if cell.needs]:  # in order: needed cells come first
        coming = finished | {other.name for other in cells}
        missing = next((name for name in cell.needs.values() if name not in coming), None)
        if missing is not None:
            state = "has failed" if missing in outcome.failed else "is not finished"
            outcome.left[cell.name] = f"it needs {missing}, which {state}"
            cells.remove(cell)
            left.append(cell)
    return left


class Worker:
    """Runs cells and notes in `outcome` how they end."""

    def __init__(
        self, archive: Archive, jobs: Jobs, outcome: Outcome, cells: Sequence[Cell], say: Callable[[str], None]
    ) -> None:
        self.archive, self.jobs, self.outcome, self.say = archive, jobs, outcome, say
        self.waiting = list(cells)
        self.total = len(cells) + len(outcome.done)
        self.running: list[_Running] = []
        self.finished = finished_needs(archive, cells, outcome)

    def work(self, parallel: int, cpus: int, deadline: float | None) -> None:
        """Run all cells.

        At most `parallel` run at a time, with at most `cpus` cores together (one cell always may run). A cell waits for
        those that it needs, and is left where they fail. At `deadline` (`time.monotonic`) running cells are stopped;
        they continue when the suite starts again.
        """
        try:
            self._adopt()
            while (self.waiting or self.running) and (deadline is None or time.monotonic() < deadline):
                done = self.finished | {*self.outcome.done}
                for cell in leave_behind(self.waiting, self.outcome, done | {item.cell.name for item in self.running}):
                    self.say(f"{cell.name} is left: {self.outcome.left[cell.name]}")
                for cell in [cell for cell in self.waiting if done.issuperset(cell.needs.values())]:
                    busy = sum(item.cell.cpus for item in self.running)
                    if self.running and (len(self.running) >= parallel or busy + cell.cpus > cpus):
                        break
                    self.waiting.remove(cell)
                    self._start(cell)
                self._look()
                time.sleep(_POLL_S)
            if self.running:
                self.say("the time is over; running cells are stopped and continue when the suite starts again")
        finally:  # also when a person stops the suite
            names = [*(item.cell.name for item in self.running), *(cell.name for cell in self.waiting)]
            self.outcome.left |= dict.fromkeys(names, "")
            self.jobs.stop([item.job for item in self.running])
            for item in self.running:
                self._note(item, "stopped")

    def _adopt(self) -> None:
        """Continue with jobs of an earlier start that still run; stop those with other settings."""
        jobs = self.jobs.running()
        for cell in [cell for cell in self.waiting if cell.name in jobs]:
            job, settings = jobs[cell.name]
            if settings != settings_digest(cell):
                self.say(f"{cell.name} still runs with other settings; that job is stopped")
                self.jobs.stop([job])
                continue
            self.waiting.remove(cell)
            self._watch(cell, job, "continues")

    def _start(self, cell: Cell) -> None:
        try:
            self._watch(cell, self.jobs.submit(cell), "starts")
        except MaestroError as error:
            self._failed(cell, str(error))

    def _watch(self, cell: Cell, job: str, verb: str) -> None:
        now = time.monotonic()
        self.running.append(_Running(cell, job, self.archive.begin_attempt(cell), now, now))
        self.say(f"{cell.name} {verb}: {cell.command}")

    def _look(self) -> None:
        """Note the state of running cells."""
        for item in list(self.running):
            status = self.jobs.status(item.job)
            if status in ("PENDING", "RUNNING"):
                if time.monotonic() - item.noted > _NOTE_S:
                    item.noted = time.monotonic()
                    self._note(item, "running")
                continue
            self.running.remove(item)
            self._note(item, status.lower())
            log, run = self.jobs.log(item.job), self.archive.run(item.cell)
            run.write(LOG_FILE, log.encode())
            if self.archive.has_run(item.cell):
                self.outcome.done.append(item.cell.name)
                count = f"{len(self.outcome.done)} of {self.total}"
                self.say(f"{item.cell.name} done in {time.monotonic() - item.since:,.0f} s ({count})")
            else:
                self._failed(item.cell, _tail(log, run) or self.jobs.reason(item.job))

    def _note(self, item: _Running, status: str) -> None:
        item.record.attempts[-1] |= {"seconds": round(time.monotonic() - item.since, 1), "status": status}
        item.record.write(self.archive.run(item.cell))

    def _failed(self, cell: Cell, reason: str) -> None:
        self.outcome.failed[cell.name] = reason
        self.say(f"{cell.name} FAILED: {reason.splitlines()[-1] if reason else 'no message'}")


def _tail(log: str, run: Storage) -> str:
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    return "\n".join([*lines[-_TAIL:], f"(whole log: {run.name(LOG_FILE)})"]) if lines else ""
