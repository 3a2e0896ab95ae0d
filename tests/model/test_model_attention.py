"""Sparse attention against a dense oracle that takes the same steps one by one, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from maestro_dist import rng
from maestro_dist.config.model import ModelConfig
from maestro_dist.errors import ConfigError
from maestro_dist.model import OneProcess
from maestro_dist.model.attention import VARIANTS, describe_attention
from maestro_dist.model.attention import tiles as tiles_module
from maestro_dist.model.attention.layer import Attention
from maestro_dist.model.attention.sampling import best_queries
from maestro_dist.model.attention.selection import query_weights
from maestro_dist.model.layout import (
    EnteringTokens,
    ModalityTokens,
    TokenLayout,
    cross_modal_layout,
    modality_layout,
    plan_depths,
)

WIDTH, HEADS = 12, 3
FORMS = [name for name, variant in VARIANTS.items() if variant.abilities.selects_queries]


def make_attention(**options: object) -> Attention:
    config = ModelConfig.model_validate(
        {"width": WIDTH, "heads": HEADS, "dropout": 0.0, "sample_factor": 2.0, **options}
    )
    attention = Attention("layer", config, config.beta, 5, OneProcess()).double()
    attention.fill(lambda name: rng.key(1, name))
    return attention


@pytest.fixture(params=[None, 40], ids=["one tile", "many tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of the usual size, or of a few scores."""
    if request.param is not None:
        monkeypatch.setitem(tiles_module._TILE, "cpu", request.param)
        monkeypatch.setattr(tiles_module, "_TILE_LENGTH", 3)


def make_layout(masks: list[Tensor], rows: list[Tensor], samples: int, ragged: bool = True) -> TokenLayout:
    """TokenLayout of modalities whose words have the given masks."""
    parts = [ModalityTokens(len(mask), 0, mask.shape[1], 0, 0, mask.shape[1]) for mask in masks]
    none = [mask[:, :0] for mask in masks]
    sample = torch.arange(samples) + 40
    having = [row.tolist() for row in rows] if ragged else None
    made = plan_depths(EnteringTokens(parts, masks, none, rows, samples), [], OneProcess())
    if len(masks) == 1:
        return modality_layout(made, 0, 0, rows[0], sample)
    return cross_modal_layout(made, 0, rows, sample, having)


