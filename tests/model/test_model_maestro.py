"""What holds for the whole model: order, splits, missingness, determinism, a gate that learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from model_samples import MODALITIES, PRESENT, RICH, make_batch, make_model

from maestro_dist.config.model import ModelConfig
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.model import Maestro, count_parameters, tokens_per_sample
from maestro_dist.types import Batch, Modality


def take(batch: Batch, picked: list[int]) -> Batch:
    """The samples `picked` (ascending) of a batch."""
    chosen = torch.tensor(picked)
    place = torch.full((len(batch),), -1)
    place[chosen] = torch.arange(len(picked))
    keep = {name: place[rows] >= 0 for name, rows in batch.rows.items()}
    return replace(
        batch,
        values={name: batch.values[name][keep[name]] for name in keep},
        recording={name: batch.recording[name][keep[name]] for name in keep},
        rows={name: place[batch.rows[name][keep[name]]] for name in keep},
        present=batch.present[chosen],
        sample=batch.sample[chosen],
        target=batch.target[chosen],
    )


@pytest.mark.parametrize("budget", ["gate", "reallocate", "fixed"])
def test_splitting_a_batch_changes_no_draw(budget: str) -> None:
    model = make_model(**RICH, budget=budget).train()
    batch = make_batch(PRESENT)
    whole = model(batch, 5)
    for picked in ([0, 1, 2], [3, 4, 5], [1, 4]):
        part = model(take(batch, picked), 5)
        for name in ("logits", "modality_logits", "budgets", "queries"):
            torch.testing.assert_close(part[name], whole[name][picked], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(batch, 6)["logits"], whole["logits"])


def test_order_of_modalities_does_not_matter() -> None:
    config = ModelConfig(width=12, heads=3)
    batch = make_batch(PRESENT)
    outputs, states = [], []
    for modalities in (MODALITIES, MODALITIES[::-1]):
        model = Maestro(config, modalities, 4, seed=3)
        states.append(model.state_dict())
        names = [modality.name for modality in modalities]
        shuffled = replace(batch, values={name: batch.values[name] for name in names})
        outputs.append(model.eval()(shuffled)["logits"])
    assert torch.equal(*outputs)
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_initial_values_are_keyed_by_seed_and_name() -> None:
    torch.manual_seed(1)
    one = make_model().state_dict()
    torch.manual_seed(2)
    same, other = make_model().state_dict(), make_model(seed=8).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    smaller = Maestro(ModelConfig(width=12, heads=3, word=4, feedforward=2.0), MODALITIES[1:], 4, seed=7).state_dict()
    name = "encoders.bvp.layers.0.attention.query_weight"
    assert torch.equal(one[name], smaller[name])


@pytest.mark.parametrize("options", [{}, RICH, {"normalize": "window"}, {"attention": "dense"}], ids=str)
def test_what_is_missing_changes_nothing(options: dict[str, Any]) -> None:
    model = make_model(**options).eval()
    batch = make_batch(PRESENT)
    batch.values["acc"][0] = torch.nan  # present, but nothing was observed: as good as absent
    logits = model(batch)["logits"]

    without = take(batch, list(range(len(PRESENT))))
    rows = batch.rows["acc"] != 0
    without.values["acc"], without.rows["acc"] = batch.values["acc"][rows], batch.rows["acc"][rows]
    without.recording["acc"] = batch.recording["acc"][rows]
    torch.testing.assert_close(model(without)["logits"], logits, rtol=1e-5, atol=1e-6)

    infinite = take(batch, list(range(len(PRESENT))))
    infinite.values = {name: values.nan_to_num(nan=torch.inf) for name, values in batch.values.items()}
    assert torch.equal(model(infinite)["logits"], logits)

    rich = {name: value for name, value in model.named_parameters() if name.startswith("encoders.temp")}
    lonely = take(batch, [4])  # without temp: its encoder runs on no rows and gets a zero gradient
    model(lonely)["logits"].sum().backward()
    assert all(value.grad is not None and not value.grad.any() for value in rich.values())


def test_nothing_observed_gives_the_head_s_bias() -> None:
    model = make_model().eval()
    logits = model(make_batch(PRESENT))["logits"]
    torch.testing.assert_close(logits[5], model.head.bias)


def test_additive_logits_are_a_weighted_sum() -> None:
    model = make_model().eval()
    batch = make_batch(PRESENT)
    output = model(batch)
    with torch.no_grad():
        model.modality_heads.share.zero_()
    pooled = model(batch)["logits"]
    expected = pooled + output["modality_logits"].sum(1) / 3
    torch.testing.assert_close(output["logits"], expected)


@pytest.mark.parametrize("options", [{}, {"budget_band": 4.0}, {"budget": "reallocate"}, {"budget_inputs": "content"}])
def test_the_gate_gets_gradient_and_moves(options: dict[str, Any]) -> None:
    model = make_model(**options, dropout=0.0, beta=2.0, word=2).train()
    batch = make_batch(PRESENT)
    before = model(batch, 0)["budgets"]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(8):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch, step)["logits"], batch.target).backward()
        if step == 0:
            for name, parameter in model.gate.named_parameters():
                assert parameter.grad.abs().max() > 0, name
        optimizer.step()
    moved = (model(batch, 0)["budgets"] - before).abs()
    assert moved[PRESENT].max() > 1e-2


def test_balance_is_updated_by_layer() -> None:
    model = make_model(fusion_layers=2, moe={"experts": 3, "balance": "bias", "balance_rate": 0.5})
    load = torch.tensor([[[9, 0, 0]] * 3, [[2, 2, 2]] * 3])
    model.update_balance(load)
    assert model.fusion[0].feed.bias.tolist() == [-0.5, 0.5, 0.5]
    assert model.fusion[1].feed.bias.tolist() == [0.0, 0.0, 0.0]
    assert "fusion.0.feed.bias" in model.state_dict()


def test_statistics_survive_a_cast_of_the_module() -> None:
    model = make_model().bfloat16().float()
    assert model.embeddings["bvp"].edges.view(torch.float64)[9].item() == 0.0
    assert model.embeddings["acc"].mean.view(torch.float64)[0].item() == 0.1


def test_sizes() -> None:
    config = ModelConfig(width=12, heads=3, word=4, summary="level")
    model = Maestro(config, MODALITIES, 4, seed=0)
    parameters = count_parameters(model)
    assert parameters == sum(parameter.numel() for parameter in model.parameters())
    assert tokens_per_sample(config, MODALITIES) == (16 + 1) + (24 + 1) + (2 + 1)


def test_errors_name_the_key() -> None:
    with pytest.raises(ConfigError, match=r"model.heads 5 does not divide model.width 12"):
        make_model(heads=5)
    with pytest.raises(ConfigError, match=r"model.moe.top_k 4"):
        make_model(moe={"experts": 3, "top_k": 4})
    with pytest.raises(ConfigError, match="no word length for modality 'bvp'"):
        make_model(word={"acc": 4, "temp": 1})
    with pytest.raises(ConfigError, match="no training-split mean and std"):
        Maestro(ModelConfig(), [Modality("a", 2, 1.0, 8)], 2, seed=0)
    with pytest.raises(DataError, match="without statistics of the recording"):
        make_model(normalize="recording")(replace(make_batch(PRESENT), recording={}))
