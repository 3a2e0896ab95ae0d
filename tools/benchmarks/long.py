"""A million tokens: the attention core, and a whole model on recordings of a million steps a modality."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.cases import (
    HEAD_WIDTH,
    HEADS,
    RATE_HZ,
    SEED,
    bound_ns,
    core_inputs,
    ours,
    trained,
    wesad_config,
    windows,
)
from benchmarks.common import Options, Row, Setting, at_least, at_most, need_memory, size_name
from benchmarks.memory import peak_memory, time_alone
from benchmarks.timing import Case, compare
from maestro_dist.config.model import ModelConfig
from maestro_dist.model import Maestro, TrainingSetup, count_parameters, memory_estimate
from maestro_dist.types import Modality

_MILLION = 10**6
_STREAMS = (("acc", 3), ("ecg", 1), ("eda", 1))
_CLASSES = 3


def run(options: Options) -> list[Row]:
    """Time and peak memory at a million tokens, compared with 16k tokens and with the estimate."""
    long, short = (2048, 256) if options.quick else (_MILLION, 16384)
    if options.device == "cpu":
        need_memory(10 * 4 * long * HEADS * HEAD_WIDTH, f"attention over {size_name(long)} tokens")
    one = options.settings[0]
    return _core(options, one, long, short) + _core_memory(options, long) + _model(options, one, long)


def core(length: int, device: str) -> Callable[[], object]:
    """Forward and backward of the attention core."""
    inputs, gradient = core_inputs(length, device)
    return trained(ours, inputs, gradient)


def config() -> ModelConfig:
    """WESAD's model with the settings for long recordings."""
    return wesad_config(activation_checkpointing="layers", tile=65536)


def streams(steps: int) -> list[Modality]:
    """Three modalities, each a recording of `steps`."""
    return [Modality(name, variates, RATE_HZ, steps) for name, variates in _STREAMS]


def model(steps: int, device: str) -> Callable[[], object]:
    """A training step on one recording of three modalities, optimizer included."""
    return _training(streams(steps), device)


def recording(steps: int, device: str) -> Callable[[], object]:
    """The same with one modality."""
    return _training(streams(steps)[1:2], device)


def _training(modalities: list[Modality], device: str) -> Callable[[], object]:
    whole = Maestro(config(), modalities, _CLASSES, seed=SEED).to(device).train()
    optimizer = torch.optim.AdamW(whole.parameters(), fused=True)
    batch = windows(modalities, 1, device)

    def step() -> torch.Tensor:
        loss = F.cross_entropy(whole(batch)["logits"], batch.target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def _core(options: Options, setting: Setting, long: int, short: int) -> list[Row]:
    cases = {"short": Case(core(short, options.device), repetitions=7)}
    times, rates = compare(cases, setting, options.device, quick=options.quick)
    seconds = {
        "long": time_alone("long:core", long, options.device, threads=setting.threads),
        "short": times["short"].best(setting),
    }
    ns = {case: seconds[case] * 1e9 / (length * HEADS) for case, length in (("long", long), ("short", short))}
    name, promised = f"long/attention, {size_name(long)} tokens, {setting.label}", options.promised(setting)
    share = 100 * bound_ns(long, rates) / ns["long"]
    return [
        at_most(
            f"{name}/ns per token-head against {size_name(short)} tokens",
            ns["long"] / ns["short"],
            "x",
            1.4,
            promised=promised,
        ),
        at_least(f"{name}/share of the FLOP bound", share, "%", 50.0, promised=promised),
        Row(f"{name}, in its own process", ns["long"], "ns per token-head"),
        *times["short"].rows(
            f"long/attention, {size_name(short)} tokens, {setting.label}", "ns per token-head", 1e9 / (short * HEADS)
        ),
        *rates.rows(name),
    ]


def _core_memory(options: Options, length: int) -> list[Row]:
    peak = peak_memory("long:core", length, options.device) / 1e9
    name = f"long/attention, {size_name(length)} tokens/peak memory"
    return [at_most(name, peak, "GB", 24.0, promised=not options.quick)]


def _model(options: Options, setting: Setting, steps: int) -> list[Row]:
    peak = peak_memory("long:model", steps, options.device, worker=True)
    whole = Maestro(config(), streams(steps), _CLASSES, seed=SEED)
    estimate = memory_estimate(config(), streams(steps), TrainingSetup(count_parameters(whole), micro_batch=1)).total
    case = {"step": Case(model(steps, options.device), repetitions=1)}
    times, _ = compare(case, setting, options.device, quick=options.quick)
    name = f"long/model, {len(_STREAMS)} x {size_name(steps)} steps"
    return [
        at_most(
            f"{name}/estimate off by, of the measured peak",
            100 * abs(estimate - peak) / peak,
            "%",
            20.0,
            promised=not options.quick,
        ),
        Row(f"{name}/peak memory", peak / 1e9, "GB"),
        Row(f"{name}/estimate", estimate / 1e9, "GB"),
        Row(f"{name}, {setting.label}/step", times["step"].best(setting), "s"),
    ]


MEMORY: dict[str, Callable[[int, str], Callable[[], object]]] = {
    "core": core,
    "model": model,
    "recording": recording,
}
"""Cases for `benchmarks.memory`; "recording" is not in the table, because ten million steps take five minutes."""
