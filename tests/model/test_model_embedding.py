"""Convolutions without copies, the stem and the embeddings against plain forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from model_samples import MODALITIES, make_batch, make_model
from torch import Tensor

from maestro_dist.config.model import StemConfig
from maestro_dist.model import OneProcess, sax
from maestro_dist.model.convolution import Convolution
from maestro_dist.model.layers import Windowed
from maestro_dist.model.stem import Stem
from maestro_dist.model.symbol_embedding import TableEmbedding, _EmbeddingSum


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def conv1d(x: Tensor, weight: Tensor, bias: Tensor, kernel: int, stride: int) -> Tensor:
    kernels = weight.view(len(weight), kernel, x.shape[2]).transpose(1, 2)
    return F.conv1d(x.transpose(1, 2), kernels, bias, stride=stride).transpose(1, 2)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 4),
    length=st.integers(1, 12),
    channels=st.integers(1, 4),
    outputs=st.integers(1, 4),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 4),
)
def test_convolution_equals_conv1d(
    rows: int, length: int, channels: int, outputs: int, kernel: int, stride: int
) -> None:
    parts = [drawn(rows, length + kernel - 1, channels), drawn(outputs, kernel * channels, seed=1), drawn(outputs)]
    ours, theirs = ([part.clone().requires_grad_() for part in parts] for _ in range(2))
    out = Convolution.apply(*ours, kernel, stride)
    expected = conv1d(*theirs, kernel, stride)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    given_gradient = drawn(*expected.shape, seed=2)
    out.backward(given_gradient)
    expected.backward(given_gradient)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride", "length"), [(3, 2, 5), (3, 2, 6), (5, 1, 4), (2, 3, 4), (4, 3, 1)])
def test_convolution_gradients(kernel: int, stride: int, length: int) -> None:
    parts = [drawn(2, length + kernel - 1, 3), drawn(2, kernel * 3), drawn(2)]
    inputs = [part.requires_grad_() for part in parts]
    assert torch.autograd.gradcheck(lambda *x: Convolution.apply(*x, kernel, stride), inputs)


@pytest.mark.parametrize("shape", [(0, 6, 2), (3, 2, 2), (0, 2, 2)])
def test_convolution_of_nothing(shape: tuple[int, int, int]) -> None:
    layer = Windowed(2, 4, 3).double()
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.ones_(layer.bias)
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    out = layer(x, 2)
    assert out.shape == (shape[0], (shape[1] - 1) // 2, 4)
    out.sum().backward()
    assert not x.grad.any()
    assert not layer.weight.grad.any()


def test_convolution_under_autocast() -> None:
    layer = Windowed(4, 4, 3)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = drawn(2, 9, 4).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, 1)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x, 1), rtol=0.05, atol=0.1)
    out.float().square().sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("steps", [12, 11])
def test_stem_is_masked_convolutions(missing: float, steps: int) -> None:
    stem = Stem(2, StemConfig(channels=3, kernel=5, layers=2), 4, 4, OneProcess()).double()
    for parameter in stem.parameters():
        torch.nn.init.normal_(parameter)
    values = drawn(3, steps, 2)
    values[torch.rand(values.shape, generator=torch.Generator().manual_seed(1)) < missing] = torch.nan
    values[0, 3:7] = torch.nan if missing else 1.0
    unit = (torch.zeros(2).double(), torch.ones(2).double())
    words = sax.words(values, 4, sax.breakpoints(5), unit, torch.float64)
    assert words.whole == (missing == 0 and steps == 12)

    padded = F.pad(values, (0, 0, 0, 12 - steps), value=torch.nan)
    steps_observed = padded.isfinite()
    mask = steps_observed.any(-1, keepdim=True)
    x = torch.cat((padded.nan_to_num(0.0), steps_observed.double()), -1)
    for layer in stem.convolutions:
        x = F.gelu(conv1d(F.pad(x, (0, 0, 2, 2)), layer.weight, layer.bias, 5, 1)) * mask
    count = mask.view(3, 3, 4).sum(2, keepdim=True).clamp_min(1)
    expected = stem.linear(x.view(3, 3, 4, 3).sum(2) / count)
    torch.testing.assert_close(stem(words.samples, words.whole), expected)


@pytest.mark.parametrize(
    ("word", "pool", "cuts"), [(8, 2, (2, 2, 2)), (6, 2, (2, 1, 3)), (6, 3, (3, 1, 2)), (1, 2, (1, 1, 1))]
)
def test_a_pooled_stem_averages_what_was_observed(word: int, pool: int, cuts: tuple[int, ...]) -> None:
    """`cuts`: neighbours that are averaged after each convolution."""
    stem = Stem(1, StemConfig(channels=3, kernel=3, layers=3, pool=pool), word, 4, OneProcess()).double()
    for parameter in stem.parameters():
        torch.nn.init.normal_(parameter)
    values = drawn(2, 4 * word, 1)
    values[torch.rand(values.shape, generator=torch.Generator().manual_seed(2)) < 0.5] = torch.nan
    values[0, :word] = torch.nan
    words = sax.words(
        values, word, sax.breakpoints(5), (torch.zeros(1).double(), torch.ones(1).double()), torch.float64
    )
    x, seen = torch.cat((values.nan_to_num(0.0), values.isfinite().double()), -1), values.isfinite().double()
    for layer, cut in zip(stem.convolutions, cuts, strict=True):
        x = F.gelu(conv1d(F.pad(x, (0, 0, 1, 1)), layer.weight, layer.bias, 3, 1))
        averages, any_seen = [], []
        for start in range(0, x.shape[1], cut):
            part, weight = x[:, start : start + cut], seen[:, start : start + cut]
            averages.append((part * weight).sum(1) / weight.sum(1).clamp_min(1))
            any_seen.append(weight.amax(1))
        x, seen = torch.stack(averages, 1), torch.stack(any_seen, 1)
    torch.testing.assert_close(stem(words.samples, words.whole), stem.linear(x))


@pytest.mark.parametrize("embedding", ["ordinal", "table"])
@pytest.mark.parametrize("normalize", ["window", "dataset", "recording"])
def test_symbols_in_a_batch_give_the_same_logits(embedding: str, normalize: str) -> None:
    model = make_model(embedding=embedding, normalize=normalize, summary="none").eval()
    batch = make_batch(torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 1]]).bool())
    logits = model(batch)["logits"]
    symbols = {
        m.name: model.embeddings[m.name].symbolise(batch.values[m.name], batch.recording[m.name]) for m in MODALITIES
    }
    batch.symbols, batch.values = symbols, {}
    assert torch.equal(model(batch)["logits"], logits)


@pytest.mark.parametrize(("words", "variates"), [(7, 1), (5, 3), (0, 2)])
def test_table_sums_rows(words: int, variates: int) -> None:
    table = TableEmbedding(variates, 4, 5, 3).double()
    table.fill(lambda name: 1)
    generator = torch.Generator().manual_seed(0)
    symbols = torch.randint(0, 6, (2, words, variates), dtype=torch.uint8, generator=generator)
    rows = table.weight.view(variates, 6, 3)
    expected = sum(rows[variate][symbols[..., variate].long()] for variate in range(variates))
    torch.testing.assert_close(table(symbols, None), expected)
    if words:
        flat = symbols.flatten(0, 1)
        assert torch.autograd.gradcheck(lambda weight: _EmbeddingSum.apply(weight, flat, 6), table.weight)
