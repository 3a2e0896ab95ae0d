"""Cells as jobs of a local Ray, which lives as long as the suite runs."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import random
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.common import cores, python_path

from maestro_dist.errors import RunError
from suite.archive import LOG_FILE, Archive, Record
from suite.matrix import Cell

T = TypeVar("T")
_POLL_S = 1.0
_PATIENCE_S = 120.0  # the server needs time to start, and misses requests on a busy machine
_STOP_WAIT_S = 20  # a stopped run writes its state and releases its lease
_LAST_LINES = 12  # of a failed cell's log
_PORTS = range(28_000, 30_000)
"""Below those that systems give away: such a one may be taken in the seconds until Ray's servers start."""
_ENVIRONMENT = {
    "PYTHONPATH": python_path(),
    "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S),
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"),
}


class Jobs:
    """A Ray job server."""

    def __init__(self, address: str) -> None:
        """Waits until the server answers. Raises RunError where it does not within two minutes."""
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.ERROR)
        self._client = _retry(lambda: JobSubmissionClient(address))
        _retry(self._client.list_jobs)

    def submit(self, cell: Cell) -> str:
        """Start a cell in the current folder, on one thread where it does not set more; returns the job's id."""
        job, command = f"{cell.name}-{secrets.token_hex(4)}", shlex.join([sys.executable, "-m", *cell.command])
        line = f"cd {shlex.quote(os.getcwd())} && exec {command}"  # no shell that could die alone
        given: dict[str, Any] = {"submission_id": job, "runtime_env": {"env_vars": _ENVIRONMENT}}
        return _retry(lambda: self._client.submit_job(entrypoint=line, **given))

    def status(self, job: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        return str(_retry(lambda: self._client.get_job_status(job)).value)

    def log(self, job: str) -> str:
        """What the job printed, or Ray's message where it printed nothing."""
        with contextlib.suppress(Exception):
            return str(self._client.get_job_logs(job)).strip() or str(self._client.get_job_info(job).message)
        return "no log"

    def stop(self, jobs: Sequence[str]) -> None:
        """Stop jobs and wait until they have ended."""
        for job in jobs:
            with contextlib.suppress(Exception):
                self._client.stop_job(job)
        deadline = time.monotonic() + _STOP_WAIT_S + 10
        while jobs and time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                jobs = [job for job in jobs if not self._client.get_job_status(job).is_terminal()]
            time.sleep(0.3)


def cells_to_run(archive: Archive, cells: Sequence[Cell]) -> list[Cell]:
    """The chosen cells that have no result. Cells that they need, and that have no finished run, come first.

    Raises RunError where one of them has a run of other settings.
    """
    wanted, found = {cell.name for cell in cells if not archive.is_done(cell)}, []
    for cell in reversed(archive.plan.cells):  # a cell comes after those that it needs
        if cell.name in wanted and not archive.has_run(cell):
            if changed := archive.changes(cell):
                said = f"{archive.run(cell).name()} was begun with other settings: {'; '.join(changed)}"
                raise RunError(f"{said}; rename the model, or remove that folder")
            wanted |= {*cell.needs.values()}
            found.append(cell)
    return found[::-1]


def run_cells(archive: Archive, jobs: Jobs, cells: Sequence[Cell]) -> tuple[dict[str, str], dict[str, str]]:
    """Run cells, as many at a time as there are cores. A cell waits for those that it needs, and is skipped
    if they fail.

    Where a user stops the suite, running cells are stopped; they continue when it starts again.

    Returns:
        By name, failed cells with the last lines of the log, and skipped cells with the reason.
    """
    failed, skipped, waiting = dict[str, str](), dict[str, str](), list(cells)
    running: dict[str, tuple[Cell, Record]] = {}
    try:
        while waiting or running:
            unfinished = {cell.name for cell in waiting} | {cell.name for cell, _ in running.values()}
            for cell in list(waiting):
                bad = [need for need in cell.needs.values() if need in {**failed, **skipped}]
                free = cores() - sum(other.cpus for other, _ in running.values())
                if bad:
                    waiting.remove(cell)
                    skipped[cell.name] = f"it needs {bad[0]}, which has failed"
                elif unfinished.isdisjoint(cell.needs.values()) and (cell.cpus <= free or not running):
                    waiting.remove(cell)
                    print(f"{cell.name} starts: python -m {' '.join(cell.command)}", flush=True)
                    record = archive.begin_attempt(cell)
                    running[jobs.submit(cell)] = cell, record
            time.sleep(_POLL_S)
            for job, (cell, record) in list(running.items()):
                run, status = archive.run(cell), jobs.status(job)
                record.write(run, status.lower())
                if status in ("PENDING", "RUNNING"):
                    continue
                del running[job]
                log = jobs.log(job)
                run.write(LOG_FILE, f"{log}\n".encode())
                if not archive.has_run(cell):
                    last = [*log.splitlines()[-_LAST_LINES:], f"(whole log: {run.name(LOG_FILE)})"]
                    failed[cell.name] = "\n".join(last)
                done = len(cells) - len(waiting) - len(running) - len(failed) - len(skipped)
                print(f"{cell.name} {'FAILED' if cell.name in failed else 'done'}", flush=True)
                print(f"{done} done, {len(failed)} failed, of {len(cells)}", flush=True)
    finally:
        jobs.stop(list(running))
        for cell, record in running.values():
            record.write(archive.run(cell), "stopped")
    return failed, skipped


@contextmanager
def job_server() -> Iterator[Jobs]:
    """A Ray head node on loopback for the time of the block.

    It requires a token that only this process and its children have, and ends with this process. Ray must not be
    imported before, because it reads the token's variable then.
    """
    with tempfile.TemporaryDirectory(prefix="suite-", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "token"  # only this user can read the folder
        token.write_text(secrets.token_hex(32))
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        os.environ |= {"TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "2"}  # for the controller of Ray Train
        os.environ.pop("RAY_ADDRESS", None)
        dashboard, client = _free_port(_PORTS[:1000]), _free_port(_PORTS[1000:])
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--num-cpus={cores()}"]
        command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        # Not Ray's usual ports, which another Ray on this machine may have; 0: Ray chooses.
        command += ["--port=0", "--dashboard-agent-listen-port=0", f"--ray-client-server-port={client}"]
        # A folder of its own: a job connects to the newest cluster of its temporary folder.
        command += [f"--temp-dir={folder}", f"--object-store-memory={2**27}"]
        dies, log = _die_with_parent if sys.platform == "linux" else None, Path(folder) / "head.log"
        with log.open("w") as said:
            # In a session of its own: Ctrl-C reaches this process only, which stops the jobs.
            process = subprocess.Popen(
                command, cwd=folder, stdout=said, stderr=said, start_new_session=True, preexec_fn=dies
            )
        try:
            yield Jobs(f"http://127.0.0.1:{dashboard}")
        except RunError as error:
            if process.poll() is None:
                raise
            last = "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
            raise RunError(f"{error}; Ray's head node has ended with {process.returncode}:\n{last}") from None
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its jobs have ended, and Ray's own end takes half a minute
            process.wait()


def _free_port(ports: Sequence[int]) -> int:
    """One of `ports` that nobody has. Raises RunError where all are in use."""
    for port in random.SystemRandom().sample(ports, len(ports)):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise RunError(f"ports {ports[0]} to {ports[-1]} are all in use")


def _die_with_parent() -> None:
    """Kill the head node when this process dies; Ray's reaper then ends all that it started, also the jobs."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _retry(call: Callable[[], T]) -> T:
    """Call until it works. Raises RunError where it does not for two minutes."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return call()
        except Exception as error:  # requests, aiohttp, ray and the resolver have their own classes
            if time.monotonic() > deadline:
                raise RunError(f"the job server does not answer: {' '.join(str(error).split())[:300]}") from None
        time.sleep(1.0)
