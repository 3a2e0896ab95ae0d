"""The conventional models: their features against plain loops, their fits against scikit-learn, whole fits."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from benchmarks.baselines.__main__ import main
from benchmarks.baselines.features import QUANTILES, STATISTICS, statistics
from benchmarks.baselines.kernels import KERNELS, LENGTH, MiniRocket
from benchmarks.baselines.ridge import fit_ridge
from benchmarks.baselines.settings import load_settings
from benchmarks.baselines.windows import Windows, evaluated, masked_copies, normalised

from maestro_dist.data.missing import evaluation_mask
from maestro_dist.data.storage import Storage
from maestro_dist.evaluation import Predictions

draws = np.random.default_rng(11)


def plain_statistics(series: np.ndarray) -> list[float]:
    """One variate, one step after the other."""
    steps = np.flatnonzero(~np.isnan(series))
    if not len(steps):
        return [np.nan] * len(STATISTICS)
    x, time = series[steps], steps / len(series)
    changes = np.diff(x)
    slope = np.polyfit(time, x, 1)[0] if len(x) > 1 else np.nan
    energy, size = (np.mean(changes**2), np.mean(np.abs(changes))) if len(x) > 1 else (0.0, 0.0)
    quantiles = [float(np.quantile(x, q)) for q in QUANTILES]
    order = [x.mean(), x.std(), x.min(), *quantiles, x.max(), x[0], x[-1], slope]
    return [*order, energy, size, len(x) / len(series), (len(series) - 1 - steps[-1]) / len(series)]


def test_statistics_equal_a_plain_loop() -> None:
    values = draws.normal(3, 2, size=(30, 12, 3)).astype(np.float32)
    values[draws.random(values.shape) < 0.4] = np.nan
    values[0] = np.nan
    values[1, :, 0] = np.nan
    values[1, 5, 0] = 4.0
    found = statistics(values).reshape(30, 3, len(STATISTICS))
    for sample in range(30):
        for variate in range(3):
            expected = plain_statistics(values[sample, :, variate].astype(np.float64))
            np.testing.assert_allclose(found[sample, variate], expected, rtol=2e-4, atol=2e-5)


def windows(samples: int = 500, always: bool = False) -> Windows:
    names = ("age", "eda", "hr")
    present = draws.random((samples, 3)) < 0.7
    present[:, 0] = True if always else present[:, 0]
    present[:, 2] |= ~present.any(1)
    values = {name: draws.normal(2, 3, (samples, 8, 1)).astype(np.float32) for name in names}
    recording = {name: np.tile(np.float32([2, 3]), (samples, 1, 1)) for name in names}
    keys = np.array([f"k{number}" for number in range(samples)])
    return Windows(
        names, values, present, np.array([always, False, False]), np.zeros(samples, int), keys, keys, recording
    )


def test_masked_copies_lose_modalities_at_rates_of_their_own() -> None:
    one = windows(4000)
    whole, *copies = masked_copies(one, 0.4, 3, seed=5)
    assert np.array_equal(whole, one.present)
    assert len(copies) == 3
    assert len(masked_copies(one, 0.0, 3, seed=5)) == 1
    for copy in copies:
        assert not (copy & ~one.present).any()
        assert copy[one.present.any(1)].any(1).all()
        several = one.present.sum(1) > 1
        lost = 1 - copy[several].sum() / one.present[several].sum()
        assert 0.15 < lost < 0.2, "a fifth, less what may not go"
    assert not np.array_equal(copies[0], copies[1])
    assert np.array_equal(copies[0], masked_copies(one, 0.4, 1, seed=5)[1])


def test_what_is_always_there_is_never_masked() -> None:
    one = windows(800, always=True)
    for mask in (*masked_copies(one, 0.4, 2, seed=1), evaluated(one, 0.4, 1)):
        assert mask[:, 0].all()
        some = one.present[:, 1:].any(1)
        assert mask[some, 1:].any(1).all(), "something else is left, too"
    assert not np.array_equal(evaluated(one, 0.4, 1), one.present)


def test_masks_are_those_of_the_evaluation() -> None:
    one = windows()
    assert np.array_equal(evaluated(one, 0.3, 2), evaluation_mask(one.present, 0.3, 2))
    assert np.array_equal(evaluated(one, 0.0, 0), one.present)


def test_normalisation() -> None:
    one = windows()
    one.values["hr"][0, :, 0] = 5
    one.values["hr"][1, 3:] = np.nan
    by_window, by_recording = normalised(one, "window"), normalised(one, "recording")
    assert (by_window.values["hr"][0] == 0).all(), "a constant window is 0"
    assert np.nanmean(by_window.values["hr"][1]) == pytest.approx(0, abs=1e-6)
    assert np.nanstd(by_window.values["hr"][1]) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(by_recording.values["hr"], (one.values["hr"] - 2) / 3, rtol=1e-5)
    assert normalised(one, "dataset") is one


def plain_share(x: np.ndarray, kernel: np.ndarray, dilation: int, bias: float, *, inside: bool) -> float:
    """Share of steps at which a kernel's output on x [D, T], summed over D, exceeds the bias: one step at a time."""
    weights = np.where(np.isin(np.arange(LENGTH), kernel), 2.0, -1.0)
    steps, hits, counted = x.shape[1], 0, 0
    for step in range(steps):
        places = [step + (tap - LENGTH // 2) * dilation for tap in range(LENGTH)]
        if inside and not (places[0] >= 0 and places[-1] < steps):
            continue
        total = sum(w * series[at] for series in x for w, at in zip(weights, places, strict=True) if 0 <= at < steps)
        hits, counted = hits + (total > bias), counted + 1
    return hits / counted


@pytest.mark.parametrize(("variates", "steps"), [(1, 9), (1, 37), (3, 30)])
def test_minirocket_equals_a_plain_loop(variates: int, steps: int) -> None:
    x = draws.normal(size=(5, variates, steps)).cumsum(2).astype(np.float32)
    fitted = MiniRocket.fit(x, 6 * 84, seed=3)
    found = fitted.transform(x)
    assert found.shape == (5, len(fitted.biases)) == (5, 6 * 84)
    assert (fitted.dilations[0], fitted.dilations[-1]) == (1, max(1, (steps - 1) // 8))
    column = 0
    for position, (dilation, each) in enumerate(zip(fitted.dilations, fitted.each, strict=True)):
        for kernel in range(84):
            chosen = fitted.variates[84 * position + kernel]
            for _ in range(each):
                if column % 41 == 0:
                    inside = (position + kernel) % 2 == 1
                    for sample in range(5):
                        expected = plain_share(
                            x[sample, chosen], KERNELS[kernel], dilation, fitted.biases[column], inside=inside
                        )
                        assert found[sample, column] == pytest.approx(expected, abs=1.01 / steps)
                column += 1
    assert column == 6 * 84
    assert found.mean() == pytest.approx(0.5, abs=0.1), "biases are quantiles of outputs"
    assert np.array_equal(found[2:4], fitted.transform(x[2:4]))
    assert not np.array_equal(fitted.biases, MiniRocket.fit(x, 6 * 84, seed=4).biases)


@pytest.mark.parametrize("features", [7, 90])
def test_ridge_equals_scikit_learn(features: int) -> None:
    from sklearn.linear_model import Ridge

    x = draws.normal(1, 2, (60, features)).astype(np.float32)
    target = draws.integers(0, 3, 30)
    copies = [lambda: x[:30], lambda: x[30:]]
    found = fit_ridge(copies, target, 3, [0.5, 20.0])
    signs = np.where(np.tile(target, 2)[:, None] == np.arange(3), 1.0, -1.0)
    for ridge, penalty in zip(found, [0.5, 20.0], strict=True):
        expected = Ridge(alpha=penalty).fit(x.astype(np.float64), signs).predict(x)
        np.testing.assert_allclose(ridge.scores(x), expected, atol=2e-3)


MODELS = {
    "lightgbm": ["baseline.trees=30", "baseline.leaf_samples=3"],
    "minirocket": ["baseline.features=504", "baseline.copies=1"],
}


@pytest.mark.parametrize("model", MODELS)
def test_a_whole_fit(model: str, synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if model == "lightgbm" and find_spec("lightgbm") is None:
        pytest.skip("needs lightgbm")
    common = [f"data.url={synthetic}", f"run.storage={tmp_path}", "evaluation.draws=[0,1]", "baseline.drop=0.4"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for name in ("first", "second"):
            assert main([model, f"run.name={name}", *common, *MODELS[model]]) == 0
    result = json.loads((tmp_path / "first" / "result.json").read_text())
    complete, *missing = result["evaluation"]["scenarios"]
    assert complete["metrics"]["accuracy"] > 0.8
    assert len(missing) == 8
    assert result["best_score"] > 0.6
    assert "chosen on validation" in capsys.readouterr().out
    one, other = (Predictions.read(Storage(str(tmp_path)).join(name)) for name in ("first", "second"))
    assert np.array_equal(one.logits, other.logits), "a fit is a function of data, settings and seed"
    assert one.modalities.tolist() == ["acc", "bvp", "temp"]
    assert sorted(set(one.subject)) == [f"s{number}" for number in range(5)]
    assert np.array_equal(one.kept[1], evaluation_mask(one.kept[0], 0.1, 0))
    assert main([model, "run.name=first", *common]) == 0
    assert "is finished; nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["baseline.tree=1"], "baseline.tree: unknown key"),
        (["baseline.normalize=people"], "baseline.normalize: Input should be 'window', 'recording' or 'dataset'"),
        (["data.ulr=x"], "data.ulr: unknown key; did you mean data.url?"),
        (["baseline.normalize=recording"], "baseline.normalize: recording, but the data has no statistics of"),
        (["evaluation.metric=rmse"], "evaluation.metric=rmse: this classification task has"),
    ],
)
def test_what_is_wrong_is_named(
    arguments: list[str], said: str, synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec("lightgbm") is None:
        pytest.skip("needs lightgbm")
    assert main(["lightgbm", f"data.url={synthetic}", f"run.storage={tmp_path}", *arguments]) != 0
    assert said in capsys.readouterr().err


def test_settings_mean_what_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "a=b.yaml"
    path.write_text("tracking: {experiment: 0042}")
    typed = ["run.storage=~/exp #3", "baseline.rate=1e-2", "baseline.leaves=[7, 1_5]", "baseline.trees=1e2"]
    config, baseline = load_settings([*typed, str(path)])
    assert (config.run.storage, config.tracking.experiment) == (f"{tmp_path}/exp #3", "0042")
    assert (baseline.rate, baseline.leaves, baseline.trees) == (0.01, (7, 15), 100)
