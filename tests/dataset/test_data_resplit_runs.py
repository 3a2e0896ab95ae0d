"""Runs on packed windows that they divide, and on sets that are only for tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import recordings as made
import runs
from resplit import BY_NAME, OPTIONS, divided_by_hand, for_tests, keys_of, windows

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.load import load_data
from maestro_dist.data.pack import pack, pack_recordings
from maestro_dist.evaluate import main as evaluate
from maestro_dist.inference.command import main as predict

RUN = ["model.normalize=recording", "optim.epochs=1", "checkpoint.every_steps=5", "checkpoint.keep_last=9"]
RUN += ["evaluation.test_rates=[0]", "evaluation.rates=[0]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on divided windows, its data in `data`, and the cache in `cache`."""
    folder = tmp_path_factory.mktemp("trained")
    pack(folder / "data", made.WINDOWS, windows())
    assert runs.train(folder, str(folder / "data"), *OPTIONS, *RUN, f"data.cache={folder}/cache") == 0
    return folder


@pytest.mark.slow
def test_training_is_the_same_bit_for_bit(trained: Path, tmp_path: Path) -> None:
    pack(tmp_path / "data", made.WINDOWS, divided_by_hand())
    assert runs.train(tmp_path, str(tmp_path / "data"), *RUN) == 0
    runs.assert_same_weights(runs.weights(trained), runs.weights(tmp_path))
    assert runs.tracked(trained) == runs.tracked(tmp_path)
    results = [json.loads((run / "tiny" / "result.json").read_text())["evaluation"] for run in (trained, tmp_path)]
    for part in ("samples", "metrics", "scenarios", "confusion"):
        assert results[0][part] == results[1][part]


@pytest.mark.slow
def test_a_run_resumes_and_is_evaluated_on_its_own_splits(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, url = shutil.copytree(trained / "tiny", tmp_path / "tiny"), str(trained / "data")
    config = DataConfig(url=url, cache=str(tmp_path / "cache"), split=BY_NAME)
    runs.rewind_to(run, 5)
    assert runs.train(tmp_path, url, *OPTIONS, *RUN, f"data.cache={config.cache}") == 0
    runs.assert_same_weights(runs.weights(tmp_path), runs.weights(trained))
    assert not list(Path(config.cache or "").rglob("windows/*"))  # the run's own copy is enough
    assert runs.train(tmp_path, url, *OPTIONS, *RUN, "data.split.test=[p0]") != 0
    copy = shutil.copytree(url, tmp_path / "copy")
    tested = keys_of(config, load_data(config))["test"]
    printed = []
    for other in ([], ["--data", str(copy)]):
        capfd.readouterr()
        assert evaluate([str(run), "--threads", "1", *other]) == 0
        printed.append(capfd.readouterr().out)
    assert printed[0] == printed[1]
    assert f"test: {len(tested)} samples" in printed[0]
    for model in (run, run / "model"):
        capfd.readouterr()
        assert predict([str(model), str(copy)]) == 0
        assert [line.partition(",")[0] for line in capfd.readouterr().out.splitlines()[1:]] == tested


@pytest.mark.slow
def test_a_set_for_tests_is_evaluated_and_not_trained_on(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    printed = {}
    for kind, url in for_tests(tmp_path / "only").items():
        capfd.readouterr()
        assert evaluate([str(trained / "tiny"), "--threads", "1", "--data", url]) == 0
        out, said = capfd.readouterr()
        printed[kind] = out.partition(str(trained))[2]
        assert "note: data.split of the run is not used: split 'test' is that of 'recordings' itself" in said
        assert f"test: {len([s for s in windows() if s.subject in ('p0', 'p1')])} samples" in printed[kind]
        assert predict([str(trained / "tiny"), url]) == 0
        assert runs.train(tmp_path / kind, url) == 2
        said = " ".join(capfd.readouterr().err.split())
        assert "data.train: " in said
        assert "this data set is only for tests: evaluate a trained model on it" in said
    assert printed["windows"] == printed["recordings"]


@pytest.mark.slow
def test_a_run_of_recordings_is_evaluated_on_windows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`data.window` of the run is for its own recordings."""
    pack_recordings(tmp_path / "data", made.ABOUT, made.recordings())
    extra = ["data.window.length_s=8", "data.window.stride_s=4", "optim.max_steps=2", "evaluation.test_rates=[0]"]
    assert runs.train(tmp_path, str(tmp_path / "data"), *extra, f"data.cache={tmp_path}/cache") == 0
    capfd.readouterr()
    url = for_tests(tmp_path / "only")["windows"]
    assert evaluate([str(tmp_path / "tiny"), "--threads", "1", "--data", url]) == 0
    assert "test: " in capfd.readouterr().out


@pytest.mark.slow
def test_training_with_the_statistics_of_the_new_split_is_the_same_bit_for_bit(trained: Path, tmp_path: Path) -> None:
    pack(tmp_path / "data", made.WINDOWS, divided_by_hand())
    extra = [*RUN, "model.normalize=dataset", f"data.cache={tmp_path}/cache", "data.loader_workers=1"]
    assert runs.train(tmp_path / "divided", str(trained / "data"), *extra, *OPTIONS) == 0
    assert runs.train(tmp_path / "packed", str(tmp_path / "data"), *extra) == 0
    runs.assert_same_weights(runs.weights(tmp_path / "divided"), runs.weights(tmp_path / "packed"))


@pytest.mark.slow
def test_two_ranks_train_as_one(trained: Path, tmp_path: Path) -> None:
    extra = [*OPTIONS, *RUN, f"data.cache={trained}/cache", "run.launcher=ray", "run.workers=2", "model.dropout=0"]
    assert runs.train(tmp_path / "two", str(trained / "data"), *extra) == 0
    one = [*OPTIONS, *RUN, f"data.cache={trained}/cache", "model.dropout=0"]
    assert runs.train(tmp_path / "one", str(trained / "data"), *one) == 0
    losses = [runs.tracked(tmp_path / name)[1] for name in ("two", "one")]
    assert [step for step, _ in losses[0]] == [step for step, _ in losses[1]]
    np.testing.assert_allclose([loss for _, loss in losses[0]], [loss for _, loss in losses[1]], rtol=1e-4)
