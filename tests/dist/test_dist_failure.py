"""A rank that fails, or hangs, frees the others: in the model's own collectives, the engine's, and in all groups."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from model_samples import MODALITIES, make_batch, make_model
from ranks import run_ranks
from torch import Tensor
from toy import Toy, losses
from toy import make_batch as toy_batch

from maestro_dist.config.schema import Config, EngineConfig, MeshConfig, RunConfig
from maestro_dist.engine.engine import Engine
from maestro_dist.errors import DataError, RunError
from maestro_dist.optim import build_optimizer
from maestro_dist.parallel.expert import spread_experts
from maestro_dist.parallel.failure import Report, leave_groups, report_of, root_cause
from maestro_dist.parallel.group import sequence_group
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.parallel.sequence import SequenceRanks, model_cuts

pytestmark = pytest.mark.slow

BROKEN = 1
STAYS_S = 8.0
"""How long the broken rank lives on: its end alone would free the others too."""


def fails_between_collectives(rank: int, ranks: int, where: str) -> tuple[Report, float]:
    """One step on 2 data x 2 sequence ranks; one rank raises in the middle. (Report, time of the error) of each."""
    mesh = build_mesh(MeshConfig(sequence=2), world=ranks, rank=rank)
    batch, cuts = make_batch(torch.ones(2, 3, dtype=torch.bool)), model_cuts(make_model().config, MODALITIES, 2)
    sequence = SequenceRanks(sequence_group(mesh, 60), cuts)
    model = make_model(sequence=sequence)
    mine = {name: slice(*ends[mesh.sequence_rank :][:2]) for name, ends in cuts.items()}
    part = replace(batch, values={name: x[:, mine[name]] for name, x in batch.values.items()})

    def fail(gradient: Tensor) -> None:
        raise ValueError(f"only here, {where}")

    def step() -> None:
        output = model(part, 4)
        loss = F.cross_entropy(output["logits"], batch.target)
        if rank == BROKEN and where == "backward":
            loss.register_hook(fail)
        loss.backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)

    if rank == BROKEN and where == "forward":
        model.head.register_forward_pre_hook(lambda *_: fail(torch.empty(0)))
    dist.barrier()
    try:
        step()
    except (RuntimeError, ValueError) as error:
        at = time.time()
        report = report_of(rank, error)
    leave_groups()
    if rank == BROKEN:
        time.sleep(STAYS_S)
    return report, at


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_all_ranks_stop_when_one_fails(where: str) -> None:
    found = run_ranks(fails_between_collectives, 4, where, timeout_s=100)
    reports, times = zip(*found, strict=True)
    assert [report.lost for report in reports] == [rank != BROKEN for rank in range(4)]
    assert max(times) - times[BROKEN] < STAYS_S / 2
    shown = root_cause([reports[0], reports[3], reports[BROKEN], reports[2]], 4, 60)
    assert str(shown) == f"worker 1 failed (ValueError: only here, {where}); --debug shows the traceback"
    assert "fails_between_collectives" in shown.__notes__[0]


def engine_of(rank: int, ranks: int, stage: int, timeout_s: int) -> Engine:
    config = Config(engine=EngineConfig(zero_stage=stage), run=RunConfig(timeout_s=timeout_s))
    model = Toy()
    return Engine(model, build_optimizer(model, config.optim), config, build_mesh(MeshConfig(), world=ranks, rank=rank))


def train(engine: Engine) -> None:
    batch = toy_batch(torch.ones(4, 2, dtype=torch.bool), 1)
    engine.backward(engine.scale_loss(losses(engine(batch, 0), batch), batch), True)
    engine.step(1e-3)


def limits(rank: int, ranks: int) -> list[set[timedelta]]:
    """Timeouts of the groups that an engine makes, for two stages of ZeRO."""
    found = []
    for stage in (1, 3):
        before = set(dist.distributed_c10d._world.pg_map)
        train(engine_of(rank, ranks, stage, timeout_s=77))
        groups = set(dist.distributed_c10d._world.pg_map) - before
        found.append({group._get_backend(torch.device("cpu")).options._timeout for group in groups})
    before = set(dist.distributed_c10d._world.pg_map)
    spread_experts(build_mesh(MeshConfig(expert=2), world=ranks, rank=rank), "cpu", 78)
    groups = set(dist.distributed_c10d._world.pg_map) - before
    return [*found, {group._get_backend(torch.device("cpu")).options._timeout for group in groups}]


def test_groups_of_deepspeed_have_the_timeout() -> None:
    first, second, experts = run_ranks(limits, 2)[0]
    assert first == {timedelta(seconds=77)}
    assert second <= first  # ZeRO 3 uses the groups that are there
    assert experts == {timedelta(seconds=78)}


def hangs(rank: int, ranks: int) -> tuple[Report | None, float]:
    """One rank does not come to the second step. (Report, seconds waited)."""
    engine = engine_of(rank, ranks, 1, timeout_s=3)
    train(engine)
    start = time.monotonic()
    if rank == BROKEN:
        time.sleep(STAYS_S)
        return None, 0.0
    try:
        train(engine)
    except RuntimeError as error:
        return report_of(rank, error), time.monotonic() - start
    return None, 0.0


def test_a_rank_that_hangs_is_named_after_the_timeout() -> None:
    (report, waited), _ = run_ranks(hangs, 2, timeout_s=60)
    assert 2.5 < waited < STAYS_S - 1
    message = str(root_cause([report], 2, 3))
    assert message.startswith(
        "worker 0 waited for worker 1 until the time limit of 3 s, in all_reduce (engine/engine.py:"
    )
    assert "backward)" in message


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"
LATE = "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation"


@pytest.mark.parametrize(
    ("errors", "kind", "begins"),
    [
        ({0: RuntimeError(CLOSED), 2: DataError("shard 7: bad")}, DataError, "worker 2: shard 7: bad"),
        ({1: RuntimeError("timed out in a lock of our own")}, RunError, "worker 1 failed (RuntimeError: timed out in"),
        ({0: ConnectionResetError("reset by peer")}, RunError, "worker 0 failed (ConnectionResetError: reset by peer)"),
        (
            {2: RuntimeError(CLOSED), 0: RuntimeError(LATE)},
            RunError,
            "worker 0 waited for worker 1 until the time limit of 9 s",
        ),
        ({2: RuntimeError(CLOSED)}, RunError, "worker 2 lost its connection to workers 0, 1 in raised"),
        ({r: RuntimeError(CLOSED) for r in range(3)}, RunError, "worker 0 lost its connection to the others in raised"),
    ],
)
def test_the_cause_is_told_from_what_follows_from_it(errors: dict[int, Any], kind: type, begins: str) -> None:
    shown = root_cause([report_of(rank, raised(error)) for rank, error in errors.items()], 3, 9)
    assert type(shown) is kind
    assert str(shown).startswith(begins)
