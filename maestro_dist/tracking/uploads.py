"""Uploads of a run that has ended: figures, model, tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maestro_dist.tracking.best_effort import BestEffort
from maestro_dist.tracking.figures import FOLDER
from maestro_dist.tracking.run import log_files, tag_run
from maestro_dist.tracking.unsent import FIGURES, MODEL, TAGS


class EndUploads:
    """What MLflow gets at the end of a run besides metrics. Sending it again replaces it.

    unsent     parts that MLflow lacks (see `unsent.PARTS`); it shrinks while `send` runs
    model_uri  URI of the logged model; None without one
    """

    def __init__(self, uri: str, run_id: str, result: Mapping[str, Any], parts: Sequence[str]) -> None:
        """`result`: content of `result.json`. `parts`: what to send."""
        self.unsent = [part for part in (FIGURES, MODEL, TAGS) if part in parts]
        self.model_uri: str | None = result["mlflow_model"]
        self._at, self._result = (uri, run_id), result

    def send(self, figures: Sequence[Path], log_model: Callable[[], str | None]) -> BestEffort:
        """Send the parts. Returns what failed. `log_model` logs the model and returns its URI, or None if it fails."""
        effort = BestEffort()
        if FIGURES in self.unsent and effort.attempt(
            "upload of figures", lambda: log_files(*self._at, list(figures), FOLDER)
        ):
            self.unsent.remove(FIGURES)
        if MODEL in self.unsent:
            logged = effort.attempt("upload of the model", lambda: log_model() or False)
            if isinstance(logged, str):
                self.model_uri = logged
                self.unsent.remove(MODEL)
        if TAGS in self.unsent and effort.attempt("tags", lambda: tag_run(*self._at, self._tags())):
            self.unsent.remove(TAGS)
            if MODEL in self.unsent:  # its tag will change
                self.unsent.append(TAGS)
        return effort

    def _tags(self) -> dict[str, str]:
        return {
            "checkpoint.best": self._result["checkpoint"],
            "checkpoint.step": str(self._result["best_step"]),
            "model": self._result["model"],
            "model.mlflow": self.model_uri or "not logged",
        }
