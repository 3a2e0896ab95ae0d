"""Attention on whole sequences for a share of the heads, over gloo ranks: values and gradients of one process."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from model_samples import MODALITIES, make_model
from ranks import run_ranks
from test_dist_maestro import MODEL, differences, plain, sharded, stream, within_limits
from test_dist_sequence import on_slices
from torch import Tensor

from maestro_dist.config.learning import OptimConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.schema import Config, EngineConfig, MeshConfig
from maestro_dist.errors import ConfigError, MeshError
from maestro_dist.model import OneProcess, SequenceContext
from maestro_dist.model.attention import Attention
from maestro_dist.model.attention.sampling import cap
from maestro_dist.model.layout import (
    EnteringTokens,
    ModalityTokens,
    TokenLayout,
    cross_modal_layout,
    modality_layout,
    plan_depths,
)
from maestro_dist.parallel.sequence import model_cuts, time_cuts
from maestro_dist.parallel.ulysses import UlyssesRanks

pytestmark = pytest.mark.slow

DENSE: dict[str, Any] = {"attention": "dense"}
OPTIONS: list[dict[str, Any]] = [
    {"stem": {"channels": 4, "kernel": 5}, "summary": "statistics", "summary_bands": 3, "normalize": "window"},
    {"encoder_layers": 2, "budget": "reallocate", "budget_inputs": "content", "moe": {"experts": 3, "top_k": 2}},
    {"summary": "level", "encoder_layers": 2, "fusion_layers": 2, "dropout": 0.3, **DENSE},
    {"downsample": False, "embedding": "table", "moe": {"experts": 0}, "dropout": 0.3, "attention_algorithm": "plain"},
    {"attention_kernel": "fused", "dropout": 0.2, "attention_dropout": 0.0, "encoder_layers": 0},
    {
        "activation_checkpointing": "layers",
        "tile": 8,
        "keep_attention_weights": False,
        "dropout": 0.2,
        "fusion_layers": 2,
    },
    {"activation_checkpointing": "layers", "embedding": "table", "normalize": "window", **DENSE},
    {"label_steps": 5, "fusion_layers": 2, "dropout": 0.2},
    {"embedding": "table", "normalize": "window"},
]
EVALUATED: list[dict[str, Any]] = [{"summary": "level"}, {"summary": "level", **DENSE}]


def models(rank: int, ranks: int) -> list[str]:
    """What differs from one process, in training and in evaluation."""
    training, evaluated = (
        [{"heads": 4, "width": 16, **options} for options in given] for given in (OPTIONS, EVALUATED)
    )
    return on_slices(rank, ranks, training, UlyssesRanks) + on_slices(rank, ranks, evaluated, UlyssesRanks, False)


@pytest.mark.parametrize("ranks", [2, 4])
def test_model_on_slices_is_the_model_on_the_whole(ranks: int) -> None:
    assert run_ranks(models, ranks) == [[]] * ranks


STEPS = {"a": 37, "b": 3, "c": 11}
CUTS = {
    2: {"a": [0, 5, 37], "b": [0, 0, 3], "c": [0, 11, 11]},
    4: {"a": [0, 1, 30, 30, 37], "b": [0, 0, 0, 3, 3], "c": [0, 3, 4, 11, 11]},
}
"""Uneven slices; some ranks hold nothing of a modality, and the last but one of four has no token of the longest."""
HAVING = [[0, 1, 3], [0, 3, 4], [0, 1, 2, 3]]
"""Samples that have each modality: the second and third of five lack some, the fifth has the short one alone."""


def layouts(cuts: dict[str, list[int]], sequence: SequenceContext, masks: list[Tensor]) -> list[TokenLayout]:
    """Of each modality by itself, and of all together: the tokens that this rank holds."""
    parts, words, summaries, rows = [], [], [], [torch.tensor(own) for own in HAVING]
    for name, mask in zip(STEPS, masks, strict=True):
        start, end = cuts[name][sequence.rank :][:2]
        lead = int(sequence.rank == 0)
        bounds = () if sequence.head_exchange is None else sequence.head_exchange.word_bounds(name, 1)
        parts.append(ModalityTokens(len(mask), lead, end - start, start, 1, STEPS[name], bounds))
        words.append(mask[:, 1 + start : 1 + end])
        summaries.append(mask[:, :lead])
    made = plan_depths(EnteringTokens(parts, words, summaries, rows, 5), [], sequence)
    sample = torch.arange(5) + 40
    single = [modality_layout(made, j, 0, rows[j], sample) for j in range(3)]
    return [*single, cross_modal_layout(made, 0, rows, sample), cross_modal_layout(made, 0, rows, sample, HAVING)]


def attended(
    config: ModelConfig, sequence: SequenceContext, layout: TokenLayout, x: Tensor, pull: Tensor, training: bool
) -> list[Tensor]:
    """Output, gradient of the input, of the budgets and of all parameters."""
    layer = Attention("layer", config, 2.0, 3, sequence).double().train(training)
    for name, parameter in layer.named_parameters():
        torch.manual_seed(len(name))
        torch.nn.init.normal_(parameter, 0.0, 0.5)
    x = x.detach().clone().requires_grad_()
    queries = (1.7 * layout.observed.clamp_min(1).double().log()).minimum(layout.observed.double()).requires_grad_()
    out = layer(x, layout, queries, 9)
    (out * pull).sum().backward()
    of_queries = queries.new_zeros(queries.shape) if queries.grad is None else queries.grad
    return [out, x.grad, of_queries, *(parameter.grad for parameter in layer.parameters())]


def of_rank(x: Tensor, parts: tuple[ModalityTokens, ...], cuts: dict[str, list[int]], rank: int) -> Tensor:
    """The flat tokens that a rank holds, of those of one process; `parts` are the latter's."""
    names = {steps: name for name, steps in STEPS.items()}
    held = []
    for piece, part in zip(x.split([part.rows * part.length for part in parts]), parts, strict=True):
        start, end = cuts[names[part.words_total]][rank:][:2]
        tokens = piece.view(part.rows, part.length, -1)
        held.append(torch.cat((tokens[:, : int(rank == 0)], tokens[:, 1 + start : 1 + end]), 1).flatten(0, 1))
    return torch.cat(held)


