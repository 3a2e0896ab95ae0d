"""SAX against an oracle of plain Python loops."""

from __future__ import annotations

import bisect
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_dist.model import OneProcess, sax


def oracle(
    window: np.ndarray, word: int, alphabet: int, reference: tuple[np.ndarray, np.ndarray] | None
) -> list[list[int]]:
    """Symbols [W][D] of one window [T, D]; -1 where z is too close to a cut to tell by another summation order."""
    cuts = [NormalDist().inv_cdf(k / alphabet) for k in range(1, alphabet)]
    table: list[list[int]] = []
    for w in range(math.ceil(len(window) / word)):
        row = []
        for d in range(window.shape[1]):
            everything = [float(v) for v in window[:, d] if math.isfinite(v)]
            inside = [float(v) for v in window[w * word : (w + 1) * word, d] if math.isfinite(v)]
            if not inside:
                row.append(0)
                continue
            if reference is None:
                mean = math.fsum(everything) / len(everything)
                std = math.sqrt(math.fsum((v - mean) ** 2 for v in everything) / len(everything))
                constant = max(everything) == min(everything)
                z = 0.0 if constant else (math.fsum(inside) / len(inside) - mean) / std
            else:
                mean, std = float(reference[0][d]), float(reference[1][d])
                z = (math.fsum(inside) / len(inside) - mean) / (std or 1.0)
            near = min(abs(z - cut) for cut in cuts)
            row.append(-1 if 0 < near < 1e-9 else 1 + bisect.bisect_right(cuts, z + (1e-12 if near == 0 else 0)))
        table.append(row)
    return table


def symbols(
    x: torch.Tensor, word: int, alphabet: int, reference: tuple[torch.Tensor, torch.Tensor] | None
) -> torch.Tensor:
    return sax.tokenise(x, word, sax.cuts(alphabet), reference)


@settings(max_examples=150, deadline=None)
@given(
    alphabet=st.integers(2, 60),
    word=st.integers(1, 9),
    steps=st.integers(1, 24),
    variates=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    level=st.sampled_from([0.0, 9.81, -1e5]),
    missing=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    normalize=st.sampled_from(["window", "dataset"]),
)
def test_symbols_equal_the_loop(
    alphabet: int, word: int, steps: int, variates: int, seed: int, level: float, missing: float,
    dtype: torch.dtype, normalize: str,
) -> None:  # fmt: skip
    draw = np.random.default_rng(seed)
    values = draw.standard_normal((2, steps, variates)) * draw.choice([1e-3, 1.0, 50.0], (1, 1, variates)) + level
    values[0, :, 0] = values[0, 0, 0]  # a dead channel
    values[draw.random(values.shape) < missing] = np.nan
    x = torch.from_numpy(values).to(dtype)
    exact = x.double().numpy()
    reference = None
    if normalize == "dataset":
        reference = (np.full(variates, level), np.array([2.0, 0.0, 0.5])[:variates])
    given_reference = reference and sax.given_reference(*(torch.from_numpy(part) for part in reference))
    ours = symbols(x, word, alphabet, given_reference).numpy()
    for row in range(2):
        expected = np.array(oracle(exact[row], word, alphabet, reference))
        assert ours[row].shape == expected.shape
        assert ((ours[row] == expected) | (expected == -1)).all()


@pytest.mark.parametrize("alphabet", [2, 3, 20, 255])
def test_a_value_on_a_cut_goes_up(alphabet: int) -> None:
    cuts = sax.cuts(alphabet)
    unit = (torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    on = symbols(cuts[None, :, None], 1, alphabet, unit)[0, :, 0]
    below = symbols(torch.nextafter(cuts, torch.tensor(-10.0, dtype=torch.float64))[None, :, None], 1, alphabet, unit)
    assert on.tolist() == list(range(2, alphabet + 1))
    assert below[0, :, 0].tolist() == list(range(1, alphabet))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_channel_is_in_the_middle(dtype: torch.dtype) -> None:
    x = torch.full((1, 10_001, 1), 0.1, dtype=dtype) * 3e4
    assert set(symbols(x, 7, 20, None).flatten().tolist()) == {11}
    reference = sax.window_reference(sax.moments(x, OneProcess()))
    samples = sax.words(x, 7, sax.cuts(20), reference, torch.float32).samples
    assert samples is not None
    assert not samples[..., 0].any()
    assert samples[..., 1].sum() == 10_001


def test_moments_of_a_million_steps_keep_their_digits() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1_000_000, 1)) + 1e4)
    moments = sax.moments(x, OneProcess())
    assert moments.n.item() == 1_000_000
    assert (moments.m2 / moments.n).sqrt().item() == pytest.approx(float(x.numpy().std()), rel=1e-12)
