"""Dry runs: any number of workers, any device, also without the data itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs
import synthetic as generated
import yaml

from maestro_dist.config.load import load_config
from maestro_dist.config.paths import with_absolute_paths
from maestro_dist.model.estimate import count_parameters, forward_operations
from maestro_dist.run.dry_run import trial_samples
from maestro_dist.run.launch import prepare_data
from maestro_dist.run.summary import described
from maestro_dist.train import main

CONFIGS = Path(__file__).parents[2] / "configs"
THOUSAND = [
    "run.launcher=ray",
    "run.workers=1024",
    "mesh.sequence=4",
    "mesh.expert=16",
    "model.moe.experts=16",
    "model.word=2",
    "optim.global_batch=512",
]


def dry(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """The command; checks that it leaves nothing below `folder` and returns what it printed."""
    assert main([*arguments, f"run.storage={folder}", "--dry-run"]) == 0
    assert not folder.exists()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        (1, ["1 ranks = 1 data x 1 sequence", "ZeRO 1, bf16", "256 samples, loss"]),
        pytest.param(
            8,
            ["8 ranks = 4 data x 2 sequence; experts over 8", "ZeRO 2, bf16", "time axis shared by ranks 0 to 1"],
            marks=pytest.mark.slow,
        ),
        (64, ["64 ranks = 8 data x 8 sequence; experts over 8", "ZeRO 3, bf16", "ranks 0 to 56 in steps of 8"]),
    ],
)
def test_shipped_grids_are_planned_without_a_gpu(
    gpus: int, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)  # the files name the raw data from there
    path = CONFIGS / f"gpu_{gpus}.yaml"
    assert "was never run on" in path.read_text().split("run:")[0]
    raw = yaml.safe_load(path.read_text())["data"]["source"]["path"]
    said = dry(capsys, tmp_path / "runs", str(path), f"data.url={tmp_path / 'data'}", f"data.source.path={raw}")
    assert not (tmp_path / "data").exists()
    for word in [*words, "memory ", "first micro-batch: ", "ray on cuda"]:
        assert word in said
    assert ("(on the CPU, in fp32)" in said) or ("left out" in said)
    items = ["attention ", "experts: tokens", "gradients: dense", "parameters: dense", "tokens move; a layer"]
    assert all((item in said.partition("plan ")[2]) == (gpus > 1) for item in items)


def started(folder: Path) -> subprocess.Popen[str]:
    """A dry run with raw files to pack, in a process whose places are all below `folder`, the current one too."""
    places = {name: folder / name.lower() for name in ("HOME", "TMPDIR", "CWD")}
    for place in places.values():
        place.mkdir(parents=True)
    excerpt = CONFIGS.parent / "tests" / "data" / "stress_predict"
    source = f"data.source={{converter: stress_predict, path: {excerpt}}}"
    options = [*runs.arguments(folder / "runs", "packed", source, "run.launcher=ray"), f"data.cache={folder}/cache"]
    return subprocess.Popen(
        [sys.executable, "-B", "-m", "maestro_dist.train", *options, "--dry-run"],
        cwd=places["CWD"],
        env={**os.environ, **{name: str(place) for name, place in places.items()}, "PYTHONPATH": str(CONFIGS.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("stopped", [False, True])
def test_a_dry_run_leaves_nothing_anywhere(stopped: bool, tmp_path: Path) -> None:
    process = started(tmp_path)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert (
        "stress_predict) to a temporary folder, which the dry run removes at its end; a run would pack it to" in first
    )
    assert f"{tmp_path}/cwd/packed" in first
    if stopped:  # while it packs
        process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == (130 if stopped else 0), said
    assert ("first micro-batch: 16 samples, loss" in said) is not stopped
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cwd", "home", "tmpdir"]


def test_shards_of_a_remote_place_are_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generated.write("memory://dry-run")
    places = [*runs.arguments("", "memory://dry-run"), f"data.cache={tmp_path}/cache"]
    assert "first micro-batch: 16 samples, loss" in dry(capsys, tmp_path / "runs", *places)
    assert list(tmp_path.iterdir()) == []


def test_1024_workers_from_a_manifest_alone(synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(f"{synthetic}/manifest.json", data)
    start = time.perf_counter()
    said = dry(capsys, tmp_path / "runs", *runs.arguments("", str(data), *THOUSAND, "run.device=cuda"))
    assert time.perf_counter() - start < 30
    for word in (
        "1024 ranks = 256 data x 4 sequence; experts over 16",
        "(2 samples, 1 micro-batch)",
        "all-to-all, 16 ranks",
        "all-reduce, 1,024 ranks",
        "all-reduce, 64 ranks",
        "tokens move; a layer and micro-batch: tokens ",
        "there is a manifest but no shards",
    ):
        assert word in said


def test_1024_workers_with_data_give_a_first_loss_too(
    synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forced = ["mesh.expert_movement=weights", "engine.zero_stage=3"]
    said = dry(capsys, tmp_path / "runs", *runs.arguments("", synthetic, *THOUSAND, *forced))
    assert "first micro-batch: 1 samples, loss" in said  # of 101 in all
    assert "weights move, as set" in said
    assert "parameters gathered for a while" in said


def test_what_learning_adds_is_said(synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["optim.ema=.99", "optim.schedule=one_cycle", "augment.jitter=.1", "augment.mixup=.2"]
    asked += ["missing.consistency=1", "missing.ramp_start=0", "missing.ramp_end=0"]
    said = dry(capsys, tmp_path / "runs", *runs.arguments("", synthetic, *asked))
    assert "learning   average of the weights, decay 0.99, one cycle of learning rate and momentum, jitter 0.1" in said
    assert "first micro-batch: 16 samples, loss" in said
    assert "learning " not in dry(capsys, tmp_path / "runs", *runs.arguments("", synthetic))
    refused = runs.arguments("", synthetic, "augment.rotation=10", f"run.storage={tmp_path}")  # no three axes
    assert main([*refused, "--dry-run"]) != 0
    assert "name the axes in augment.rotation_groups" in capsys.readouterr().err


def test_a_data_set_with_some_shards_missing_is_refused(
    synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(synthetic, data)
    sorted(data.glob("train-*.tar"))[1].unlink()
    assert main([*runs.arguments(tmp_path, str(data)), "--dry-run"]) != 0
    assert "but the manifest names it" in capsys.readouterr().err
    for shard in data.glob("*.tar"):
        shard.unlink()
    assert main(runs.arguments(tmp_path, str(data))) != 0  # to train takes them
    assert "but the manifest names it" in capsys.readouterr().err


def test_a_grid_that_does_not_fit_the_data_is_refused(
    synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = runs.arguments(tmp_path, synthetic, *THOUSAND, "mesh.sequence=32")
    assert main([*arguments, "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "longest modality, 'bvp' with 128 steps, has 16 pieces of 4 words of 2 steps" in said
    assert "use mesh.sequence=16" in said


def test_a_batch_that_is_too_much_is_cut_or_left_out(
    synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import maestro_dist.run.dry_run as module

    config = with_absolute_paths(load_config(None, runs.arguments(tmp_path, synthetic)))
    manifest, shards = prepare_data(config)
    assert shards
    assert trial_samples(config, manifest) == (16, 16)
    pieces = described(config, manifest)
    one = forward_operations(config.model, pieces.modalities)
    monkeypatch.setattr(module, "_OPERATIONS", module._TO_FILL * count_parameters(pieces.model) + 5 * one)
    assert trial_samples(config, manifest) == (5, 16)
    said = dry(capsys, tmp_path / "runs", *runs.arguments("", synthetic))
    assert "first micro-batch: 5 samples of 16, as many as this machine computes in seconds, loss" in said
    monkeypatch.setattr(module, "available", lambda: 1 << 18)
    said = dry(capsys, tmp_path / "runs", *runs.arguments("", synthetic))
    assert "first micro-batch: left out, one sample needs more memory" in said
