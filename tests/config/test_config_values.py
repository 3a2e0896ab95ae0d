"""A value means what was typed or written: the type of its key decides, not YAML's guess."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_dist.config.annotations import alternatives, is_section
from maestro_dist.config.credentials import has_credentials
from maestro_dist.config.dump import flatten_config, to_yaml
from maestro_dist.config.help_text import default_of, describe_keys
from maestro_dist.config.load import load_config, parse
from maestro_dist.config.schema import Config
from maestro_dist.config.yaml_text import from_yaml
from maestro_dist.errors import ConfigError
from maestro_dist.train import main

CONFIGS = sorted(path for path in (Path(__file__).parents[2] / "configs").glob("*.yaml") if "suite" not in path.name)
GUESSED = ["0042", "no", "off", "Yes", "2026-01-15", "1:30", "0x1F", "1_000", "1e3", ".5", "null", "~", "true", "010"]
TYPED = [
    "/data/exp #3",
    "ICU: sepsis",
    "@team",
    " x ",
    "[a",
    "a, b",
    "'q'",
    '"0042"',
    "- a",
    "&a",
    "*a",
    "!t",
    "%",
    "ü😀",
]


def value_of(config: Config, key: str) -> Any:
    """The value of `section.key`, also below an optional section or in a mapping."""
    value: Any = config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def typed(key: str, text: str) -> Any:
    return value_of(load_config(None, [f"{key}={text}"]), key)


def written(folder: Path, section: str, key: str, text: str) -> Any:
    path = folder / "x.yaml"
    path.write_text(f"{section}:\n  {key}: {text}\n", encoding="utf-8")
    return value_of(load_config(str(path)), f"{section}.{key}")


@pytest.mark.parametrize("text", [*GUESSED, *TYPED])
def test_a_text_key_has_the_text_that_was_typed(text: str) -> None:
    for key in ("run.storage", "data.url", "data.test", "tracking.experiment"):
        assert typed(key, text) == text


@pytest.mark.parametrize("text", GUESSED)
def test_a_text_key_has_the_text_of_the_file_and_of_lists(tmp_path: Path, text: str) -> None:
    assert written(tmp_path, "data", "test", text) == text
    assert written(tmp_path, "data", "modalities", f"[a, {text}]") == ["a", text]
    assert written(tmp_path, "model", "word", f"{{{text}: 8, co: 4}}") == {text: 8, "co": 4}
    assert typed("data.modalities", f"[a, {text}]") == ["a", text]
    assert typed("task.teachers", f"['{text}', \"{text}\"]") == [text, text]
    assert typed("augment.rotation_groups", f"[[{text}, b, c]]") == [[text, "b", "c"]]
    assert typed("model.word", f"{{{text}: 8, co: 0x4}}") == {text: 8, "co": 4}


@pytest.mark.parametrize("text", ["0042", "2026_01_15", "1_000", "1e3", "010"])
def test_names_keep_their_digits(tmp_path: Path, text: str) -> None:
    assert typed("run.name", text) == text
    assert written(tmp_path, "run", "name", text) == text


def test_a_name_that_is_refused_is_shown_as_typed() -> None:
    for text in ("1:30", "a/b", "/data #3"):
        with pytest.raises(ConfigError, match=re.escape("run.name: string should match") + f".*got '{text}'"):
            typed("run.name", text)


@pytest.mark.parametrize("text", ["", "null", "~", "Null", "NULL", "None"])
def test_nothing_and_null_are_null_where_a_key_may_be_null(tmp_path: Path, text: str) -> None:
    for section, key in (("run", "init_from"), ("data", "cache"), ("data", "modalities"), ("data", "source")):
        assert typed(f"{section}.{key}", text) is None
        assert written(tmp_path, section, key, text) is None
    assert typed("mesh.data", text) is None
    assert typed("task.pretrain.word", text) is None
    assert load_config(None, ["model.stem.kernel=3", f"model.stem={text}"]).model.stem is None
    assert written(tmp_path, "run", "init_from", "'null'") == "null"


@pytest.mark.parametrize("key", ["run.storage", "data.train", "data.validation", "data.test", "tracking.experiment"])
def test_an_empty_text_is_refused_where_it_names_something(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: string should have at least 1 character \(got ''\)"):
        typed(key, "")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optim.lr", "1e-3", 0.001),
        ("optim.lr", "1E-3", 0.001),
        ("optim.lr", ".5", 0.5),
        ("optim.lr", "5.", 5.0),
        ("optim.lr", "+2", 2.0),
        ("optim.lr", "1_000.5", 1000.5),
        ("optim.lr", "'0.5'", 0.5),
        ("optim.epochs", "1e3", 1000),
        ("optim.epochs", "1_000", 1000),
        ("optim.epochs", "010", 10),
        ("optim.epochs", " 8 # a note", 8),
        ("optim.epochs", "!!float 1e1", 10),
        ("run.seed", "0xBEEF", 0xBEEF),
        ("run.seed", "-7", -7),
        ("engine.zero_stage", "2", 2),
        ("mesh.data", "2", 2),
        ("model.word", "16", 16),
        ("optim.betas", "[.9, 1e-1]", (0.9, 0.1)),
        ("evaluation.rates", "[0, 2e-1]", [0.0, 0.2]),
    ],
)
def test_numbers(tmp_path: Path, key: str, text: str, value: Any) -> None:
    found = typed(key, text)
    assert (found, type(found)) == (value, type(value))
    assert written(tmp_path, *key.split("."), text) == value


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.epochs=1.5", "(got 1.5)"),
        ("optim.epochs=1:30", "(got '1:30')"),
        ("optim.epochs=0o17", "(got '0o17')"),
        ("optim.epochs=1__0", "(got '1__0')"),
        ("optim.epochs=true", "(got 'true')"),
        ("optim.epochs=" + "9" * 5000, "9..."),
        ("optim.lr=-1e-3", "(got -1e-3)"),
        ("optim.lr=.nan", "optim.lr"),
        ("optim.lr=.inf", "(got .inf)"),
        ("optim.lr=null", "(got 'null')"),
        ("optim.lr=0x", "(got '0x')"),
        ("run.workers=0x0", "(got 0x0)"),
        ("run.device=off", "(got 'off')"),
        ("engine.zero_stage='2'", "(got '2')"),
        ("data.modalities=acc", "data.modalities: input should be a valid list (got 'acc')"),
        ("data.modalities=[a, @b]", "'data.modalities=[a, @b]': the value is not valid YAML"),
        ("model.word={a: 8", "'model.word={a: 8': the value is not valid YAML"),
        ("evaluation.rates=[0, 1.5]", "evaluation.rates: input should be less than or equal to 1 (got 1.5)"),
        ("model=3", "model: input should be a valid dictionary or instance of ModelConfig (got '3')"),
        ("nowhere=3", "nowhere: unknown key"),
        ("a\nb=3", r"'a\nb': unknown key"),
        ("optim.lr=fast\nfaster", r"(got 'fast faster')"),
        ("evaluation.predictions=maybe", "(got 'maybe')"),
        ("model.word={a: 8, no: x}", "overrides: model.word.no: input should be a valid integer"),
        ("model.word={no:8}", "model.word.no:8: input should be a valid integer"),
        ("optim.betas=[.9]", "optim.betas: field required"),
        ("data.source.options.fold=3", "data.source.converter: field required; data.source.path: field required"),
    ],
)
def test_what_does_not_fit_is_shown_as_it_was_typed(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["true", "True", "yes", "ON", "'yes'", "1"])
def test_booleans(tmp_path: Path, text: str) -> None:
    opposite = {"true": "false", "True": "False", "yes": "no", "ON": "OFF", "'yes'": "'no'", "1": "0"}[text]
    for key in ("engine.overlap_comm", "model.keep_attention_weights"):
        assert (typed(key, text), typed(key, opposite)) == (True, False)
        assert written(tmp_path, *key.split("."), text) is True


def test_sections_and_what_lies_deep_in_them(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("model:\n  stem: null\n  moe: {experts: 2, top_k: 2}\n  word: 8\n")
    config = load_config(
        str(path), ["model.stem.kernel=5", "model.moe={experts: 8}", "model.moe.shared=1", "model.word.acc=4"]
    )
    assert config.model.stem is not None
    assert (config.model.stem.kernel, config.model.word) == (5, {"acc": 4})
    assert (config.model.moe.experts, config.model.moe.top_k, config.model.moe.shared) == (8, 1, 1), "whole, then more"
    assert load_config(str(path), ["model.moe.experts=8"]).model.moe.top_k == 2
    assert load_config(None, ["run.seed=1", "run.seed=2"]).run.seed == 2


def test_options_of_a_converter_are_numbers_only_where_nothing_is_lost() -> None:
    begin = ["data.source.converter=uci_hapt", "data.source.path=0042"]
    options = {"fold": "3", "stride": "512", "share": "0.5", "people": "0042", "version": "1.10", "a": "1e3", "b": "no"}
    source = load_config(None, [*begin, *(f"data.source.options.{k}={v}" for k, v in options.items())]).data.source
    assert source is not None
    assert source.path == "0042"
    assert source.options == options | {"fold": 3, "stride": 512, "share": 0.5}
    assert {name: str(value) for name, value in source.options.items()} == options


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_recipes_mean_what_plain_yaml_makes_of_them(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = Config.model_validate(yaml.safe_load(path.read_text()))
    assert load_config(str(path)) == plain
    assert main([str(path), "--print-config"]) == 0
    assert Config.model_validate(yaml.safe_load(capsys.readouterr().out)) == plain


def keys_of(model: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(key, field) of the whole schema, those of optional sections too."""
    found = []
    for name, info in model.model_fields.items():
        inner = next((kind for kind in alternatives(info.annotation) if is_section(kind)), None)
        found += keys_of(inner, f"{prefix}{name}.") if inner else [(prefix + name, info)]
    return found


