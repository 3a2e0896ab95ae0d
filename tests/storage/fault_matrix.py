"""Real runs on a real S3 server with one fault each: the same weights as without it, or an error that names the object.

The tests take some cells of the matrix. Any cells run as a script, one after the other, a line of JSON each:

    PYTHONPATH=.:tools:tests python tests/storage/fault_matrix.py --faults 503 --objects shards index --seconds once 20
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import runs
import synthetic
from benchmarks.fault_proxy import FaultProxy, Rule
from benchmarks.s3_server import KEY, SECRET, s3_server

from maestro_dist.data.storage import Storage

OBJECTS: dict[str, tuple[str, str]] = {
    "shards": ("GET", r"/packed/[^?]*\.tar"),
    "index": ("GET", r"/packed/[^?]*\.index"),
    "manifest": ("GET", r"/packed/manifest\.json"),
    "listing": ("GET", r"list-type=2"),
    "checkpoint read": ("GET", r"/checkpoints/step[^?]*\.(json|safetensors)"),
    "checkpoint record read": ("GET", r"/checkpoints/step[^?]*\.json"),
    "checkpoint part read": ("GET", r"/checkpoints/step[^?]*\.safetensors"),
    "checkpoint write": ("PUT", r"/checkpoints/"),
    "lease read": ("GET", r"/leases/[^?]"),
    "lease write": ("PUT", r"/leases/"),
    "record read": ("GET", r"/run\.json"),
    "record write": ("PUT", r"/run\.json"),
    "export": ("PUT", r"/(model/|result\.json|predictions\.npz)"),
    "removal": ("POST|DELETE", ""),
    "all": (".*", ""),
}
"""What a fault can hit: regular expressions of a request's method and target."""

FAULTS: dict[str, dict[str, Any]] = {
    "503": {"fault": "status", "status": 503},
    "500": {"fault": "status", "status": 500},
    "403": {"fault": "status", "status": 403},
    "404": {"fault": "status", "status": 404},
    "refused": {"fault": "refuse"},
    "lost answer": {"fault": "lose"},
    "reset": {"fault": "reset", "at": 150},
    "truncated": {"fault": "truncate", "at": 150},
    "stall": {"fault": "stall", "at": 150, "stall_s": 600.0},
    "wrong byte": {"fault": "flip", "at": 150},
    "latency": {"latency_s": 3.0},
}
OF_BODIES = {"reset", "truncated", "stall", "wrong byte"}  # the answer to a write has no body
EPOCHS, STEPS, HALF = 2, 14, 7
TINY = [f"optim.epochs={EPOCHS}", "evaluation.rates=[0]", "evaluation.test_rates=[0]", "evaluation.draws=[0]"]
_NAMED = re.compile(r"s3://\S+")
_SLACK_S = 240  # of a run without a fault, on a busy machine


