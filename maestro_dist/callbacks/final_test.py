"""The end of a run: best weights, the only test, exported model, pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maestro_dist.callbacks.base import Callback, State
from maestro_dist.callbacks.figures import story_of
from maestro_dist.checkpoint import CheckpointInfo, best, find, full_weights, restore
from maestro_dist.data.mixture.source import source_of
from maestro_dist.data.storage import Storage
from maestro_dist.data.subjects import keys_and_subjects
from maestro_dist.errors import CheckpointDamaged, RunError
from maestro_dist.inference.exported_model import TaskDescription, export_model
from maestro_dist.tracking.best_effort import BestEffort
from maestro_dist.tracking.figures import figure_files, log_figures
from maestro_dist.tracking.run import is_reachable
from maestro_dist.tracking.unsent import FIGURES, MODEL, TAGS
from maestro_dist.tracking.uploads import EndUploads

if TYPE_CHECKING:
    from maestro_dist.evaluation import Evaluation
    from maestro_dist.tracking import MetricLog

_LOG = logging.getLogger(__name__)

RESULT_FILE = "result.json"
MODEL_FOLDER = "model"


class FinalTest(Callback):
    """Tests the best checkpoint once, on all ranks; then rank 0 writes the results.

    It is the last callback, because the best checkpoint must be on storage. The exported model, the predictions and
    then `result.json` are written first: an error there is an error of the run. A run that died before `result.json`
    tests again, with the same outcome. Pictures, tables and uploads come after that, and an error in them is a warning.
    """

    def __init__(
        self,
        evaluate: Callable[[], Evaluation],
        log: MetricLog | None,
        *,
        fence: Callable[[], None],
        run_url: str,
        tracking_uri: str,
        mlflow_run: str,
    ) -> None:
        """`evaluate` is called on all ranks together; `log` on rank 0, None elsewhere.

        `fence` raises on rank 0 when another driver holds the run.
        """
        self._fence = fence
        self._evaluate = evaluate
        self._log = log
        self._run = Storage(run_url)
        self._tracking_uri, self._mlflow_run = tracking_uri, mlflow_run

    def on_end(self, state: State) -> None:
        if state.mesh.world > 1:
            from torch import distributed as dist

            dist.barrier()  # wait until rank 0 has written the last checkpoint record
        step = state.best_step
        chosen = best(self._run.url) if step is None else find(self._run.url, step, expected=True)
        try:
            restore(state.engine, chosen)
        except CheckpointDamaged as error:
            raise RunError(
                f"{error}; it has the best weights of this run. To train them again from an older checkpoint, remove "
                f"the folders of this and later steps in {self._run.name('checkpoints')} and start the same command"
            ) from error
        evaluation = self._evaluate()
        self._finish(state, chosen, evaluation)
        state.results = evaluation.flat("test")
        state.callbacks.on_test(state, evaluation)

    def _finish(self, state: State, chosen: CheckpointInfo, evaluation: Evaluation) -> None:
        if self._log is None:
            return
        self._fence()
        self._log.log(state.step, evaluation.flat("test"))
        with ThreadPoolExecutor(1) as pool:
            predictions = pool.submit(self._keep, state, evaluation)
            model = self._model(state, chosen, evaluation)
            export_model(self._run.join(MODEL_FOLDER).url, **model)
            predictions.result()
        result = {
            "evaluation": evaluation.to_json(),
            "metric": state.task.metric(state.config.evaluation.metric),
            "best_step": chosen.step,
            "best_score": state.best_score,
            "bad_samples": len(state.bad_samples),
            "checkpoint": chosen.url,
            "model": self._run.name(MODEL_FOLDER),
            "mlflow_model": None,
        }
        self._write(result)
        self._extras(state, evaluation, model, result, self._log)

    def _write(self, result: dict[str, Any]) -> None:
        self._run.write(RESULT_FILE, json.dumps(result, indent=1).encode(), guard=self._fence)

    def _extras(
        self, state: State, evaluation: Evaluation, model: dict[str, Any], result: dict[str, Any], log: MetricLog
    ) -> None:
        """Try each picture, table and upload. One warning names and counts those that failed.

        `log.unsent` keeps what tracking lacks, to be sent later. Waiting for tracking has a limit, `log.end_limit`.
        """
        effort, at, limit = BestEffort(), (self._tracking_uri, self._mlflow_run), log.end_limit
        parts = [FIGURES, *([MODEL] if state.task.kind != "pretrain" else []), TAGS]  # pretrained: no predictions
        uploads = EndUploads(*at, result, parts)
        log.unsent = uploads.unsent
        reached = effort.attempt("uploads to tracking", lambda: limit.run("tracking", lambda: is_reachable(*at)))
        story = effort.attempt("pictures", lambda: story_of(state, log.history(), evaluation))
        if story is not None:
            log_figures(story, log.folder, *at, effort, upload=False)
        if not reached:
            limit.end()
        else:
            limit.allow_bytes(sum(tensor.nbytes for tensor in model["weights"].values()))
            figures = figure_files(log.folder)
            done = effort.attempt(
                "uploads to tracking",
                lambda: limit.run(
                    "uploads", lambda: uploads.send(figures, lambda: self._upload(state, model, log.folder))
                ),
            )
            effort.left_out |= {} if done is None else done.left_out
        log.unsent = tuple(uploads.unsent)  # a thread that was left alone at the limit may still change it
        if uploads.model_uri:
            named = {**result, "mlflow_model": uploads.model_uri}
            effort.attempt("the uploaded model's name in result.json", lambda: self._write(named))
        if effort.left_out:
            _LOG.warning(f"the result is complete; left out ({len(effort.left_out)}): {effort.text()}")

    def _upload(self, state: State, model: dict[str, Any], folder: Path) -> str | None:
        """Log the model in MLflow. Returns its URI; None, after a warning, if MLflow refuses it."""
        from maestro_dist.tracking.logged_model import log_model

        if self._run.local is None:
            export_model(str(folder / MODEL_FOLDER), **model)
        return log_model(
            self._tracking_uri,
            self._mlflow_run,
            folder / MODEL_FOLDER,
            modalities=state.modalities,
            columns=self._task(state).flat_columns,
            recording=state.config.model.normalize == "recording",
        )

    def _keep(self, state: State, evaluation: Evaluation) -> None:
        """Write the predictions of every scenario, with the keys of samples and subjects."""
        if evaluation.predictions is None:
            return
        data = state.config.data
        source = source_of(data.url, state.manifest, data, tuple(state.modalities), data.test)
        keys, subjects = keys_and_subjects(source)
        names = np.array([modality.name for modality in state.modalities])
        replace(evaluation.predictions, key=keys, subject=subjects, modalities=names).write(self._run)

    def _model(self, state: State, chosen: CheckpointInfo, evaluation: Evaluation) -> dict[str, Any]:
        """Arguments of `export_model`."""
        return {
            "config": state.config.model,
            "modalities": state.modalities,
            "task": self._task(state),
            "weights": full_weights(chosen),
            "about": {
                "run": state.config.run.name,
                "data": state.manifest.name,
                "step": chosen.step,
                "test": evaluation.flat("test"),
            },
        }

    @staticmethod
    def _task(state: State) -> TaskDescription:
        split, steps = state.manifest.split(state.config.data.train), state.task.label_steps
        return TaskDescription(
            kind=state.task.kind,
            classes=tuple(state.manifest.classes) if state.task.kind in ("classification", "multilabel") else (),
            target=state.manifest.target,
            target_mean=0.0 if split.target_mean is None else split.target_mean,
            target_std=1.0 if split.target_std is None else split.target_std,
            targets=state.manifest.target_scales(state.config.data.train) if state.task.kind == "regression" else (),
            label_steps=steps,
            label_every_s=state.manifest.window_s / steps if steps > 1 else 0.0,
        )
