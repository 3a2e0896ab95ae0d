"""A suite's file becomes cells; errors name their key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from suite.matrix import ROOT, load_plan, select

from maestro_dist.config.load import load_config
from maestro_dist.errors import ConfigError

SMOKE = str(ROOT / "configs" / "suite_smoke.yaml")


def changed(tmp_path: Path, change: Any) -> str:
    """The smoke suite with something changed, as a file."""
    tree = yaml.safe_load(Path(SMOKE).read_text())
    change(tree)
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_cells_of_the_smoke_suite(tmp_path: Path) -> None:
    plan = load_plan(SMOKE, [f"storage={tmp_path}"])
    pretrain, maestro, lightgbm, minirocket = plan.cells
    assert maestro.name == "excerpt.maestro.s1"
    start = ("maestro_dist.train", str(ROOT / "configs" / "quickstart.yaml"), "run.launcher=inline")
    assert maestro.command[:3] == start
    assert f"run.init_from={tmp_path}/excerpt.pretrain.s1" in maestro.command
    assert (pretrain.name, pretrain.scored) == ("excerpt.pretrain.s1", False)
    assert lightgbm.command[:3] == ("benchmarks.baselines", "lightgbm", "evaluation.metric=accuracy")
    assert maestro.cpus == 1
    assert minirocket.settings["baseline.drop"] == 0.4
    config = load_config(maestro.command[1], maestro.command[2:])
    assert (config.run.name, config.run.storage, config.run.seed) == ("excerpt.maestro.s1", str(tmp_path), 1)
    assert (config.tracking.uri, config.tracking.experiment) == (f"sqlite:///{tmp_path}/mlflow.db", "smoke")
    assert (config.evaluation.test_rates, config.evaluation.draws) == ([0.0, 0.4], [0, 1])
    assert Path(config.data.url).is_absolute()


def ablated(tree: Any, **values: Any) -> None:
    ablation = {"name": "znorm", "label": "windows z-normalised", "set": ["baseline.normalize=window"]}
    tree["ablations"] = [ablation | {"of": {"excerpt": "lightgbm"}} | values]


def test_an_ablation_is_its_model_with_a_change(tmp_path: Path) -> None:
    *_, entry, _, ablation = load_plan(changed(tmp_path, ablated), ["seeds=[3, 4]", "rates=[0, 0.2, 0.4]"]).cells[2:]
    assert (entry.name, ablation.name) == ("excerpt.minirocket.s3", "excerpt.znorm.s3"), "one seed: the first"
    assert ablation.settings["baseline.normalize"] == "window"
    assert ablation.settings["baseline.trees"] == 10, "the rest is kept"
    assert entry.settings["evaluation.test_rates"] == [0, 0.2, 0.4]
    assert ablation.settings["evaluation.test_rates"] == [0, 0.4], "its table has no others"


def test_the_real_suite_is_sound() -> None:
    plan = load_plan(str(ROOT / "configs" / "suite.yaml"))
    assert len({cell.name for cell in plan.cells}) == len(plan.cells)
    folds = [cell for cell in plan.cells if cell.data == "stress_folds" and cell.model == "lightgbm_recording"]
    assert [(cell.fold, cell.seed) for cell in folds][:4] == [(0, 2711), (0, 2712), (0, 2713), (1, 2711)]
    cell = next(cell for cell in folds if cell.fold == 3)
    assert cell.url.endswith("stress_predict_fold3")
    assert cell.source is not None
    assert cell.source.options == {"folds": 5, "fold": "3"}


def test_cells_are_selected_by_name() -> None:
    cells = load_plan(SMOKE, ["seeds=[1, 2]"]).cells
    assert [cell.name for cell in select(cells, ["*.lightgbm.*"])] == ["excerpt.lightgbm.s1", "excerpt.lightgbm.s2"]
    assert [cell.seed for cell in select(cells, ["*.lightgbm.s2", "*.maestro.*"])] == [1, 2, 2]
    assert select(cells, []) == [*cells]
    with pytest.raises(ConfigError, match=r"no cell matches --only excerpt.lihgtgbm.s2 \(see --list\)"):
        select(cells, ["excerpt.lihgtgbm.s2"])


def test_overrides_reach_models_and_data_sets() -> None:
    plan = load_plan(SMOKE, ["models.lightgbm.seeds=[5]", "data.excerpt.url=/elsewhere", "rates=[0]"])
    assert [cell.seed for cell in plan.cells] == [1, 1, 5, 1]
    assert {cell.url for cell in plan.cells} == {"/elsewhere"}
    with pytest.raises(ConfigError, match=r"models.xgboost.data: Field required"):
        load_plan(SMOKE, ["models.xgboost.seeds=[5]"])


def test_a_model_differs_by_data_set(tmp_path: Path) -> None:
    def two(tree: Any) -> None:
        tree["data"]["other"] = {**tree["data"]["excerpt"], "url": "data/other"}
        own = {"seeds": [7], "set": ["baseline.trees=3"]}
        tree["models"]["lightgbm"]["data"] = {"excerpt": {}, "other": own}

    plan = load_plan(changed(tmp_path, two))
    (first,), (second,) = plan.cells_of("lightgbm", "excerpt"), plan.cells_of("lightgbm", "other")
    assert (first.seed, first.settings["baseline.trees"]) == (1, 10)
    assert (second.seed, second.settings["baseline.trees"]) == (7, 3)
    assert second.settings["baseline.leaf_samples"] == 5, "the model's own overrides stay"


def test_ablations_of_one_name_belong_to_different_data_sets(tmp_path: Path) -> None:
    change = {"name": "less", "label": "less", "set": ["baseline.trees=3"]}

    def two(tree: Any) -> None:
        tree["data"]["other"] = {**tree["data"]["excerpt"], "url": "data/other"}
        tree["models"]["lgb2"] = {"kind": "lightgbm", "data": {"other": {}}}
        tree["ablations"] = [change | {"of": {"excerpt": "lightgbm", "other": "lgb2"}}]

    found = [(cell.model, cell.data) for cell in load_plan(changed(tmp_path, two)).cells if cell.model == "less"]
    assert found == [("less", "excerpt"), ("less", "other")]
    twice = changed(tmp_path, lambda tree: tree.update(ablations=[change | {"of": {"excerpt": "lightgbm"}}] * 2))
    with pytest.raises(ConfigError, match="less on excerpt: two models or ablations have this name"):
        load_plan(twice)


def model(name: str, **values: Any) -> Any:
    return lambda tree: tree["models"][name].update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree.update(ratse=[0]), "ratse: Extra inputs are not permitted"),
        (model("lightgbm", sedes=[1]), "models.lightgbm.sedes: Extra inputs are not permitted"),
        (model("lightgbm", seeds=["one"]), "models.lightgbm.seeds.0: Input should be a valid integer"),
        (model("lightgbm", kind="forest"), "models.lightgbm.kind: Input should be 'maestro', 'minirocket' or 'light"),
        (model("lightgbm", data={"excerp": {}}), "there is no model or data set 'excerp'"),
        (model("maestro", set=["model.widht=3"]), "maestro on excerpt: .*model.widht: unknown key"),
        (model("maestro", set=["model.heads=5"]), "maestro on excerpt: model.heads: 5 heads do not divide"),
        (model("lightgbm", set=["baseline.tree=3"]), "lightgbm on excerpt: baseline.tree: unknown key"),
        (model("lightgbm", set=["baseline.drop=2"]), "baseline.drop: Input should be less than or equal to 1"),
        (lambda tree: ablated(tree, of={"excerpt": "lgb"}), r"there is no model or data set \('lgb', 'excerpt'\)"),
    ],
)
def test_errors_name_their_key(change: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_plan(changed(tmp_path, change))
    assert "suite.yaml: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_suite_means_what_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    typed = [
        "storage=/data/exp #3",
        "name=0042",
        "data.excerpt.url=~/no: 1",
        "about=# 2026-01-15",
        "results=",
        "models.lightgbm.label=off",
        "seeds=[1_0]",
    ]
    plan = load_plan(SMOKE, typed)
    assert (plan.storage, plan.suite.name, plan.suite.about) == ("/data/exp #3", "0042", "# 2026-01-15")
    assert (plan.tracking, plan.results) == ("sqlite:////data/exp #3/mlflow.db", None)
    cell = next(cell for cell in plan.cells if cell.model == "lightgbm")
    assert (plan.label("lightgbm"), cell.seed) == ("off", 10)
    assert cell.url == f"{tmp_path}/no: 1"
    maestro = next(cell for cell in plan.cells if cell.model == "maestro")
    config = load_config(maestro.command[1], maestro.command[2:])
    assert (config.run.storage, config.run.seed) == ("/data/exp #3", 10)
    with pytest.raises(ConfigError, match=r"^storage: holds credentials") as caught:
        load_plan(SMOKE, ["storage=s3://key:hunter2@bucket/runs"])
    assert "hunter2" not in str(caught.value)
