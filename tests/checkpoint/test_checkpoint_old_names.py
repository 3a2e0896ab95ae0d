"""A checkpoint that was written under the old name of a parameter: training continues from it, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maestro_dist.checkpoint import Saver, find, full_weights, newest, restore
from maestro_dist.config.schema import Config, MeshConfig
from maestro_dist.engine.engine import Engine, destroy_process_group, init_process_group
from maestro_dist.optim import build_optimizer
from maestro_dist.parallel.mesh import Mesh, build_mesh
from maestro_dist.types import Batch, Output

BATCH = Batch(
    {"acc": torch.arange(8.0).view(2, 4)}, {"acc": torch.arange(2)}, torch.ones(2, 1, dtype=torch.bool),
    torch.arange(2), torch.arange(2), global_samples=2,
)  # fmt: skip
OLD, NEW = "distil", "downsample"


class Model(nn.Module):
    """A model whose second layer has an old or a new name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.name = name
        self.first = nn.Linear(4, 4)
        self.fusion = nn.ModuleList([nn.ModuleDict({name: nn.Linear(4, 2)})])

    def forward(self, batch: Batch, step: int = 0) -> Output:
        return Output(logits=self.fusion[0][self.name](torch.tanh(self.first(batch.values["acc"]))))


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    init_process_group("cpu", 60)
    yield
    destroy_process_group()


def engine_of(name: str) -> Engine:
    config, model = Config(), Model(name)
    return Engine(model, build_optimizer(model, config.optim), config, build_mesh(MeshConfig(), world=1))


def train(engine: Engine, steps: int) -> list[Tensor]:
    for _ in range(steps):
        engine.backward(engine.scale_loss(engine(BATCH)["logits"].pow(2).sum(1), BATCH), True)
        engine.step(0.01)
    return [parameter.detach().clone() for parameter in engine.module.parameters()]


def test_training_continues_from_old_names(tmp_path: Path) -> None:
    old = engine_of(OLD)
    written = train(old, 3)
    saver = Saver(str(tmp_path), Mesh(0, 1, 1), attempt=1, keep_last=2, timeout_s=20)
    saver.save(old, step=3, position=6, epoch=0, metadata={})
    saver.wait()
    expected = train(old, 2)
    old.close()

    info = find(str(tmp_path), 3)
    assert "fusion.0.distil.weight" in (tmp_path / "checkpoints/step-000000003/checkpoint.json").read_text()
    assert "fusion.0.downsample.weight" in info.record.parameters
    newest_info = newest(str(tmp_path))
    assert newest_info is not None
    assert newest_info.record == info.record
    weights = full_weights(info)
    new = engine_of(NEW)
    assert weights.keys() == new.module.state_dict().keys()
    for (name, _), tensor in zip(new.module.named_parameters(), written, strict=True):
        assert torch.equal(weights[name], tensor)
    restore(new, info)
    for found, tensor in zip(train(new, 2), expected, strict=True):
        assert torch.equal(found, tensor)
    new.close()
