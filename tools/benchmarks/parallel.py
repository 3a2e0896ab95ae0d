"""The cost of dividing work among ranks: bytes, wall time and memory, on gloo ranks with one thread each.

One attention layer over a sequence that ranks share, in three ways: the product's two (sparse-native, Ulysses), and
with all keys and values gathered on every rank. Then a mixture of experts, a data-parallel training step, and one
sample that is too long for a rank.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.cases import SEED
from benchmarks.common import Options, Row, at_least, at_most, cores, need_memory, size_name
from benchmarks.ranks import run_ranks
from benchmarks.sharded import ALONE, SHARE, recording_config, recording_streams
from benchmarks.ways import GATHERED, NATIVE, PLAIN, ULYSSES, WAYS, Shape
from maestro_dist.model import Maestro, TrainingSetup, count_parameters, memory_estimate
from maestro_dist.parallel.expert import MOVEMENTS

_RANKS = (2, 4)
_WIDTH, _HEADS = 512, 8
_SHORT, _LONG = 65536, 262144
_SAMPLES, _WINDOW = 32, 256
_RECORDING_STEPS, _RECORDING_RANKS = 10**6, 4
_RECORDING_GB = 20.0
_PROCESS = 600_000_000
"""Bytes of a rank's libraries and unused heap."""


def run(options: Options) -> list[Row]:
    """Agreement, bytes, wall times, weak scaling, and the memory of a long sample.

    Raises `RuntimeError` where there is too little memory for the largest of them.
    """
    if options.device != "cpu":
        raise RuntimeError("parallel measures gloo ranks on the CPU; leave --device out")
    short, long, width = (256, 1024, 32) if options.quick else (_SHORT, _LONG, _WIDTH)
    steps = 2048 if options.quick else _RECORDING_STEPS
    worlds, ranks = ((2,), 2) if options.quick else (_RANKS, _RECORDING_RANKS)
    near, far = Shape(short, width, _HEADS), Shape(long, width, _HEADS)
    estimate = _recording_estimate(steps, ranks)
    if not options.quick:
        _check_memory(near, far, estimate)
    rows = _agreement(options, worlds)
    rows += _layer(options, near, far, worlds)
    rows += _experts(options) + _data_parallel(options)
    return rows + _recording(options, steps, ranks, estimate)


def _check_memory(short: Shape, long: Shape, estimate: int) -> None:
    """For all parts, before the first: by the number of arrays [L, d] that a rank was measured to hold at its peak."""

    def needed(shape: Shape, ranks: int, arrays: float) -> int:
        return int(ranks * (arrays * 4 * shape.length * shape.width + _PROCESS))

    for ranks in _RANKS:
        need_memory(needed(short, ranks, 19), f"a layer of {size_name(short.length)} tokens on {ranks} ranks")
        need_memory(needed(long, ranks, 5 + 9 / ranks), f"a layer of {size_name(long.length)} tokens on {ranks} ranks")
    double = short._replace(length=2 * short.length)
    need_memory(needed(double, 2, 19), f"a layer of {size_name(double.length)} tokens on 2 ranks")
    need_memory(estimate + _RECORDING_RANKS * _PROCESS, f"the recording on {_RECORDING_RANKS} ranks")


def _agreement(options: Options, worlds: Sequence[int]) -> list[Row]:
    """Whether outputs and gradients of all ways are those of one process."""
    rows = []
    length, width = (256, 32) if options.quick else (4096, 64)
    for ranks in worlds:
        results = run_ranks("sharded:agree", ranks, {"length": length, "width": width, "heads": _HEADS})
        rows += [
            at_most(
                f"parallel/agreement, {size_name(length)} tokens, {ranks} ranks, {way}: off one process by",
                max(result[way] for result in results),
                "of the largest value",
                1e-9,
            )
            for way in WAYS
        ]
    return rows


def _layer(options: Options, short: Shape, long: Shape, worlds: Sequence[int]) -> list[Row]:
    rows = []
    repetitions = 1 if options.quick else 7
    for ranks in worlds:
        near = _measure(short, ranks, repetitions)
        far = _measure(long, ranks, 0)
        rows += _bytes(options, short, ranks, near) + _bytes(options, long, ranks, far)
        growth = _sent(far, NATIVE) / _sent(near, NATIVE)
        name = f"parallel/layer, {ranks} ranks/sparse-native: bytes at {size_name(long.length)} against"
        rows.append(at_most(f"{name} {size_name(short.length)} tokens", growth, "x", 1.2, promised=not options.quick))
        rows += _wall(short, ranks, near)
    double = short._replace(length=2 * short.length)
    return rows + _weak(double, 2, _measure(double, 2, repetitions))


