"""Budget gate, downsampling, experts and pooling against obvious oracles, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_model_attention import make_layout
from torch import Tensor, nn

from maestro_dist import rng
from maestro_dist.config.model import ModelConfig
from maestro_dist.model import OneProcess
from maestro_dist.model.budget import BudgetGate, queries_from_budgets, water_fill
from maestro_dist.model.downsample import Downsample
from maestro_dist.model.grouped import grouped_network
from maestro_dist.model.head import AttentionPool, DeepHead, pool
from maestro_dist.model.layout import EnteringTokens, ModalityTokens, cross_modal_layout, plan_depths
from maestro_dist.model.moe import LocalExperts, MixtureOfExperts


def filled(module: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    for path, part in module.named_modules():
        if hasattr(part, "fill"):
            part.fill(lambda name, path=path: rng.key(11, path, name))
    return module.to(dtype)


# budgets


def test_gate_is_the_paper_s() -> None:
    gate = filled(BudgetGate(3, 0, reallocate=False, beta=5.0))
    present = torch.tensor([[1, 1, 1], [0, 1, 0]]).bool()
    counts = torch.tensor([[[16], [100], [1]], [[0], [7], [0]]])
    budgets = gate(present, None, counts)
    for b, j in itertools.product(range(2), range(3)):
        m = torch.where(present[b], 1.0, gate.absent.eps)
        u = (gate.out(gate.hidden(m).relu()).sigmoid() * 5.0)[j] if present[b, j] else torch.tensor(0.0)
        n = torch.minimum(u * torch.log(counts[b, j, 0].clamp_min(1).double()), counts[b, j, 0].double())
        assert budgets.share[b, j, 0].item() == pytest.approx(u.item(), rel=1e-12)
        assert budgets.queries[b, j, 0].item() == pytest.approx(n.item(), rel=1e-12)


def water(share: list[float], total: float, limit: list[float]) -> list[float]:
    """Pour until nothing is left or all are full."""
    out = [0.0] * len(share)
    for _ in range(len(share) + 1):
        left = total - sum(out)
        open_to = [i for i in range(len(share)) if share[i] > 0 and out[i] < limit[i] - 1e-12]
        weight = sum(share[i] for i in open_to)
        if left < 1e-12 or not open_to:
            break
        for i in open_to:
            out[i] = min(limit[i], out[i] + left * share[i] / weight)
    return out


@pytest.mark.parametrize("seed", range(20))
def test_reallocation_pours_over(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    share = torch.rand(4, 5, generator=draw, dtype=torch.float64) * (torch.rand(4, 5, generator=draw) > 0.3)
    limit = torch.rand(4, 5, generator=draw, dtype=torch.float64) * 8 * (share > 0)
    expected = torch.tensor(
        [water(s, 10.0, limits) for s, limits in zip(share.tolist(), limit.tolist(), strict=True)], dtype=torch.float64
    )
    torch.testing.assert_close(water_fill(share, 10.0, limit), expected, rtol=1e-9, atol=1e-9)


def test_a_failed_sensor_s_budget_goes_to_the_others() -> None:
    gate = filled(BudgetGate(3, 0, reallocate=True, beta=2.0))
    counts = torch.full((3, 3, 2), 10_000)
    counts[1, 0] = counts[2, 0] = counts[2, 1] = 0
    budgets = gate(counts[:, :, 0] > 0, None, counts)
    torch.testing.assert_close(budgets.share.sum(1), torch.full((3, 2), 6.0, dtype=torch.float64))
    assert not budgets.share[1, 0].any()
    budgets.share.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in gate.parameters())


def test_spend_never_exceeds_what_is_there() -> None:
    budgets = queries_from_budgets(torch.full((1, 4, 1), 9.0), torch.tensor([[[0], [1], [2], [1000]]]))
    assert budgets.queries.flatten().tolist() == pytest.approx([0, 0, 2, 9 * 6.907755], rel=1e-5)


# downsampling


@pytest.mark.parametrize("words", [0, 1, 2, 5, 8])
@pytest.mark.parametrize("summary", [0, 1])
def test_downsampling_is_convolution_plus_pool(words: int, summary: int) -> None:
    width, shapes = 4, [(2, words), (3, words), (1, 3), (0, 6)]
    torch.manual_seed(0)
    masks = [torch.rand(shape) > 0.4 for shape in shapes]
    parts = [ModalityTokens(rows, summary, count, 0, summary, count) for rows, count in shapes]
    summaries = [torch.ones(rows, summary).bool() for rows, _ in shapes]
    rows = [torch.arange(count) for count, _ in shapes]
    made = plan_depths(EnteringTokens(parts, masks, summaries, rows, 3), [True], OneProcess())
    before, after = (cross_modal_layout(made, depth, rows, torch.arange(3)) for depth in (0, 1))
    downsample = filled(Downsample(width, OneProcess()))
    x = torch.randn(sum(part.rows * part.length for part in parts), width, dtype=torch.float64, requires_grad=True)

    kernel = downsample.convolution.weight.view(width, 3, width).transpose(1, 2)  # [out, in, 3]
    pieces, expected = [], []
    offset = 0
    for part, mask in zip(parts, masks, strict=True):
        tokens = x[offset : offset + part.rows * part.length].view(part.rows, part.length, width)
        offset += part.rows * part.length
        out = [tokens[:, :summary]]
        for o in range(-(-part.words // 2)):
            inputs = [i for i in (2 * o - 1, 2 * o, 2 * o + 1) if 0 <= i < part.words]
            rows_out, seen_out = [], []
            for r in range(part.rows):
                seen = [i for i in inputs if mask[r, i]]
                value = downsample.convolution.bias.clone()
                for i in seen:
                    value = value + kernel[:, :, i - 2 * o + 1] @ tokens[r, summary + i]
                if seen:
                    value = value + torch.stack([tokens[r, summary + i] for i in seen]).amax(0)
                rows_out.append(value)
                seen_out.append(bool(seen))
            out.append(torch.stack(rows_out)[:, None] if rows_out else tokens.new_zeros(0, 1, width))
            pieces.append((part, o, seen_out))
        expected.append(torch.cat(out, 1).reshape(-1, width))
    slow, fast = torch.cat(expected), downsample(x, before)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)
    mask_after = iter(after.flat_mask.tolist())
    flat = [next(mask_after) for _ in range(len(fast))]
    offset = 0
    for part in after.parts:
        for r, column in itertools.product(range(part.rows), range(part.length)):
            if column >= summary:
                seen = next(s for p, o, s in pieces if p.rows == part.rows and o == column - summary and len(s) > r)
                if part.rows in (2, 3, 1):
                    assert flat[offset + r * part.length + column] == seen[r]
        offset += part.rows * part.length
    pull = torch.randn_like(slow)
    for ours, theirs in zip(
        torch.autograd.grad((fast * pull).sum(), [x, *downsample.parameters()]),
        torch.autograd.grad((slow * pull).sum(), [x, *downsample.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


# experts


def masked_loop(moe: MixtureOfExperts, x: Tensor, mask: Tensor) -> Tensor:
    """Every expert on the tokens that chose it, one expert at a time."""
    scores = (x @ moe.router.weight.T).softmax(-1)
    ranking = scores + moe.bias if moe.balanced else scores
    chosen = ranking.topk(moe.top_k, dim=-1).indices
    out = torch.zeros_like(x)
    for e in range(moe.count):
        hit = (chosen == e).any(-1) & mask
        hidden = torch.nn.functional.gelu(x[hit] @ moe.experts.expand[e])
        out = out.index_add(0, hit.nonzero()[:, 0], scores[hit, e, None] * (hidden @ moe.experts.contract[e]))
    return out + moe.shared(x) if moe.shared is not None else out


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"shared": 1, "balance": "bias", "hidden": 1.5}], ids=["plain", "shared, bias"]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_experts_equal_the_masked_loop(top_k: int, options: dict, dtype: torch.dtype, tolerance: float) -> None:
    config = ModelConfig.model_validate({"width": 6, "moe": {"experts": 5, "top_k": top_k, **options}})
    moe = filled(MixtureOfExperts(config, 2, LocalExperts), dtype)
    if moe.balanced:
        moe.bias += torch.tensor([0.0, -9.0, 0.1, 0.0, 0.2])  # expert 1 is never chosen
    torch.manual_seed(3)
    masks = [torch.rand(4, 7) > 0.3, torch.rand(2, 5) > 0.3]
    layout = make_layout(masks, [torch.arange(4), torch.tensor([1, 3])], 4)
    x = torch.randn(38, 6, dtype=dtype, requires_grad=True)
    fast, load = moe(x, layout)
    slow = masked_loop(moe, x, layout.flat_mask)
    torch.testing.assert_close(fast, slow, rtol=tolerance, atol=tolerance)
    assert load.sum((0, 2)).tolist() == [top_k * int(mask.sum()) for mask in masks]
    assert load[:, 0].sum(1).tolist() == (top_k * masks[0].sum(1)).tolist()
    if moe.balanced:
        assert not load[..., 1].any()
    pull = torch.randn_like(slow)
    leaves = [x, *moe.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((fast * pull).sum(), leaves), torch.autograd.grad((slow * pull).sum(), leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 10])
def test_rows_without_group_give_nothing(dtype: torch.dtype, rows: int) -> None:
    x = torch.randn(rows, 8, dtype=dtype)
    x[7:] = torch.nan
    x.requires_grad_()
    expand, contract = (torch.randn(3, *shape, dtype=dtype, requires_grad=True) for shape in ((8, 16), (16, 8)))
    counts = torch.tensor([2, 0, 5]) if rows else torch.zeros(3, dtype=torch.int64)
    out = grouped_network(x, expand, contract, counts)
    out.sum().backward()
    assert out.shape == (rows, 8)
    assert not out[7:].any()
    assert not x.grad[7:].any()
    for weight in (expand, contract):
        assert not weight.grad[1].any()
        assert weight.grad.isfinite().all()


def test_bias_pulls_the_load_together() -> None:
    config = ModelConfig.model_validate({"width": 8, "moe": {"experts": 4, "balance": "bias", "balance_rate": 0.02}})
    moe = filled(MixtureOfExperts(config, 1, LocalExperts), torch.float32)
    layout = make_layout([torch.ones(8, 64).bool()], [torch.arange(8)], 8)
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0)) + torch.linspace(-1, 2, 8)
    first = moe(x, layout)[1].sum((0, 1))
    for _ in range(60):
        moe.update_balance(moe(x, layout)[1].sum((0, 1)))
    last = moe(x, layout)[1].sum((0, 1))
    assert last.max() < 0.5 * first.max()
    assert last.max() < 180


# head


def test_pool_is_the_mean_of_what_is_observed() -> None:
    masks = [torch.tensor([[1, 0, 1], [0, 0, 0]]).bool(), torch.tensor([[1, 1]]).bool()]
    layout = make_layout(masks, [torch.tensor([0, 1]), torch.tensor([2])], 4)
    x = torch.randn(8, 5, dtype=torch.float64)
    means = pool(x, layout.flat_mask, layout.row(), 4, OneProcess())
    expected = torch.stack([(x[0] + x[2]) / 2, torch.zeros(5).double(), (x[6] + x[7]) / 2, torch.zeros(5).double()])
    torch.testing.assert_close(means, expected)
    cells = pool(x, layout.flat_mask, layout.cell(), 8, OneProcess()).view(4, 2, 5)
    torch.testing.assert_close(cells[0, 0], expected[0])
    torch.testing.assert_close(cells[2, 1], expected[2])


def test_attention_pool_weighs_the_observed_tokens_of_each_group() -> None:
    torch.manual_seed(0)
    pooling = AttentionPool(6, 2, OneProcess()).double()
    torch.nn.init.normal_(pooling.score.weight, 0, 30)  # far apart: nothing may overflow
    torch.nn.init.normal_(pooling.score.bias)
    x, group = torch.randn(9, 6).double(), torch.tensor([0, 2, 2, 0, 2, 0, 3, 3, 2])
    mask = torch.tensor([1, 1, 0, 1, 1, 1, 0, 0, 1]).bool()
    found = pooling(x, mask, group, 4)
    for number in range(4):
        chosen = x[mask & (group == number)]
        if not len(chosen):
            assert (found[number] == 0).all()
            continue
        weight = pooling.score(chosen).softmax(0)
        halves = [(weight[:, [h]] * chosen[:, 3 * h : 3 * h + 3]).sum(0) for h in range(2)]
        torch.testing.assert_close(found[number], torch.cat(halves))
    found.sum().backward()
    assert pooling.score.weight.grad is not None
    assert pooling.score.weight.grad.isfinite().all()


def test_the_deep_head_drops_by_sample_and_step() -> None:
    head = DeepHead(4, 64, 2, 0.5, seed=3)
    for path, parameter in head.named_parameters():
        if not path.startswith("norm"):
            torch.nn.init.normal_(parameter)
    x, sample = torch.randn(5, 4), torch.tensor([7, 1, 9, 4, 2])
    whole = head(x, sample, 1)
    torch.testing.assert_close(head(x[2:], sample[2:], 1), whole[2:])
    assert not torch.equal(head(x, sample, 2), whole)
    assert not torch.equal(head(x, sample + 1, 1), whole)
    head.eval()
    torch.testing.assert_close(head(x, sample, 1), head(x, sample, 2))
