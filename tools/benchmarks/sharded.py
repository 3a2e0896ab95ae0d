"""What the ranks of the benchmark `parallel` do: cases for `benchmarks.ranks`."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import ways
from benchmarks.cases import RATE_HZ, SEED, layout_of, modalities, module_step, wesad_config, windows
from benchmarks.memory import process_memory
from benchmarks.moe import mixture
from benchmarks.ways import Handed, Shape, Way
from maestro_dist.config.model import ModelConfig, MoeConfig
from maestro_dist.config.schema import Config, MeshConfig
from maestro_dist.engine.engine import Engine
from maestro_dist.model import Maestro
from maestro_dist.model.layout import Layout
from maestro_dist.model.moe import LocalExperts, MixtureOfExperts
from maestro_dist.optim import build_optimizer
from maestro_dist.parallel.expert import MOVEMENTS, spread_experts
from maestro_dist.parallel.group import sequence_group
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.parallel.sequence import SequenceRanks, model_cuts
from maestro_dist.system.memory import keep_freed_memory
from maestro_dist.task import Labels, make_task
from maestro_dist.types import Batch, Modality

ALONE, SHARE = "one process", "one process, the tokens of one rank"
_CLASSES = 3
_STREAMS = (("acc", 3), ("ecg", 1), ("eda", 1), ("temp", 1))
_TIMEOUT_S = 1800


def agree(length: int, width: int, heads: int) -> dict[str, float]:
    """By way, the largest difference from one process of outputs and gradients, relative to their largest value.

    In double precision: which queries are the best is then the same for all, whatever the order of their sums.
    """
    shape, rank, ranks = Shape(length, width, heads), dist.get_rank(), dist.get_world_size()
    draw = torch.Generator().manual_seed(SEED)
    x, gradient = torch.randn(2, length, width, generator=draw, dtype=torch.float64)
    expected = _results(ways.one_process(shape, torch.float64), x, gradient)
    found = {}
    for name in ways.WAYS:
        way = ways.make(name, shape, torch.float64)
        mine = slice(rank * way.tokens, (rank + 1) * way.tokens)
        assert way.tokens * ranks == length  # the lengths asked for divide
        got = _results(way, x[mine], gradient[mine])
        worst = 0.0
        for part, (value, wanted) in enumerate(zip(got, expected, strict=True)):
            if part < 2:  # outputs, and gradients of the tokens; the others are of all tokens on every rank
                wanted = wanted[mine]
            else:
                dist.all_reduce(value)
            worst = max(worst, float((value - wanted).abs().max() / wanted.abs().max()))
        found[name] = worst
    return found


def _results(way: Way, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """Outputs, gradient of the tokens, gradients of the parameters."""
    x = x.clone().requires_grad_()
    out = way.call(x)
    out.backward(gradient)
    gradients = [x.grad, *(parameter.grad for parameter in way.layer.parameters())]
    return [out.detach(), *(found for found in gradients if found is not None)]


def layer(length: int, width: int, heads: int, repetitions: int) -> dict[str, Any]:
    """By way, the bytes handed to collectives in a forward and backward, and the seconds of each of `repetitions`.

    The ways take turns. While one process computes alone, the other ranks wait. Without repetitions only bytes are
    counted, and large arrays are given back to the system: it takes half the memory.
    """
    keep_freed_memory(large=repetitions > 0)
    shape, rank, ranks = Shape(length, width, heads), dist.get_rank(), dist.get_world_size()
    share = shape._replace(length=length // ranks)
    alone = rank == 0 and repetitions > 0
    # who computes alone needs all tokens; a rank's own are the first of them
    x, gradient = torch.randn(2, length if alone else share.length, width)
    mine, gradient_of_mine = x[: share.length], gradient[: share.length]
    steps = {name: _step(ways.make(name, shape), mine, gradient_of_mine) for name in ways.WAYS}
    found: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in ways.WAYS}
    for name, step in steps.items():
        with Handed() as handed:
            step()
        found[name]["bytes"] = handed.bytes
    if repetitions:
        found |= {ALONE: {"seconds": []}, SHARE: {"seconds": []}}
        if alone:
            steps[ALONE] = _step(ways.one_process(shape), x, gradient)
            steps[SHARE] = _step(ways.one_process(share), mine, gradient_of_mine)
        for turn in range(2 + repetitions):  # the first two meet pages that are new
            for name in found:
                seconds = _timed(steps.get(name))
                if turn >= 2:
                    found[name]["seconds"].append(seconds)
    return {"ways": found, "peak": process_memory("VmHWM")}


def _step(way: Way, x: Tensor, gradient: Tensor) -> Callable[[], object]:
    """Forward and backward, after which no gradient is left."""
    x = x.detach().requires_grad_()

    def run() -> Tensor:
        out = way.call(x)
        out.backward(gradient)
        x.grad = None
        way.layer.zero_grad()
        return out.detach()

    return run


def _timed(run: Callable[[], object] | None) -> float:
    """Seconds of `run`, begun by all ranks at once."""
    gc.collect()
    dist.barrier()
    start = time.perf_counter()
    kept = run() if run is not None else None
    seconds = time.perf_counter() - start
    del kept
    return seconds


def step(samples: int, window: int, repetitions: int) -> list[float]:
    """Seconds of each training step on WESAD's shape, `samples` of `window` steps a rank, data parallel."""
    keep_freed_memory(large=True)
    config, streams = Config(model=wesad_config()), modalities(window)
    training = Training(config, streams)
    batch = windows(streams, samples, "cpu")
    number = batch.sample + dist.get_rank() * samples
    batch = replace(batch, sample=number, global_samples=samples * dist.get_world_size())
    return [_timed(lambda: training.step(batch)) for _ in range(2 + repetitions)][2:]


