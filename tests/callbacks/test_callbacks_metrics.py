"""Training metrics: sums over ranks, one record a step, the same numbers after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_states import ALONE, make_record, make_state
from test_callbacks_run import bad_at
from torch import multiprocessing

from maestro_dist.callbacks import metrics as metrics_module
from maestro_dist.callbacks.base import Callbacks
from maestro_dist.callbacks.metrics import Metrics
from maestro_dist.parallel.mesh import Mesh
from maestro_dist.tracking import MetricLog, read_history
from maestro_dist.tracking.metric_file import History

CONFIG = {"tracking": {"every_steps": 4}}


def drive(folder: Path, first: int, last: int, *, mesh: Mesh = ALONE, resume: bool = True) -> Metrics:
    """Steps `first` ... `last` (0-based, end excluded) with a log whose server is dead: the file is what counts."""
    log = MetricLog(folder, "http://127.0.0.1:9", "run", 0, first, interval_s=60.0) if mesh.rank == 0 else None
    metrics, state = Metrics(log), make_state(CONFIG, mesh)
    state.step = first
    metrics.on_start(state)
    for step in range(first, last):
        state.step = step + 1
        metrics.on_step(state, make_record(step, rank=mesh.data_rank, bad=1 if step == 2 else 0))
    metrics.on_end(state)
    if log is not None:
        log.close(0)
    return metrics


def deterministic(history: History) -> dict[str, list[tuple[int, float]]]:
    return {
        name: list(zip(steps.tolist(), values.tolist(), strict=True))
        for name, (steps, values) in history.items()
        if not name.startswith("system/")
    }


def test_the_total_is_logged_over_restarts(tmp_path: Path) -> None:
    def totals(name: str, *arguments: Any, **more: Any) -> tuple[list[list[float]], Callbacks]:
        log = MetricLog(tmp_path / name, "http://127.0.0.1:9", "run", 0, 0, interval_s=60.0)
        _, callbacks = bad_at(*arguments, log=log, **more)
        log.close(0)
        found = read_history(tmp_path / name)["data/bad_samples_total"]
        return [numbers.tolist() for numbers in found], callbacks

    found, first = totals("first", {1: [7], 6: [9, 7]}, limit=3, last=10)
    assert found == [[5, 10], [1, 2]]
    saved = {"callbacks": json.loads(json.dumps(first.state_dict()))}
    found, _ = totals("again", {12: [9], 13: [8]}, limit=3, saved=saved)
    assert found == [[15], [3]]


def test_every_step_is_logged_and_some_with_details(tmp_path: Path) -> None:
    drive(tmp_path, 0, 10)
    found = deterministic(read_history(tmp_path))
    assert found["train/loss"] == [(step + 1, float(torch.tensor(1 / (3 + step)))) for step in range(10)]
    assert found["train/grad_norm"] == [(step + 1, 2.0 + step) for step in range(10)]
    assert found["train/lr"] == [(step + 1, 0.1 / (1 + step)) for step in range(10)]
    assert found["data/bad_samples"] == [(3, 1.0)]
    recorded = [4, 5, 8, 10]  # every fourth step and both ends of an epoch
    assert found["budgets/acc"] == [(step, (1.5 + step - 1) / 3) for step in recorded]
    assert "budgets/eda" not in found, "eda was never present"
    assert found["experts/layer0/0"] == [(step, (2 + step) / (3 + step)) for step in recorded]
    assert [step for step, _ in found["experts/layer0/acc/1"]] == [5, 10]


def test_what_is_too_much_for_mlflow_stays_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "_MOST_TRACKED", 1)
    monkeypatch.setattr(metrics_module, "_MOST_TRACKED_TABLE", 3)
    sent: list[set[str]] = []
    monkeypatch.setattr(MetricLog, "log", lambda log, step, metrics, local: sent.append(set(metrics)))
    drive(tmp_path / "sent", 0, 5)
    monkeypatch.undo()
    assert {name for name in sent[-1] if name.startswith(("budgets", "experts"))} == {
        "budgets/least", "budgets/most", "experts/layer0/least", "experts/layer0/most"
    }  # fmt: skip
    monkeypatch.setattr(metrics_module, "_MOST_TRACKED", 1)
    drive(tmp_path / "kept", 0, 5)
    kept = deterministic(read_history(tmp_path / "kept"))
    assert kept["budgets/acc"] == [(4, 4.5 / 3), (5, 5.5 / 3)]
    assert kept["experts/layer0/0"] == [(4, 6 / 7), (5, 7 / 8)]
    assert kept["experts/layer0/least"] == [(4, 1 / 7), (5, 1 / 8)]
    monkeypatch.setattr(metrics_module, "_MOST_LOCAL", 3)
    drive(tmp_path / "huge", 0, 5)
    assert "experts/layer0/acc/0" in kept
    assert "experts/layer0/acc/0" not in read_history(tmp_path / "huge")


def test_throughput_is_that_of_the_steps(tmp_path: Path) -> None:
    drive(tmp_path, 0, 8)
    history = read_history(tmp_path)
    assert history["system/samples_per_s"][1] == pytest.approx([80.0] * 3)
    assert history["system/tokens_per_s"][1] == pytest.approx([1000.0] * 3)
    assert history["system/data_wait"][1] == pytest.approx([0.1] * 3)
    assert history["system/memory_gb"][1][0] > 0.01


def test_a_resumed_run_logs_the_same_numbers(tmp_path: Path) -> None:
    """Broken off at step 9, in the middle of a window, resumed from step 7: bitwise the numbers of an unbroken run."""
    drive(tmp_path / "whole", 0, 20)
    drive(tmp_path / "broken", 0, 9)
    drive(tmp_path / "broken", 7, 20)
    whole, broken = deterministic(read_history(tmp_path / "whole")), deterministic(read_history(tmp_path / "broken"))
    del whole["train/epoch"], broken["train/epoch"]  # recorded where training was broken off, too
    assert broken == whole


def _rank(rank: int, folder: str) -> None:
    from torch import distributed as dist

    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for name, mesh in {
        "data": Mesh(rank=rank, world=2, data=2),
        "sequence": Mesh(rank=rank, world=2, data=1, sequence=2),
    }.items():
        metrics = drive(Path(folder, name), 0, 6, mesh=mesh)
        assert metrics.latest is not None
        Path(folder, f"{name}-{rank}.json").write_text(json.dumps(metrics.latest.losses))
    Path(folder, f"bad-{rank}.json").write_text(json.dumps([count_bad(rank, limit) for limit in (2, 3)]))
    dist.destroy_process_group()


def count_bad(rank: int, limit: int) -> tuple[list[int], str]:
    """Two of two ranks meet a bad sample of their own and one that both meet, in different steps."""
    from maestro_dist.callbacks.base import Callbacks
    from maestro_dist.callbacks.health import Health
    from maestro_dist.errors import DataError

    state = make_state({**CONFIG, "data": {"max_bad_samples": limit}}, Mesh(rank=rank, world=2, data=2))
    metrics = Metrics(None)
    callbacks = Callbacks([metrics, Health(metrics)])
    try:
        for step in range(5):
            state.step = step + 1
            bad = [20 + rank, 5] if step == rank else []
            lines = [f"sample {number} is bad" for number in bad]
            callbacks.on_step(state, make_record(step, rank=rank, bad_samples=bad, bad_lines=lines))
    except DataError as error:
        return state.bad_samples, str(error)
    return state.bad_samples, ""


@pytest.mark.filterwarnings("ignore")
def test_ranks_sum_what_they_saw(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    data = deterministic(read_history(tmp_path / "data"))
    single = [float(torch.tensor(1 / (3 + step))) for step in range(7)]
    assert data["train/loss"] == [(step + 1, single[step] + single[step + 1]) for step in range(6)]
    assert data["data/bad_samples"] == [(3, 2.0)]
    assert data["budgets/eda"] == [(4, 2.0), (5, 2.0)]
    assert data["experts/layer0/eda/1"] == [(5, 1.0)]
    assert read_history(tmp_path / "data")["system/tokens_per_s"][1][0] == pytest.approx(2010.0)
    sequence = deterministic(read_history(tmp_path / "sequence"))
    assert sequence["train/loss"] == [(step + 1, single[step]) for step in range(6)], "both saw the same samples"
    assert sequence["data/bad_samples"] == [(3, 1.0)]
    for rank in range(2):
        (over, error), (within, nothing) = json.loads((tmp_path / f"bad-{rank}.json").read_text())
        assert over == within == [5, 20, 21]
        assert error.startswith(
            "3 different bad samples in this run, data.max_bad_samples is 2, at last sample 5 is bad;"
        )
        assert nothing == ""
    for name in ("data", "sequence"):
        assert (tmp_path / f"{name}-0.json").read_text() == (tmp_path / f"{name}-1.json").read_text()
