"""Pre-training: what is hidden, what is asked, that nothing leaks, that no cut matters, and that it learns."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from model_samples import MODALITIES, PRESENT, RICH, make_batch, make_model
from test_model_maestro import take
from test_model_sequence import CUTS, Board, Lockstep
from torch import Tensor

from maestro_dist import rng
from maestro_dist.config.learning import PretrainConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.model import PretrainModel
from maestro_dist.model.pretrain import hidden_sensors, hidden_words
from maestro_dist.model.sax import breakpoints
from maestro_dist.task.pretraining import Pretraining as Task
from maestro_dist.types import Batch, Modality

TASK = Task()


def make(
    *,
    predict: int = 32,
    share: float = 0.4,
    sensors: float = 0.0,
    hidden: Any = None,
    sequence: Any = None,
    **options: Any,
) -> PretrainModel:
    config = ModelConfig.model_validate(
        {"width": 12, "heads": 3, "word": 4, "feedforward": 2.0, "moe": {"experts": 3}, **options}
    )
    pretrain = PretrainConfig(predict=predict, mask_share=share, span=3, sensor_share=sensors, word=hidden)
    return PretrainModel(config, MODALITIES, pretrain, seed=7, sequence=sequence)


def scores_of(model: PretrainModel, batch: Batch, step: int = 0) -> list[Tensor]:
    """What the decoder says, before it is compared with the truth."""
    found: list[list[Tensor]] = []
    handle = model.decoder.register_forward_hook(lambda module, given, out: found.append(out))
    model(batch, step)
    handle.remove()
    return found[0]


def test_words_are_hidden_in_spans_at_their_share_whatever_the_slice() -> None:
    sample = torch.arange(500)
    hidden = hidden_words(11, sample, 0, 120, span=5, share=0.3)
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.01)
    changes = (hidden[:, 1:] != hidden[:, :-1]).float().mean().item()
    assert changes == pytest.approx(2 * 0.3 * 0.7 / 5, rel=0.1)  # spans begin and end once in five words
    assert torch.equal(hidden_words(11, sample[40:50], 37, 30, span=5, share=0.3), hidden[40:50, 37:67])
    assert not torch.equal(hidden, hidden_words(12, sample, 0, 120, span=5, share=0.3))


def test_sensors_are_hidden_whole_but_never_all_of_a_sample() -> None:
    sample, keys = torch.arange(4000), [3, 5, 8]
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]).bool().repeat(1000, 1)
    hidden = hidden_sensors(keys, sample, present, 0.4)
    assert not (hidden & ~present).any()
    assert ((present & ~hidden).any(1) == present.any(1)).all()
    assert hidden[::4].sum(1).float().mean().item() == pytest.approx(3 * (0.4 - 0.4**3 / 3), abs=0.06)
    assert hidden[1::4].sum(1).float().mean().item() == pytest.approx(2 * (0.4 - 0.4**2 / 2), abs=0.06)
    assert not hidden_sensors(keys, sample, present, 0.0).any()
    picked = torch.tensor([17, 4, 900])
    assert torch.equal(hidden_sensors(keys, sample[picked], present[picked], 0.4), hidden[picked])
    model, batch = make(sensors=0.5, share=1e-9).train(), make_batch(PRESENT)
    drawn = hidden_sensors([rng.key(7, "mask sensor", 3, n) for n in model.names], batch.sample, batch.present, 0.5)
    assert drawn.any()
    gone, asked = model.hide(batch, 3)
    for j, (name, symbols) in enumerate(zip(model.names, asked.symbols, strict=True)):
        whole = drawn[:, j][batch.rows[name]]
        assert torch.equal(gone.values[name].isnan().all(2).all(1), whole)
        assert torch.equal(symbols.flatten(1).any(1), whole)


@pytest.mark.parametrize("budget", ["gate", "fixed"])
def test_splitting_a_batch_changes_nothing(budget: str) -> None:
    model, batch = make(**RICH, budget=budget, sensors=0.3).train(), make_batch(PRESENT)
    whole = model(batch, 5)["masked"]
    assert whole[:5, 2].min() > 0
    for picked in ([0, 1, 2], [3, 4, 5], [1, 4]):
        torch.testing.assert_close(model(take(batch, picked), 5)["masked"], whole[picked], rtol=1e-5, atol=1e-5)
    assert not torch.equal(model(batch, 6)["masked"], whole)
    model.eval()
    assert torch.equal(model(batch, 5)["masked"], model(batch, 6)["masked"])


SHORT = {"word": {"acc": 64, "bvp": 93, "temp": 4}, "hidden": {"acc": 8, "bvp": 31, "temp": 1}}
"""Words of the model as long as windows, the hidden ones shorter."""


@pytest.mark.parametrize(
    "options", [{}, RICH, {"normalize": "window", "embedding": "table"}, SHORT, {"sensors": 0.4}], ids=str
)
def test_hidden_words_do_not_leak(options: dict[str, Any]) -> None:
    model, batch = make(**options).train(), make_batch(PRESENT)
    before, asked = scores_of(model, batch, 2), model.hide(batch, 2)[1]
    other = replace(batch, values=dict(batch.values))
    hidden = model.hide(batch, 2)[0]
    for name, values in batch.values.items():
        gone = hidden.values[name].isnan() & ~values.isnan()
        assert gone.any()
        other.values[name] = torch.where(gone, 7 - 3 * values, values)
    for one, two in zip(scores_of(model, other, 2), before, strict=True):
        assert torch.equal(one, two)
    again = model.hide(other, 2)[1]
    assert torch.equal(asked.number, again.number)
    assert any(not torch.equal(one, two) for one, two in zip(asked.symbols, again.symbols, strict=True))


@pytest.mark.parametrize("options", [{}, RICH], ids=str)
def test_a_hidden_word_is_as_a_gap_in_the_data(options: dict[str, Any]) -> None:
    """Gaps made word by word, and the plain model with the same weights: the same tokens."""
    model, batch = make(**options).eval(), make_batch(PRESENT)
    gaps = replace(batch, values={name: values.clone() for name, values in batch.values.items()})
    hidden = model.hide(batch, 0)[0].values
    for name, values in gaps.values.items():
        for row in range(len(values)):
            for word in range(-(-values.shape[1] // 4)):
                steps = slice(4 * word, 4 * word + 4)
                if hidden[name][row, steps].isnan().all():
                    values[row, steps] = math.nan
        assert torch.equal(values.isnan(), hidden[name].isnan())
    plain = make_model(**options).eval()
    shared = {name: value for name, value in model.state_dict().items() if not name.startswith("decoder.")}
    left = plain.load_state_dict(shared, strict=False)
    assert not left.unexpected_keys
    assert all(name.startswith(("head.", "modality_heads.")) for name in left.missing_keys)
    seen: list[Tensor] = []
    handle = model.decoder.register_forward_pre_hook(lambda module, given: seen.extend(m[0] for m in given[1]))
    model(batch)
    handle.remove()
    tokens = plain.encode(gaps, 0)
    assert torch.equal(seen[0], tokens.entering)
    assert torch.equal(seen[1], tokens.fused)


@pytest.mark.parametrize("steps", [4, 2, 1])
def test_what_was_asked_are_hidden_observed_words(steps: int) -> None:
    model, batch = make(predict=3, hidden=steps).eval(), make_batch(PRESENT)
    hidden, asked = model.hide(batch, 0)
    numbers = asked.number.split(model.most, 1)
    assert model.most == [3, 3, {4: 2, 2: 3, 1: 3}[steps]]
    for name, number, symbols in zip(model.names, numbers, asked.symbols, strict=True):
        mean, std = model.embeddings[name].reference(None)
        z = (batch.values[name].double() - mean) / std
        z = torch.nn.functional.pad(z, (0, 0, 0, -z.shape[1] % steps), value=math.nan).unflatten(1, (-1, steps))
        truth = torch.bucketize(z.nanmean(2), breakpoints(20), right=True) + 1
        truth = torch.where(z.isnan().all(2), 0, truth)
        for row, sample in enumerate(batch.rows[name].tolist()):
            there = [k for k in range(symbols.shape[1]) if symbols[row, k].any()]
            words = number[sample, there].tolist()
            assert len(set(words)) == len(words)
            gone = hidden.values[name][row].isnan().all(1)
            parts = range(truth.shape[1])
            offered = [word for word in parts if gone[steps * word :][:steps].all() and truth[row, word].any()]
            assert len(words) == min(len(offered), symbols.shape[1])
            assert set(words) <= set(offered)
            assert torch.equal(symbols[row, there], truth[row, words].long())


def test_short_hidden_words_need_raw_windows_and_divide_the_models() -> None:
    with pytest.raises(
        ConfigError, match=r"task.pretrain.word: 3 steps of modality 'acc' do not divide its model.word 4"
    ):
        make(hidden=3)
    with pytest.raises(ConfigError, match=r"task.pretrain.word: no word length for modality 'bvp'"):
        make(hidden={"acc": 2})
    model, batch = make(embedding="table", hidden=2), make_batch(PRESENT)
    known = {name: model.embeddings[name].symbolise(values) for name, values in batch.values.items()}
    output = model(batch, 1)["masked"]
    assert torch.equal(model(replace(batch, symbols=known), 1)["masked"], output)
    with pytest.raises(DataError, match=r"'acc' comes as symbols of words of 4 steps; task.pretrain.word 2 needs raw"):
        model(replace(batch, values={}, symbols=known), 1)


def test_symbols_that_are_ready_made_give_the_same() -> None:
    model, batch = make(embedding="table", summary="none").train(), make_batch(PRESENT)
    known = {name: model.embeddings[name].symbolise(values) for name, values in batch.values.items()}
    output = model(batch, 1)["masked"]
    assert torch.equal(model(replace(batch, values={}, symbols=known), 1)["masked"], output)


@pytest.mark.parametrize("options", [{}, RICH, {"fusion_layers": 0}, {"encoder_layers": 0, "head": "pooled"}], ids=str)
@pytest.mark.parametrize("kind", ["gaps", "nothing observed", "one lacks all", "empty"])
def test_every_parameter_gets_a_gradient(options: dict[str, Any], kind: str) -> None:
    model = make(share=0.6, **options).train()
    batch = make_batch({"empty": PRESENT[:0], "nothing observed": PRESENT[5:]}.get(kind, PRESENT))
    if kind == "one lacks all":
        batch = take(batch, [1, 4])
    output = model(batch, 1)
    loss = TASK.loss(output, batch)
    assert loss.shape == (len(batch),)
    if kind == "nothing observed":
        assert output["masked"].tolist() == [[0.0, 0.0, 0.0]]
    loss.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if kind == "gaps" and not options:
            assert parameter.grad.any(), name


def test_shared_parameters_have_the_names_and_initial_values_of_the_plain_model() -> None:
    own, plain = make(**RICH).state_dict(), make_model(**RICH).state_dict()
    heads = {name for name in plain if name.startswith(("head.", "modality_heads."))}
    assert {name for name in own if not name.startswith("decoder.")} == set(plain) - heads
    assert all(torch.equal(own[name], plain[name]) for name in set(plain) - heads)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize(
    "options", [{}, {"stem": {"channels": 4, "kernel": 5}, "normalize": "window", "hidden": 2, "sensors": 0.3}], ids=str
)
def test_sharded_by_time(options: dict[str, Any], cuts: str, training: bool) -> None:
    options = {"dropout": 0.0, "beta": 1.5, "fusion_beta": 2.0, "sample_factor": 1.5, "predict": 5, **options}
    batch, plan = make_batch(PRESENT), CUTS[cuts]
    size = len(plan["acc"]) - 1
    whole = make(**options).double().train(training)
    expected = whole(batch, 4)
    TASK.loss(expected, batch).sum().backward()
    board = Board(size)
    models = [make(**options, sequence=Lockstep(board, r, plan)).double().train(training) for r in range(size)]

    def run(rank: int) -> Tensor:
        try:
            values = {m.name: batch.values[m.name][:, plan[m.name][rank] : plan[m.name][rank + 1]] for m in MODALITIES}
            return models[rank](replace(batch, values=values), 4)["masked"]
        except BaseException:
            board.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        outputs = list(pool.map(run, range(size)))
    for output in outputs:
        torch.testing.assert_close(output, expected["masked"], rtol=1e-9, atol=1e-10)
    sum(TASK.loss({"masked": output}, batch).sum() / size for output in outputs).backward()
    for name, parameter in whole.named_parameters():
        parts = [dict(model.named_parameters())[name].grad for model in models]
        assert torch.allclose(sum(parts), parameter.grad, rtol=1e-6, atol=1e-7), name  # the loss is float32


def test_bf16_autocast() -> None:
    model, batch = make(stem={"channels": 4}).eval(), make_batch(PRESENT)
    exact = model(batch)["masked"]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.eval()(batch)["masked"]
        TASK.loss(model.train()(batch), batch).sum().backward()
    assert torch.equal(rounded[:, 2], exact[:, 2])
    torch.testing.assert_close(rounded[:, 0], exact[:, 0], rtol=0.05, atol=0.1)


def test_it_learns_a_periodic_signal() -> None:
    """Hidden words of sine waves of random frequency and phase follow from the others; chance is one in alphabet."""
    modalities = [Modality(name, 1, 16.0, 64, mean=(0.0,), std=(0.7,)) for name in ("left", "right")]
    config = ModelConfig.model_validate({"width": 32, "heads": 4, "word": 4, "alphabet": 6, "dropout": 0.0})
    model = PretrainModel(config, modalities, PretrainConfig(span=2), seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    names = [modality.name for modality in modalities]

    def batch_of(samples: int, first: int) -> Batch:
        time = torch.arange(64) / 16.0
        rate, phase = torch.rand(2, samples, 1, generator=generator)
        wave = torch.sin(2 * math.pi * ((0.25 + 0.5 * rate) * time + phase))[..., None]
        rows = {name: torch.arange(samples) for name in names}
        values = dict(zip(names, (wave, -wave), strict=True))
        present, sample = torch.ones(samples, 2).bool(), torch.arange(samples) + first
        return Batch(values, rows, present, sample, torch.zeros(samples))

    for step in range(120):
        batch = batch_of(32, 32 * step)
        optimizer.zero_grad()
        TASK.loss(model(batch, step), batch).mean().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found = TASK.metrics(model(batch_of(256, 10**6))["masked"].numpy(), torch.zeros(256).numpy())
    assert found["accuracy"] > 0.5  # chance is .17
    assert found["loss"] < 0.7 * math.log(6)
