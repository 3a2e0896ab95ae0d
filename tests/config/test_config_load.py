"""Configuration: reading, overriding, refusing; quick and without heavy imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from maestro_dist.config.check import check
from maestro_dist.config.dump import flatten_config, to_yaml
from maestro_dist.config.help_text import describe_keys
from maestro_dist.config.identity import check_resume, run_identity
from maestro_dist.config.load import load_config
from maestro_dist.config.schema import Config
from maestro_dist.errors import ConfigError

CONFIGS = sorted(path for path in (Path(__file__).parents[2] / "configs").glob("*.yaml") if "suite" not in path.name)


def write(folder: Path, text: str) -> str:
    path = folder / "x.yaml"
    path.write_text(text)
    return str(path)


def test_overrides_come_after_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {width: 32, heads: 4}\noptim:\n  lr: 1e-2\n")
    config = load_config(path, ["model.heads=2", "data.url=a", "model.stem.channels=16", "evaluation.rates=[0, 0.2]"])
    assert (config.model.width, config.model.heads, config.optim.lr) == (32, 2, 0.01)
    assert config.model.stem is not None
    assert config.model.stem.channels == 16
    assert config.evaluation.rates == [0.0, 0.2]


def test_a_printed_config_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config(None, ["data.url=s3://b/x", "model.stem.kernel=7", "model.word={acc: 4, gyro: 2}"])
    assert load_config(write(tmp_path, to_yaml(config))) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_are_valid(path: Path) -> None:
    check(load_config(str(path)))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.widht=3", "model.widht: unknown key; did you mean model.width?"),
        ("modell.width=3", "modell: unknown key; did you mean model?"),
        ("width=3", "width: unknown key; did you mean model.width?"),
        ("model.moe.expert=3", "model.moe.expert: unknown key; did you mean model.moe.experts?"),
        ("optim.lr=fast", "optim.lr: input should be a valid number"),
        ("optim.lr=-1", "optim.lr: input should be greater than 0 (got -1)"),
        ("engine.zero_stage=4", "engine.zero_stage: input should be 1, 2 or 3 (got 4)"),
        ("model.word=0", "model.word: input should be greater than or equal to 1 (got 0)"),
        ("run.name=a/b", "run.name: string should match"),
        ("data.source.converter=", "data.source.converter: "),
        ("noequals", "an override has the form section.key=value"),
    ],
)
def test_a_wrong_override_is_named(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {width: 1, width: 2}", "line 1: key 'width' is given twice"),
        ("model: [", "line"),
        ("- a", "expected sections"),
        ("model: 3", "model: input should be a valid dictionary"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "data.url: missing"),
        (["data.url=d", "model.width=63"], "8 heads do not divide model.width 63"),
        (["data.url=d", "model.moe.top_k=5"], "model.moe.top_k: 5 experts per token"),
        (["data.url=d", "model.stem.kernel=4"], "model.stem.kernel: 4 is even"),
        (["data.url=d", "missing.ramp_end=0.1"], "missing.ramp_end: 0.1 comes before"),
        (["data.url=d", "evaluation.rates=[]"], "evaluation.rates: the list is empty"),
        (["data.url=d", "optim.schedule=one_cycle", "optim.betas=[.8, .99]"], "0.85 is more than optim.betas.0. 0.8"),
        (["data.url=d", "missing.consistency=1", "missing.max_rate=0"], "missing.consistency: compares samples"),
        (["data.url=d", "missing.consistency=1", "task.kind=pretrain"], "missing.consistency: 1.0 needs labels"),
        (["data.url=d", "augment.mixup=.2", "task.kind=pretrain"], "augment.mixup: 0.2 needs labels"),
        (["data.url=d", "augment.rotation_groups=[[a, b, c]]"], "augment.rotation_groups: given, but augment.rotation"),
        (["data.url=d", "engine.micro_batch=65"], "engine.micro_batch: 65 is more than"),
    ],
)
def test_combinations_that_cannot_work_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(load_config(None, overrides))


def test_resume_may_move_but_not_change() -> None:
    begun = load_config(None, ["data.url=a"])
    moved = load_config(None, ["data.url=b", "run.workers=4", "engine.zero_stage=3", "mesh.data=4", "run.storage=/x"])
    check_resume(moved, run_identity(begun))
    packed = [load_config(None, ["data.url=a", f"data.source={{converter: uci_hapt, path: {p}}}"]) for p in ("x", "y")]
    check_resume(packed[1], run_identity(packed[0]))
    check_resume(begun, {**run_identity(begun), "data.source.path": "as older runs have it"})
    check_resume(
        load_config(None, ["data.url=a", "mesh.sequence=2", "mesh.sequence_method=ulysses"]), run_identity(begun)
    )
    before = {key: value for key, value in run_identity(begun).items() if key != "optim.ema"}  # by an earlier version
    check_resume(moved, before)
    with pytest.raises(ConfigError, match=r"optim\.ema None -> 0\.9"):
        check_resume(load_config(None, ["data.url=a", "optim.ema=.9"]), before)
    with pytest.raises(ConfigError, match=r"model\.width 64 -> 32; optim\.lr 0\.001 -> 0\.1"):
        check_resume(load_config(None, ["data.url=a", "optim.lr=.1", "model.width=32"]), run_identity(begun))


def test_a_run_that_is_older_than_a_key_was_begun_with_its_default() -> None:
    begun = run_identity(load_config(None, ["data.url=a"]))
    del begun["task.pretrain.span"]
    check_resume(load_config(None, ["data.url=a"]), begun)
    with pytest.raises(ConfigError, match=r"task\.pretrain\.span 4 -> 5"):
        check_resume(load_config(None, ["data.url=a", "task.pretrain.span=5"]), begun)
    with_stem = run_identity(load_config(None, ["data.url=a", "model.stem.channels=4"]))
    with pytest.raises(ConfigError, match=r"model\.stem\.channels 4 -> None"):
        check_resume(load_config(None, ["data.url=a"]), with_stem)


def test_every_key_is_described() -> None:
    text = describe_keys()
    for key in flatten_config(Config()):
        assert key in text
    assert "None" not in [line.strip() for line in text.splitlines()]


def test_help_and_config_errors_import_nothing_heavy() -> None:
    program = (
        "import sys; from maestro_dist.train import main\n"
        "codes = [main(['data.url=d', 'model.width=63']), main(['x.y=1']), main(['--print-config'])]\n"
        "heavy = [m for m in ('torch', 'ray', 'deepspeed', 'mlflow', 'fsspec', 'matplotlib') if m in sys.modules]\n"
        "sys.exit(f'{codes} {heavy}' if heavy or codes != [2, 2, 0] else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: ") == 2
    assert "Traceback" not in done.stderr


def test_stage_0_is_taken_as_1_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    assert load_config(None, ["data.url=b", "engine.zero_stage=0"]).engine.zero_stage == 1
    assert "engine.zero_stage: 0 is taken as 1" in caplog.text
    with pytest.raises(ConfigError, match=r"engine\.zero_stage"):
        load_config(None, ["data.url=b", "engine.zero_stage=false"])
