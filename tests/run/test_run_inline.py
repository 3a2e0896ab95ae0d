"""Whole runs of the public command with the inline launcher: results, resume, refusals."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import runs
import synthetic as synthetic_data

from maestro_dist.data.pack import pack
from maestro_dist.data.storage import store as storage_module
from maestro_dist.data.user_folders import user_folder
from maestro_dist.tracking import logged_model as model_module
from maestro_dist.tracking import plots
from maestro_dist.tracking import run as run_module
from maestro_dist.training.worker import work_folder

STEPS = 21  # 3 epochs of ceil(101 / 16)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, synthetic: str) -> Path:
    """Storage of an uninterrupted run."""
    storage = tmp_path_factory.mktemp("whole")
    assert runs.train(storage, synthetic) == 0
    return storage


def test_a_run_leaves_results_metrics_and_a_model(whole: Path) -> None:
    run = whole / "tiny"
    result = json.loads((run / "result.json").read_text())
    scenarios = result["evaluation"]["scenarios"]
    assert {(s["rate"], s["draw"]) for s in scenarios} == {(0.0, 0)} | {
        (rate, draw) for rate in (0.1, 0.2, 0.3, 0.4) for draw in (0, 1, 2)
    }
    assert scenarios[0]["metrics"]["accuracy"] > 0.6  # chance is 1/3
    status, losses = runs.tracked(whole)
    assert status == "FINISHED"
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    assert losses[-1][1] < losses[0][1]
    tags = runs.tags(whole)
    assert tags["checkpoint.best"].endswith(f"step-{result['best_step']:09d}")
    assert tags["model"] == str(run / "model")
    assert tags["model.mlflow"].startswith("models:/")
    assert (run / "model" / "model.safetensors").exists()
    assert len(list((run / "figures").glob("*.png"))) >= 5
    assert sorted(p.name for p in (run / "checkpoints").iterdir())[-1] == f"step-{STEPS:09d}"


def test_a_finished_run_says_so(whole: Path, synthetic: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = runs.tracked(whole)
    assert runs.train(whole, synthetic) == 0
    assert "is finished; nothing to do" in capsys.readouterr().out
    assert runs.tracked(whole) == before


def test_a_finished_run_needs_neither_a_cluster_nor_a_place_to_write(
    whole: Path, synthetic: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from maestro_dist.data.storage import Storage
    from maestro_dist.errors import StorageError

    def read_only(storage: Storage, *_: object, **__: object) -> None:
        raise StorageError(f"cannot write {storage.url}: Read-only file system")

    monkeypatch.setattr(Storage, "write", read_only)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert runs.train(whole, synthetic, "run.launcher=ray") == 0
    assert "is finished; nothing to do" in capsys.readouterr().out
    assert runs.train(whole, synthetic, "model.width=32") == 2
    assert "model.width 16 -> 32" in capsys.readouterr().err


@pytest.mark.parametrize("home", ["/proc/none", None], ids=str)
def test_no_home_is_needed(
    home: str | None,
    synthetic: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", home or "")
    if home is None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where the password file lacks this user
    user_folder.cache_clear()
    try:
        folder = work_folder("memory://runs/tiny")
        assert folder == work_folder("memory://runs/tiny")
        assert folder.parent.is_relative_to(tmp_path)
        assert (
            runs.train(
                "memory://runs",
                synthetic,
                f"run.name=r{home is None}",
                f"tracking.uri=sqlite:///{tmp_path}/m.db",
                "optim.epochs=1",
                "evaluation.draws=[0]",
            )
            == 0
        )
        assert str(folder.parent) in capsys.readouterr().out
    finally:
        user_folder.cache_clear()


def test_the_result_comes_first_and_alone_is_needed(
    whole: Path, synthetic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The end of a run again: first on a disk without room for the result, then with nothing but its result."""
    place, write, client = tmp_path / "all" / "tiny", storage_module.write_file, run_module.client
    shutil.copytree(whole, tmp_path / "all")
    runs.rewind(place)
    for folder in ("model", "figures"):
        shutil.rmtree(place / folder)

    def full(path: Path, data: bytes, *, create: bool) -> None:
        if path.name == "result.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data, create=create)

    monkeypatch.setattr(storage_module, "write_file", full)
    assert runs.train(tmp_path / "all", synthetic) == 1
    error = capsys.readouterr().err.splitlines()
    assert error == [f"error: cannot write {place / 'result.json'}: No space left on device"]
    assert (place / "model" / "model.json").exists()
    assert not (place / "figures").exists()

    def dies(uri: str) -> object:
        if (place / "result.json").exists():
            raise TypeError("an error inside MLflow")
        return client(uri)

    def fails(*_: object) -> None:
        raise ValueError("an error inside matplotlib")

    monkeypatch.setattr(storage_module, "write_file", write)
    monkeypatch.setattr(plots, "loss_panel", fails)
    for module in (run_module, model_module):
        monkeypatch.setattr(module, "client", dies)
    assert runs.train(tmp_path / "all", synthetic) == 0
    said = capsys.readouterr()
    warnings = [line for line in (said.out + said.err).splitlines() if line.startswith("warning: ")]
    assert [line for line in warnings if "the result is complete" in line] == [
        "warning: the result is complete; left out (2): uploads to tracking; figure loss (an error inside matplotlib)"
    ]
    assert "warning: could not set the tracked run to FINISHED (an error inside MLflow)" in warnings
    assert "Traceback" not in said.out + said.err
    assert json.loads((place / "run.json").read_text())["status"] == "finished"
    assert json.loads((place / "result.json").read_text())["mlflow_model"] is None
    pictures = {path.name for path in (place / "figures").iterdir()}
    assert {"validation.png", "overview.png", "confusion.csv"} <= pictures
    assert "loss.png" not in pictures


