"""The engine in this very process, as the inline launcher uses it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from maestro_dist.config.schema import Config, MeshConfig, RunConfig
from maestro_dist.engine.engine import Engine, loss_scale
from maestro_dist.errors import ConfigError
from maestro_dist.optim import build_optimizer
from maestro_dist.parallel.mesh import Mesh, build_mesh

SILENT = """
    import importlib.util, os, sys
    os.environ.pop("LOCAL_RANK", None)
    import torch
    from maestro_dist.config.schema import Config, EngineConfig, MeshConfig
    from maestro_dist.optim import build_optimizer
    from maestro_dist.engine.engine import Engine, destroy_process_group, init_process_group
    from maestro_dist.parallel.mesh import build_mesh
    from maestro_dist.types import Batch

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.big, self.head = torch.nn.Linear(4, 30000), torch.nn.Linear(30000, 2)
        def forward(self, batch, step):
            return {"logits": self.head(self.big(batch.values["acc"]))}

    rows = torch.arange(3)
    present = torch.ones(3, 1, dtype=torch.bool)
    batch = Batch({"acc": torch.ones(3, 4)}, {"acc": rows}, present, rows, rows, global_samples=3)
    linear = torch.nn.functional.linear
    for stage in (1, 2, 2, 3, 3):
        if stage == 1 or stage == 3:
            destroy_process_group()
            init_process_group("cpu", 30)
            init_process_group("cpu", 30)
        model, config = Model(), Config(engine=EngineConfig(zero_stage=stage))
        engine = Engine(model, build_optimizer(model, config.optim), config, build_mesh(MeshConfig(), world=1))
        engine.train()
        for last in (False, True):
            output = engine(batch, 0)
            engine.backward(engine.scale_loss(output["logits"].pow(2).sum(1), batch), last)
        assert engine.step(1e-3).applied
        engine.eval()
        with torch.no_grad():
            engine(batch, 0)
        assert (torch.nn.functional.linear is linear) == (stage < 3)
        engine.close()
        assert torch.nn.functional.linear is linear
    destroy_process_group()
    assert "mlflow" not in sys.modules  # DeepSpeed would import it, for a second and 100 MB
    assert importlib.util.find_spec("mlflow")
"""


def test_many_engines_and_groups_in_one_process_without_a_word() -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SILENT)], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    model, config = nn.Linear(2, 2), Config(run=RunConfig(device="cuda"))
    with pytest.raises(ConfigError, match=r"run.device is cuda, but torch finds no CUDA device"):
        Engine(model, build_optimizer(model, config.optim), config, build_mesh(MeshConfig(), world=1))


def test_sequence_ranks_share_the_loss_of_their_samples() -> None:
    """Two data ranks of two sequence ranks: the average over the four is the mean over all samples."""
    losses = {0: [1.0, 2.0, 3.0], 1: [6.0]}
    meshes = [Mesh(rank=rank, world=4, data=2, sequence=2) for rank in range(4)]
    scaled = [sum(losses[mesh.data_rank]) * loss_scale(mesh, global_samples=4) for mesh in meshes]
    assert sum(scaled) / 4 == pytest.approx((1 + 2 + 3 + 6) / 4)
