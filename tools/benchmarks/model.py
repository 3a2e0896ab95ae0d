"""The whole model in training, optimizer included, against the published formulation.

WESAD's shape: ten modalities with 14 variates, 8 s at 32 Hz, batch 64; then ten modalities of 16k tokens, batch 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.cases import PUBLISHED_GFLOPS, SEED, gathered_bytes, modalities, ratio, wesad_config, windows
from benchmarks.common import Options, Row, Setting, at_least, at_most, size_name
from benchmarks.memory import peak_memory
from benchmarks.published import Published
from benchmarks.timing import Case, compare
from maestro_dist.config.model import ModelConfig
from maestro_dist.model import Maestro
from maestro_dist.types import Batch

_CLASSES = 3
_STEPS, _BATCH = 256, 64
_LONG_STEPS = 32768
_MISSING = 0.4
_PUBLISHED_RATE = 39.0
"""Samples a second of the published formulation on the machine of `cases.PUBLISHED_NS`."""


def run(options: Options) -> list[Row]:
    """Samples a second, step time with modalities missing, long windows with their peak memory, and repeatability."""
    steps, batch, long = (16, 4, 64) if options.quick else (_STEPS, _BATCH, _LONG_STEPS)
    rows = [row for setting in options.settings for row in _wesad(options, setting, steps, batch)]
    rows += [row for setting in options.settings for row in _long(options, setting, long)]
    return rows + _memory(options, long) + _repeatable(options, steps, batch)


def ours(config: ModelConfig, steps: int, batch: Batch, device: str) -> Callable[[], object]:
    """A training step of this model."""
    model = Maestro(config, modalities(steps), _CLASSES, seed=SEED).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> torch.Tensor:
        loss = F.cross_entropy(model(batch)["logits"], batch.target)
        return _update(loss, optimizer)

    return step


def opponent(config: ModelConfig, steps: int, batch: Batch, device: str) -> Callable[[], object]:
    """A training step of the published formulation."""
    model = Published(config, modalities(steps), _CLASSES).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> torch.Tensor:
        loss = F.cross_entropy(model(batch.values, batch.present), batch.target)
        return _update(loss, optimizer)

    return step


def _update(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def _wesad(options: Options, setting: Setting, steps: int, batch: int) -> list[Row]:
    config, streams = wesad_config(), modalities(steps)
    whole = windows(streams, batch, options.device)
    partial = windows(streams, batch, options.device, missing=_MISSING)
    cases = {
        "ours": Case(ours(config, steps, whole, options.device), repetitions=7),
        "ours, 40 % missing": Case(ours(config, steps, partial, options.device), repetitions=7),
        "published": Case(opponent(config, steps, whole, options.device), repetitions=4),
    }
    scratch = gathered_bytes(steps // 2, batch, config.width)
    times, rates = compare(cases, setting, options.device, scratch=scratch, quick=options.quick)
    name, promised = f"model/batch {batch}, {setting.label}", options.promised(setting)
    rows = [
        at_least(
            f"{name}/times faster than published",
            ratio(times, setting, "published", "ours"),
            "x",
            2.5,
            promised=promised,
        ),
        at_most(
            f"{name}/step time at 40 % missing against none",
            ratio(times, setting, "ours, 40 % missing", "ours"),
            "x",
            0.68,
            promised=promised,
        ),
    ]
    reference = _PUBLISHED_RATE * rates.flops / 1e9 / PUBLISHED_GFLOPS
    if steps == _STEPS and setting.clock == "cpu":
        off = 100 * abs(batch / times["published"].best(setting) / reference - 1)
        rows.append(at_most(f"{name}/published: off the reference by", off, "%", 25.0, promised=promised))
    for case, taken in times.items():
        rows.append(Row(f"{name}/{case}", batch / taken.best(setting), "samples/s"))
        rows += taken.rows(f"{name}/{case}", "ms", 1e3)
    return rows + rates.rows(name)


def _long(options: Options, setting: Setting, steps: int) -> list[Row]:
    config = wesad_config()
    batch = windows(modalities(steps), 1, options.device)
    half = batch.map(torch.clone)
    for values in half.values.values():
        values[:, steps // 2 :] = torch.nan
    cases = {
        "ours": Case(ours(config, steps, batch, options.device), repetitions=3),
        "ours, half as long": Case(ours(config, steps, half, options.device), repetitions=3),
        "published": Case(opponent(config, steps, batch, options.device), repetitions=2),
    }
    scratch = gathered_bytes(10 * steps // 8, 1, config.width)
    times, rates = compare(cases, setting, options.device, scratch=scratch, quick=options.quick)
    name = f"model/10 x {size_name(steps // 2)} tokens, {setting.label}"
    rows = [
        at_least(
            f"{name}/times faster than published",
            ratio(times, setting, "published", "ours"),
            "x",
            4.0,
            promised=options.promised(setting),
        ),
        at_most(
            f"{name}/step time of samples half as long as the window",
            ratio(times, setting, "ours, half as long", "ours"),
            "x",
            0.55,
            promised=options.promised(setting),
        ),
    ]
    for case, taken in times.items():
        rows += taken.rows(f"{name}/{case}", "ms", 1e3)
    return rows + rates.rows(name)


def _memory(options: Options, steps: int) -> list[Row]:
    peaks = {case: peak_memory(f"model:{case}", steps, options.device) / 1e6 for case in MEMORY}
    name = f"model/10 x {size_name(steps // 2)} tokens"
    rows = [Row(f"{name}/{case}, peak memory", peak, "MB") for case, peak in peaks.items()]
    share = peaks["ours"] / peaks["published"]
    promised = not options.quick and options.device == "cpu"
    return [at_most(f"{name}/peak memory against published", share, "x", 0.5, promised=promised), *rows]


def _repeatable(options: Options, steps: int, batch: int) -> list[Row]:
    streams = modalities(steps)
    given = windows(streams, batch, options.device, missing=_MISSING)
    model = Maestro(wesad_config(), streams, _CLASSES, seed=SEED).to(options.device).eval()
    with torch.no_grad():
        first, second = model(given)["logits"], model(given)["logits"]
    equal = float(torch.equal(first, second))
    return [at_least(f"model/batch {batch}, two evaluations bitwise equal (1: yes)", equal, "", 1.0)]


MEMORY: dict[str, Callable[[int, str], Callable[[], object]]] = {
    "ours": lambda steps, device: ours(wesad_config(), steps, windows(modalities(steps), 1, device), device),
    "published": lambda steps, device: opponent(wesad_config(), steps, windows(modalities(steps), 1, device), device),
}
"""Cases for `benchmarks.memory`: a step on ten modalities, batch 1."""
