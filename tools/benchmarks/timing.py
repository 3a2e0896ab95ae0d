"""Several ways to compute the same thing, timed against each other in one process.

The cases take turns, so that other load on the machine affects all of them. The machine's rates are cases too.
"""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from benchmarks.common import Row, Setting

_GEMM = 2048
_COPY = 1 << 25
_WARM_UPS, _FEW_FAULTS = 4, 2000


@dataclass(frozen=True)
class Case:
    """One thing to time. The result of `run` is freed after the time is taken.

    `warm` is off for a case so slow that neither a warm-up nor a repetition would change its result.
    """

    run: Callable[[], object]
    repetitions: int = 5
    warm: bool = True


@dataclass(frozen=True)
class Times:
    """Seconds of each repetition: CPU time of the whole process, and wall time (on a GPU between two events)."""

    cpu: tuple[float, ...]
    wall: tuple[float, ...]

    def best(self, setting: Setting) -> float:
        """The minimum on the setting's clock, for ratios."""
        return min(self.cpu if setting.clock == "cpu" else self.wall)

    def rows(self, name: str, unit: str, scale: float) -> list[Row]:
        """Minimum and median of both clocks, in `unit`s of 1 / scale seconds."""
        return [
            Row(f"{name}, {clock} {what}", of(seconds) * scale, unit)
            for clock, seconds in (("cpu", self.cpu), ("wall", self.wall))
            for what, of in (("min", min), ("median", statistics.median))
        ]


@dataclass(frozen=True)
class Rates:
    """The machine's best rates, measured between the cases: FLOP/s of an fp32 matrix product, bytes/s of a copy.

    A copied byte counts twice: read and written.
    """

    flops: float
    copy: float

    def rows(self, name: str) -> list[Row]:
        """Both rates."""
        return [
            Row(f"{name}/machine, matrix product", self.flops / 1e9, "GFLOP/s"),
            Row(f"{name}/machine, copy", self.copy / 1e9, "GB/s"),
        ]


def compare(
    cases: Mapping[str, Case], setting: Setting, device: str, *, scratch: int = 0, quick: bool = False
) -> tuple[dict[str, Times], Rates]:
    """Times of each case, and the machine's rates in the same minutes.

    `scratch`: bytes of the largest temporary array of a case. Space of this size and some more is reserved in the heap
    (and not touched); else a small array could be placed there, and the large one would need new pages each time.
    """
    size, numbers = (256, 1 << 16) if quick else (_GEMM, _COPY)
    left, right = torch.randn(2, size, size, device=device).unbind(0)
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    machine = {
        "machine/product": Case(lambda: left @ right),
        "machine/copy": Case(lambda: target.copy_(source)),
    }
    everything = {**machine, **cases}
    if quick:
        everything = {name: replace(case, repetitions=min(case.repetitions, 2)) for name, case in everything.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        with _reserved(scratch if device == "cpu" else 0):
            _warm_up(everything, device, turns=1 if quick else _WARM_UPS)
            times = _take_turns(everything, device)
    finally:
        torch.set_num_threads(before)
    product, copy = times.pop("machine/product"), times.pop("machine/copy")
    return times, Rates(2 * size**3 / product.best(setting), 8 * numbers / copy.best(setting))


@contextmanager
def _reserved(size: int) -> Iterator[None]:
    """A gap of `size` bytes and half a GiB in the heap, closed by an array that stays."""
    gap = torch.empty(size + (1 << 29) if size else 0, dtype=torch.uint8)
    end = torch.empty(1 << 20, dtype=torch.uint8)
    del gap
    yield
    del end


def _warm_up(cases: Mapping[str, Case], device: str, turns: int) -> None:
    """Run the cases in turn until a whole turn needs (almost) no new pages."""
    for _ in range(turns if device == "cpu" else 2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for case in cases.values():
            if case.warm:
                case.run()
        if resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < _FEW_FAULTS:
            return


def _take_turns(cases: Mapping[str, Case], device: str) -> dict[str, Times]:
    clock = _cuda if device == "cuda" else _cpu
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    collecting = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()  # collections between repetitions then look only at objects of the cases
    try:
        for turn in range(max(case.repetitions for case in cases.values())):
            for name, case in cases.items():
                if turn < case.repetitions:
                    gc.collect()
                    taken[name].append(clock(case.run))
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return {name: Times(*map(tuple, zip(*pairs, strict=True))) for name, pairs in taken.items()}


def _cpu(run: Callable[[], object]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    kept = run()
    taken = time.process_time() - cpu, time.perf_counter() - wall
    del kept
    return taken


def _cuda(run: Callable[[], object]) -> tuple[float, float]:
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    cpu = time.process_time()
    first.record()
    kept = run()
    last.record()
    torch.cuda.synchronize()
    taken = time.process_time() - cpu, first.elapsed_time(last) / 1000
    del kept
    return taken
