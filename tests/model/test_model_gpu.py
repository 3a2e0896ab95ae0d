"""On a GPU: the same values as on a CPU, bf16 without NaN, and no wait of the host in a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from model_samples import make_batch, make_model
from torch import Tensor

from maestro_dist import rng
from maestro_dist.config.model import ModelConfig, MoeConfig
from maestro_dist.model.attention import Attention
from maestro_dist.model.attention.core import ProbSparseOptions, probsparse
from maestro_dist.model.budget import queries_from_budgets
from maestro_dist.model.context import OneProcess
from maestro_dist.model.layout import EnteringTokens, ModalityTokens, TokenLayout, modality_layout, plan_depths
from maestro_dist.model.moe import LocalExperts, MixtureOfExperts

pytestmark = pytest.mark.gpu
PRESENT = torch.tensor([[True, True, True], [False, True, False], [True, False, True], [False, False, False]])


@contextmanager
def _no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def _layout(length: int, device: str) -> TokenLayout:
    part = ModalityTokens(rows=2, summary=0, words=length, first_word=0, summary_total=0, words_total=length)
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, length // 3 : length // 2] = False
    mask, rows = mask.to(device), torch.arange(2, device=device)
    return modality_layout(
        plan_depths(EnteringTokens([part], [mask], [mask[:, :0]], [rows], 2), [], OneProcess()), 0, 0, rows, rows
    )


def _fill(module: torch.nn.Module) -> None:
    for path, part in module.named_modules():
        if hasattr(part, "fill"):
            part.fill(lambda name, path=path: rng.key(1, "init", f"{path}.{name}"))


def _close(gpu: Tensor | None, cpu: Tensor | None) -> None:
    assert gpu is not None
    assert cpu is not None
    torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 37, 5000])
def test_attention_core(length: int) -> None:
    torch.manual_seed(length)
    given = [torch.randn(2, 4, length, 16, requires_grad=True) for _ in range(3)]
    moved = [x.detach().cuda().requires_grad_() for x in given]
    weight = torch.randn(2, 4, length, 16)
    out = probsparse(*given, ProbSparseOptions(5.0, 5.0, seed=3))
    gpu = probsparse(*moved, ProbSparseOptions(5.0, 5.0, seed=3))
    _close(gpu, out)
    out.backward(weight)
    gpu.backward(weight.cuda())
    for theirs, ours in zip(moved, given, strict=True):
        _close(theirs.grad, ours.grad)


@pytest.mark.parametrize("training", [True, False])
def test_attention_layer(training: bool) -> None:
    torch.manual_seed(0)
    config = ModelConfig(width=32, heads=4, dropout=0.1)
    layer = Attention("layer", config, 5.0, 3, OneProcess()).train(training)
    _fill(layer)
    x = torch.randn(2 * 300, 32)
    results = []
    for device in ("cpu", "cuda"):
        layer = layer.to(device)
        layer.zero_grad()
        layout, inputs = _layout(300, device), x.to(device).requires_grad_()
        queries = queries_from_budgets(torch.full((2,), 5.0, device=device), layout.observed).queries
        out = layer(inputs, layout, queries, 0)
        out.square().sum().backward()
        results.append([out.detach(), inputs.grad, *(weight.grad for weight in layer.parameters())])
    for cpu, gpu in zip(*results, strict=True):
        _close(gpu, None if cpu is None else cpu.cpu())


@pytest.mark.parametrize("top_k", [1, 2])
def test_experts(top_k: int) -> None:
    torch.manual_seed(0)
    layer = MixtureOfExperts(ModelConfig(width=32, moe=MoeConfig(experts=5, top_k=top_k)), 1, LocalExperts)
    _fill(layer)
    x, results = torch.randn(2 * 100, 32), []
    for device in ("cpu", "cuda"):
        layer = layer.to(device)
        layer.zero_grad()
        inputs = x.to(device).requires_grad_()
        out, load = layer(inputs, _layout(100, device))
        out.square().sum().backward()
        results.append([out.detach(), load, inputs.grad, *(weight.grad for weight in layer.parameters())])
    for cpu, gpu in zip(*results, strict=True):
        _close(gpu, cpu.cpu())


@pytest.mark.parametrize("training", [True, False])
def test_whole_model(training: bool) -> None:
    batch = make_batch(PRESENT)
    cpu, gpu = make_model().train(training), make_model().cuda().train(training)
    expected, out = cpu(batch, 3)["logits"], gpu(batch.to("cuda"), 3)["logits"]
    _close(out.detach(), expected.detach())
    expected.square().sum().backward()
    out.square().sum().backward()
    for (name, ours), theirs in zip(cpu.named_parameters(), gpu.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            _close(theirs.grad, ours.grad)


def test_bf16_is_finite() -> None:
    model, batch = make_model().cuda(), make_batch(PRESENT).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        logits = model(batch)["logits"]
    logits.float().square().sum().backward()
    assert logits.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    reference = model(batch)["logits"]
    torch.testing.assert_close(logits.float(), reference, rtol=0.1, atol=0.1)


def test_the_host_never_waits_in_a_step() -> None:
    model, batch = make_model().cuda(), make_batch(PRESENT).to("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step(number: int) -> None:
        loss = torch.nn.functional.cross_entropy(model(batch, number)["logits"], batch.target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step(0)  # whatever is loaded and cached on first use may wait
    with _no_waiting():
        step(1)
