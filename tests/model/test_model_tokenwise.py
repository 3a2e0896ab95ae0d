"""Dropout's draws, and the functions on single tokens and words: against plain forms, and gradients by differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from maestro_dist import rng
from maestro_dist.model import tokenwise
from maestro_dist.model.downsample import _Downsampling
from maestro_dist.model.layers import FeedForward, ResidualNorm, dropout


def row_keys(*shape: int, seed: int = 0) -> Tensor:
    count = torch.Size(shape).numel()
    return rng.bits(rng.key(seed, "test"), torch.arange(count)).view(shape)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenwise, "_BLOCK", 8)


# dropout


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5])
def test_draws_are_independent_of_each_other(p: float) -> None:
    rows, columns = 20_000, 64
    keep = rng.keep_mask(p, row_keys(rows), rng.lanes(torch.arange(columns))).double()
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    unit = (keep - (1 - p)) / (p * (1 - p)) ** 0.5
    assert abs(unit.mean().item()) * (rows * columns) ** 0.5 < 4
    assert unit.mean(0).abs().max().item() * rows**0.5 < 5  # each column
    pairs = (unit.T @ unit / rows).fill_diagonal_(0) * rows**0.5
    assert pairs.abs().max().item() < 5  # 2,016 pairs of columns
    assert pairs.square().mean().item() < 1.15
    triples = torch.stack([(unit * unit.roll(a, 1) * unit.roll(b, 1)).mean() for a, b in ((1, 2), (1, 3), (5, 21))])
    assert triples.abs().max().item() * (rows * columns) ** 0.5 < 5
    drops = unit.sum(1) / columns**0.5  # as many a row as independent draws give
    assert drops.var().item() == pytest.approx(1, abs=0.04)


def test_a_slice_of_the_columns_has_the_same_draws() -> None:
    x, keys = torch.ones(7, 40), row_keys(7)
    whole = dropout(x, 0.3, keys)
    assert torch.equal(dropout(x[:, 11:29], 0.3, keys, torch.arange(11, 29)), whole[:, 11:29])
    assert torch.equal(dropout(x[2:5], 0.3, keys[2:5]), whole[2:5])
    assert not torch.equal(dropout(x, 0.3, row_keys(7, seed=1)), whole)


def test_dropout_keeps_the_mean() -> None:
    scaled = dropout(torch.ones(50_000, 8), 0.25, row_keys(50_000))
    assert scaled.unique().tolist() == pytest.approx([0, 4 / 3])
    assert scaled.mean().item() == pytest.approx(1, abs=0.01)


def test_gradient_of_dropout(small_blocks: None) -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    keys = row_keys(3, 4)
    assert gradcheck(lambda x: dropout(x, 0.4, keys), x)
    strided = torch.randn(5, 6).t()
    assert torch.equal(dropout(strided, 0.4, row_keys(6)), dropout(strided.contiguous(), 0.4, row_keys(6)))


# residual and norm


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("scaled", [False, True])
def test_residual_norm(scaled: bool, p: float, small_blocks: None) -> None:
    torch.manual_seed(0)
    norm = ResidualNorm(4).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x, branch = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale = torch.randn(4, dtype=torch.float64, requires_grad=True) if scaled else None
    keys = row_keys(5) if p else None
    plain = dropout(branch, p, keys) if keys is not None else branch
    plain = norm.__class__.__bases__[0].forward(norm, x + (plain if scale is None else plain * scale))
    dropped = None if keys is None else tokenwise.HashedDropout(p, keys)
    torch.testing.assert_close(norm(x, branch, scale, dropped), plain, rtol=1e-12, atol=1e-12)

    def run(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None) -> Tensor:
        return tokenwise.residual_norm(x, branch, scale, tokenwise.NormParameters(weight, bias, norm.eps), dropped)

    assert gradcheck(run, (x, branch, norm.weight, norm.bias, scale))
    assert norm(x[:0], branch[:0], scale, None).shape == (0, 4)


# feed-forward


@pytest.mark.parametrize("tile", [None, 1, 3, 100])
def test_feed_forward(tile: int | None, small_blocks: None) -> None:
    torch.manual_seed(0)
    feed = FeedForward(3, 6, tile).double()
    for parameter in feed.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    plain = F.linear(
        F.gelu(F.linear(x, feed.expand.weight, feed.expand.bias)), feed.contract.weight, feed.contract.bias
    )
    torch.testing.assert_close(feed(x), plain, rtol=1e-12, atol=1e-12)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return tokenwise.feed_forward(x, tokenwise.FeedForwardParameters(*parameters), tile)

    assert gradcheck(run, (x, *feed.parameters()))
    feed(x[:0]).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in feed.parameters())


def test_feed_forward_under_autocast() -> None:
    torch.manual_seed(0)
    feed = FeedForward(16, 32)
    for parameter in feed.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    x = torch.randn(50, 16)
    expected = feed(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = feed(x)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.1)
    assert all(parameter.grad.dtype == torch.float32 for parameter in feed.parameters())


# downsampling


@pytest.mark.parametrize("observed", ["all", "some", "none"])
@pytest.mark.parametrize("halo", [False, True])
@pytest.mark.parametrize(("rows", "words"), [(3, 4), (1, 6), (2, 2)])
def test_gradient_of_downsampling(rows: int, words: int, halo: bool, observed: str, small_blocks: None) -> None:
    torch.manual_seed(1)
    x = torch.randn(rows, words, 3, dtype=torch.float64, requires_grad=True)
    before = torch.randn(rows, 1, 3, dtype=torch.float64, requires_grad=True) if halo else None
    mask = {"all": torch.ones, "none": torch.zeros, "some": torch.rand}[observed](rows, words + 1) > 0.5
    mask[:, 0] &= halo
    weight = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda *tensors: _Downsampling.apply(tensors[0], before, mask, *tensors[1:]), (x, weight, bias))
    if before is not None:
        assert gradcheck(lambda before: _Downsampling.apply(x, before, mask, weight, bias), before)


@pytest.mark.parametrize("masked", [False, True])
def test_equal_words_send_the_maximum_s_gradient_to_the_earliest(masked: bool) -> None:
    x = torch.zeros(1, 4, 1, requires_grad=True)
    mask = torch.tensor([[False, True, True, not masked, True]])
    weight, bias = torch.zeros(1, 3), torch.zeros(1)
    _Downsampling.apply(x, None, mask, weight, bias).backward(torch.tensor([[[1.0], [10.0]]]))
    assert x.grad.flatten().tolist() == [1.0, 10.0, 0.0, 0.0]
