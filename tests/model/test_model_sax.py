"""SAX against an oracle of plain Python loops."""

from __future__ import annotations

import bisect
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_dist.model import OneProcess, sax


def oracle(
    window: np.ndarray,
    word: int,
    alphabet: int,
    reference: tuple[np.ndarray, np.ndarray] | None,
    *,
    exact_sums: bool = True,
) -> list[list[int]]:
    """Symbols [W][D] of one window [T, D]; -1 where z is too close to a cut to tell by another summation order.

    `exact_sums`: float64 adds up the values without rounding (float32 or shorter ones), so z on a cut is on the cut.
    """
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
            constant = False
            if reference is None:
                mean = math.fsum(everything) / len(everything)
                std = math.sqrt(math.fsum((v - mean) ** 2 for v in everything) / len(everything))
                constant = max(everything) == min(everything)
                z = 0.0 if constant else (math.fsum(inside) / len(inside) - mean) / std
            else:
                mean, std = float(reference[0][d]), float(reference[1][d])
                z = (math.fsum(inside) / len(inside) - mean) / (std or 1.0)
            near = min(abs(z - cut) for cut in cuts)
            untold = 0 < near < 1e-9 or (near == 0 and not exact_sums and not constant)
            row.append(-1 if untold else 1 + bisect.bisect_right(cuts, z + (1e-12 if near == 0 else 0)))
        table.append(row)
    return table


def symbols(
    x: torch.Tensor, word: int, alphabet: int, reference: tuple[torch.Tensor, torch.Tensor] | None
) -> torch.Tensor:
    return sax.tokenise(x, word, sax.breakpoints(alphabet), reference)


def damage(values: np.ndarray, kind: str, draw: np.random.Generator) -> None:
    """Make steps of [R, T, D] missing, in place."""
    steps = values.shape[1]
    if kind == "scattered":
        values[draw.random(values.shape) < 0.3] = np.nan
    elif kind == "infinite":
        where = draw.random(values.shape)
        values[where < 0.1], values[where > 0.9] = np.inf, -np.inf
    elif kind == "stretch":
        start = draw.integers(0, steps)
        values[:, start : start + draw.integers(1, steps + 1)] = np.nan
    elif kind == "variate":
        values[-1, :, -1] = np.nan
    elif kind == "nearly all":
        values[draw.random(values.shape) < 0.9] = np.nan
    elif kind == "all":
        values[:] = np.nan


@settings(max_examples=200, deadline=None)
@given(
    alphabet=st.one_of(st.integers(2, 60), st.sampled_from([127, 128, 254, 255])),
    word=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 4)),
    seed=st.integers(0, 2**31),
    level=st.sampled_from([0.0, 9.81, -1e5]),
    missing=st.sampled_from(["none", "scattered", "infinite", "stretch", "variate", "nearly all", "all"]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    normalize=st.sampled_from(["window", "dataset", "recording"]),
    tile=st.sampled_from([1, 8, 50, 1 << 17]),
)
def test_symbols_equal_the_loop(
    alphabet: int, word: int, shape: tuple[int, int, int], seed: int, level: float, missing: str,
    dtype: torch.dtype, normalize: str, tile: int,
) -> None:  # fmt: skip
    draw = np.random.default_rng(seed)
    rows, steps, variates = shape
    values = draw.standard_normal(shape) * draw.choice([1e-3, 1.0, 50.0], (1, 1, variates)) + level
    values[0, :, 0] = values[0, 0, 0]  # a dead channel
    damage(values, missing, draw)
    with np.errstate(over="ignore"):
        x = torch.from_numpy(values).to(dtype)
    exact = x.double().numpy()
    edges, reference = sax.breakpoints(alphabet), None
    if normalize != "window":
        size = (variates,) if normalize == "dataset" else (rows, variates)
        mean, std = np.full(size, level), draw.choice([2.0, 0.0, 0.5], size)
        reference = sax.given_reference(torch.from_numpy(mean), torch.from_numpy(std))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sax, "_TILE", tile)
        ours = sax.tokenise(x, word, edges, reference)
        alone = [sax.tokenise(x[row : row + 1], word, edges, _row(reference, row)) for row in range(rows)]
        used = reference or sax.window_reference(sax.window_moments(x, OneProcess()))
        words = sax.words(x, word, edges, used, torch.float64)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, torch.cat(alone))
    assert torch.equal(ours, words.symbols)
    for row in range(rows):
        own = None
        if normalize != "window":
            own = (mean, std) if normalize == "dataset" else (mean[row], std[row])
        expected = np.array(oracle(exact[row], word, alphabet, own, exact_sums=dtype != torch.float64))
        assert ours[row].shape == expected.shape
        assert ((ours[row].numpy() == expected) | (expected == -1)).all()

    observed = F.pad(x.isfinite(), (0, 0, 0, -steps % word)).view(rows, -1, word, variates)
    assert words.samples is not None
    z, mask = words.samples.chunk(2, -1)
    assert torch.equal(mask, observed.double())
    padded = F.pad(x.double(), (0, 0, 0, -steps % word)).view_as(z)
    centre, divisor = (part.expand(rows, variates)[:, None, None] for part in used)
    torch.testing.assert_close(z, torch.where(observed, (padded - centre) / divisor, 0), rtol=1e-12, atol=1e-12)
    assert torch.equal(words.observed, observed.any(3).any(2))
    assert words.whole == bool(observed.all())


