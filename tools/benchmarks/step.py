"""Where a training step's time goes, on the quickstart's model and real data, in one process."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import Options, Row
from maestro_dist.callbacks.base import Callback, State, StepRecord

_ROOT = Path(__file__).parents[2]
_PHASES: dict[str, Callable[[StepRecord], float]] = {
    "data wait": lambda record: record.data_s,
    "forward": lambda record: record.forward_s,
    "backward": lambda record: record.backward_s,
    "optimizer": lambda record: record.optimizer_s,
}


class _Timed(Callback):
    """Times the tracking callback and keeps the records of steps after the warm-up."""

    def __init__(self, tracking: Callback, warmup: int) -> None:
        self.records: list[StepRecord] = []
        self.tracking_s: list[float] = []
        self._tracking, self._warmup = tracking, warmup

    def on_step(self, state: State, record: StepRecord) -> None:
        before = time.perf_counter()
        self._tracking.on_step(state, record)
        if state.step > self._warmup:
            self.tracking_s.append(time.perf_counter() - before)
            self.records.append(record)


def run(options: Options) -> list[Row]:
    """Median milliseconds of each phase of a step, their shares, and samples a second."""
    warmup, steps = (2, 5) if options.quick else (10, 60)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        timed = _train(Path(folder), options.device, warmup, steps)
    phases = {name: [1000 * of(record) for record in timed.records] for name, of in _PHASES.items()}
    # Most steps only keep their numbers; every tenth sends them on. The mean is what a step pays.
    medians = {name: statistics.median(values) for name, values in phases.items()}
    medians["tracking"] = 1000 * statistics.fmean(timed.tracking_s)
    whole = sum(medians.values())
    samples = statistics.fmean(record.samples for record in timed.records)
    rows = [Row(f"step/{name}", value, "ms") for name, value in medians.items()]
    rows.append(Row("step/whole", whole, "ms"))
    rows += [Row(f"step/{name} share", 100 * value / whole, "%") for name, value in medians.items()]
    rows.append(Row("step/throughput", 1000 * samples / whole, "samples/s"))
    return rows


def _train(folder: Path, device: str, warmup: int, steps: int) -> _Timed:
    from maestro_dist.callbacks.metrics import Metrics
    from maestro_dist.config.load import load_config
    from maestro_dist.config.paths import with_absolute_paths
    from maestro_dist.parallel.group import destroy_process_group, init_process_group
    from maestro_dist.parallel.mesh import build_mesh
    from maestro_dist.run.launch import prepare_data
    from maestro_dist.tracking import MetricLog
    from maestro_dist.tracking.run import open_run
    from maestro_dist.training.builder import assemble
    from maestro_dist.training.loop import fit
    from maestro_dist.training.process import prepare_process

    os.chdir(_ROOT)
    config = load_config(
        str(_ROOT / "configs" / "quickstart.yaml"),
        [
            f"data.url={folder / 'data'}",
            f"run.storage={folder / 'runs'}",
            f"run.device={device}",
            "run.workers=1",
            "run.launcher=inline",
            f"optim.max_steps={warmup + steps}",
        ],
    )
    config = with_absolute_paths(config)
    prepare_data(config)
    prepare_process(config)
    init_process_group(device, config.run.timeout_s)
    uri = f"sqlite:///{folder}/mlflow.db"
    run = open_run(uri, "benchmark", "step")
    log = MetricLog(folder, uri, run.run_id, run.start_ms)
    state, stream = assemble(config, build_mesh(config.mesh, world=1))
    timed = _Timed(Metrics(log), warmup)
    try:
        fit(state, stream.batches, timed)
    finally:
        log.close()
        state.engine.close()
        destroy_process_group()
    return timed
