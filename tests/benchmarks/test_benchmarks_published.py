"""The opponents compute what they should: each is held against something slower and more obvious."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from benchmarks import conventional, published
from benchmarks.cases import modalities, wesad_config, windows
from benchmarks.published.attention import budget
from benchmarks.published.model import Distil
from torch import Tensor

from maestro_dist.model import sax


def _inputs(length: int = 24) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(2, 3, length, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def _with_gradients(function, inputs: list[Tensor]) -> list[Tensor]:
    out = function(*inputs)
    weights = torch.arange(out.numel(), dtype=out.dtype).view(out.shape).cos()
    return [out, *torch.autograd.grad((out * weights).sum(), inputs)]


@pytest.mark.parametrize("module", [published, conventional])
def test_attention_of_all_queries_on_all_keys_is_dense(module) -> None:
    inputs = _inputs()
    mine = _with_gradients(lambda q, k, v: module.sparse_attention(q, k, v, 24, 24), inputs)
    dense = _with_gradients(lambda q, k, v: (q @ k.mT / 2).softmax(-1) @ v, inputs)
    for ours, expected in zip(mine, dense, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("module", [published, conventional])
def test_attention_of_the_best_queries_and_the_mean_elsewhere(module) -> None:
    query, key, value = _inputs()
    out = module.sparse_attention(query, key, value, 24, 5)
    products = query @ key.mT
    best = (products.amax(-1) - products.mean(-1)).topk(5).indices
    expected = value.mean(2, keepdim=True).expand_as(value).clone()
    dense = (products / 2).softmax(-1) @ value
    for b in range(2):
        for h in range(3):
            expected[b, h, best[b, h]] = dense[b, h, best[b, h]]
    torch.testing.assert_close(out, expected)


def test_each_query_is_scored_by_its_own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """One key stands out; the queries that happened to draw it are the best."""
    torch.manual_seed(0)
    drawn: list[Tensor] = []
    randint = torch.randint

    def recorded(*size, **options) -> Tensor:
        drawn.append(randint(*size, **options))
        return drawn[-1]

    monkeypatch.setattr(torch, "randint", recorded)
    query, key = torch.ones(1, 1, 64, 1), torch.zeros(1, 1, 64, 1)
    key[0, 0, 7] = 1.0
    out = published.sparse_attention(query, key, key, 8, 4)
    chosen = (out[0, 0, :, 0] - 1 / 64).abs() > 1e-3
    (index,) = drawn
    drew_it = (index == 7).any(1)
    assert index.shape == (64, 8)
    assert chosen.sum() == 4 < drew_it.sum() < 32
    assert drew_it[chosen].all()


def test_attention_layers_of_all_queries_are_dense_layers() -> None:
    x = torch.randn(2, 3, 8)
    layer = published.SparseAttention(8, 2, 100.0)
    query, key, value = (part(x).view(2, 3, 2, 4).transpose(1, 2) for part in (layer.query, layer.key, layer.value))
    dense = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(2, 3, 8)
    torch.testing.assert_close(layer(x, 100.0), layer.out(dense))
    usual = conventional.SparseAttention(8, 2, 100.0)
    with torch.no_grad():
        usual.project.weight.copy_(torch.cat((layer.query.weight, layer.key.weight, layer.value.weight)))
        usual.project.bias.copy_(torch.cat((layer.query.bias, layer.key.bias, layer.value.bias)))
    usual.out.load_state_dict(layer.out.state_dict())
    torch.testing.assert_close(usual(x, 100.0), layer(x, 100.0))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("top_k", [1, 2])
def test_masked_experts_are_a_gated_sum_over_all_experts(top_k: int, masked: bool) -> None:
    torch.manual_seed(1)
    layer = published.MaskedExperts(6, 10, 5, top_k, masked=masked).double()
    x = torch.randn(30, 6, dtype=torch.float64, requires_grad=True)

    def dense(x: Tensor) -> Tensor:
        logits = layer.router(x)
        kept = logits >= logits.topk(top_k, dim=-1).values[:, -1:]
        return sum((logits[:, e] * kept[:, e])[:, None] * expert(x) for e, expert in enumerate(layer.experts))

    weights = list(layer.parameters())
    for ours, expected in zip(
        _with_gradients(lambda x, *_: layer(x), [x, *weights]),
        _with_gradients(lambda x, *_: dense(x), [x, *weights]),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(("word", "alphabet"), [(1, 4), (2, 20), (8, 7)])
def test_symbols_of_the_loop_are_those_of_the_fast_form(word: int, alphabet: int) -> None:
    torch.manual_seed(2)
    x = torch.randn(3, 64, 5) * 3 + 100
    slow = published.symbols(x, word, alphabet)
    assert len(slow.unique()) > 3
    assert torch.equal(slow, sax.tokenise(x, word, sax.breakpoints(alphabet)).long())
    assert torch.equal(slow, published.symbols_by_word(x, word, alphabet))
    assert torch.equal(slow, published.symbols_by_word_numpy(x, word, alphabet))


def test_symbols_of_a_constant_channel_are_very_low() -> None:
    assert (published.symbols(torch.full((1, 8, 2), 5.0), 2, 20) == 1).all()


def test_distil_is_convolution_plus_maximum() -> None:
    layer = Distil(3).double()
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    out = layer(x)
    assert out.shape == (2, 4, 3)
    kernel, bias = layer.convolution.weight, layer.convolution.bias
    for number, centre in enumerate(range(0, 7, 2)):
        taps = [t for t in (centre - 1, centre, centre + 1) if 0 <= t < 7]
        convolved = bias + sum(x[:, t] @ kernel[:, :, t - centre + 1].T for t in taps)
        torch.testing.assert_close(out[:, number], convolved + x[:, taps].amax(1))


def test_the_published_model_ignores_absent_values_and_its_gate_gets_no_gradient() -> None:
    torch.manual_seed(4)
    streams = modalities(32)
    model = published.Published(wesad_config(dropout=0.0, beta=50.0, sample_factor=50.0), streams, 3)
    batch = windows(streams, 3, "cpu")
    batch.present[:, 2] = False
    logits = model(batch.values, batch.present)
    logits.sum().backward()
    weight = model.embeddings[streams[2].name].weight
    assert weight.grad is not None
    assert (weight.grad == 0).all()  # it meets symbol 0 alone
    for name, parameter in model.named_parameters():
        if not name.startswith(("gate.", "absent")) and "experts" not in name and parameter is not weight:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in model.gate.parameters())
    assert model.encoders[streams[2].name][0].attention.query.weight.grad is not None  # encoded all the same
    batch.values[streams[2].name] = batch.values[streams[2].name].flip(1) * 5
    torch.testing.assert_close(model(batch.values, batch.present), logits)


def test_budget() -> None:
    assert [budget(5.0, length) for length in (1, 2, 10, 16384)] == [1, 2, 10, 49]
