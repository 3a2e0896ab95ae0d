"""Which argument is the configuration file, and what is said of a file that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from maestro_dist.config.load import load_config
from maestro_dist.errors import ConfigError
from maestro_dist.train import parse_arguments


def refused(path: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "config", "overrides"),
    [
        (["x.yaml", "run.name=a"], "x.yaml", ["run.name=a"]),
        (["runs/a=b/config.yaml", "run.seed=1"], "runs/a=b/config.yaml", ["run.seed=1"]),
        (["runs/a=b"], "runs/a=b", []),
        (["a=b.yml"], "a=b.yml", []),
        (["there=x"], "there=x", []),
        (["run.seed=1", "runs/a=b/config.yaml"], "runs/a=b/config.yaml", ["run.seed=1"]),
        (["s3://bucket/a=b/config.yaml"], "s3://bucket/a=b/config.yaml", []),
        (["run.init_from=runs/a.yaml", "data.url=x"], None, ["run.init_from=runs/a.yaml", "data.url=x"]),
        (["modell.width=3"], None, ["modell.width=3"]),
        (["run.name=x", "--print-config", "y.yaml"], "y.yaml", ["run.name=x"]),
        (["x.yaml", "noequals"], "x.yaml", ["noequals"]),
        ([""], "", []),
        ([], None, []),
    ],
)
def test_the_configuration_file_is_told_from_overrides(
    given: list[str], config: str | None, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there=x").touch()
    options = parse_arguments(given)
    assert (options.config, options.overrides) == (config, overrides)


@pytest.mark.parametrize("name", ["nope", "nope.yaml"])
def test_a_missing_file_is_guessed_only_where_one_is_near(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path / name).endswith("no such file; there is no *.yaml")
    for other in ("wesad.yaml", "quickstart.yaml"):
        (tmp_path / other).touch()
    assert refused(tmp_path / name).endswith("no such file; there are quickstart.yaml, wesad.yaml")
    for near in ("quickstrat.yaml", "quickstart", "quick_start.yml"):
        assert refused(tmp_path / near).endswith(f"no such file; did you mean {tmp_path}/quickstart.yaml?")
    assert refused(tmp_path / "nowhere" / name).endswith("no such file")
    for number in range(50):
        (tmp_path / f"more{number}.yaml").touch()
    assert refused(tmp_path / name).endswith("and 32 more")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert refused(tmp_path) == f"{tmp_path}: this is a folder; give a file in it; there are config.yaml"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (bytes(range(256)), ": not UTF-8 text"),
        ("run: {name: x}".encode("utf-16"), ": not UTF-8 text"),
        (b"run: {name: a\0b}", ": not valid YAML: unacceptable character #x0000"),
        (b"run:\n\tname: x\n", ", line 2: found character"),
        (
            b"run: !!python/object/apply:os.getcwd []",
            ", line 1: the tag !!python/object/apply:os.getcwd is not allowed",
        ),
        (b"run: {name: !!binary aGVsbG8=}", ", line 1: the tag !!binary is not allowed"),
        (b"run: {name: x}\n---\nrun: {name: y}", ", line 2: found another document"),
        (b"? [a]\n: b", ", line 1: a key must be one word"),
        (b"run: {<<: 3}", ", line 1: << needs mappings"),
        (b"run: &a [*a]", ": not valid YAML: nested too deeply"),
        (b"run: " + b"[" * 1100, ": not valid YAML: nested too deeply"),
        (b"a: " + b"x" * (1 << 20), ": more than 1,048,576 characters"),
        (b"- a", ": expected sections (run:, data:, model: ...), found a list"),
        (b"hello", ": expected sections (run:, data:, model: ...), found text"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    assert refused(path).startswith(f"{path}{said}")


def test_aliases_cannot_grow_without_bound(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for first, more in (("[x, x]", "[{}]"), ("{k: v}", "{{<<: [{}]}}")):
        lines = [f"a0: &a0 {first}"]
        lines += [f"a{i}: &a{i} {more.format(', '.join([f'*a{i - 1}'] * 9))}" for i in range(1, 12)]
        path.write_text("\n".join(lines))
        assert "more than 100,000 values" in refused(path)


@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_marks_and_line_ends_of_other_systems(tmp_path: Path, begin: bytes, end: bytes) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(begin + b"run:\n  name: x\ndata:\n  modalities: [no,\n    co]\nmodel:\n".replace(b"\n", end))
    config = load_config(str(path))
    assert (config.run.name, config.data.modalities) == ("x", ["no", "co"])


@pytest.mark.parametrize("text", ["", "# nothing\n", "null\n", "--- {}\n"])
def test_an_empty_file_changes_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert load_config(str(path)) == load_config(None)


def test_anchors_and_merges_are_copies(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "model: {word: &word {a: 8, b: 4}}\n"
        "task: {pretrain: {word: {<<: *word, b: 2}}, teachers: &list [no, 1e3]}\n"
        "data: {modalities: *list}\n"
    )
    config = load_config(str(path), ["model.word.a=16"])
    assert (config.model.word, config.task.pretrain.word) == ({"a": 16, "b": 4}, {"a": 8, "b": 2})
    assert config.data.modalities == config.task.teachers == ["no", "1e3"]


def test_a_file_at_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.yaml").write_text("run: {name: at_home}")
    assert load_config("~/x.yaml").run.name == "at_home"
    assert "no home folder is known for ~no-such-user" in refused("~no-such-user/x.yaml")