def test_evaluate_prints_what_the_run_found(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from maestro_dist.evaluate import main

    assert main([str(whole / "tiny"), "--json", str(tmp_path / "e.json"), "--threads", "1"]) == 0
    table = capsys.readouterr().out
    result = json.loads((whole / "tiny" / "result.json").read_text())["evaluation"]
    found = json.loads((tmp_path / "e.json").read_text())
    assert "40 %" in table
    assert "macro F1" in table
    for one, other in zip(found["scenarios"], result["scenarios"], strict=True):
        assert one["metrics"] == pytest.approx(other["metrics"], abs=1e-6)


def test_evaluate_takes_a_checkpoint_and_refuses_others(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from maestro_dist.evaluate import main

    checkpoints = whole / "tiny" / "checkpoints"
    last = f"{checkpoints}/step-{STEPS:09d}"
    assert main([last, "--rates", "0", "--split", "validation", "--threads", "1"]) == 0
    assert f"weights of step {STEPS}" in capsys.readouterr().out
    assert main([str(checkpoints / "step-000000999")]) != 0
    assert "no complete checkpoint of step 999" in capsys.readouterr().err
    assert main([str(whole / "nothing")]) != 0
    assert "not a run" in capsys.readouterr().err


def test_what_is_always_there_is_never_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from maestro_dist.evaluate import main

    about = synthetic_data.describe()
    kept = tuple(replace(modality, always=modality.name == "acc") for modality in about.modalities)
    url, extra = str(tmp_path / "data"), ["data.modalities=[acc, bvp]", "evaluation.test_rates=[0, 1]"]
    pack(url, replace(about, modalities=kept), synthetic_data.samples())
    share = ["optim.epochs=1", "data.label_share=0.5"]
    assert runs.train(tmp_path, url, *extra, *share, "evaluation.draws=[0]") == 0
    assert "train 50 of 101, validation 30, test 37 samples" in capsys.readouterr().out
    assert main([str(tmp_path / "tiny"), "--json", str(tmp_path / "e.json"), "--threads", "1"]) == 0
    for file in (tmp_path / "tiny" / "result.json", tmp_path / "e.json"):
        found = json.loads(file.read_text())
        complete, none = found.get("evaluation", found)["scenarios"]
        assert (complete["rate"], none["rate"]) == (0.0, 1.0)
        # the one other modality is what is kept where all would go, so nothing is missing
        assert complete["metrics"] == none["metrics"]
    _, losses = runs.tracked(tmp_path)
    assert [step for step, _ in losses] == [1, 2, 3, 4]


def test_another_data_set_gives_samples_only(
    whole: Path, synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its statistics and classes are not those that the model was made with."""
    from maestro_dist.evaluate import main

    other = tmp_path / "other"
    shutil.copytree(synthetic, other)
    manifest = json.loads((other / "manifest.json").read_text())
    for modality in manifest["modalities"]:
        modality["mean"] = [value + 3 for value in modality["mean"]]
    (other / "manifest.json").write_text(json.dumps(manifest))
    command = [str(whole / "tiny"), "--rates", "0", "--threads", "1"]
    assert main([*command, "--json", str(tmp_path / "own.json")]) == 0
    assert main([*command, "--data", str(other), "--json", str(tmp_path / "other.json")]) == 0
    assert json.loads((tmp_path / "own.json").read_text()) == json.loads((tmp_path / "other.json").read_text())

    capsys.readouterr()
    manifest["classes"].reverse()
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert main([*command, "--data", str(other)]) == 1
    said = capsys.readouterr().err
    assert "the same classes in another order: fast, middle, slow; the model was trained on slow, middle, fast" in said
    synthetic_data.write(str(tmp_path / "numbers"), "regression")
    assert main([*command, "--data", str(tmp_path / "numbers")]) == 1
    assert "is for classification (slow, middle, fast), 'synthetic' for regression" in capsys.readouterr().err


@pytest.mark.slow
def test_an_average_of_the_weights_is_what_is_judged_and_exported(
    whole: Path, synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import load_file

    from maestro_dist.checkpoint import best, full_weights
    from maestro_dist.evaluate import main

    assert runs.train(tmp_path, synthetic, "optim.ema=0.9") == 0
    assert "average of the weights, decay 0.9" in capsys.readouterr().out
    assert runs.tracked(tmp_path) == runs.tracked(whole)  # validations and all, training is the same to the bit
    assert runs.tracked(tmp_path, "validation/loss") != runs.tracked(whole, "validation/loss")
    chosen = best(str(tmp_path / "tiny"))
    averaged, trained = ({n: t.numpy() for n, t in full_weights(chosen, averaged=a).items()} for a in (True, False))
    runs.assert_same_weights(load_file(tmp_path / "tiny" / "model" / "model.safetensors"), averaged)
    assert not np.array_equal(averaged["head.weight"], trained["head.weight"])

    assert main([str(tmp_path / "tiny"), "--json", str(tmp_path / "e.json"), "--threads", "1"]) == 0
    assert f"averaged weights of step {chosen.step}" in capsys.readouterr().out
    result = json.loads((tmp_path / "tiny" / "result.json").read_text())["evaluation"]
    found = json.loads((tmp_path / "e.json").read_text())
    for one, other in zip(found["scenarios"], result["scenarios"], strict=True):
        assert one["metrics"] == pytest.approx(other["metrics"], abs=1e-6)


def test_a_killed_driver_goes_on_to_the_same_weights(whole: Path, synthetic: str, tmp_path: Path) -> None:
    extra = ["checkpoint.every_steps=2"]
    process = runs.start(tmp_path, synthetic, *extra)
    middle = tmp_path / "tiny" / "checkpoints" / "step-000000010" / "checkpoint.json"
    runs.wait_for(middle.exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "tiny" / "result.json").exists()
    assert runs.train(tmp_path, synthetic, *extra) == 0
    runs.assert_same_weights(runs.weights(whole), runs.weights(tmp_path))
    assert runs.tracked(tmp_path) == runs.tracked(whole)
    for name in ("validation/accuracy", "test/accuracy_missing_40", "train/grad_norm"):
        assert runs.tracked(tmp_path, name) == runs.tracked(whole, name)


@pytest.mark.slow
def test_accumulation_and_zero_stage_change_only_rounding(whole: Path, synthetic: str, tmp_path: Path) -> None:
    overrides = ["engine.micro_batch=5", "engine.zero_stage=3", "optim.max_steps=4"]
    assert runs.train(tmp_path / "a", synthetic, *overrides) == 0
    assert runs.train(tmp_path / "b", synthetic, "optim.max_steps=4") == 0
    one, other = runs.tracked(tmp_path / "a")[1], runs.tracked(tmp_path / "b")[1]
    assert [s for s, _ in one] == [s for s, _ in other] == [1, 2, 3, 4]
    assert [v for _, v in one] == pytest.approx([v for _, v in other], abs=1e-4)


def test_another_model_is_not_resumed(whole: Path, synthetic: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.train(whole, synthetic, "model.width=32", "optim.lr=1") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "model.width 16 -> 32" in said
    assert "optim.lr 0.005 -> 1.0" in said


def test_other_data_is_not_resumed(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from maestro_dist.data.pack import pack

    kept = [sample for sample in synthetic_data.samples() if not sample.key.endswith("7")]
    pack(str(tmp_path), synthetic_data.describe(), kept)
    assert runs.train(whole, str(tmp_path)) == 1
    assert "was started on other data" in capsys.readouterr().err


@pytest.mark.slow
def test_a_lost_mlflow_run_is_begun_anew(synthetic: str, tmp_path: Path) -> None:
    extra = ["optim.epochs=2", "checkpoint.every_steps=2"]
    process = runs.start(tmp_path, synthetic, *extra)
    runs.wait_for((tmp_path / "tiny" / "checkpoints" / "step-000000006" / "checkpoint.json").exists, process)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert (process.returncode, printed.rstrip().splitlines()[-1]) == (130, "error: interrupted")
    (tmp_path / "mlflow.db").unlink()
    assert runs.train(tmp_path, synthetic, *extra) == 0
    status, losses = runs.tracked(tmp_path)
    assert status == "FINISHED"
    assert [step for step, _ in losses] == list(range(1, 15))  # what the lost one had is sent again from disk


def test_regression_trains_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic_data.write(str(tmp_path / "data"), "regression")
    assert runs.train(tmp_path / "runs", str(tmp_path / "data"), "optim.epochs=2") == 0
    result = json.loads((tmp_path / "runs" / "tiny" / "result.json").read_text())["evaluation"]
    complete = result["scenarios"][0]["metrics"]
    assert complete["mae"] < 0.45  # always answering the mean misses by .42
    assert complete["rmse"] >= complete["mae"]
    assert "MAE" in capsys.readouterr().out
