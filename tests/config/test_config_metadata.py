"""What a key declares about itself is what happens."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from maestro_dist.config.annotations import alternatives, section_of
from maestro_dist.config.identity import check_resume, is_identity_key, run_identity
from maestro_dist.config.metadata import Execution, Location, marked, marker_of, walk
from maestro_dist.config.paths import with_absolute_paths
from maestro_dist.config.schema import Config, DataSource
from maestro_dist.errors import ConfigError

SOURCE = {"converter": "uci_hapt", "path": "raw"}
TREE = {"data": {"source": SOURCE}, "model": {"stem": {}}}
FIELDS = dict(walk(Config))
KEYS = [key for key, info in FIELDS.items() if section_of(info) is None]
EXECUTION = marked(Config, Execution)


def tree_with(key: str, value: Any) -> dict[str, Any]:
    tree: dict[str, Any] = copy.deepcopy(TREE)
    *path, last = key.split(".")
    node = tree
    for part in path:
        node = node.setdefault(part, {})
    node[last] = value
    return tree


def value_of(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def test_the_walk_reaches_every_key() -> None:
    assert {"model.stem.kernel", "data.source.options", "task.pretrain.word", "model.moe.top_k"} <= set(KEYS)
    assert len(KEYS) == len(set(KEYS)) > 120


@pytest.mark.parametrize("key", KEYS)
def test_a_resume_may_change_what_is_declared_as_execution_and_nothing_else(key: str) -> None:
    config = Config.model_validate(TREE)
    free = any(key == marked or key.startswith(f"{marked}.") for marked in EXECUTION)
    assert is_identity_key(key) is not free
    saved = {**run_identity(config), key: "another"}
    if free:
        check_resume(config, saved)
        return
    with pytest.raises(ConfigError, match=f"{key} 'another' -> "):
        check_resume(config, saved)


@pytest.mark.parametrize("key", KEYS)
def test_locations_and_no_other_texts_become_absolute(key: str) -> None:
    info = FIELDS[key]
    kinds = alternatives(info.annotation)
    texts = ((str, "relative"), (list[str], ["relative"]), (list[DataSource], [{"url": "relative"}]))
    given = next((v for kind, v in texts if kind in kinds), None)
    if key == "evaluation.metric":
        given = "mae.relative"  # the text has a form
    if given is None:
        assert marker_of(info, Location) is None
        return
    config = Config.model_validate(tree_with(key, given))
    became = value_of(with_absolute_paths(config), key) != value_of(config, key)
    assert became is (marker_of(info, Location) is not None)


def test_a_key_of_an_earlier_version_is_part_of_the_identity() -> None:
    assert is_identity_key("model.no_longer_there")
    assert not is_identity_key("data.source.no_longer_there")
