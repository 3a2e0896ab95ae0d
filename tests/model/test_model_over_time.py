"""Predictions over time: each part of a window sees its own tokens, and no gradient is lost or infinite."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from random_models import batch, modalities, options
from test_model_lengths import compare, outcome, shortened, whole

from maestro_dist.config.learning import TaskConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.model import Maestro
from maestro_dist.model.context import OneProcess
from maestro_dist.model.layout import ModalityTokens
from maestro_dist.model.over_time import PartMeans, overlaps
from maestro_dist.task import Labels, make_task
from maestro_dist.types import HeadShape, Modality

CONFIGURATIONS = 40


def shared(begin: float, end: float, part: int, every: float) -> float:
    """Share of a part that lies between two times."""
    return (min(end, (part + 1) * every) - max(begin, part * every)) / every


def test_overlaps_are_all_pairs_that_share_time() -> None:
    draw = random.Random(0)
    for _ in range(300):
        first, count, steps = draw.randrange(9), draw.randrange(12), draw.choice((2, 3, 7, 40))
        every, token = draw.choice((0.1, 1.28, 1.0, 1 / 3)), draw.choice((0.02, 0.1, 0.5, 1 / 3, 1.28, 11.0))
        found = {
            (t, p): share
            for t, p, share in zip(*overlaps(first, count, token, HeadShape(1, steps, every)), strict=True)
        }
        expected = {}
        for at in range(count):
            for part in range(steps):
                share = shared((first + at) * token, (first + at + 1) * token, part, every)
                if share > 1e-6:
                    expected[at, part] = share
        assert found.keys() == expected.keys()
        assert all(found[key] == pytest.approx(expected[key], abs=1e-9) for key in expected)


def test_means_weigh_observed_tokens_by_their_time() -> None:
    streams = [Modality("a", 1, 8.0, 64), Modality("b", 1, 3.0, 24), Modality("c", 1, 1.0, 8)]
    words, shape, generator = [4, 3, 8], HeadShape(2, 5, 1.6), torch.Generator().manual_seed(2)
    means = PartMeans(shape, streams, words, OneProcess())
    parts = [ModalityTokens(3, 1, 8, 0, 1, 8), ModalityTokens(2, 0, 4, 2, 0, 8), ModalityTokens(0, 0, 1, 0, 0, 1)]
    rows = [torch.tensor([0, 1, 3]), torch.tensor([1, 2]), torch.tensor([], dtype=torch.int64)]
    total = sum(part.rows * part.length for part in parts)
    x = torch.randn(total, 6, generator=generator, requires_grad=True)
    mask = torch.rand(total, generator=generator) < 0.6
    mask[: parts[0].length] = False  # nothing of the first sample was observed
    found = means(x, mask, parts, 2, rows, 4)
    expected, at = torch.zeros(4, 5, 6), 0
    weight = torch.zeros(4, 5)
    for part, row, stream, word in zip(parts, rows, streams, words, strict=True):
        for sample in row.tolist():
            for column in range(part.length):
                own, token = x[at], part.first_word + column - part.summary
                seconds, at = 2 * word / stream.rate_hz, at + 1
                if column < part.summary or not mask[at - 1]:
                    continue
                for place in range(5):
                    share = max(0.0, shared(token * seconds, (token + 1) * seconds, place, shape.every_s))
                    expected[sample, place] += share * own.detach()
                    weight[sample, place] += share
    expected = torch.where(weight[..., None] > 0, expected / weight[..., None].clamp(min=1e-12), 0.0)
    torch.testing.assert_close(found, expected)
    assert bool((found[0] == 0).all())
    found.square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert bool((x.grad[~mask] == 0).all())


def test_what_has_no_time_is_in_every_part() -> None:
    """An age that was packed with windows of 10 s, in a window of 60 s."""
    age, shape = Modality("age", 1, 0.1, 1, always=True), HeadShape(1, 6, 10.0)
    means = PartMeans(shape, [age], [1], OneProcess())
    x = torch.ones(2, 3)
    found = means(x, torch.tensor([True, True]), [ModalityTokens(2, 0, 1, 0, 0, 1)], 1, [torch.tensor([0, 1])], 2)
    torch.testing.assert_close(found, torch.ones(2, 6, 3))


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 4))])
def test_short_samples_and_absent_sensors_change_nothing_of_others(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(part, CONFIGURATIONS, 4):
        draw = random.Random(seed)
        sensors = modalities(draw)
        steps = draw.choice((2, 5, 16))
        longest = max(sensor.seconds for sensor in sensors)
        labels = Labels("classification", classes=("a", "b", "c"), class_counts=[1] * 3, steps=steps)
        task = make_task(TaskConfig(), labels)
        config = ModelConfig.model_validate(options(draw))
        model = Maestro(config, sensors, HeadShape(3, steps, longest / steps), seed=1)
        generator = np.random.default_rng(seed)
        present = generator.random((draw.choice((1, 2, 5)), len(sensors))) < 0.8
        given = shortened(draw, batch(sensors, present, 0.2, seed))
        target = generator.integers(0, 3, (len(present), steps)).astype(np.float32)
        target[generator.random(target.shape) < 0.3] = np.nan
        given.target = torch.from_numpy(target)
        for mode in (True, False):
            model.train(mode)
            found = outcome(model, task, given)
            assert found["logits"].shape == (len(present), 3 * steps)
            compare(found, whole(monkeypatch, model, task, given), seed)
            assert all(bool(value.isfinite().all()) for value in found.values()), seed


def test_a_part_sees_its_own_time() -> None:
    """Without layers, a change late in the window changes late parts alone, but for the mean of the sample."""
    stream = Modality("a", 1, 8.0, 64, "", (0.0,), (1.0,))
    config = ModelConfig(width=8, heads=2, word=4, encoder_layers=0, fusion_layers=0, summary="none", head="pooled")
    model = Maestro(config, [stream], HeadShape(2, 4, 2.0), seed=0).eval()
    torch.nn.init.zeros_(model.head.weight[:, :8])  # of the mean of the sample
    values = torch.randn(1, 64, 1, generator=torch.Generator().manual_seed(0))
    given = batch([stream], np.ones((1, 1), dtype=bool), 0.0, 0)
    given.values = {"a": values}
    before = model(given)["logits"].view(4, 2)
    given.values = {"a": torch.cat([values[:, :40], -values[:, 40:]], 1)}
    after = model(given)["logits"].view(4, 2)
    torch.testing.assert_close(after[:2], before[:2])
    assert bool((after[2:] != before[2:]).any(1).all())


def test_an_empty_batch_has_no_rows() -> None:
    stream = Modality("a", 1, 8.0, 64, "", (0.0,), (1.0,))
    model = Maestro(ModelConfig(width=8, heads=2, head_hidden=1), [stream], HeadShape(2, 4, 2.0), seed=0)
    assert model(batch([stream], np.ones((0, 1), dtype=bool), 0.0, 0))["logits"].shape == (0, 8)