def _measure(shape: Shape, ranks: int, repetitions: int) -> list[dict[str, Any]]:
    """Bytes and seconds, for each rank and way."""
    results = run_ranks("sharded:layer", ranks, {**shape._asdict(), "repetitions": repetitions})
    return [result["ways"] for result in results]


def _sent(results: Sequence[dict[str, Any]], way: str) -> int:
    """Bytes of the rank that sends the most."""
    return max(result[way]["bytes"] for result in results)


def _seconds(results: Sequence[dict[str, Any]], way: str) -> list[float]:
    """For each repetition, the seconds of the slowest rank; the work that rank 0 does alone has its own seconds."""
    return [max(each) for each in zip(*(result[way]["seconds"] for result in results), strict=True)]


def _bytes(options: Options, shape: Shape, ranks: int, results: Sequence[dict[str, Any]]) -> list[Row]:
    name = f"parallel/layer, {size_name(shape.length)} tokens, {ranks} ranks"
    promised = not options.quick
    rows = []
    for way in (NATIVE, ULYSSES, GATHERED):
        sent, formula = _sent(results, way), shape.formula(way, ranks)
        rows += [
            Row(f"{name}/{way}: bytes a rank sends to collectives", sent / 1e6, "MB"),
            Row(f"{name}/{way}: by formula", formula / 1e6, "MB"),
            at_most(f"{name}/{way}: off the formula by", 100 * abs(sent / formula - 1), "%", 10.0, promised=promised),
        ]
    own = _sent(results, NATIVE)
    fewer = _sent(results, ULYSSES) / own
    claimed = promised and (shape.length, ranks) == (_LONG, 2)
    rows.append(at_least(f"{name}/times fewer bytes than Ulysses", fewer, "x", 3000.0, promised=claimed))
    rows.append(Row(f"{name}/times fewer bytes than gathering", _sent(results, GATHERED) / own, "x"))
    return rows


def _wall(shape: Shape, ranks: int, results: Sequence[dict[str, Any]]) -> list[Row]:
    """Compared with one process on the same tokens: ideal is the number of ranks, or of cores where they are fewer."""
    name = f"parallel/layer, {size_name(shape.length)} tokens, {_ranks(ranks)}"
    alone = _seconds(results, ALONE)
    rows = [
        Row(f"{name}/{way}: times faster than one process", min(alone) / min(_seconds(results, way)), "x")
        for way in WAYS
    ]
    native = min(_seconds(results, NATIVE))
    rows += [
        Row(f"{name}/sparse-native: times faster than {way}", min(_seconds(results, way)) / native, "x")
        for way in (ULYSSES, GATHERED)
    ]
    for way in (ALONE, *WAYS):
        rows += _times(f"{name}/{way}", _seconds(results, way))
    return rows


def _weak(shape: Shape, ranks: int, results: Sequence[dict[str, Any]]) -> list[Row]:
    """With a constant number of tokens a rank: ideal is 1."""
    name = f"parallel/layer, {size_name(shape.length // ranks)} tokens a rank, 1 -> {_ranks(ranks)}"
    alone = _seconds(results, SHARE)
    rows = [
        Row(f"{name}/{way}: time against one rank", min(_seconds(results, way)) / min(alone), "x")
        for way in (NATIVE, PLAIN, ULYSSES, GATHERED)
    ]
    for way in (SHARE, *WAYS):
        rows += _times(f"{name}/{way}", _seconds(results, way))
    return rows