def experts(length: int, width: int, experts: int, repetitions: int) -> dict[str, dict[str, Any]]:
    """By what travels, bytes handed to collectives and seconds of each forward and backward of a mixture of experts.

    Each rank has `length` tokens of its own; `ALONE` is rank 0 with all experts, while the others wait.
    """
    keep_freed_memory(large=True)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    config = ModelConfig(width=width, moe=MoeConfig(experts=experts))
    mesh = build_mesh(MeshConfig(expert=ranks), world=ranks, rank=rank)
    layout = layout_of(length, "cpu")
    x = torch.randn(length, width, generator=torch.Generator().manual_seed(SEED + rank)).requires_grad_()
    steps, groups = {}, {}
    if rank == 0:
        steps[ALONE] = _mixing(mixture(config, LocalExperts), layout, x)
    for movement in MOVEMENTS:
        factory, groups[movement] = spread_experts(mesh, "cpu", _TIMEOUT_S, movement)
        steps[movement] = _mixing(mixture(config, factory), layout, x)
    found: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in (ALONE, *MOVEMENTS)}
    for name, group in groups.items():
        steps[name]()
        found[name]["bytes"] = group.handed
    for turn in range(2 + repetitions):
        for name in found:
            seconds = _timed(steps.get(name))
            if turn >= 2:
                found[name]["seconds"].append(seconds)
    return found


def _mixing(module: MixtureOfExperts, layout: Layout, x: Tensor) -> Callable[[], object]:
    return module_step(module, lambda x: module(x, layout)[0], x)


def recording_config() -> ModelConfig:
    """A model that takes every step for a word, with what long recordings ask for."""
    layers: dict[str, Any] = {
        "encoder_layers": 1,
        "fusion_layers": 1,
        "word": 1,
        "activation_checkpointing": "layers",
        "tile": 65536,
    }
    return ModelConfig(width=64, heads=8, summary="none", **layers)


def recording_streams(steps: int) -> list[Modality]:
    """Four modalities, each a recording of `steps`."""
    return [Modality(name, count, RATE_HZ, steps, mean=(0.0,) * count, std=(1.0,) * count) for name, count in _STREAMS]


def recording(steps: int, repetitions: int) -> dict[str, Any]:
    """Training steps on one sample of four modalities of `steps`, its time axis spread over all ranks.

    `peak` and `before`: bytes of this process, libraries included, at the most and before the model was made.
    """
    keep_freed_memory()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    config = Config(model=recording_config(), mesh=MeshConfig(sequence=ranks))
    streams = recording_streams(steps)
    before = process_memory("VmRSS")
    training = Training(config, streams)
    cuts = model_cuts(config.model, streams, ranks)
    mine = [replace(stream, steps=cuts[stream.name][rank + 1] - cuts[stream.name][rank]) for stream in streams]
    batch = replace(windows(mine, 1, "cpu"), global_samples=1)
    losses: list[float] = []
    seconds = [_timed(lambda: losses.append(training.step(batch))) for _ in range(repetitions)]
    return {"peak": process_memory("VmHWM"), "before": before, "seconds": seconds, "losses": losses}


class Training:
    """The project's model under its engine, on the grid of ranks that `config.mesh` asks for."""

    def __init__(self, config: Config, streams: Sequence[Modality]) -> None:
        mesh = build_mesh(config.mesh, world=dist.get_world_size(), rank=dist.get_rank())
        sequence = None
        if mesh.sequence > 1:
            cuts = model_cuts(config.model, streams, mesh.sequence)
            sequence = SequenceRanks(sequence_group(mesh, _TIMEOUT_S), cuts)
        names = [str(number) for number in range(_CLASSES)]
        self.task = make_task(config.task, Labels("classification", classes=names, class_counts=[1] * _CLASSES))
        model = Maestro(config.model, streams, _CLASSES, seed=SEED, sequence=sequence)
        self.engine = Engine(model, build_optimizer(model, config.optim), config, mesh)
        self.lr, self.done = config.optim.lr, 0

    def step(self, batch: Batch) -> float:
        """Forward, backward and the optimizer's step; this rank's part of the loss."""
        loss = self.engine.scale_loss(self.task.loss(self.engine(batch, self.done), batch), batch)
        self.engine.backward(loss, True)
        if not self.engine.step(self.lr).applied:
            raise RuntimeError("a gradient was not finite")
        self.done += 1
        return float(loss.detach())


RANKS: dict[str, Callable[..., Any]] = {
    "agree": agree,
    "experts": experts,
    "layer": layer,
    "recording": recording,
    "step": step,
}
"""Cases for `benchmarks.ranks`."""
