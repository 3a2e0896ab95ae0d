"""Experts, budgets and masks over drawn shapes, missing patterns and types, against slow oracles."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model_attention import make_layout
from test_model_parts import filled, masked_loop, water

from maestro_dist.config.model import ModelConfig
from maestro_dist.model import OneProcess
from maestro_dist.model.budget import BudgetGate, water_fill
from maestro_dist.model.grouped import grouped_network
from maestro_dist.model.layout import downsample_mask
from maestro_dist.model.moe import LocalExperts, MixtureOfExperts

FEW = settings(max_examples=40, deadline=None, derandomize=True, database=None)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-4, torch.bfloat16: 0.1}


@FEW
@given(st.data())
def test_experts(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    experts, width = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 17))
    top_k, rows = data.draw(st.integers(1, min(experts, 3))), data.draw(st.integers(0, 5))
    words, seed = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 99))
    observed = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    balance = data.draw(st.sampled_from(["none", "bias"]))
    config = ModelConfig.model_validate(
        {"width": width, "heads": 1, "moe": {"experts": experts, "top_k": top_k, "balance": balance}}
    )
    moe = filled(MixtureOfExperts(config, 1, LocalExperts), dtype)
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, words, generator=draw) < observed
    x = torch.randn(rows * words, width, generator=draw, dtype=dtype, requires_grad=True)
    layout = make_layout([mask], [torch.arange(rows)], rows)
    out, load = moe(x, layout)
    slow = masked_loop(moe, x, layout.flat_mask)
    torch.testing.assert_close(out, slow, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert load.shape == (rows, 1, experts)
    assert load.sum((1, 2)).tolist() == (top_k * mask.sum(1)).tolist()
    leaves = [x, *moe.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(out.square().sum(), leaves), torch.autograd.grad(slow.square().sum(), leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@FEW
@given(
    st.lists(st.integers(0, 70), min_size=1, max_size=9),
    st.integers(0, 3),
    st.integers(1, 10),
    st.integers(1, 10),
    st.sampled_from(list(TOLERANCE)),
)
def test_grouped_network(counts: list[int], outside: int, width: int, hidden: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(sum(counts))
    x = torch.randn(sum(counts) + outside, width, generator=draw, dtype=torch.float64).to(dtype)
    expand = torch.randn(len(counts), width, hidden, generator=draw, dtype=torch.float64).to(dtype) / width**0.5
    contract = torch.randn(len(counts), hidden, width, generator=draw, dtype=torch.float64).to(dtype) / hidden**0.5
    out = grouped_network(x, expand, contract, torch.tensor(counts))
    parts = [
        torch.nn.functional.gelu(rows.double() @ expand[e].double()) @ contract[e].double()
        for e, rows in enumerate(x[: sum(counts)].split(counts))
    ]
    expected = torch.cat([*parts, torch.zeros(outside, width, dtype=torch.float64)])
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@FEW
@given(st.data())
def test_budgets(data: st.DataObject) -> None:
    samples, modalities, layers = (data.draw(st.integers(*span)) for span in ((0, 4), (1, 6), (1, 3)))
    beta, reallocate = data.draw(st.floats(0.01, 50)), data.draw(st.booleans())
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    counts = torch.tensor(
        data.draw(st.lists(st.sampled_from([0, 0, 1, 2, 3, 17, 256, 100_000]), min_size=24 * 3, max_size=24 * 3))
    )[: samples * modalities * layers].view(samples, modalities, layers)
    present = counts[..., 0] > 0
    counts = torch.where(present[..., None], counts, 0)
    gate = filled(BudgetGate(modalities, 0, reallocate=reallocate, beta=beta), dtype)
    share, queries = gate(present, None, counts)
    assert share.shape == queries.shape == counts.shape
    assert share.isfinite().all()
    assert not share[~present].any()
    assert (queries >= 0).all()
    assert (queries <= counts * (1 + 1e-6)).all()
    if reallocate:  # constant over the present, or as much as their tokens take
        limit = torch.where(counts > 1, counts / counts.clamp_min(2).to(dtype).log(), 0)
        expected = limit.sum(1).clamp_max(beta * modalities)
        torch.testing.assert_close(share.sum(1), expected.to(dtype), rtol=1e-3, atol=1e-3)
    else:
        assert (share <= beta).all()
    (share.sum() + queries.sum()).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in gate.parameters())


@FEW
@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 20)), min_size=1, max_size=6),
    st.floats(0.01, 60),
)
def test_what_exceeds_a_limit_pours_over(pairs: list[tuple[float, float]], total: float) -> None:
    share, limit = ([pair[side] for pair in pairs] for side in (0, 1))
    found = water_fill(torch.tensor([share]).double(), total, torch.tensor([limit]).double())
    torch.testing.assert_close(found[0], torch.tensor(water(share, total, limit)).double(), rtol=1e-6, atol=1e-6)
    assert math.isclose(float(found.sum()), min(total, sum(limit)), rel_tol=1e-6, abs_tol=1e-6)


@FEW
@given(st.integers(0, 4), st.integers(0, 20), st.integers(0, 99))
def test_downsampled_masks(rows: int, words: int, seed: int) -> None:
    mask = torch.rand(rows, words, generator=torch.Generator().manual_seed(seed)) < 0.4
    found = downsample_mask(mask, OneProcess())
    assert found.shape == (rows, -(-words // 2))
    for row in range(rows):
        for word in range(found.shape[1]):
            inputs = range(max(0, 2 * word - 1), min(words, 2 * word + 2))
            assert bool(found[row, word]) == any(bool(mask[row, i]) for i in inputs)
