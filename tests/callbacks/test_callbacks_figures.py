"""What the pictures of a run are told."""

from __future__ import annotations

import pytest
from callback_states import NAMES, make_state

from maestro_dist.callbacks.figures import missing_curve, story_of
from maestro_dist.data.manifest import Manifest
from maestro_dist.evaluation import Evaluation, Scenario
from maestro_dist.evaluation.loads import SetLoad

EVALUATION = Evaluation(
    "test",
    10,
    ["accuracy", "auroc"],
    [Scenario(0.0, 0, {"accuracy": 0.9}), *(Scenario(0.4, draw, {"accuracy": 0.6 + 0.1 * draw}) for draw in range(3))],
    class_counts=[7, 3],
    confusion=[[6, 1], [0, 3]],
    loads=[SetLoad([], 9, [[3, 4], [5, 6]]), SetLoad([1], 1, [[1, 0], [0, 1]])],
)


def test_story_of_a_run() -> None:
    state = make_state({"run": {"name": "study"}})
    state.manifest = Manifest.model_construct(name="wesad", classes=["rest", "stress"])
    story = story_of(state, {}, EVALUATION)
    assert story.title == "study: wesad, 2 modalities, test split"
    assert story.modalities == NAMES
    assert story.confusion == [[6, 1], [0, 3]]
    assert story.sets == ["complete", f"without {NAMES[1]}"]
    assert story.set_loads is not None
    assert story.set_loads.tolist() == [[[3, 4], [1, 0]], [[5, 6], [0, 1]]]
    assert story.missing is not None
    assert story.missing.means == pytest.approx([0.9, 0.7])
    assert story.missing.spreads == pytest.approx([0.0, 0.1])
    assert story.missing.baseline == 0.7


def test_a_metric_that_is_undefined_has_no_curve() -> None:
    assert missing_curve(EVALUATION, "auroc") is None
