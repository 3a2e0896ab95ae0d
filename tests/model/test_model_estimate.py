"""The memory estimate against what a training step really takes, each measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_samples import MODALITIES
from peak_of_a_step import make, modalities

from maestro_dist.config.learning import PretrainConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.model import TrainingSetup, count_parameters, memory_estimate
from maestro_dist.model.estimate import tokens_by_modality
from maestro_dist.system.memory import HUGE_PAGES

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("peak_of_a_step.py")
CASES: list[tuple[dict[str, Any], tuple[int, int, int, int]]] = [
    ({"width": 32, "heads": 4, "word": 2, "embedding": "ordinal"}, (8, 256, 128, 1)),
    ({"word": 1}, (2, 16384, 2, 2)),
    (
        {"word": 1, "activation_checkpointing": "layers", "tile": 4096, "keep_attention_weights": False},
        (2, 100_000, 1, 1),
    ),
    ({"word": 2, "activation_checkpointing": "layers", "tile": 16384}, (1, 600_000, 1, 1)),
    ({"word": 2, "activation_checkpointing": "layers", "downsample": False}, (2, 100_000, 1, 1)),
    ({"word": 2, "attention_algorithm": "plain"}, (2, 30_000, 2, 1)),
    ({"word": 2, "attention_algorithm": "absorbed"}, (2, 30_000, 2, 1)),
    ({"word": 8, "stem": {"channels": 32}}, (2, 65536, 4, 3)),
    ({"word": 8, "stem": {"channels": 32, "layers": 4, "pool": 2}}, (2, 65536, 4, 3)),
    ({"word": 2, "attention": "dense"}, (3, 512, 64, 1)),
    ({"width": 128, "word": 2, "moe": {"experts": 8, "top_k": 2, "shared": 1}, "fusion_layers": 2}, (3, 2048, 8, 1)),
    ({"word": 2, "pretrain": {}}, (2, 30_000, 2, 1)),
    ({"word": 8, "pretrain": {"predict": 512}}, (4, 4096, 8, 3)),
    ({"word": 2, "activation_checkpointing": "layers", "tile": 16384, "pretrain": {}}, (1, 600_000, 1, 1)),
    ({"word": 8, "label_steps": 512}, (4, 4096, 8, 3)),
]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize(("options", "shape"), CASES, ids=lambda value: str(value))
def test_estimate_is_within_a_fifth(options: dict[str, Any], shape: tuple[int, int, int, int]) -> None:
    count, steps, samples, variates = shape
    command = [sys.executable, str(SCRIPT), json.dumps(options), *map(str, shape)]
    # Kept memory and huge pages make the peak differ from process to process; without them it mostly does not.
    surroundings = {**os.environ, **dict.fromkeys(HUGE_PAGES, "0")}

    def measure() -> tuple[int, int]:
        printed = subprocess.run(command, capture_output=True, text=True, check=True, env=surroundings).stdout
        peak, arrays = map(int, printed.split())
        return peak, arrays

    measured, live = measure()
    given = options.get("pretrain")
    pretrain = None if given is None else PretrainConfig.model_validate(given)
    config = ModelConfig.model_validate(
        {key: value for key, value in options.items() if key not in ("pretrain", "label_steps")}
    )
    sensors = modalities(count, steps, variates)
    label_steps = options.get("label_steps", 1)
    parameters = count_parameters(make(config, sensors, 1, pretrain, label_steps)[0])
    setup = TrainingSetup(parameters, samples, pretrain=pretrain, label_steps=label_steps)
    estimate = memory_estimate(config, sensors, setup)
    # the script starts to count when model and inputs are there
    expected = estimate.peak + estimate.parameters * 3 / 4
    if measured < expected / 1.2:  # gaps differ from process to process, and what a step may take is to be told
        measured = max(measured, measure()[0])
    print(f"measured {measured / 2**20:.0f} MiB, estimated {expected / 2**20:.0f} MiB")
    print(f"arrays: measured {live / 2**20:.0f} MiB, estimated {estimate.live / 2**20:.0f} MiB")
    assert measured > 100 << 20
    # Before 2.12 torch left smaller gaps (dense attention most of all): there the estimate is on the safe side.
    late = torch.__version__ >= "2.12"
    assert 0.8 < estimate.live / live < (1.2 if late else 1.5)
    if config.activation_checkpointing == "layers" and estimate.live < 1 << 29:
        # Many small arrays come and go here: from run to run the same step takes between 1.6 and 3 times their sum.
        assert 0.6 < expected / measured < 1.5
    else:
        assert 0.8 < expected / measured < (1.2 if late else 1.5)


def test_sizes_follow_the_configuration() -> None:
    config = ModelConfig(width=12, heads=3, word=4, summary="level")
    assert tokens_by_modality(config, MODALITIES) == {"acc": 16 + 1, "bvp": 24 + 1, "temp": 2 + 1}
    small, large = (memory_estimate(config, MODALITIES, TrainingSetup(1000, batch)) for batch in (4, 8))
    assert small.parameters == 16 * 1000
    assert large.peak == pytest.approx(2 * small.peak, rel=1e-3)
    assert small.total == small.parameters + small.inputs + small.peak
    again = memory_estimate(
        config.model_copy(update={"activation_checkpointing": "layers"}), MODALITIES, TrainingSetup(0, 4)
    )
    assert again.kept < 0.4 * small.kept
    assert small.kept < small.live < small.peak


def test_exchanging_tokens_for_heads_takes_more_while_it_lasts() -> None:
    config = ModelConfig(word=2, activation_checkpointing="layers", tile=4096, attention_algorithm="plain")
    sensors = modalities(1, 65536, 1)
    exchanged, plain = (memory_estimate(config, sensors, TrainingSetup(0, 1, exchanges_heads=s)) for s in (True, False))
    auto = config.model_copy(update={"attention_algorithm": "auto"})
    assert memory_estimate(auto, sensors, TrainingSetup(0, 1, exchanges_heads=True)) == exchanged
    assert exchanged.kept == plain.kept
    assert plain.live < exchanged.live < 1.5 * plain.live
