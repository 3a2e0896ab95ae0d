"""Ranks whose samples differ in what is missing, and so in length: at every ZeRO stage one process's gradients.

Some of DeepSpeed's ways to reduce gradients take them in the order in which they become ready, bucket by bucket. Where
that order depended on a rank's own samples, ranks would add different parameters to each other, without any error.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks
from test_dist_engine import worst
from test_dist_maestro import make_batch, plain, sharded
from torch import Tensor, nn
from toy import CLASSES, Toy, losses
from toy import make_batch as make_toy_batch

from maestro_dist.config.learning import OptimConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.schema import Config, EngineConfig, MeshConfig
from maestro_dist.engine import settings
from maestro_dist.engine.engine import Engine
from maestro_dist.errors import RunError
from maestro_dist.optim import build_optimizer
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.types import Batch, Modality, Output

FIVE = [Modality(name, 1, 16.0, 256, "g", (0.0,), (1.0,)) for name in ("acc", "bvp", "ecg", "eda", "temp")]
MODEL = ModelConfig(word=4, dropout=0.0)  # the default width and heads: where the form of attention hangs on the length
SMALL_BUCKET = 30_000
"""Elements: the model has some twenty times as many."""

STAGES: list[dict[str, Any]] = [
    {"zero_stage": 1, "overlap_comm": True},
    {"zero_stage": 2},
    {"zero_stage": 2, "overlap_comm": True},
    {"zero_stage": 3},
    {"zero_stage": 3, "overlap_comm": True},
]


def unlike(ranks: int, seed: int) -> list[tuple[Batch, int]]:
    """Four global batches with their accumulation; sample i is data rank i mod `ranks`'s.

    One rank lacks one modality, or all but one, or all of them; then each sample lacks others; then some ranks have
    nothing in one of their micro-batches; then the samples of all ranks but one are shorter than their windows.
    """
    draw = torch.Generator().manual_seed(seed)
    whole = torch.ones(4 * ranks, len(FIVE), dtype=torch.bool)
    one, random = whole.clone(), torch.rand(whole.shape, generator=draw) < 0.5
    one[1::ranks, 2] = False
    if ranks > 2:
        one[2::ranks, 1:] = False
        one[3::ranks] = False
    random[ranks - 1 :: ranks] = True  # the last rank's are whole
    short = random[: 2 * ranks + 1].clone()
    batches = [
        (make_batch(present, seed + step, step, FIVE), accumulation)
        for step, (present, accumulation) in enumerate(((one, 1), (random, 2), (short, 2), (whole, 1)))
    ]
    for number, windows in enumerate(batches[-1][0].values.values()):
        for row in range(len(windows)):
            windows[row, -(-windows.shape[1] // (1, 4, 2, 9)[row % ranks]) - number * (row % ranks > 0) :] = torch.nan
    return batches


def check(rank: int, ranks: int, grids: list[dict[str, Any]], bucket: int) -> dict[str, float]:
    """Largest relative difference of any parameter's gradient, and of its weight after the SGD steps."""
    settings.BUCKET = bucket
    found = {}
    for number, grid in enumerate(grids):
        mesh = MeshConfig.model_validate(grid)
        optim = OptimConfig(optimizer="sgd", lr=0.1)
        batches = unlike(ranks // mesh.sequence, 10 + number)
        expected = plain(Config(model=MODEL, optim=optim), batches, FIVE)
        for stage in STAGES:
            engine = EngineConfig.model_validate(stage)
            trace = sharded(Config(model=MODEL, optim=optim, mesh=mesh, engine=engine), batches, rank, ranks, FIVE)
            name = f"{grid} {stage}"
            found[f"{name} gradient"] = max(
                relative(one, other) for one, other in zip(trace.gradients, expected.gradients, strict=True)
            )
            found[f"{name} weight"] = worst(trace.weights, expected.weights)
    return found


def relative(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference of a parameter's gradient, as a share of the largest gradient's norm over the parameters."""
    largest = max(float(gradient.norm()) for gradient in expected.values())
    return worst(found, expected) / largest


def within(results: list[dict[str, float]]) -> None:
    for result in results:
        for name, value in result.items():
            assert value < 1e-6, (name, value)


@pytest.mark.parametrize(
    "bucket",
    [
        pytest.param(SMALL_BUCKET, id="many buckets"),
        pytest.param(settings.BUCKET, id="one bucket", marks=pytest.mark.slow),
    ],
)
def test_two_unlike_ranks_equal_one_process(bucket: int) -> None:
    within(run_ranks(check, 2, [{}], bucket))


@pytest.mark.slow
def test_four_unlike_ranks_equal_one_process() -> None:
    within(run_ranks(check, 4, [{}, {"sequence": 2}, {"expert": 2}], SMALL_BUCKET, timeout_s=900))


class _Fickle(Toy):
    """Uses two of its parameters in an order that depends on the batch, and so their gradients become ready."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Parameter(torch.ones(CLASSES)) for _ in range(2))

    def forward(self, batch: Batch, step: int = 0) -> Output:
        logits = super().forward(batch, step)["logits"]
        whole = bool(batch.present.all())
        return Output(logits=logits * self.one * self.two if whole else logits * self.two * self.one)


def watch(rank: int, ranks: int, unlike_ranks: bool) -> str:
    """The error of ranks whose orders differ, in the first step or in the second."""
    config = Config(engine=EngineConfig(zero_stage=2))
    model = _Fickle()
    engine = Engine(
        model, build_optimizer(model, config.optim), config, build_mesh(config.mesh, world=ranks, rank=rank)
    )
    whole, lacking = torch.ones(4, 2, dtype=torch.bool), torch.zeros(4, 2, dtype=torch.bool)
    lacking[:, 0] = True
    steps = [lacking if unlike_ranks and rank else whole, lacking]
    try:
        for present in steps:
            batch = make_toy_batch(present, seed=1)
            engine.backward(engine.scale_loss(losses(engine(batch), batch), batch), True)
            engine.step(0.1)
    except RunError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("unlike_ranks", "where"),
    [(True, "on some ranks"), pytest.param(False, "in the first step (", marks=pytest.mark.slow)],
)
def test_another_order_is_an_error_on_every_rank(unlike_ranks: bool, where: str) -> None:
    for found in run_ranks(watch, 2, unlike_ranks):
        assert where in found
