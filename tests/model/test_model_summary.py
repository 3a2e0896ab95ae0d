"""The summary token against an obvious oracle in numpy."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_dist.model import sax
from maestro_dist.model.context import OneProcess
from maestro_dist.model.summary import LEVEL, STATISTICS, Summary, piecewise, spectral_bands


def features(
    values: np.ndarray, word: int, mean: np.ndarray, std: np.ndarray, kind: str, pieces: int = 0, bands: int = 0
) -> np.ndarray:
    """What enters the linear layer: [R, D, F (1 + K)]."""
    rows, steps, variates = values.shape
    cut = spectral_bands(word, bands)
    count = variates * ((STATISTICS if kind == "statistics" else LEVEL) + len(cut)) * (1 + pieces)
    summary = Summary(variates, kind, count, OneProcess(), pieces, cut).double()
    summary.fill(lambda name: 0)
    with torch.no_grad():
        summary.linear.weight.copy_(torch.eye(count))
        summary.linear.bias.zero_()
    raw = torch.from_numpy(values)
    given_ = sax.given_reference(torch.from_numpy(mean), torch.from_numpy(std))
    window = sax.window_moments(raw, OneProcess())
    words = sax.words(raw, word, sax.breakpoints(4), given_, torch.float64)
    mean = (window.mean - given_[0]) / given_[1]
    token = summary(summary.features(words.samples, mean, window, given_[1], 0, steps))
    return token.detach().view(rows, variates, -1).numpy()


def oracle(x: np.ndarray, word: int) -> list[float]:
    """Features of one variate's z-scores [T], NaN where not observed."""
    at = np.flatnonzero(~np.isnan(x))
    if not len(at):
        return [0.0] * STATISTICS
    seen, steps = x[at], len(x)
    mean = seen.mean()
    log = lambda spread: math.log(max(spread, 1e-4)) / 2 + 1  # noqa: E731
    time = at - at.mean()
    slope = (seen * time).sum() / max((time**2).sum(), 1e-300) * math.sqrt((time**2).mean()) if len(at) > 1 else 0.0
    within, quick, neighbours = 0.0, 0.0, 0
    for start in range(0, steps, word):
        part = x[start : start + word]
        own = part[~np.isnan(part)]
        within += ((own - own.mean()) ** 2).sum() if len(own) else 0.0
        for a, b in pairwise(part):
            if not np.isnan(a) and not np.isnan(b):
                quick, neighbours = quick + (b - a) ** 2 / 4, neighbours + 1
    quarters = []
    for quarter in range(4):
        own = [x[i] for i in at if i * 4 // steps == quarter]
        quarters.append(np.arcsinh(np.mean(own) if own else mean))
    last = max(1, steps - 1)
    return [
        np.arcsinh(mean),
        log(seen.std()),
        np.arcsinh(seen.min()),
        np.arcsinh(seen.max()),
        np.arcsinh(seen[0]),
        np.arcsinh(seen[-1]),
        np.arcsinh(seen[-1] - seen[0]),
        np.arcsinh(slope),
        math.log(max(len(at) / steps, 1e-3)) / 1.5 + 1.5,
        log(math.sqrt(max(seen.var() - within / len(at), 0.0))),
        log(math.sqrt(within / len(at))),
        log(math.sqrt(quick / max(neighbours, 1))),
        *quarters,
        4 * at[0] / last - 2,
        4 * at[-1] / last - 2,
    ]


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 23),
    word=st.integers(1, 6),
    missing=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    seed=st.integers(0, 1 << 16),
)
def test_statistics_equal_the_oracle(steps: int, word: int, missing: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.normal(3.0, 2.0, (3, steps, 2))
    values[generator.random(values.shape) < missing] = np.nan
    mean, std = np.array([2.0, -1.0]), np.array([1.5, 0.5])
    found = features(values, word, mean, std, "statistics")
    wanted = [[oracle((row[:, d] - mean[d]) / std[d], word) for d in range(2)] for row in values]
    np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=2e-6)