def layers(rank: int, ranks: int) -> list[str]:
    """Where one layer differs from one process: sparse or dense, dropping or not, a modality or all, words missing."""
    wrong = []
    cuts, sequence = CUTS[ranks], UlyssesRanks(dist.group.WORLD, CUTS[ranks])
    whole = {name: [0, steps] for name, steps in STEPS.items()}
    generator = torch.Generator().manual_seed(2)
    masks = [
        torch.rand(len(own), 1 + steps, generator=generator) < 0.7
        for own, steps in zip(HAVING, STEPS.values(), strict=True)
    ]
    masks[0][1] = False  # present, but with nothing observed
    complete = [torch.ones_like(mask) for mask in masks]
    cases = itertools.product(("sparse", "dense"), (0.0, 0.4), (masks, complete), (True, False))
    for attention, drop, observed, training in cases:
        config = ModelConfig(width=16, heads=4, attention=attention, attention_dropout=drop, sample_factor=1.5)
        pairs = zip(layouts(whole, OneProcess(), observed), layouts(cuts, sequence, observed), strict=True)
        for number, (one, mine) in enumerate(pairs):
            x, pull = (torch.randn(len(one.flat_mask), 16, generator=generator, dtype=torch.float64) for _ in range(2))
            expected = attended(config, OneProcess(), one, x, pull, training)
            local = [of_rank(tensor, one.parts, cuts, rank) for tensor in (x, pull)]
            found = attended(config, sequence, mine, *local, training)
            for at, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
                if at < 2:
                    ours, theirs = ours.detach(), of_rank(theirs.detach(), one.parts, cuts, rank)
                else:
                    ours = ours.clone()
                    dist.all_reduce(ours)
                limit = 1e-7 if at else 1e-9
                if not torch.allclose(ours, theirs, rtol=limit, atol=limit):
                    difference = float((ours - theirs).abs().max())
                    wrong.append(f"{attention} {drop} {training} layout {number}, tensor {at}: {difference}")
    return wrong


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_layer_on_uneven_slices_is_the_layer_on_the_whole(ranks: int) -> None:
    assert run_ranks(layers, ranks) == [[]] * ranks


