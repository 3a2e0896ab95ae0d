"""Ray's job server: that of a running cluster, or of a local head node that lives as long as the suite runs."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maestro_dist.errors import RunError
from suite.archive import settings_digest
from suite.matrix import ROOT, Cell

_START_S = 120.0
_NO_AGENT = "No available agent"  # the job server answers before its node is ready, on a busy machine
_AGAIN_S = 1.0
_OBJECT_STORE = 128 * 2**20  # bytes; nothing large goes through it
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_SILENCE_S = 60.0  # a busy server may miss some requests; one that is silent for a minute is gone
_STOP_WAIT_S = 20  # a stopped run writes its state and releases its lease
_TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


class Jobs:
    """Cells as jobs. A job's metadata has the cell's name, so that a restarted suite finds it."""

    def __init__(self, address: str, mark: str, code: Path) -> None:
        """`mark`: in the metadata of this suite's jobs; `code`: their working folder (`snapshot`).

        Raises RunError where no job server answers.
        """
        from ray.job_submission import JobSubmissionClient

        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        self._mark, self._code = mark, code
        self._silent: float | None = None  # since when the server has not answered
        try:
            self._client = JobSubmissionClient(address)
        except Exception as error:  # requests, ray and the resolver have their own classes
            raise RunError(f"no job server at {address}: {_line(error)}") from None

    def submit(self, cell: Cell) -> str:
        """Start a cell; returns the job's id."""
        variables = {"PYTHONPATH": "tools", "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}
        variables |= {} if cell.kind == "maestro" else _ONE_THREAD
        deadline = time.monotonic() + _START_S
        while True:
            try:
                return self._client.submit_job(
                    entrypoint=f"exec {cell.command}",  # no shell in between, which could die alone
                    submission_id=f"{cell.name}-{secrets.token_hex(4)}",
                    runtime_env={"working_dir": str(self._code), "env_vars": variables},
                    metadata={"suite": self._mark, "cell": cell.name, "settings": settings_digest(cell)},
                    entrypoint_num_cpus=cell.cpus if cell.inline else 0,
                )
            except Exception as error:
                if _NO_AGENT not in str(error) or time.monotonic() > deadline:
                    raise RunError(f"{cell.name}: cannot be submitted: {_line(error)}") from None
            time.sleep(_AGAIN_S)

    def running(self) -> dict[str, tuple[str, str]]:
        """Jobs of this suite that still run: by cell, the job's id and the cell's `settings_digest`."""
        found = {}
        try:
            jobs = self._client.list_jobs()
        except Exception as error:
            raise RunError(f"the job server does not list its jobs: {_line(error)}") from None
        for job in jobs:
            metadata: dict[str, Any] = job.metadata or {}
            if metadata.get("suite") == self._mark and not job.status.is_terminal() and job.submission_id:
                found[metadata["cell"]] = job.submission_id, metadata.get("settings", "")
        return found

    def status(self, job: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; RUNNING while the server does not answer.

        Raises RunError where it does not answer for a minute.
        """
        try:
            found = str(self._client.get_job_status(job).value)
        except Exception as error:  # requests, aiohttp and ray have their own classes
            now = time.monotonic()
            self._silent = now if self._silent is None else self._silent
            if now - self._silent > _SILENCE_S:
                raise RunError(f"the job server has not answered for {_SILENCE_S:.0f} s: {_line(error)}") from None
            return "RUNNING"
        self._silent = None
        return found

    def log(self, job: str) -> str:
        """What the job printed."""
        try:
            return str(self._client.get_job_logs(job))
        except Exception as error:
            return f"(no log: {_line(error)})"

    def reason(self, job: str) -> str:
        """Ray's message on how a job ended."""
        with contextlib.suppress(Exception):
            return " ".join(str(self._client.get_job_info(job).message or "").split())
        return ""

    def stop(self, jobs: list[str]) -> None:
        """Stop jobs and wait until they have ended."""
        for job in jobs:
            with contextlib.suppress(Exception):
                self._client.stop_job(job)
        deadline = time.monotonic() + _STOP_WAIT_S + 10
        while jobs and time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                jobs = [job for job in jobs if self.status(job) in ("PENDING", "RUNNING")]
            time.sleep(0.3)


@contextmanager
def snapshot(cells: Iterable[Cell]) -> Iterator[Path]:
    """A copy of the code for the jobs, so that edits while a suite runs do not change its cells."""
    with tempfile.TemporaryDirectory(prefix="suite-code-") as folder:
        for name in ("maestro_dist", "tools", "configs"):
            shutil.copytree(ROOT / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        for config in {cell.config for cell in cells if cell.config and not Path(cell.config).is_absolute()}:
            if "://" not in config and (ROOT / config).exists():
                (Path(folder) / config).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / config, Path(folder) / config)
        yield Path(folder)


@contextmanager
def head(parallel_cpus: int, meanwhile: Callable[[], object]) -> Iterator[str]:
    """A Ray head node on loopback for the time of the block; yields the address of its job server.

    It requires a token that only this process and its children have, and ends with this process. Ray must not be
    imported before, because it reads the token's variable then. `meanwhile` runs while the node starts.
    """
    with tempfile.TemporaryDirectory(prefix="suite-", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        os.environ.pop("RAY_ADDRESS", None)
        process, address = _started(parallel_cpus, folder)
        try:
            meanwhile()
            _wait(address, process, Path(folder) / "head.log")
            yield address
        finally:
            _end(process)


def _started(cpus: int, folder: str) -> tuple[subprocess.Popen[bytes], str]:
    bin_folder = Path(sys.executable).parent
    gcs, dashboard, client, agent, metrics = _free_ports(5)
    command = [str(bin_folder / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    command += [f"--num-cpus={cpus}", f"--object-store-memory={_OBJECT_STORE}", "--disable-usage-stats"]
    command += [f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--metrics-export-port={metrics}"]
    # A folder of its own: a job connects to the newest cluster of its temporary folder.
    command += [f"--temp-dir={folder}"]
    # The controller of Ray Train reads it from the environment of the cluster's processes.
    settings = {"TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "2", "PATH": f"{bin_folder}:{os.environ.get('PATH', '')}"}
    with open(Path(folder) / "head.log", "wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **settings},
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches this process only, which stops the jobs
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
    return process, f"http://127.0.0.1:{dashboard}"


def _die_with_parent() -> None:
    """Ray's reaper then ends all that the head node started, also the jobs, within seconds."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the job server answers."""
    from ray.job_submission import JobSubmissionClient

    deadline = time.monotonic() + _START_S
    while True:
        try:
            JobSubmissionClient(address).list_jobs()
            return
        except Exception as error:
            if process.poll() is not None or time.monotonic() > deadline:
                last = log.read_text(errors="replace").strip().splitlines()[-5:]
                raise RunError(f"the Ray head node did not start: {' | '.join(last) or _line(error)}") from None
        time.sleep(0.3)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it: its jobs have ended, and Ray's own shutdown takes half a minute."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        node = psutil.Process(process.pid)
        for child in [node, *node.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
