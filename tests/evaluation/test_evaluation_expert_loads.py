"""Loads of the experts by missing set: sums, order, the rest, and labels."""

from __future__ import annotations

import numpy as np
import torch

from maestro_dist.evaluation.expert_loads import MOST, ExpertLoad, ExpertLoads
from maestro_dist.parallel.mesh import Mesh
from maestro_dist.types import Batch, Output

ALONE = Mesh(rank=0, world=1, data=1)


def seen(present: np.ndarray, load: np.ndarray) -> tuple[Batch, Output]:
    """Batch and output of a forward pass with presence [B, M] and load [layers, B, E]."""
    sample = torch.arange(len(present))
    batch = Batch({}, {}, torch.from_numpy(present), sample, sample)
    return batch, Output(expert_load_by_sample=torch.from_numpy(load.astype(np.int32)))


def test_sums_equal_the_plain_loop_and_the_rest_is_kept() -> None:
    draws = np.random.default_rng(0)
    weights = np.linspace(0.2, 0.9, 6)
    loads, plain, count = ExpertLoads(), {}, {}
    for size in (40, 0, 33, 1):
        present, load = draws.random((size, 6)) < weights, draws.integers(0, 50, (2, size, 3))
        loads.add(*seen(present, load))
        for b in range(size):
            name = tuple(np.flatnonzero(~present[b]).tolist())
            plain[name] = plain.get(name, 0) + load[:, b]
            count[name] = count.get(name, 0) + 1
    found = loads.result(ALONE, "cpu")
    assert found is not None
    assert len(plain) > MOST
    assert len(found) == MOST + 1
    for item in found[:-1]:
        assert item.samples == count[tuple(item.missing)]
        assert item.tokens == plain[tuple(item.missing)].tolist()
    assert [item.samples for item in found[:-1]] == sorted(count.values(), reverse=True)[:MOST]
    assert found[-1].missing is None
    assert sum(item.samples for item in found) == 74
    assert np.array_equal(sum(np.array(item.tokens) for item in found), sum(plain.values()))


def test_a_model_without_experts_has_none() -> None:
    loads = ExpertLoads()
    loads.add(seen(np.ones((2, 3), bool), np.ones((1, 2, 2)))[0], Output(logits=torch.zeros(2, 1)))
    assert loads.result(ALONE, "cpu") is None


def test_names_of_sets() -> None:
    names = ["acc", "bvp", "eda"]
    labels = [ExpertLoad(missing, 1, []).label(names) for missing in ([], [1], [0, 2], [0, 1, 2], None)]
    assert labels == ["complete", "without bvp", "only bvp", "nothing observed", "other sets"]
