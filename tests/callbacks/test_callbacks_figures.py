"""What the pictures of a run are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from callback_states import NAMES, make_record, make_state

from maestro_dist.callbacks import figures as figures_module
from maestro_dist.callbacks.figures import Figures, missing_curve, story_of
from maestro_dist.data.manifest import Manifest
from maestro_dist.evaluation import Evaluation, Scenario
from maestro_dist.evaluation.expert_loads import ExpertLoad
from maestro_dist.tracking import MetricLog
from maestro_dist.tracking.best_effort import BestEffort
from maestro_dist.tracking.figures import Story

EVALUATION = Evaluation(
    "test",
    10,
    ["accuracy", "auroc"],
    [Scenario(0.0, 0, {"accuracy": 0.9}), *(Scenario(0.4, draw, {"accuracy": 0.6 + 0.1 * draw}) for draw in range(3))],
    class_counts=[7, 3],
    confusion=[[6, 1], [0, 3]],
    loads=[ExpertLoad([], 9, [[3, 4], [5, 6]]), ExpertLoad([1], 1, [[1, 0], [0, 1]])],
)


def test_story_of_a_run() -> None:
    state = make_state({"run": {"name": "study"}})
    state.manifest = Manifest.model_construct(name="wesad", classes=["rest", "stress"])
    story = story_of(state, {}, EVALUATION)
    assert story.title == "study: wesad, 2 modalities, test split"
    assert story.modalities == NAMES
    assert (story.confusion, story.counted) == ([[6, 1], [0, 3]], "samples")
    assert story_of(state, {}, replace(EVALUATION, labels=50)).counted == "parts"
    assert story.sets == ["complete", f"without {NAMES[1]}"]
    assert story.set_loads is not None
    assert story.set_loads.tolist() == [[[3, 4], [1, 0]], [[5, 6], [0, 1]]]
    assert story.missing is not None
    assert story.missing.means == pytest.approx([0.9, 0.7])
    assert story.missing.spreads == pytest.approx([0.0, 0.1])
    assert story.missing.baseline == 0.7


def test_pictures_that_fail_while_training_are_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[str] = []

    def fails(story: Story, folder: Path, uri: str, run_id: str, effort: BestEffort) -> None:
        tried.append(story.title)
        effort.attempt("upload of figures", lambda: {}["none"])

    monkeypatch.setattr(figures_module, "_EVERY_S", 0.0)
    monkeypatch.setattr(figures_module, "log_figures", fails)
    log = MetricLog(tmp_path, "http://127.0.0.1:9", "run", 0, 0, interval_s=60.0)
    state = make_state({})
    figures = Figures(log, "http://127.0.0.1:9", "run")
    untold, told = Manifest.model_construct(name="wesad"), Manifest.model_construct(name="wesad", classes=["a"])
    for state.manifest in (untold, told, told):  # the first has no classes, so that nothing can be told of it
        figures.on_validation(state, EVALUATION)
        figures.on_step(state, make_record(0))
        figures.close()
    log.close(0)
    assert len(tried) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert said == ["warning: left out: pictures ('Manifest' object has no attribute 'classes'); training goes on"]


def test_a_metric_that_is_undefined_has_no_curve() -> None:
    assert missing_curve(EVALUATION, "auroc") is None