def _row(reference: tuple[torch.Tensor, torch.Tensor] | None, row: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    if reference is None or reference[0].dim() == 1:
        return reference
    return reference[0][row : row + 1], reference[1][row : row + 1]


@settings(max_examples=40, deadline=None)
@given(
    alphabet=st.integers(2, 255),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([1e-12, 1e-6, 1e-3, 1.0, 1e6]),
)
def test_symbols_near_cuts_are_exact(alphabet: int, seed: int, spread: float) -> None:
    """The table of a processor says what a search among the cuts says, however near a cut z is."""
    draw = np.random.default_rng(seed)
    edges = sax.breakpoints(alphabet)
    z = np.concatenate((draw.choice(edges.numpy(), 500) + draw.standard_normal(500) * spread, edges.numpy()))
    x = torch.from_numpy(np.concatenate((z, np.nextafter(z, 9), np.nextafter(z, -9))))[None, :, None]
    unit = (torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    expected = torch.bucketize(x, edges, right=True) + 1
    assert torch.equal(sax.tokenise(x, 1, edges, unit).long(), expected)


@pytest.mark.parametrize("shape", [(0, 8, 3), (2, 0, 3), (0, 0, 1)])
def test_nothing_to_tokenise(shape: tuple[int, int, int]) -> None:
    symbols = sax.tokenise(torch.zeros(shape), 4, sax.breakpoints(5))
    assert symbols.shape == (shape[0], shape[1] // 4, shape[2])
    found = sax.window_moments(torch.zeros(shape), OneProcess())
    assert not torch.stack(found).any()


@pytest.mark.parametrize("alphabet", [2, 3, 20, 255])
def test_a_value_on_a_cut_goes_up(alphabet: int) -> None:
    cuts = sax.breakpoints(alphabet)
    unit = (torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    on = symbols(cuts[None, :, None], 1, alphabet, unit)[0, :, 0]
    below = symbols(torch.nextafter(cuts, torch.tensor(-10.0, dtype=torch.float64))[None, :, None], 1, alphabet, unit)
    assert on.tolist() == list(range(2, alphabet + 1))
    assert below[0, :, 0].tolist() == list(range(1, alphabet))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_channel_is_in_the_middle(dtype: torch.dtype) -> None:
    x = torch.full((1, 10_001, 1), 0.1, dtype=dtype) * 3e4
    assert set(symbols(x, 7, 20, None).flatten().tolist()) == {11}
    reference = sax.window_reference(sax.window_moments(x, OneProcess()))
    samples = sax.words(x, 7, sax.breakpoints(20), reference, torch.float32).samples
    assert samples is not None
    assert not samples[..., 0].any()
    assert samples[..., 1].sum() == 10_001


def test_moments_of_a_million_steps_keep_their_digits() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1_000_000, 1)) + 1e4)
    moments = sax.window_moments(x, OneProcess())
    assert moments.n.item() == 1_000_000
    assert (moments.m2 / moments.n).sqrt().item() == pytest.approx(float(x.numpy().std()), rel=1e-12)
