"""Samples that are shorter than their windows: the rest is not computed, and the results are those of whole windows."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from random_models import CLASSES, batch, modalities, model_and_task
from torch.utils.flop_counter import FlopCounterMode

from maestro_dist.config.model import ModelConfig
from maestro_dist.model import Maestro, Trunk
from maestro_dist.model.context import OneProcess
from maestro_dist.model.extent import observed_words
from maestro_dist.model.layout import ModalityTokens
from maestro_dist.model.sax import window_moments
from maestro_dist.task import Task
from maestro_dist.types import Batch, Modality

CONFIGURATIONS, PARTS = 120, 8


def shortened(draw: random.Random, given: Batch, shares: list[float] | None = None) -> Batch:
    """The batch, each sample with nothing observed after a share of its windows; sensors may end earlier."""
    for name, values in given.values.items():
        for at, row in enumerate(given.rows[name].tolist()):
            share = draw.choice((0.1, 0.4, 0.5, 0.7, 0.9, 1.0)) if shares is None else shares[row]
            values[at, round(share * values.shape[1]) :] = torch.nan
    return given


def outcome(model: Trunk, task: Task, given: Batch) -> dict[str, torch.Tensor]:
    """Outputs, and gradients by parameter."""
    model.zero_grad(set_to_none=True)
    output = model(given, 3)
    task.loss(output, given).sum().backward()
    found = {name: value.detach().clone() for name, value in output.items()}  # type: ignore[attr-defined]
    return found | {
        f"gradient of {name}": parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def whole(monkeypatch: pytest.MonkeyPatch, model: Trunk, task: Task, given: Batch) -> dict[str, torch.Tensor]:
    """`outcome` if all words are computed."""
    with monkeypatch.context() as patch:
        patch.setattr("maestro_dist.model.maestro.kept_words", lambda needed, totals, rows: list(totals))
        return outcome(model, task, given)


def compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], about: object) -> None:
    assert found.keys() == expected.keys(), about
    for name, value in expected.items():
        # a loss is a sum over symbols in pre-training: compare with the size of the numbers
        assert not value.is_floating_point() or bool(value.isfinite().all()), (about, name)
        size = max(1.0, float(value.double().abs().max())) if value.numel() else 1.0
        torch.testing.assert_close(
            found[name].double() / size, value.double() / size, atol=2e-5, rtol=1e-4, msg=f"{about}: {name}"
        )


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, PARTS))])
def test_results_are_those_of_whole_windows(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = 0
    for seed in range(part, CONFIGURATIONS, PARTS):
        draw = random.Random(seed)
        sensors = modalities(draw)
        model, task = model_and_task(draw, sensors)
        present = np.random.default_rng(seed).random((draw.choice((1, 2, 5)), len(sensors))) < 0.9
        given = shortened(draw, batch(sensors, present, draw.choice((0.0, 0.2)), seed))
        kept = model._kept_words(given)
        trimmed += any(
            kept[m.name] < -(-m.steps // word) for m, word in zip(model.modalities, model.words, strict=True)
        )
        for mode in (True, False):
            model.train(mode)
            compare(outcome(model, task, given), whole(monkeypatch, model, task, given), seed)
    assert trimmed > CONFIGURATIONS / PARTS / 4


def test_a_sample_gives_the_same_whatever_is_beside_it() -> None:
    for seed in range(40):
        draw = random.Random(seed)
        sensors = modalities(draw)
        model, _ = model_and_task(draw, sensors)
        if not isinstance(model, Maestro):
            continue
        everything = np.ones((3, len(sensors)), bool)
        first = shortened(draw, batch(sensors, everything, 0.0, seed), [0.3, 0.4, 0.2])
        second = shortened(draw, batch(sensors, everything, 0.0, seed), [0.3, 0.4, 1.0])
        torch.testing.assert_close(
            model(first, 2)["logits"][:2], model(second, 2)["logits"][:2], atol=1e-5, rtol=1e-4, msg=str(seed)
        )


def test_symbols_are_cut_as_their_windows_are() -> None:
    sensors = [Modality("a", 2, 1.0, 128, "", (0.0, 0.0), (1.0, 1.0)), Modality("b", 1, 1.0, 64, "", (0.0,), (1.0,))]
    config = ModelConfig.model_validate(
        {"width": 16, "heads": 2, "word": 4, "embedding": "table", "stem": None, "summary": "none"}
    )
    model = Maestro(config, sensors, 3, seed=1)
    given = shortened(random.Random(1), batch(sensors, np.ones((3, 2), bool), 0.1, 1), [0.4, 0.3, 0.2])
    symbols = {name: model.embeddings[name].symbolise(values) for name, values in given.values.items()}  # type: ignore[operator]
    expected = model(given, 1)["logits"]
    assert model._kept_words(given)["a"] < 32
    given.values, given.symbols = {}, symbols
    assert model._kept_words(given)["a"] < 32
    torch.testing.assert_close(model(given, 1)["logits"], expected)


@pytest.mark.parametrize("total", [1, 2, 3, 7, 16, 33, 63, 64])
def test_words_that_nothing_reaches_are_left_out(total: int) -> None:
    """Against the masks of all depths of whole windows."""
    for observed in range(1, total + 1):
        whole = np.arange(total) < observed
        kept = observed_words(2 * observed - 1, 2, total)
        part = ModalityTokens(1, 0, kept, 0, 0, total, (), total - kept)
        for _ in range(5):
            assert part.words == np.flatnonzero(whole)[-1] + 1
            assert part.words + part.cut == part.words_total == len(whole)
            padded = np.pad(whole, (1, 2))
            whole = np.array([padded[2 * o : 2 * o + 3].any() for o in range(-(-len(whole) // 2))])
            part = part.halved()


def test_half_the_length_costs_half() -> None:
    sensors = [Modality(f"m{j}", 3, 32.0, 4096, "", (0.0,) * 3, (1.0,) * 3) for j in range(3)]
    options = {"width": 32, "heads": 4, "word": 16, "encoder_layers": 2, "fusion_layers": 1, "moe": {"experts": 4}}
    model = Maestro(ModelConfig.model_validate(options), sensors, len(CLASSES), seed=1)
    operations = {}
    for share in (1.0, 0.5):
        given = shortened(random.Random(1), batch(sensors, np.ones((4, 3), bool), 0.0, 1), [share] * 4)
        with FlopCounterMode(display=False) as counter:
            model(given, 1)["logits"].sum().backward()
        operations[share] = counter.get_total_flops()
    assert operations[0.5] < 0.55 * operations[1.0]


@pytest.mark.parametrize("steps", [5, 1000, 70_001])
def test_moments_are_the_same_to_the_last_bit(steps: int) -> None:
    """Wherever the tiles of the sums begin and end."""
    values = torch.from_numpy(np.random.default_rng(steps).normal(3, 5, size=(7, steps, 3)).astype(np.float32))
    for end in (0, 1, steps // 3, steps - 1, steps):
        values[:, end:] = torch.nan
        for given in (values, torch.where(torch.rand(values.shape) < 0.1, torch.nan, values)):
            for later in (end, min(steps, end + 3)):
                found, whole = window_moments(given, OneProcess(), later), window_moments(given, OneProcess())
                assert all(torch.equal(one, other) for one, other in zip(found, whole, strict=True))
        values = torch.from_numpy(np.random.default_rng(steps).normal(3, 5, size=(7, steps, 3)).astype(np.float32))