def oracle(attention: Attention, x: Tensor, mask: Tensor, sample: int, queries: Tensor, step: int) -> Tensor:
    """One sample, x [L, d], all positions in canonical order, mask bool [L]; every step as the method says it."""
    length, head_width = len(x), WIDTH // HEADS
    seen = [t for t in range(length) if mask[t]]
    q = x @ attention.query_weight.T + attention.query_bias
    k = x @ attention.key_weight.T
    v = x @ attention.value_weight.T + attention.value_bias
    heads = []
    for h in range(HEADS):
        qh, kh, vh = (part[:, h * head_width : (h + 1) * head_width] for part in (q, k, v))
        out = [torch.zeros(head_width, dtype=x.dtype)] * length
        if seen:
            size = min(len(seen), max(1, math.ceil(2.0 * math.log(len(seen)))))
            if attention.training:
                draw = rng.key(5, "keys", "layer", step)
                edges = [i * len(seen) // size for i in range(size + 1)]
                draws = [rng.uniform(draw, torch.tensor((sample << 32) + i * HEADS + h)).item() for i in range(size)]
                ranks = [low + int(u * (high - low)) for u, low, high in zip(draws, edges, edges[1:], strict=False)]
                sampled = [seen[rank] for rank in ranks]
            else:
                sampled = [seen[(2 * i + 1) * len(seen) // (2 * size)] for i in range(size)]
            assert len(set(sampled)) == size
            products = {t: [float((qh[t] @ kh[s]).detach()) for s in sampled] for t in seen}
            score = {
                t: torch.tensor(max(p) - sum(p) / size, dtype=torch.float64).float().item() for t, p in products.items()
            }
            ranked = sorted(seen, key=lambda t: (-score[t], t))
            mean = sum(vh[t] for t in seen) / len(seen)
            out = [mean] * length
            for r, t in enumerate(ranked):
                weight = (queries - r).clamp(0, 1)
                logits = torch.stack([qh[t] @ kh[s] for s in seen]) / math.sqrt(head_width)
                attended = (logits.softmax(0)[:, None] * torch.stack([vh[s] for s in seen])).sum(0)
                out[t] = weight * attended + (1 - weight) * mean
        heads.append(torch.stack(out))
    return torch.cat(heads, 1) @ attention.output_weight.T + attention.output_bias


def check(
    attention: Attention, x: Tensor, layout: TokenLayout, queries: Tensor, dense: list[tuple[Tensor, Tensor]]
) -> None:
    """Same values and gradients. `dense`: for each sample its canonical columns, in order, and their rows in x."""
    leaves = [x, queries, *attention.parameters()]
    pull = torch.from_numpy(rng.uniform_np(3, torch.arange(x.numel()).numpy()).reshape(x.shape))
    pull = pull * layout.flat_mask[:, None]  # tokens that are missing have no defined output
    fast = torch.autograd.grad((attention(x, layout, queries, 9) * pull).sum(), leaves)
    total: Tensor = torch.zeros(())
    length = int(layout.token.max()) + 1
    for s, (columns, rows) in enumerate(dense):
        canvas = torch.zeros(length, WIDTH, dtype=x.dtype).index_copy(0, columns, x[rows])
        mask = torch.zeros(length).bool().index_copy(0, columns, layout.flat_mask[rows])
        out = oracle(attention, canvas, mask, int(layout.sample[s]), queries[s], 9)
        ours = attention(x, layout, queries, 9)[rows][mask[columns]]
        torch.testing.assert_close(ours, out[columns][mask[columns]], rtol=1e-9, atol=1e-12)
        total = total + (out[columns] * pull[rows]).sum()
    slow = torch.autograd.grad(total, leaves)
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("beta", [1.3, 50.0])
def test_one_modality(training: bool, beta: float, form: str) -> None:
    attention = make_attention(beta=beta, attention_algorithm=form, keep_attention_weights=training).train(training)
    torch.manual_seed(0)
    mask = torch.rand(4, 11) > 0.3
    mask[1], mask[2] = False, torch.arange(11) == 6  # nothing observed; a single token
    layout = make_layout([mask], [torch.arange(4)], 4)
    x = torch.randn(4 * 11, WIDTH, dtype=torch.float64, requires_grad=True)
    count = mask.sum(1).double()
    queries = torch.minimum(count.clamp_min(1).log() * beta * 0.83, count).requires_grad_()
    dense = [(torch.arange(11), torch.arange(11) + 11 * s) for s in range(4)]
    check(attention, x, layout, queries, dense)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_joint_sequence_with_absent_modalities(training: bool, form: str, ragged: bool) -> None:
    attention = make_attention(beta=2.0, attention_algorithm=form).train(training)
    torch.manual_seed(1)
    rows = [torch.tensor([0, 2]), torch.tensor([1, 2]), torch.tensor([], dtype=torch.int64)]
    masks = [torch.rand(2, 5) > 0.2, torch.rand(2, 4) > 0.2, torch.zeros(0, 3).bool()]
    layout = make_layout(masks, rows, 4, ragged)
    assert layout.mask.shape[1] == (9 if ragged else 12)
    x = torch.randn(18, WIDTH, dtype=torch.float64, requires_grad=True)
    queries = torch.tensor([2.4, 1.9, 3.5, 0.0], dtype=torch.float64, requires_grad=True)
    first, second = torch.arange(5), torch.arange(5, 9)
    empty = torch.tensor([], dtype=torch.int64)
    dense = [
        (first, first),
        (second, second + 5),
        (torch.arange(9), torch.cat((first + 5, second + 9))),
        (empty, empty),
    ]
    check(attention, x, layout, queries, dense)


@pytest.mark.parametrize("kernel", ["tiles", "fused"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 2, 9])
def test_enough_queries_are_dense_attention(length: int, form: str, kernel: str) -> None:
    few, dense = (
        make_attention(beta=50.0, attention_algorithm=form, attention_kernel=kernel),
        make_attention(attention="dense"),
    )
    torch.manual_seed(2)
    mask = torch.rand(3, length) > 0.3
    layout = make_layout([mask], [torch.arange(3)], 3)
    x = torch.randn(3 * length, WIDTH, dtype=torch.float64)
    queries = mask.sum(1).double()
    seen = mask.flatten()
    torch.testing.assert_close(
        few(x, layout, queries, 0)[seen], dense(x, layout, queries, 0)[seen], rtol=1e-9, atol=1e-12
    )


def test_ties_go_to_the_lower_number() -> None:
    mask = torch.ones(1, 300).bool()
    mask[0, :4] = False
    layout = make_layout([mask], [torch.arange(1)], 1)
    scores = torch.zeros(1, 1, 300)
    scores[0, 0, 200], scores[0, 0, 7], scores[0, 0, 0] = 1.0, -0.0, 9.0
    assert best_queries(scores, layout, 5, OneProcess()).number.tolist() == [[[200, 4, 5, 6, 7]]]


def test_band_spreads_the_gradient_only() -> None:
    n = torch.tensor([3.4], requires_grad=True)
    plain, spread = query_weights(n, 6, 0.0), query_weights(n, 6, 2.0)
    assert torch.equal(plain, spread)
    assert plain[0].tolist() == pytest.approx([1, 1, 1, 0.4, 0, 0])
    gradient = [torch.autograd.grad(w[0, r], n, retain_graph=True)[0].item() for w in (plain, spread) for r in range(6)]
    assert gradient == pytest.approx([0, 0, 0, 1, 0, 0, 0, 0, 0.5, 0.5, 0, 0])


def test_missing_tokens_do_not_matter() -> None:
    attention = make_attention(beta=2.0)
    mask = torch.tensor([[True, False, True, True, False]])
    layout = make_layout([mask], [torch.arange(1)], 1)
    x = torch.randn(5, WIDTH, dtype=torch.float64)
    other = torch.where(mask[0, :, None], x, 1e6)
    queries = torch.tensor([1.5], dtype=torch.float64)
    seen = mask[0]
    assert torch.equal(attention(x, layout, queries, 0)[seen], attention(other, layout, queries, 0)[seen])


def test_dropout_leaves_the_mean_alone() -> None:
    attention = make_attention(beta=1.0, dropout=0.5).train()
    layout = make_layout([torch.ones(2, 8).bool()], [torch.arange(2)], 2)
    x = torch.randn(16, WIDTH, dtype=torch.float64)
    none = torch.zeros(2, dtype=torch.float64)
    out, all_out = attention(x, layout, none, 0), attention(x, layout, none + 2, 0)
    attention.dropout = 0.0
    assert torch.equal(out, attention(x, layout, none, 0))
    assert not torch.allclose(all_out, attention(x, layout, none + 2, 0))


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("keep", [True, False])
def test_forms_agree_with_dropout(keep: bool) -> None:
    torch.manual_seed(3)
    rows = [torch.tensor([0, 2]), torch.tensor([0, 1, 2])]
    layout = make_layout([torch.rand(2, 6) > 0.2, torch.rand(3, 5) > 0.2], rows, 3)
    x = torch.randn(27, WIDTH, dtype=torch.float64, requires_grad=True)
    queries = torch.tensor([3.4, 2.0, 1.7], dtype=torch.float64, requires_grad=True)
    results = []
    for form in FORMS:
        attention = make_attention(beta=2.0, dropout=0.4, attention_algorithm=form, keep_attention_weights=keep).train()
        out = attention(x, layout, queries, 5) * layout.flat_mask[:, None]
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, queries, *attention.parameters()])])
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_fused_kernel_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match=r"attention_kernel fused .* drop"):
        make_attention(attention_kernel="fused", dropout=0.1)


def test_the_choice_of_a_form_is_told_with_its_costs() -> None:
    wide = ModelConfig.model_validate({"width": 512, "heads": 8, "word": 1})
    assert "cross-modal (8,192 tokens) absorbed (operations per token: plain" in describe_attention(wide, [8192, 8192])
    narrow = ModelConfig.model_validate({"width": 64, "heads": 8, "word": 1, "attention_algorithm": "rows"})
    assert describe_attention(narrow, [128]).startswith("encoders (128 tokens) rows, as set")