@dataclass(frozen=True)
class Cell:
    """One run.

    seconds   how long the fault lasts from the first request that it hits; None: it hits one request
    after     how many requests that it could hit pass unharmed first
    moment    start: a new run; resume: a run whose driver was killed after half of its steps
    workers   0: inline, in the driver's process
    patience  `run.storage_patience_s`; `timeout`: `run.timeout_s`
    """

    fault: str
    object: str
    seconds: float | None = None
    after: int = 0
    moment: str = "start"
    workers: int = 0
    readers: int = 0
    patience: int = 300
    timeout: int = 300

    def __str__(self) -> str:
        lasts = "once" if self.seconds is None else f"{self.seconds:g} s"
        where = f"{self.object}{f' after {self.after}' if self.after else ''}"
        return f"{self.fault}, {where}, {lasts}, {self.moment}, {self.workers} workers, patience {self.patience}"

    @property
    def rule(self) -> Rule:
        method, path = OBJECTS[self.object]
        once = {"requests": 1} if self.seconds is None else {"lasts_s": self.seconds, "from_first": True}
        return Rule(method, path, after=self.after, **once, **FAULTS[self.fault])

    @property
    def exists(self) -> bool:
        """Whether the fault can hit the object at this moment."""
        if self.moment == "start" and self.object in ("lease read", "record read"):
            return False
        return not (self.fault in OF_BODIES and OBJECTS[self.object][0] != "GET" and self.object != "all")


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    kind     same: the weights of a run without a fault; error: it ended with one line that names an object;
             untouched: no request was hit; and what must not be: different, restarted, hang, crash, unnamed
    took_s   seconds of the run
    said     its last line, and warnings
    """

    kind: str
    took_s: float
    said: list[str]
    hits: int

    @property
    def good(self) -> bool:
        return self.kind in ("same", "error")


def environment(server: str) -> dict[str, str]:
    """What the environment says of the server, and how runs of a test are."""
    return {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


class Matrix:
    """A server with a packed data set, and what runs end with that meet no fault. It needs `environment`."""

    def __init__(self, server: str, folder: Path) -> None:
        self._folder, self._server = folder, server
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        self._bucket = f"faults-{time.time_ns()}"
        s3fs.S3FileSystem().mkdir(self._bucket)
        self.data = str(folder / "packed")
        synthetic.write(self.data)
        self._upload(folder / "packed", "packed")

    def run(self, cell: Cell) -> Outcome:
        """Run a cell."""
        whole = self._whole(cell.workers if cell.moment == "resume" else 0)
        name = f"runs-{time.time_ns()}"
        work = self._folder / name
        work.mkdir()
        shutil.copy(whole / "mlflow.db", work)  # making its tables takes seconds
        if cell.moment == "resume":
            half = work / "half"
            shutil.copytree(whole / "tiny", half)
            runs.rewind_to(half, HALF)
            self._upload(half, f"{name}/tiny")
        with FaultProxy(self._server) as proxy:
            proxy.add(cell.rule)
            begun = time.monotonic()
            process = self._start(cell, f"s3://{self._bucket}/{name}", proxy.url, work)
            said, code = _ended(process, (cell.seconds or 0) + cell.patience * (cell.seconds is None) + _SLACK_S)
            took = time.monotonic() - begun
            hits = proxy.hits()
        outcome = self._judge(cell, f"s3://{self._bucket}/{name}", said, code, hits)
        shutil.rmtree(work)
        return Outcome(outcome, round(took, 1), _worth_saying(said), hits)

    def _start(self, cell: Cell, storage: str, endpoint: str, work: Path) -> subprocess.Popen[str]:
        more = [*_launcher(cell.workers), f"data.loader_workers={cell.readers}", f"data.cache={work}/cache"]
        more += [f"tracking.uri=sqlite:///{work}/mlflow.db", f"run.storage_patience_s={cell.patience}"]
        more += [f"run.timeout_s={cell.timeout}", "run.max_failures=0"]  # no fault is worth another start
        command = [sys.executable, "-m", "maestro_dist.train"]
        command += runs.arguments(storage, f"s3://{self._bucket}/packed", *TINY, *more)
        return subprocess.Popen(
            command,
            cwd=runs.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "AWS_ENDPOINT_URL": endpoint},
        )

    def _judge(self, cell: Cell, storage: str, said: str, code: int | None, hits: int) -> str:
        if code is None:
            return "hang"
        if "started again" in said:
            return "restarted"
        last = said.rstrip().splitlines()[-1] if said.strip() else ""
        if code != 0:
            if "Traceback" in said or not last.startswith("error: "):
                return "crash"
            return "error" if _NAMED.search(last) else "unnamed"
        if hits == 0:
            return "untouched"
        found, expected = runs.weights(storage), runs.weights(self._whole(cell.workers))
        exported = Storage(storage).join("tiny", "model").read("model.safetensors")
        same_export = exported == (self._whole(cell.workers) / "tiny" / "model" / "model.safetensors").read_bytes()
        same = found.keys() == expected.keys() and all(np.array_equal(found[key], expected[key]) for key in expected)
        return "same" if same and same_export and self._complete(storage) else "different"

    @staticmethod
    def _complete(storage: str) -> bool:
        run = Storage(storage).join("tiny")
        record = json.loads(run.read("run.json"))
        return record["status"] == "finished" and run.exists("result.json") and run.exists("predictions.npz")

    def _whole(self, workers: int) -> Path:
        """Storage of a finished local run that met no fault."""
        place = self._folder / f"whole-{workers}"
        if not place.exists():
            process = runs.start(place, self.data, *TINY, *_launcher(workers), "checkpoint.keep_last=9")
            runs.finish(process)
        return place

    def _upload(self, folder: Path, name: str) -> None:
        bucket = Storage(f"s3://{self._bucket}")
        for file in folder.rglob("*"):
            if file.is_file():
                bucket.write(f"{name}/{file.relative_to(folder)}", file.read_bytes())


def _launcher(workers: int) -> list[str]:
    return ["run.launcher=ray", f"run.workers={workers}"] if workers else []


def _ended(process: subprocess.Popen[str], limit_s: float) -> tuple[str, int | None]:
    """What a process said, and its exit code; None if it had to be killed."""
    try:
        return process.communicate(timeout=limit_s)[0], process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0], None


def _worth_saying(said: str) -> list[str]:
    lines = [line for line in said.splitlines() if line.strip()]
    wanted = [line for line in lines if re.search(r"asking again|left out|started again|waiting|error", line)]
    return [line[:400] for line in wanted[-4:] + lines[-1:]]


def main() -> None:
    """Run the cells that the command line names, each combination that exists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--objects", nargs="+", choices=OBJECTS, default=list(OBJECTS))
    parser.add_argument("--seconds", nargs="+", default=["once"], help="once, or seconds")
    parser.add_argument("--after", type=int, default=0, help="requests that pass first")
    parser.add_argument("--moments", nargs="+", choices=["start", "resume"], default=["start"])
    parser.add_argument("--workers", nargs="+", type=int, default=[0], help="0: inline")
    parser.add_argument("--readers", type=int, default=0, help="data.loader_workers")
    parser.add_argument("--patience", type=int, default=300, help="run.storage_patience_s")
    parser.add_argument("--timeout", type=int, default=300, help="run.timeout_s")
    options = parser.parse_args()
    wanted = itertools.product(options.workers, options.moments, options.seconds, options.faults, options.objects)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "server").mkdir()
        with s3_server(place / "server") as server:
            os.environ |= environment(server)
            matrix = Matrix(server, place)
            for workers, moment, seconds, fault, thing in wanted:
                lasts = None if seconds == "once" else float(seconds)
                cell = Cell(
                    fault,
                    thing,
                    lasts,
                    options.after,
                    moment,
                    workers,
                    options.readers,
                    options.patience,
                    options.timeout,
                )
                if cell.exists:
                    outcome = matrix.run(cell)
                    print(json.dumps({"cell": str(cell), **asdict(outcome)}), flush=True)


if __name__ == "__main__":
    main()
