"""Pictures: which are drawn from what is there, the files, and that they arrive in the MLflow run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from maestro_dist.tracking import open_run
from maestro_dist.tracking.best_effort import BestEffort
from maestro_dist.tracking.figures import Story, draw, log_figures
from maestro_dist.tracking.metric_file import History
from maestro_dist.tracking.plots import (
    MissingCurve,
    budgets_panel,
    expert_load,
    experts_panel,
    label_ends,
    most_confused,
    smoothed,
)

NAMES = ["acc", "bvp", "eda"]


def make_history(layers: int = 1) -> History:
    steps = np.arange(1, 101)
    history: History = {"train/loss": (steps, 1 / steps)}
    some = steps[9::10]
    for suffix in ("", "_missing_40"):
        history[f"validation/loss{suffix}"] = (some, 2.0 / some)
        history[f"validation/accuracy{suffix}"] = (some, 1 - 1 / some)
    for index, name in enumerate(NAMES):
        history[f"budgets/{name}"] = (some, some * 0.01 * index)
        for layer in range(layers):
            for expert, share in enumerate((0.25, 0.75)):
                history[f"experts/layer{layer}/{expert}"] = (some, np.full(10, share))
                history[f"experts/layer{layer}/{name}/{expert}"] = (some, np.full(10, share))
    return history


FIGURE_DATA = Story(
    title="run",
    history=make_history(),
    modalities=NAMES,
    metric="accuracy",
    label="accuracy",
    classes=["rest", "stress"],
    confusion=[[5, 1], [2, 7]],
    missing=MissingCurve("accuracy", [0.0, 0.4], [0.9, 0.8], [0.0, 0.02], 0.6),
)


def test_pictures_are_files_in_the_run_folder_and_in_mlflow(uri: str, tmp_path: Path) -> None:
    run = open_run(uri, "study", "one")
    effort = BestEffort()
    log_figures(FIGURE_DATA, tmp_path / "run", uri, run.run_id, effort)
    assert effort.left_out == {}
    expected = {"loss", "validation", "missing", "budgets", "experts", "confusion", "overview"}
    files = list((tmp_path / "run" / "figures").glob("*.png"))
    assert {file.stem for file in files} == expected
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files)
    uploaded = MlflowClient(uri).list_artifacts(run.run_id, "figures")
    assert {file.path for file in uploaded} == {f"figures/{name}.png" for name in expected} | {"figures/confusion.csv"}


def test_what_is_not_known_is_left_out() -> None:
    bare = Story("run", {"train/loss": make_history()["train/loss"]}, NAMES, "mae", "MAE")
    assert set(draw(bare)) == {"loss", "overview"}
    assert draw(replace(bare, history={})) == {}


def test_several_layers_have_a_picture_each() -> None:
    assert {"experts_0", "experts_1"} <= set(draw(replace(FIGURE_DATA, history=make_history(layers=2))))


def test_missing_sets_have_a_picture_and_a_table(uri: str, tmp_path: Path) -> None:
    tokens = np.array([[[30, 10], [1, 3]]])
    story = replace(FIGURE_DATA, sets=["complete", "without acc"], set_loads=tokens)
    figures = draw(story)
    assert {"75", "25"} <= {text.get_text() for text in figures["sets"].axes[0].texts}
    run = open_run(uri, "study", "sets")
    log_figures(replace(story, history={}, missing=None, confusion=None), tmp_path, uri, run.run_id, BestEffort())
    rows = (tmp_path / "figures" / "experts_by_missing_set.csv").read_text().splitlines()
    assert rows == [
        "layer,missing set,expert,tokens",
        "0,complete,0,30",
        "0,complete,1,10",
        "0,without acc,0,1",
        "0,without acc,1,3",
    ]
    uploaded = {file.path for file in MlflowClient(uri).list_artifacts(run.run_id, "figures")}
    assert uploaded == {f"figures/{name}" for name in ("sets.png", "overview.png", "experts_by_missing_set.csv")}


def test_panels_show_the_numbers() -> None:
    figures = draw(FIGURE_DATA)
    cells = {text.get_text() for text in figures["confusion"].axes[0].texts}
    assert {"5", "1", "2", "7"} <= cells
    assert {"25", "75"} <= {text.get_text() for text in figures["experts"].axes[0].texts}
    assert {"0.900", "0.800", "most frequent class"} <= {text.get_text() for text in figures["missing"].axes[0].texts}
    assert set(NAMES) <= {text.get_text() for text in figures["budgets"].axes[0].texts}


def test_of_many_classes_the_most_confused_are_drawn() -> None:
    classes = 2000
    right = [[number, number, 5] for number in range(classes)]
    pairs = np.array([*right, [7, 1500, 3], [1500, 8, 1], [9, 9, 4]])
    kept, counts, samples = most_confused(pairs, classes)
    assert len(kept) == 40
    assert set(kept) == {*range(39), 1500}, "the confused 7, 8, 1500, the frequent 9, and then the first ones"
    place = {number: index for index, number in enumerate(kept.tolist())}
    assert counts[place[7], place[1500]] == 3
    assert counts[place[9], place[9]] == 9
    assert samples[place[7]] == 8, "the share is of all samples of the class, those shown or not"
    codes = [f"code {number}" for number in range(classes)]
    story = replace(FIGURE_DATA, history={}, missing=None, classes=codes, confusion=None, confused=pairs.tolist())
    axes = draw(story)["confusion"].axes[0]
    assert axes.get_title(loc="left") == "Confusion, complete samples\n40 of 2,000, the most confused"
    assert axes.images[0].get_array().shape == (40, 40)
    assert len(axes.texts) == 0
    assert len(story.tables()["confusion"]().splitlines()) == 1 + 2003


def test_confusion_says_whether_it_counts_parts_of_samples() -> None:
    over_time = replace(FIGURE_DATA, history={}, missing=None, counted="parts")
    assert draw(over_time)["confusion"].axes[0].get_xlabel() == "predicted (number of parts)"
    assert over_time.tables()["confusion"]().splitlines()[0] == "true,predicted,parts"


def test_confusion_as_pairs_is_drawn_as_that_of_a_square() -> None:
    pairs = [[0, 0, 5], [0, 1, 1], [1, 0, 2], [1, 1, 7]]
    one, other = (
        draw(FIGURE_DATA)["confusion"],
        draw(replace(FIGURE_DATA, confusion=None, confused=pairs))["confusion"],
    )
    assert np.array_equal(one.axes[0].images[0].get_array(), other.axes[0].images[0].get_array())


def test_of_many_modalities_experts_and_layers_some_are_drawn() -> None:
    from matplotlib.figure import Figure

    names = [f"m{number}" for number in range(300)]
    load = np.full((300, 1000), 1e-3)
    load[250] = 0.0
    load[250, 3] = 1.0
    axes = Figure().subplots()
    experts_panel(axes, load, names)
    assert axes.images[0].get_array().shape == (40, 1000)
    assert "m250" in {label.get_text() for label in axes.get_yticklabels()}
    assert axes.get_title().endswith("\n40 of 300, the most specialized")
    assert len(axes.get_xticks()) <= 24
    axes = Figure().subplots()
    steps = np.arange(3)
    history: History = {f"budgets/{name}": (steps, np.full(3, place)) for place, name in enumerate(names)}
    budgets_panel(axes, history, names, names)
    assert len(axes.lines) <= 110
    assert {text.get_text() for text in axes.texts} == {"m299", "m298", "m297", "m296", "m2", "m1", "m0"}
    sets = np.ones((50, 2, 4))
    drawn = draw(replace(FIGURE_DATA, history={}, missing=None, confusion=None, sets=["a", "b"], set_loads=sets))
    assert set(drawn) == {"overview", *(f"sets_{layer}" for layer in (0, 1, 2, 47, 48, 49))}


@pytest.mark.parametrize("value", [0.0, 2.0, -3.0, 1e-300, 1e300])
def test_a_loss_that_never_changes_has_a_picture(value: float) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = draw(Story("run", {"train/loss": (np.array([1, 2]), np.full(2, value))}, NAMES, "mae", "MAE"))
    low, high = figures["loss"].axes[0].get_ylim()
    assert low <= value <= high
    assert low < high


def test_expert_load_of_a_modality_that_never_came_is_zero() -> None:
    history = {name: values for name, values in make_history().items() if "/bvp/" not in name}
    load = expert_load(history, NAMES, 0)
    assert load is not None
    assert load.tolist() == [[0.25, 0.75], [0.0, 0.0], [0.25, 0.75]]


def test_smoothing_keeps_a_constant_and_equals_the_plain_mean_inside() -> None:
    assert smoothed(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
    values = np.random.default_rng(0).normal(size=200)
    assert smoothed(values)[100] == pytest.approx(values[98:103].mean())


def test_names_at_line_ends_do_not_collide() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set_ylim(0.0, 1.0)
    label_ends(axes, [(0.99, "a", "red"), (0.98, "b", "red"), (0.985, "c", "red")])
    heights = sorted(text.get_position()[1] for text in axes.texts)
    assert np.diff(heights).min() > 0.06
    assert heights[-1] <= 1.0
