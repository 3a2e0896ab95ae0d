"""A suite's file becomes cells; what is wrong in it is named by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from suite.cells import select
from suite.plan import ROOT, load_plan, sources

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
    begin = f"python -m maestro_dist.train configs/quickstart.yaml run.init_from={tmp_path}/excerpt.pretrain.s1 "
    assert maestro.command.startswith(begin)
    assert (pretrain.name, pretrain.scored) == ("excerpt.pretrain.s1", False)
    assert lightgbm.command.startswith("python -m benchmarks.baselines lightgbm evaluation.metric=accuracy ")
    assert (maestro.cpus, maestro.inline, plan.experiment) == (1, True, "smoke")
    assert minirocket.settings["baseline.drop"] == 0.4
    config = load_config(str(ROOT / maestro.arguments[1]), maestro.arguments[2:])
    assert (config.run.name, config.run.storage, config.run.seed) == ("excerpt.maestro.s1", str(tmp_path), 1)
    assert config.tracking.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert (config.evaluation.test_rates, config.evaluation.draws) == ([0.0, 0.4], [0, 1])
    assert Path(config.data.url).is_absolute()


def ablated(tree: Any, **values: Any) -> None:
    tree["ablations"] = [{"name": "znorm", "of": "lightgbm", "set": ["baseline.normalize=window"]} | values]


def test_an_ablation_is_its_entry_with_something_changed(tmp_path: Path) -> None:
    *_, entry, _, ablation = load_plan(changed(tmp_path, ablated), ["seeds=[3, 4]", "rates=[0, 0.2, 0.4]"]).cells[2:]
    assert (entry.name, ablation.name) == ("excerpt.minirocket.s3", "excerpt.znorm.s3"), "one seed: the first"
    assert ablation.settings["baseline.normalize"] == "window"
    assert ablation.settings["baseline.trees"] == 10, "the rest is kept"
    assert entry.settings["evaluation.test_rates"] == [0, 0.2, 0.4]
    assert ablation.settings["evaluation.test_rates"] == [0, 0.4], "its table has no others"
    figure = {"name": "x", "value": {"entry": "znorm", "data": "excerpt", "missing": 0.2}, "reach": 0}
    path = changed(tmp_path, lambda tree: (ablated(tree), tree.update(figures=[figure], rates=[0, 0.2, 0.4])))
    with pytest.raises(ConfigError, match=r"value.missing: 'znorm' is not tested at 0.2, but at \[0.0, 0.4\]"):
        load_plan(path)


def test_the_real_suite_is_sound() -> None:
    plan = load_plan(str(ROOT / "configs" / "suite.yaml"))
    assert len({cell.name for cell in plan.cells}) == len(plan.cells)
    stages: dict[int, float] = {}
    for cell in plan.cells:
        stages[cell.stage] = stages.get(cell.stage, 0.0) + cell.minutes
    assert list(stages) == list(range(1, len(stages) + 1))
    assert max(stages.values()) <= 100
    assert sum(stages.values()) <= 2 * 6 * 60, "six hours of two cores"
    folds = [cell for cell in plan.cells if cell.data == "stress_folds" and cell.entry == "lightgbm_recording"]
    assert [(cell.fold, cell.seed) for cell in folds][:4] == [(0, 2711), (0, 2712), (0, 2713), (1, 2711)]
    packed = dict(sources(plan, folds))
    assert len(packed) == 5
    url, source = list(packed.items())[3]
    assert url.endswith("stress_predict_fold3")
    assert source is not None
    assert source.options == {"folds": 5, "fold": "3"}


def test_cells_are_selected_by_name_and_stage(tmp_path: Path) -> None:
    plan = load_plan(SMOKE, ["stage_minutes=1.3", "seeds=[1, 2]"])
    assert [cell.stage for cell in plan.cells] == [1, 2, 3, 4, 4, 5, 5, 5]
    assert [cell.name for cell in select(plan.cells, ["*.lightgbm.*"], 5)] == ["excerpt.lightgbm.s2"]
    assert [cell.stage for cell in select(plan.cells, ["*.lightgbm.s2", "*.maestro.*"], 5)] == [5]
    with pytest.raises(ConfigError, match=r"no cell fits --only \*.lightgbm.s1 in stage 5 of 5"):
        select(plan.cells, ["*.lightgbm.s1"], 5)
    with pytest.raises(
        ConfigError, match=r"fits --only excerpt.lihgtgbm.s2 \(see --list\); did you mean 'excerpt.lightgbm"
    ):
        select(plan.cells, ["*.maestro.*", "excerpt.lihgtgbm.s2"], None)
    with pytest.raises(ConfigError, match=r"fits --only storage=/x .*; key=value comes before --only"):
        select(plan.cells, ["*.lightgbm.*", "storage=/x"], None)


def test_overrides_name_the_items_of_lists() -> None:
    plan = load_plan(SMOKE, ["entries.lightgbm.seeds=[5]", "data.excerpt.url=/elsewhere", "rates=[0]", "figures=[]"])
    assert [cell.seed for cell in plan.cells] == [1, 1, 5, 1]
    assert {cell.url for cell in plan.cells} == {"/elsewhere"}
    for wrong, said in (("entries.xgboost.seeds=[5]", "no 'xgboost'"), ("entries.seeds=[5]", "name one of the items")):
        with pytest.raises(ConfigError, match=said):
            load_plan(SMOKE, [wrong])


def entry(number: int, **values: Any) -> Any:
    return lambda tree: tree["entries"][number].update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree.update(ratse=[0]), "ratse: unknown key"),
        (entry(1, sedes=[1]), "entries.lightgbm.sedes: unknown key"),
        (entry(1, seeds=["one"]), "entries.lightgbm.seeds.0: input should be a valid integer"),
        (entry(1, kind="forest"), "entries.lightgbm.kind: input should be 'maestro', 'minirocket' or 'lightgbm'"),
        (entry(0, config=None), "entries.maestro: config: a maestro entry needs a configuration file"),
        (entry(1, data=["excerp"]), "entries.lightgbm.data: no data set 'excerp'; did you mean 'excerpt'?"),
        (entry(1, folds=[0]), "entries.lightgbm.folds: 'excerpt' has no folds"),
        (entry(2, name="lightgbm"), "entries.lightgbm.data: 'lightgbm' is on 'excerpt' twice"),
        (entry(0, set=["model.widht=3"]), "entry 'maestro' on 'excerpt': .*model.widht: unknown key"),
        (entry(0, set=["model.heads=5"]), "entry 'maestro' on 'excerpt': model.heads: 5 heads do not divide"),
        (entry(1, set=["baseline.tree=3"]), "entry 'lightgbm' on 'excerpt': baseline.tree: unknown key"),
        (entry(1, set=["baseline.drop=2"]), "baseline.drop: Input should be less than or equal to 1"),
        (lambda tree: ablated(tree, of="lightgb"), "of: no entry 'lightgb'; did you mean 'lightgbm'?"),
        (
            lambda tree: tree["data"][0].update(folds=3),
            r"data.excerpt: url: .* has \{fold\} in it where",
        ),
        (lambda tree: tree["figures"][0].update(over={"entry": "maestro", "data": "excerpt"}), "not both"),
        (
            lambda tree: tree["figures"][0]["value"].update(missing=0.3),
            "value.missing: 'lightgbm' is not tested at 0.3, but",
        ),
        (lambda tree: tree["figures"][0]["value"].update(metric="auroc"), "excerpt' has accuracy, macro_f1"),
        (lambda tree: tree["figures"][0]["value"].update(entry="x"), "value.entry: no 'x' on 'excerpt'"),
    ],
)
def test_what_is_wrong_is_named(change: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_plan(changed(tmp_path, change))
    assert "suite.yaml: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_suite_means_what_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    typed = [
        "storage=/data/exp #3",
        "experiment=0042",
        "data.excerpt.url=~/no: 1",
        "about=# 2026-01-15",
        "tracking_uri=",
    ]
    plan = load_plan(SMOKE, [*typed, "entries.lightgbm.label=off", "entries.lightgbm.minutes=1e-1", "seeds=[1_0]"])
    assert (plan.storage, plan.experiment, plan.suite.about) == ("/data/exp #3", "0042", "# 2026-01-15")
    assert plan.tracking == "sqlite:////data/exp #3/mlflow.db"
    assert {cell.url for cell in plan.cells} == {f"{tmp_path}/no: 1"}
    assert [(entry.label, entry.minutes) for entry in plan.suite.entries][1] == ("off", 0.1)
    config = load_config(str(ROOT / plan.cells[1].arguments[1]), plan.cells[1].arguments[2:])
    assert (config.run.storage, config.run.seed) == ("/data/exp #3", 10)
    assert load_plan(SMOKE, ["tracking_uri=sqlite:///~/x.db"]).tracking == f"sqlite:///{tmp_path}/x.db"
    with pytest.raises(ConfigError, match=r"^tracking_uri: holds credentials") as caught:
        load_plan(SMOKE, ["tracking_uri=postgresql://h/db?password=hunter2"])
    assert "hunter2" not in str(caught.value)
    items = load_plan(
        SMOKE,
        [
            "figures=[{name: no, count: [a, b]}, {name: a, value: {entry: lightgbm, data: excerpt}},"
            "{name: b, value: {entry: lightgbm, data: excerpt}}]",
            "figures.no.reach=1e0",
        ],
    )
    assert [(figure.name, figure.reach) for figure in items.suite.figures] == [("no", 1.0), ("a", None), ("b", None)]
