"""One baseline, from shards to `result.json`, `predictions.npz` and a run in MLflow."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.baselines.settings import BaselineConfig
from benchmarks.baselines.windows import Windows, evaluated, normalised, read_windows, source_of
from maestro_dist.config.schema import Config
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.storage import Storage
from maestro_dist.errors import ConfigError
from maestro_dist.evaluation import Evaluation, Predictions, Scenario
from maestro_dist.evaluation.split import EvaluationPlan
from maestro_dist.evaluation.table import results_table
from maestro_dist.task.base import higher_is_better
from maestro_dist.task.classification import Classification
from maestro_dist.tracking.client import client, short
from maestro_dist.tracking.run import close_run, find_run, open_run, tracking_uri

_LOG = logging.getLogger("maestro_dist.benchmarks")
RESULT_FILE = "result.json"
Answers = Callable[[np.ndarray], np.ndarray]


def fit_and_test(model: str, config: Config, baseline: BaselineConfig) -> int:
    """Fit on the training split, choose on validation, test once, write and log. Returns the exit code."""
    run = Storage(config.run.storage).join(config.run.name)
    if run.exists(RESULT_FILE):
        print(f"{run.name()} is finished; nothing to do (choose another run.name to fit again)")
        return 0
    _check_package(model)
    manifest = load_data(config.data)
    if manifest.task != "classification":
        raise ConfigError(f"{manifest.name} is a {manifest.task}; the baselines classify")
    task = _task(config, manifest)
    metric = task.metric(config.evaluation.metric)
    data = config.data
    train, validation, test = (_windows(config, manifest, s) for s in (data.train, data.validation, data.test))
    print(
        f"{model} on {manifest.name}: {len(train):,} samples, validation {len(validation):,}, test {len(test):,}",
        flush=True,
    )
    uri = tracking_uri(config.tracking.uri, config.run.storage)
    token = hashlib.sha256(run.url.encode()).hexdigest()[:32]
    params = {"model": {"name": model, **baseline.model_dump()}, "run": {"seed": config.run.seed}}
    experiment = config.tracking.experiment
    known = find_run(uri, experiment, token)
    tracked = open_run(
        uri, experiment, config.run.name, run_id=known, params=params, tags={"run.token": token, "model": model}
    )
    status = "FAILED"
    try:
        fitted = _fit(model, train, validation, baseline, task, config, metric)
        print(f"chosen on validation: {fitted.chosen}, {metric} {fitted.score:.4f}", flush=True)
        answers = fitted.answers(normalised(test, baseline.normalize))
        found = evaluate(answers, test, task, config.evaluation.test_rates, config.evaluation.draws, data.test)
        print(results_table(found), flush=True)
        if found.predictions is not None:
            found.predictions.write(run)
        result = {
            "evaluation": found.to_json(),
            "metric": metric,
            "best_score": fitted.score,
            "chosen": fitted.chosen,
            "model": model,
        }
        run.write(RESULT_FILE, json.dumps(result, indent=1).encode())
        status = "FINISHED"
        _log(uri, tracked.run_id, found.flat("test") | {"validation/score": fitted.score})
    finally:
        close_run(uri, tracked.run_id, status)
    return 0


def evaluate(answers: Answers, test: Windows, task: Classification, rates: Any, draws: Any, split: str) -> Evaluation:
    """Metrics of each (rate, draw), with the masks of the project's own evaluation."""
    plan = EvaluationPlan(split, rates, draws).scenarios
    masks = [evaluated(test, rate, draw) for rate, draw in plan]
    scenarios, logits = [], []
    for (rate, draw), mask in zip(plan, masks, strict=True):
        logits.append(answers(mask))
        scenarios.append(Scenario(rate, draw, task.metrics(logits[-1], test.target)))
    confusion = None
    if plan[0][0] == 0:
        confusion = task.confusion(logits[0], test.target)
    found = Evaluation(
        split=split,
        samples=len(test),
        metrics=list(task.metric_names),
        scenarios=scenarios,
        class_counts=None if confusion is None else confusion.sum(1).tolist(),
        confusion=None if confusion is None else confusion.tolist(),
    )
    kept = Predictions(
        target=test.target,
        rate=np.array([rate for rate, _ in plan], dtype=np.float64),
        draw=np.array([draw for _, draw in plan], dtype=np.int64),
        logits=np.stack(logits).astype(np.float32),
        kept=np.stack(masks),
        key=test.key,
        subject=test.subject,
        modalities=np.array(test.names),
    )
    return replace(found, predictions=kept)


def _fit(
    model: str,
    train: Windows,
    validation: Windows,
    baseline: BaselineConfig,
    task: Classification,
    config: Config,
    metric: str,
) -> Any:
    """The fitted model. It is chosen on complete validation data; with masked copies also at the missing rates."""
    masks = [validation.present]
    if baseline.drop:
        masks += [evaluated(validation, rate, config.evaluation.draws[0]) for rate in config.evaluation.rates if rate]
    sign = 1 if higher_is_better(metric) else -1

    def score(answers: Answers) -> float:
        values = [task.metrics(answers(mask), validation.target).get(metric, np.nan) for mask in masks]
        return sign * float(np.mean(values))

    from benchmarks.baselines.boosting import Boosting
    from benchmarks.baselines.minirocket import MiniRocketRidge

    kind = MiniRocketRidge if model == "minirocket" else Boosting
    return kind(
        normalised(train, baseline.normalize),
        normalised(validation, baseline.normalize),
        baseline,
        classes=task.outputs,
        seed=config.run.seed,
        score=score,
    )


def _windows(config: Config, manifest: Manifest, split: str) -> Windows:
    modalities = manifest.select(config.data.modalities)
    return read_windows(source_of(config.data.url, manifest, modalities, split, config.data))


def _task(config: Config, manifest: Manifest) -> Classification:
    counts = manifest.split(config.data.train).class_counts
    return Classification(config.task, classes=manifest.classes, class_counts=counts)


def _log(uri: str, run_id: str, metrics: dict[str, float]) -> None:
    from mlflow.entities import Metric

    rows = [Metric(name, value, 0, 0) for name, value in metrics.items()]
    try:
        client(uri).log_batch(run_id, metrics=rows, synchronous=True)
    except Exception as error:  # the result is written; a dead server is no reason to fit again
        _LOG.warning(f"metrics were not logged to tracking ({short(error)})")


def _check_package(model: str) -> None:
    if model == "lightgbm" and find_spec("lightgbm") is None:
        raise ConfigError("lightgbm is not installed: pip install -e '.[bench]'")
