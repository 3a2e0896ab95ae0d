"""Renamed keys: an error for a person, still read in files that the package wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maestro_dist.config.dump import flatten_config
from maestro_dist.config.identity import check_resume, run_identity
from maestro_dist.config.load import load_config
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.renamed import OLD_NAMES, RENAMED, current
from maestro_dist.config.schema import Config
from maestro_dist.errors import ConfigError


def with_old_names(flat: dict[str, Any]) -> dict[str, Any]:
    return {OLD_NAMES.get(key, key): value for key, value in flat.items()}


def test_the_table_leads_to_keys_that_exist() -> None:
    keys = flatten_config(Config())
    assert len(OLD_NAMES) == len(RENAMED)
    for old, new in RENAMED.items():
        assert new in keys
        assert old not in keys
        assert old.rpartition(".")[0] == new.rpartition(".")[0], "a renamed key stays in its section"


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_key_is_refused_with_its_new_name(old: str, new: str, tmp_path: Path) -> None:
    said = f"{old} was renamed: use {new}"
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"{old}=1"])
    assert str(caught.value) == f"overrides: {said}"
    section, _, name = old.partition(".")
    path = tmp_path / "x.yaml"
    path.write_text(f"{section}: {{{name}: 1}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    assert str(caught.value) == f"{path}: {said}"


def test_an_old_key_without_its_section_is_told_too() -> None:
    with pytest.raises(ConfigError, match=r"distil: unknown key; did you mean model\.downsample\?"):
        load_config(None, ["distil=false"])


def test_saved_values_are_read_with_the_present_names() -> None:
    config = Config.model_validate(
        {"model": {"downsample": False, "word": {"checkpoint": 4}}, "missing": {"ramp_start": 0.5}}
    )
    flat = flatten_config(config)
    old = with_old_names(flat)
    assert old != flat
    assert current(old) == flat
    tree = config.model_dump(mode="json")
    for key, name in OLD_NAMES.items():
        section, _, new = key.partition(".")
        tree[section][name.partition(".")[2]] = tree[section].pop(new)
    assert Config.model_validate(current(tree)) == config
    assert ModelConfig.model_validate(current(tree["model"], "model")) == config.model
    for damaged in (None, [], "text", {"model": 3}, {1: 2}):
        assert current(damaged) == damaged


def test_a_run_of_before_a_key_was_renamed_can_be_continued() -> None:
    begun = load_config(None, ["data.url=a", "model.downsample=false"])
    saved = with_old_names(run_identity(begun))
    assert "model.distil" in saved
    check_resume(begun, saved)
    with pytest.raises(ConfigError, match=r"model\.downsample False -> True"):
        check_resume(load_config(None, ["data.url=a"]), saved)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_configuration_of_an_earlier_run_is_read_whatever_its_keys_were_called(scheme: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {distil: false}\n")
    path = f"{scheme}{tmp_path}/config.yaml"
    with pytest.raises(ConfigError, match=r"model\.distil was renamed"):
        load_config(path)
    (tmp_path / "run.json").write_text("{}")
    assert load_config(path).model.downsample is False
    with pytest.raises(ConfigError, match=r"model\.distil was renamed"):
        load_config(path, ["model.distil=true"])
