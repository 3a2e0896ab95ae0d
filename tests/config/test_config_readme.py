"""The keys, files and commands that `configs/README.md` names are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from maestro_dist.config.check import check
from maestro_dist.config.load import load_config
from maestro_dist.config.metadata import walk
from maestro_dist.config.schema import Config
from maestro_dist.train import parse_arguments

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "configs" / "README.md").read_text()
COMMANDS = re.findall(r"^python -m maestro_dist\.train (configs/.*)$", TEXT, re.MULTILINE)


def test_every_file_is_explained() -> None:
    named = set(re.findall(r"`(\w+\.yaml)`", TEXT)) - {"config.yaml"}
    assert named == {path.name for path in (ROOT / "configs").glob("*.yaml")}


def test_every_key_that_is_named_exists() -> None:
    known = {key for key, _ in walk(Config)}
    sections = "|".join(Config.model_fields)
    named = set(
        re.findall(rf"\b((?:{sections})\.[a-z_.]*[a-z_])", re.sub(r"\S+\.(py|md|yaml)\b|maestro_dist\.\w+", "", TEXT))
    )
    assert named
    assert named <= known


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_valid_configuration(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = parse_arguments(shlex.split(command, comments=True))
    check(load_config(options.config, options.overrides))