WIDTH, HEADS, LENGTH = 64, 8, 4099


def bytes_of_a_layer(rank: int, ranks: int) -> list[int]:
    """Bytes of one layer's collectives, by our count and by DeepSpeed's calls: sparse, dense, computed again."""
    cuts = time_cuts(LENGTH, 1, ranks)
    sequence = UlyssesRanks(dist.group.WORLD, {"x": cuts})
    import deepspeed  # after it was imported quietly

    entered, exchange = [], deepspeed.comm.all_to_all_single

    def counting(output: Tensor, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        entered.append(tensor.nbytes)
        return exchange(output, tensor, *args, **kwargs)

    deepspeed.comm.all_to_all_single = counting
    start, words, rows = cuts[rank], cuts[rank + 1] - cuts[rank], torch.zeros(1, dtype=torch.int64)
    mask = torch.ones(1, words, dtype=torch.bool)
    part = ModalityTokens(1, 0, words, start, 0, LENGTH, sequence.head_exchange.word_bounds("x", 1))
    found = []
    for attention in ("sparse", "dense"):
        config = ModelConfig(width=WIDTH, heads=HEADS, attention=attention, dropout=0.0)
        layout = modality_layout(
            plan_depths(EnteringTokens([part], [mask], [mask[:, :0]], [rows], 1), [], sequence), 0, 0, rows, rows
        )
        layer = Attention("layer", config, 5.0, 0, sequence)
        layer.fill(lambda name: 5)
        before = sequence.group.communicated_bytes
        entered.clear()
        layer(torch.randn(words, WIDTH), layout, torch.tensor([float(cap(5.0, LENGTH))]), 0).sum().backward()
        found += [sequence.group.communicated_bytes - before, sum(entered)]
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_bytes_of_a_layer_are_eight_exchanges_of_the_slice(ranks: int) -> None:
    for found in run_ranks(bytes_of_a_layer, ranks):
        assert found == pytest.approx([8 * LENGTH / ranks * WIDTH * 4] * 4, rel=0.1)
        assert found[::2] == found[1::2]


def engines(rank: int, ranks: int) -> dict[str, float]:
    """Training on a grid with DeepSpeed's engine: modalities missing on one rank or on all, uneven batches, ZeRO."""
    found = {}
    batches, optim = stream(30, 5), OptimConfig(optimizer="sgd", lr=0.1)
    for attention, stage in (("sparse", 1), ("sparse", 3), ("dense", 2)):
        model = ModelConfig.model_validate(
            MODEL.model_dump() | {"attention": attention, "activation_checkpointing": "layers"}
        )
        mesh = MeshConfig(sequence=2, sequence_method="ulysses")
        expected = plain(Config(model=model, optim=optim), batches)
        config = Config(model=model, optim=optim, mesh=mesh, engine=EngineConfig(zero_stage=stage))
        trace = sharded(config, batches, rank, ranks)
        found |= differences(f"{attention}, ZeRO {stage}", trace, expected, exact=True)
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_training_equals_one_process(ranks: int) -> None:
    within_limits(run_ranks(engines, ranks))


def refusals(rank: int, ranks: int) -> list[str]:
    """What a model says that ranks cannot share by heads."""
    said = []
    for options in (
        {"heads": 3},
        {"heads": 4, "attention_algorithm": "rows"},
        {"heads": 4, "attention_algorithm": "absorbed"},
    ):
        given = {"width": 24, **options}
        cuts = model_cuts(ModelConfig.model_validate({"word": 4, **given}), MODALITIES, ranks)
        with pytest.raises((MeshError, ConfigError)) as caught:
            make_model(**given, sequence=UlyssesRanks(dist.group.WORLD, cuts))
        said.append(str(caught.value))
    return said


def test_what_heads_cannot_do_is_refused() -> None:
    for heads, rows, absorbed in run_ranks(refusals, 2):
        assert "model.heads = 3" in heads
        assert "mesh.sequence = 2" in heads
        assert "model.attention_algorithm rows" in rows
        assert "model.attention_algorithm absorbed" in absorbed
