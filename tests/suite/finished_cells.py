"""Cells with results that were made up, as a run or a baseline leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from suite.archive import Archive, Record
from suite.collect import Results, collect
from suite.matrix import Cell, Plan, make_plan
from suite.schema import Suite

from maestro_dist.config.learning import TaskConfig
from maestro_dist.data.missing import evaluation_mask
from maestro_dist.evaluation import Evaluation, Predictions, Scenario
from maestro_dist.task.classification import Classification

SAMPLES, PEOPLE = 40, 8
TASK = Classification(TaskConfig(), classes=["a", "b"], class_counts=[1, 1])
MACHINE = {"processor": "a processor", "cores": 2, "system": "a system", "versions": {"python": "3.11"}, "date": "now"}
NAMES = np.array(["acc", "gyro"])


def make(storage: Path, **changes: Any) -> Plan:
    """Two baselines, three seeds, one ablation, on one data set of two folds."""
    tree: dict[str, Any] = {
        "name": "made",
        "storage": str(storage),
        "rates": [0.0, 0.4],
        "seeds": [1, 2, 3],
        "resamples": 100,
        "permutations": 99,
        "data": {"set": {"url": "data/{fold}", "folds": 2, "metrics": ["accuracy", "auroc"]}},
        "models": {
            "one": {"kind": "lightgbm", "data": {"set": {}}},
            "two": {"kind": "minirocket", "label": "The second", "data": {"set": {}}},
        },
        "ablations": [
            {"name": "less", "label": "fewer features", "of": {"set": "two"}, "set": ["baseline.features=84"]}
        ],
    }
    return make_plan(Suite.model_validate(tree | changes))


def results_of(plan: Plan) -> Results:
    """All finished cells."""
    return collect(Archive(plan))


def finish(plan: Plan, cell: Cell, *, right: float, lost: float = 0.0, experts: bool = False) -> float:
    """Leave a cell that is right on this share of its samples, less where sensors are missing; returns its accuracy."""
    draws = np.random.default_rng([cell.seed, cell.fold or 0, *cell.model.encode()])
    target = np.random.default_rng(cell.fold or 0).integers(0, 2, SAMPLES)
    scenarios, logits, masks = [], [], []
    places = [(0.0, 0), *((0.4, draw) for draw in plan.suite.draws)]
    for rate, draw in places:
        hit = draws.random(SAMPLES) < right - (lost if rate else 0.0)
        scores = np.zeros((SAMPLES, 2), np.float32)
        scores[np.arange(SAMPLES), np.where(hit, target, 1 - target)] = draws.uniform(0.5, 2, SAMPLES)
        logits.append(scores)
        masks.append(evaluation_mask(np.ones((SAMPLES, 2), bool), rate, draw))
        scenarios.append(Scenario(rate, draw, TASK.metrics(scores, target)))
    evaluation = Evaluation("test", SAMPLES, list(TASK.metric_names), scenarios)
    run = Archive(plan).run(cell)
    predictions = Predictions(
        target=target,
        rate=np.array([rate for rate, _ in places]),
        draw=np.array([draw for _, draw in places]),
        logits=np.stack(logits),
        kept=np.stack(masks),
        experts=draws.integers(1, 9, (len(places), 1, SAMPLES, 4)).astype(np.int32) if experts else None,
        key=np.array([f"s{number}" for number in range(SAMPLES)]),
        subject=np.array([f"p{number % PEOPLE}" for number in range(SAMPLES)]),
        modalities=NAMES,
    )
    predictions.write(run)
    run.write("result.json", json.dumps({"evaluation": evaluation.to_json()}).encode())
    attempts = [{"started": 1_790_000_000.0 + cell.seed, "seconds": 90.0, "status": "succeeded"}]
    Record(" ".join(cell.command), cell.settings, MACHINE, attempts).write(run)
    return float(np.mean([scenario.metrics["accuracy"] for scenario in scenarios if scenario.rate == 0]))