def _experts(options: Options) -> list[Row]:
    """Each rank has as many tokens as the single process with all experts: ideal is 1."""
    ranks, width = 2, 64
    length, experts, repetitions = (256, 4, 1) if options.quick else (16384, 64, 60)
    arguments = {"length": length, "width": width, "experts": experts, "repetitions": repetitions}
    results = run_ranks("sharded:experts", ranks, arguments)
    name = f"parallel/{experts} experts, {size_name(length)} tokens a rank, 1 -> {_ranks(ranks)}"
    seconds = {way: _seconds(results, way) for way in MOVEMENTS} | {ALONE: results[0][ALONE]["seconds"]}
    least = min(MOVEMENTS, key=lambda way: min(seconds[way]))
    ratio = min(seconds[least]) / min(seconds[ALONE])
    rows = [at_most(f"{name}/time against one rank, {least} travel", ratio, "x", 1.3, promised=not options.quick)]
    for way in MOVEMENTS:
        against = min(seconds[way]) / min(seconds[ALONE])
        rows.append(Row(f"{name}/{way} travel: time against one rank", against, "x"))
        rows.append(Row(f"{name}/{way} travel: bytes a rank sends to collectives", _sent(results, way) / 1e6, "MB"))
    formulas = {"tokens": 4 * 4 * length * width, "weights": 4 * 6 * experts * width * width}
    rows += [Row(f"{name}/{way} travel: moved, by formula", size / 1e6, "MB") for way, size in formulas.items()]
    for way in (ALONE, *MOVEMENTS):
        rows += _times(f"{name}/{way}", seconds[way])
    return rows


def _data_parallel(options: Options) -> list[Row]:
    """With a constant number of samples a rank. The world sizes take turns, each time in new processes."""
    samples, window, repetitions, turns = (2, 16, 1, 1) if options.quick else (_SAMPLES, _WINDOW, 5, 2)
    arguments = {"samples": samples, "window": window, "repetitions": repetitions}
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(turns):
        for ranks, taken in seconds.items():
            results = run_ranks("sharded:step", ranks, arguments)
            taken += [max(each) for each in zip(*results, strict=True)]
    name = f"parallel/training step, {samples} samples a rank"
    rows = [Row(f"{name}, 1 -> {_ranks(2)}/time against one rank", min(seconds[2]) / min(seconds[1]), "x")]
    for ranks, taken in seconds.items():
        rows += _times(f"{name}, {ranks} data rank{'s' if ranks > 1 else ''}", taken)
    return rows


def _recording_estimate(steps: int, ranks: int) -> int:
    """Bytes on all ranks, without the libraries."""
    config = recording_config()
    model = Maestro(config, recording_streams(steps), 3, seed=SEED)
    share = recording_streams(steps // ranks)
    estimate = memory_estimate(config, share, TrainingSetup(count_parameters(model), micro_batch=1, ranks=ranks))
    return ranks * estimate.total


def _recording(options: Options, steps: int, ranks: int, estimate: int) -> list[Row]:
    """Two steps: the optimizer's moments exist from the end of the first one."""
    results = run_ranks("sharded:recording", ranks, {"steps": steps, "repetitions": 2}, worker=True)
    name = f"parallel/recording, 4 x {size_name(steps)} words, {_ranks(ranks)}"
    peak = sum(result["peak"] for result in results)
    before = sum(result["before"] for result in results)
    rows = [
        at_most(
            f"{name}/peak memory of all processes, libraries included",
            peak / 1e9,
            "GB",
            _RECORDING_GB,
            promised=not options.quick,
        ),
        Row(f"{name}/libraries' part of that", before / 1e9, "GB"),
        Row(f"{name}/estimate of the rest", estimate / 1e9, "GB"),
        *(Row(f"{name}/peak memory of rank {rank}", results[rank]["peak"] / 1e9, "GB") for rank in range(ranks)),
    ]
    taken = [max(each) for each in zip(*(result["seconds"] for result in results), strict=True)]
    rows += [Row(f"{name}/step {number}, wall", seconds, "s") for number, seconds in enumerate(taken)]
    losses = zip(*(result["losses"] for result in results), strict=True)
    rows += [Row(f"{name}/step {number}, loss", statistics.fmean(each), "") for number, each in enumerate(losses)]
    return rows


def _ranks(count: int) -> str:
    """Adds the number of cores where ranks share them: times then say nothing about scaling."""
    return f"{count} ranks" + (f" on {cores()} cores" if count > cores() else "")


def _times(name: str, seconds: Sequence[float]) -> list[Row]:
    return [
        Row(f"{name}, wall min", 1e3 * min(seconds), "ms"),
        Row(f"{name}, wall median", 1e3 * statistics.median(seconds), "ms"),
    ]
