"""All that is optional in learning at once: validations and restarts change no bit, ranks only rounding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from averages import check_averages
from ranks import run_ranks
from torch import Tensor

from maestro_dist.callbacks.base import Callback, State, StepRecord
from maestro_dist.callbacks.checkpointing import resume, run_metadata
from maestro_dist.checkpoint import Saver, find, restore
from maestro_dist.config.load import load_config
from maestro_dist.config.schema import Config
from maestro_dist.engine.engine import destroy_process_group, init_process_group
from maestro_dist.engine.partition import owned_slices
from maestro_dist.evaluation import EvaluationPlan
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.training.builder import assemble
from maestro_dist.training.evaluation import evaluate_on
from maestro_dist.training.loop import fit

pytestmark = pytest.mark.slow

LEARNING = [
    "optim.max_steps=9", "optim.ema=0.9", "optim.schedule=one_cycle", "optim.warmup=0.3", "augment.jitter=0.1",
    "augment.scaling=0.1", "augment.time_warp=0.2", "augment.time_mask=0.1", "augment.mixup=0.4",
    "missing.consistency=0.5", "missing.ramp_start=0.1", "missing.ramp_end=0.3",
]  # fmt: skip
SAVED, STEPS = 4, 9


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    init_process_group("cpu", 60)
    yield
    destroy_process_group()


class Watch(Callback):
    """Keeps each step's loss and momentum; evaluates in between; saves one step and may stop there."""

    def __init__(self, evaluates: bool = False, saver: Saver | None = None, stops: bool = False) -> None:
        self.losses: list[float] = []
        self.betas: list[float] = []
        self.samples: list[int] = []
        self.validation = 0.0
        self.evaluates, self.saver, self.stops = evaluates, saver, stops

    def on_step(self, state: State, record: StepRecord) -> None:
        assert record.applied
        loss = record.loss.double()
        if state.mesh.world > 1:
            torch.distributed.all_reduce(loss)
        self.losses.append(float(loss) / state.mesh.sequence)
        self.betas.append(state.engine.deepspeed.optimizer.param_groups[0]["betas"][0])
        self.samples.append(len(record.keys))
        if self.evaluates and state.step % 3 == 0:
            self.validation = evaluate_on(state, EvaluationPlan("validation", [0.0], [0])).mean("loss", 0.0) or 0.0
        if self.saver is not None and state.step == SAVED:
            self.saver.save(
                state.engine, step=state.step, position=state.position, epoch=0, metadata=run_metadata(state)
            )
            self.saver.wait()
            state.stop = self.stops


def settings(data: str, *extra: str) -> Config:
    return load_config(None, [*runs.TINY, f"data.url={data}", "run.launcher=inline", *LEARNING, *extra])


def learn(config: Config, watch: Watch, rank: int = 0, ranks: int = 1, folder: str = "") -> dict[str, Tensor]:
    """Train, from a saved step where a folder is given; what this rank owns in the end."""
    state, stream = assemble(config, build_mesh(config.mesh, world=ranks, rank=rank))
    if folder:
        found = find(folder, SAVED)
        restore(state.engine, found)
        resume(state, found.step, found.position, found.metadata)
        state.stop = False
    fit(state, stream.batches, watch)
    owned = {f"{s.name}/{kind}": t.clone() for s in owned_slices(state.engine) for kind, t in s.tensors.items()}
    state.engine.close()
    return owned


@pytest.fixture(scope="module")
def whole(synthetic: str) -> tuple[Watch, dict[str, Tensor]]:
    """A run in one process that is evaluated in between."""
    watch = Watch(evaluates=True)
    return watch, learn(settings(synthetic), watch)


def test_a_restart_and_validations_change_no_bit(
    whole: tuple[Watch, dict[str, Tensor]], synthetic: str, tmp_path: Path
) -> None:
    watch, expected = whole
    assert len(watch.losses) == STEPS
    assert watch.samples == [16] * 6 + [5, 16, 16]  # each once, also where it is seen twice
    assert watch.betas[0] == 0.9
    assert min(watch.betas) == watch.betas[round(0.3 * STEPS)] == pytest.approx(0.85)
    saver = Saver(str(tmp_path), build_mesh(settings(synthetic).mesh, world=1), attempt=1, keep_last=2)
    learn(settings(synthetic), Watch(saver=saver, stops=True))
    later = Watch()
    found = learn(settings(synthetic), later, folder=str(tmp_path))
    assert later.losses == watch.losses[SAVED:]
    assert found.keys() == expected.keys()
    assert {name.rsplit("/")[-1] for name in found} == {"master", "exp_avg", "exp_avg_sq", "average"}
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


CUTS = [["engine.zero_stage=2", "engine.micro_batch=3"], ["mesh.sequence=2"]]


def on_ranks(rank: int, ranks: int, folder: str, data: str) -> tuple[list[float], list[tuple[list[float], float]]]:
    averages, found = check_averages(rank, ranks, folder), []
    for cut in CUTS:
        watch = Watch(evaluates=True)
        learn(settings(data, *cut), watch, rank, ranks)
        found.append((watch.losses, watch.validation))
    return averages, found


def test_ranks_and_micro_batches_change_only_rounding(
    whole: tuple[Watch, dict[str, Tensor]], synthetic: str, tmp_path: Path
) -> None:
    """And the average of the weights is sharded, saved and swapped exactly."""
    for averages, found in run_ranks(on_ranks, 2, str(tmp_path), synthetic):
        print(averages, found)
        np.testing.assert_array_less(averages, 1e-5)
        for losses, validation in found:
            assert losses == pytest.approx(whole[0].losses, abs=1e-4)
            assert validation == pytest.approx(whole[0].validation, abs=1e-4)
