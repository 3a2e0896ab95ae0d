"""Two ranks give the same result as one, whether they share the samples or the time axis."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_evaluation_split import batches, evaluate, forward
from torch import multiprocessing

from maestro_dist.data.storage import Storage
from maestro_dist.evaluation import EvaluationData, EvaluationPlan, Predictions, evaluate_split


def _rank(rank: int, folder: str) -> None:
    import test_evaluation_split as one
    from torch import distributed as dist

    from maestro_dist.parallel.mesh import Mesh

    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for name, mesh in {
        "data": Mesh(rank=rank, world=2, data=2),
        "sequence": Mesh(rank=rank, world=2, data=1, sequence=2),
    }.items():
        data = EvaluationData(partial(batches, rank=mesh.data_rank, ranks=mesh.data), one.PRESENT)
        plan = EvaluationPlan("validation", rates=[0.0, 0.4], draws=[0, 1, 2], keep_predictions=True)
        result = evaluate_split(forward, one.TASK, data, plan, mesh)
        assert (result.logits is None) == (result.predictions is None) == (rank > 0)
        if result.predictions is not None:
            result.predictions.write(Storage(f"{folder}/{name}"))
        if name == "sequence":  # both ranks count the tokens that they hold; here each says all of them
            halved = [replace(load, tokens=(np.array(load.tokens) // 2).tolist()) for load in result.loads or ()]
            result = replace(result, loads=halved)
        Path(folder, f"{name}-{rank}.json").write_text(json.dumps(result.to_json()))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    expected = evaluate().to_json()
    for name in ("data-0", "data-1", "sequence-0", "sequence-1"):
        assert json.loads((tmp_path / f"{name}.json").read_text()) == expected, name
    kept = evaluate(keep_predictions=True).predictions
    assert kept is not None
    assert kept.experts is not None
    for name, shared in (("data", 1), ("sequence", 2)):  # here, too, each of two ranks says all tokens of a sample
        found = Predictions.read(Storage(str(tmp_path / name)))
        assert found.experts is not None
        assert np.array_equal(found.experts, shared * kept.experts)
        assert np.array_equal(found.logits, kept.logits)
        assert np.array_equal(found.kept, kept.kept)
