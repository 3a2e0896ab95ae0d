"""At the end: the best weights, the one test, the pictures, the exported model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maestro_dist.callbacks.base import Callback, State
from maestro_dist.callbacks.figures import story_of
from maestro_dist.checkpoint import CheckpointInfo, best, full_weights, restore
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.roster import roster
from maestro_dist.data.storage import Storage
from maestro_dist.tracking.figures import draw, log_figures
from maestro_dist.tracking.run import tag_run

if TYPE_CHECKING:
    from maestro_dist.evaluation import Evaluation
    from maestro_dist.predict import TaskDescription
    from maestro_dist.tracking import MetricLog

RESULT_FILE = "result.json"
MODEL_FOLDER = "model"


class FinalTest(Callback):
    """Tests the best checkpoint once, on all ranks; rank 0 then writes what a person takes away.

    It comes last among the callbacks: the best checkpoint must be on storage. `result.json` is written last, so a run
    that died in between tests again, with the same outcome.
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

            dist.barrier()  # rank 0 has written the last record
        chosen = best(self._run.url)
        restore(state.engine, chosen)
        evaluation = self._evaluate()
        if self._log is None:
            return
        self._fence()
        self._log.log(state.step, evaluation.flat("test"))
        story = story_of(state, self._log.history(), evaluation)
        log_figures(draw(story), self._log.folder, self._tracking_uri, self._mlflow_run, story.tables())
        model = self._export(state, chosen, evaluation, self._log.folder)
        self._keep(state, evaluation)
        pointers = {"checkpoint.best": chosen.url, "checkpoint.step": str(chosen.step)}
        pointers |= {"model": self._run.name(MODEL_FOLDER), "model.mlflow": model or "not logged"}
        tag_run(self._tracking_uri, self._mlflow_run, pointers)
        result = {
            "evaluation": evaluation.to_json(),
            "metric": state.task.metric(state.config.evaluation.metric),
            "best_step": chosen.step,
            "best_score": state.best_score,
            "checkpoint": chosen.url,
            "model": self._run.name(MODEL_FOLDER),
            "mlflow_model": model,
        }
        self._run.write(RESULT_FILE, json.dumps(result, indent=1).encode())

    def _keep(self, state: State, evaluation: Evaluation) -> None:
        """Write the answers of every scenario, with the names of samples and people."""
        if evaluation.predictions is None:
            return
        data = state.config.data
        source = SplitSource(data.url, state.manifest, data, tuple(state.modalities), data.test)
        keys, subjects = roster(source)
        names = np.array([modality.name for modality in state.modalities])
        replace(evaluation.predictions, key=keys, subject=subjects, modalities=names).write(self._run)

    def _export(self, state: State, chosen: CheckpointInfo, evaluation: Evaluation, folder: Path) -> str | None:
        """Write the model to the run and log it in MLflow, unless it was pre-trained only. Returns its MLflow URI."""
        from maestro_dist.predict import export_model
        from maestro_dist.tracking.model import log_model

        content: dict[str, Any] = {
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
        export_model(self._run.join(MODEL_FOLDER).url, **content)
        local = folder / MODEL_FOLDER
        if self._run.local is None:
            export_model(str(local), **content)
        if state.task.kind == "pretrain":
            return None  # it cannot answer
        return log_model(
            self._tracking_uri,
            self._mlflow_run,
            local,
            modalities=state.modalities,
            classes=state.manifest.classes,
            recording=state.config.model.normalize == "recording",
        )

    @staticmethod
    def _task(state: State) -> TaskDescription:
        from maestro_dist.predict import TaskDescription

        split = state.manifest.split(state.config.data.train)
        return TaskDescription(
            kind=state.task.kind,
            classes=tuple(state.manifest.classes) if state.task.kind == "classification" else (),
            target=state.manifest.target,
            target_mean=0.0 if split.target_mean is None else split.target_mean,
            target_std=1.0 if split.target_std is None else split.target_std,
        )