def test_pieces_stand_beside_the_values() -> None:
    values = np.random.default_rng(1).normal(0.0, 2.0, (4, 12, 1))
    values[0] = np.nan
    plain = features(values, 4, np.zeros(1), np.ones(1), "level")
    both = features(values, 4, np.zeros(1), np.ones(1), "level", pieces=5)
    np.testing.assert_array_equal(both[..., :LEVEL], plain)
    np.testing.assert_array_equal(both[0], 0.0)  # nothing was observed: no piece is full either
    np.testing.assert_allclose(
        both[1:, 0, LEVEL:].reshape(3, LEVEL, 5), piecewise(torch.from_numpy(plain[1:, 0]), 5).numpy(), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("x", "wanted"),
    [(-3.0, [0, 0, 0, 0]), (-2.0, [0, 0, 0, 0]), (-1.5, [0.5, 0, 0, 0]), (0.25, [1, 1, 0.25, 0]), (9.0, [1, 1, 1, 1])],
)
def test_pieces_fill_one_after_another(x: float, wanted: list[float]) -> None:
    assert piecewise(torch.tensor(x), 4).tolist() == wanted


@pytest.mark.parametrize(("word", "steps"), [(32, 96), (7, 40), (32, 32)])
def test_bands_hold_the_power_of_the_words(word: int, steps: int) -> None:
    generator = np.random.default_rng(word)
    values = generator.normal(0.0, 1.0, (3, steps, 2))
    values[1, 5:9] = np.nan
    bands = spectral_bands(word, 4)
    found = features(values, word, np.zeros(2), np.ones(2), "statistics", bands=4)[..., STATISTICS:]
    assert found.shape[2] == len(bands) > 1
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1, word + 1) / (word + 1))
    for row, column in np.ndindex(3, 2):
        x, total = values[row, :, column], np.zeros(word // 2 + 1)
        for start in range(0, steps, word):
            part = np.full(word, np.nan)
            part[: len(x[start : start + word])] = x[start : start + word]
            centred = np.nan_to_num(part - np.nanmean(part))
            total += np.abs(np.fft.rfft(centred * taper)) ** 2
        power = total / np.count_nonzero(~np.isnan(x)) / (taper**2).mean()
        wanted = [np.log(np.sqrt(power[first:end].mean())) / 2 + 1 for first, end in bands]
        np.testing.assert_allclose(found[row, column], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("word", "count"), [(2, 3), (48, 8), (2048, 24), (5, 50), (1, 4), (16, 0)])
def test_bands_cover_the_spectrum_once(word: int, count: int) -> None:
    bands = spectral_bands(word, count)
    bins = [number for first, end in bands for number in range(first, end)]
    assert len(bands) <= count
    assert bins == (list(range(1, word // 2 + 1)) if count else [])


def test_a_rhythm_lies_in_its_band() -> None:
    word, rate = 256, 64.0
    seconds = np.arange(2 * word) / rate
    values = np.sin(2 * np.pi * np.array([1.25, 9.0]) * seconds[:, None])[None]
    bands = spectral_bands(word, 12)
    found = features(values, word, np.zeros(2), np.ones(2), "statistics", bands=12)[0, :, STATISTICS:]
    for frequency, powers in zip((1.25, 9.0), found, strict=True):
        first, end = bands[int(powers.argmax())]
        assert first <= frequency * word / rate < end


def test_standardised_features_have_mean_0_and_deviation_1() -> None:
    summary = Summary(2, "level", 3, OneProcess())
    summary.fill(lambda name: 0)
    torch.nn.init.normal_(summary.linear.weight)
    torch.nn.init.zeros_(summary.linear.bias)
    x = torch.randn(500, 2, LEVEL) * torch.tensor([[0.01, 3.0], [1.0, 0.0]]) + torch.tensor([[5.0, -1.0], [0.0, 2.0]])
    summary.standardise(x.mean(0), x.std(0))
    z = (x - x.mean(0)) / torch.where(x.std(0) > 1e-4, x.std(0), 1)
    torch.testing.assert_close(summary(x), summary.linear(z.clamp(-5, 5).flatten(1)), rtol=1e-3, atol=1e-3)


def test_what_is_missing_is_the_mean_and_leaves_no_trace_in_gradients() -> None:
    summary = Summary(2, "level", 3, OneProcess(), pieces=2)
    summary.fill(lambda name: 0)
    for parameter in summary.linear.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(4, 2, LEVEL)
    x[1:, 1] = math.nan
    summary(x).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in summary.parameters())
    nothing = summary(torch.full((1, 2, LEVEL), math.nan))
    torch.testing.assert_close(nothing[0], summary.linear.bias)
