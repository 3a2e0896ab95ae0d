"""The time axis spread over gloo ranks: the model on slices equals the model on the whole, in value and in gradient."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from model_samples import MODALITIES, make_batch, make_model
from ranks import run_ranks
from torch import Tensor

from maestro_dist.config.model import ModelConfig
from maestro_dist.model.attention import Attention
from maestro_dist.model.attention.sampling import cap
from maestro_dist.model.layout import EnteringTokens, ModalityTokens, modality_layout, plan_depths
from maestro_dist.parallel.sequence import SequenceRanks, model_cuts, time_cuts

pytestmark = pytest.mark.slow

PRESENT = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 1, 1]]).bool()
DEEP: dict[str, Any] = {"head_hidden": 2, "pooling": "attention"}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"stem": {"channels": 4, "kernel": 5}, "summary": "statistics", "summary_bands": 3, "normalize": "window"},
    {"encoder_layers": 2, "budget": "reallocate", "budget_inputs": "content", "moe": {"experts": 3, "top_k": 2}},
    {"summary": "level", "encoder_layers": 0, "fusion_layers": 2, "head": "pooled", **DEEP},
    {"downsample": False, "embedding": "table", "moe": {"experts": 0}, "dropout": 0.3, "attention_algorithm": "rows"},
    {"attention_algorithm": "absorbed", "dropout": 0.2, "attention_dropout": 0.0, "heads": 2},
    {"activation_checkpointing": "layers", "tile": 8, "keep_attention_weights": False, "dropout": 0.2},
    {"label_steps": 5, "pooling": "attention", "dropout": 0.2, "encoder_layers": 2},
    {"label_steps": 16, "downsample": False, "head_hidden": 2, "head": "pooled", "summary": "level"},
    {"embedding": "table", "summary": "none", "normalize": "window"},
]
SYMBOLS = OPTIONS[-1]
"""With these the batch holds symbols instead of raw windows."""
LOADS = {"expert_load", "expert_load_by_sample"}
"""Outputs of the local tokens; the others are of all."""


def on_slices(
    rank: int,
    ranks: int,
    given: list[dict[str, Any]] = OPTIONS,
    method: type[SequenceRanks] = SequenceRanks,
    training: bool = True,
) -> list[str]:
    """What differs from one process, by name, over all options."""
    wrong = []
    for options in given:
        options = {"dropout": 0.0, "beta": 1.5, "fusion_beta": 2.0, "sample_factor": 1.5, **options}
        batch = make_batch(PRESENT)
        whole = make_model(**options).double().train(training)
        expected = whole(batch, 4)
        F.cross_entropy(expected["logits"], batch.target).backward()

        cuts = model_cuts(whole.config, MODALITIES, ranks)
        sequence = method(dist.group.WORLD, cuts)
        model = make_model(**options, sequence=sequence).double().train(training)
        mine = {name: slice(*ends[rank:][:2]) for name, ends in cuts.items()}
        if SYMBOLS.items() <= options.items():
            symbols = {
                m.name: whole.embeddings[m.name].symbolise(batch.values[m.name], batch.recording[m.name])
                for m in MODALITIES
            }
            word = whole.config.word
            words = {name: slice(part.start // word, -(-part.stop // word)) for name, part in mine.items()}
            part = replace(batch, values={}, symbols={name: x[:, words[name]] for name, x in symbols.items()})
        else:
            part = replace(batch, values={name: x[:, mine[name]] for name, x in batch.values.items()})
        output = model(part, 4)
        for name, tensor in output.items():
            got = _sum(tensor) if name in LOADS else tensor
            if not torch.allclose(got.double(), expected[name].double(), rtol=1e-9, atol=1e-10):
                wrong.append(f"{options}: {name}")
        (F.cross_entropy(output["logits"], batch.target) / ranks).backward()
        for (name, parameter), other in zip(model.named_parameters(), whole.parameters(), strict=True):
            if (parameter.grad is None) != (other.grad is None):
                wrong.append(f"{options}: {name} has a gradient on one side only")
            elif other.grad is not None and not torch.allclose(_sum(parameter.grad), other.grad, rtol=1e-7, atol=1e-10):
                wrong.append(f"{options}: gradient of {name}")
    return wrong


def _sum(x: Tensor) -> Tensor:
    out = x.detach().clone()
    dist.all_reduce(out)
    return out


@pytest.mark.parametrize("ranks", [2, 4])
def test_model_on_slices_is_the_model_on_the_whole(ranks: int) -> None:
    assert run_ranks(on_slices, ranks) == [[]] * ranks


LENGTHS = [[3, 0, 1, 5], [0, 0, 4, 0], [1, 1, 1, 1], [0, 0, 0, 0], [7, 9, 2, 6]]


def halos(rank: int, ranks: int) -> list[str]:
    """Where a halo, or its gradient, is not that of the joined sequence."""
    wrong = []
    for lengths in LENGTHS:
        for width in (0, 1, 3):
            torch.manual_seed(1)
            parts = [torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True) for length in lengths]
            start = sum(lengths[:rank])
            joined = F.pad(torch.cat(parts, 1), (0, 0, width, width))
            sequence = SequenceRanks(dist.group.WORLD, {})
            mine = parts[rank].detach().clone().requires_grad_()
            got = sequence.halo_exchange(mine, width)
            pulls = [torch.randn(2, length + 2 * width, 3, dtype=torch.float64) for length in lengths]
            (got * pulls[rank]).sum().backward()
            at, loss = 0, joined.new_zeros(())
            for length, pull in zip(lengths, pulls, strict=True):
                loss = loss + (joined[:, at : at + length + 2 * width] * pull).sum()
                at += length
            loss.backward()
            same = torch.equal(got, joined[:, start : start + lengths[rank] + 2 * width])
            if not same or not torch.allclose(mine.grad, parts[rank].grad, atol=1e-12):
                wrong.append(f"{lengths}, {width}")
            flags = torch.arange(lengths[rank])[None, :, None] % 2 == 0
            if sequence.halo_exchange(flags, width).dtype != torch.bool:
                wrong.append(f"{lengths}, {width}: type")
    return wrong


def test_halo_takes_the_nearest_tokens_there_are() -> None:
    assert run_ranks(halos, 4) == [[]] * 4


WIDTH, HEADS, FACTOR = 64, 8, 5.0


def bytes_of_a_layer(rank: int, ranks: int) -> list[int]:
    """Bytes that one attention layer hands to collectives, forward and backward, at two lengths."""
    config = ModelConfig(width=WIDTH, heads=HEADS, sample_factor=FACTOR, dropout=0.0, attention_algorithm="plain")
    handed = []
    for length in (4096, 16384):
        cuts = time_cuts(length, 1, ranks)
        sequence = SequenceRanks(dist.group.WORLD, {"x": cuts})
        start, words, rows = cuts[rank], cuts[rank + 1] - cuts[rank], torch.zeros(1, dtype=torch.int64)
        mask = torch.ones(1, words, dtype=torch.bool)
        part = ModalityTokens(rows=1, summary=0, words=words, first_word=start, summary_total=0, words_total=length)
        layout = modality_layout(
            plan_depths(EnteringTokens([part], [mask], [mask[:, :0]], [rows], 1), [], sequence), 0, 0, rows, rows
        )
        layer = Attention("layer", config, FACTOR, 0, sequence)
        layer.fill(lambda name: 5)
        before = sequence.group.communicated_bytes
        out = layer(torch.randn(words, WIDTH), layout, torch.tensor([float(cap(FACTOR, length))]), 0)
        out.sum().backward()
        handed.append(sequence.group.communicated_bytes - before)
    return handed


def test_bytes_of_a_layer_do_not_grow_with_the_sequence() -> None:
    for handed in run_ranks(bytes_of_a_layer, 2):
        for length, count in zip((4096, 16384), handed, strict=True):
            selected = cap(FACTOR, length)
            attended = HEADS * selected * WIDTH // HEADS
            assert count == pytest.approx(5 * attended * 4 + 12 * HEADS * selected, rel=0.1)
        assert handed[1] < 1.2 * handed[0]


@pytest.mark.parametrize(("steps", "unit", "ranks"), [(93, 16, 4), (8, 8, 3), (0, 4, 2), (1000, 7, 6), (64, 1, 64)])
def test_cuts_are_even_and_lie_on_units(steps: int, unit: int, ranks: int) -> None:
    cuts = time_cuts(steps, unit, ranks)
    assert (cuts[0], cuts[-1], len(cuts)) == (0, steps, ranks + 1)
    assert all(cut % unit == 0 for cut in cuts[:-1] if cut < steps)
    sizes = [-(-(end - start) // unit) for start, end in itertools.pairwise(cuts)]
    assert min(sizes) >= 0
    assert max(sizes) - min(sizes) <= 1