@pytest.mark.parametrize(("key", "info"), keys_of(Config))
def test_every_default_can_be_typed_as_help_shows_it(key: str, info: Any) -> None:
    needed = {"data.source.": ["data.source.converter=uci_hapt", "data.source.path=x"]}
    needed["data.window."] = ["data.window.length_s=1"]
    begin = next((texts for start, texts in needed.items() if key.startswith(start)), [])
    if info.is_required():
        assert f"{key} (" in describe_keys()
        return
    shown = default_of(info)
    assert f"{key} (" in describe_keys()
    for text in (shown.removeprefix(" =").strip(), str(info.default).replace("(", "[").replace(")", "]")):
        assert value_of(load_config(None, [*begin, f"{key}={text}"]), key) == info.default


HARD = [
    "",
    "0042",
    "on",
    "1e3",
    "None",
    "null",
    "~",
    "a: b",
    "#x",
    "a #b",
    " x ",
    "a\nb",
    "\n",
    "\t",
    "😀",
    "'",
    '"',
    "\\",
    "\x07",
]
TEXTS = st.text(max_size=12).filter(lambda text: not has_credentials(text)) | st.sampled_from(HARD)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(TEXTS, min_size=5, max_size=5),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(10**20), 10**20),
)
def test_a_printed_config_reads_back_the_same_whatever_is_in_it(texts: list[str], real: float, whole: int) -> None:
    a, b, c, d, e = texts
    source = {"converter": "uci_hapt", "path": a or "x", "options": {a: b, "f" + b: real, "i" + c: whole}}
    data = {"url": a, "cache": b, "modalities": [c, d], "test": d or "x", "source": source}
    run = {"init_from": e, "storage": c or "x"}
    config = Config.model_validate(
        {"data": data, "run": run, "model": {"word": {a: 8, e: 4}}, "optim": {"lr": abs(real) or 1.0}}
    )
    assert parse(from_yaml(to_yaml(config)), "here") == config
    assert yaml.safe_load(to_yaml(config)) == config.model_dump(mode="json")
    assert flatten_config(config)["run.init_from"] == e
