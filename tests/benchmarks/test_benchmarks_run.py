"""The benchmarks themselves: they run, their rows say what they should, and the instruments measure."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from benchmarks.cases import bound_ns, modalities, windows
from benchmarks.common import Options, Setting, at_least, at_most, size_name
from benchmarks.memory import peak_memory
from benchmarks.timing import Case, Rates, Times, compare

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ONE = Setting("one thread", 1, "cpu")


@pytest.mark.parametrize("name", ["attention", "layer", "moe", "sax", "model", "long"])
def test_every_benchmark_runs(name: str) -> None:
    rows = importlib.import_module(f"benchmarks.{name}").run(Options(quick=True, threads=1))
    names = [row.name for row in rows]
    assert len(names) == len(set(names))
    assert any("times faster than" in row or "against" in row for row in names)
    for row in rows:
        assert row.name.startswith(f"{name}/")
        assert math.isfinite(row.value)
        assert (row.reach is None) == (row.holds is None) == (row.sense is None)


def test_command_writes_table_and_json(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "benchmark.py", "sax", "--quick", "--threads", "1", "--json", out],
        capture_output=True,
        text=True,
        check=True,
    )
    written = json.loads(out.read_text())
    assert written["benchmark"] == "sax"
    assert written["machine"]["versions"]["torch"] == version("torch")  # of wheels with CUDA, __version__ has more
    assert {"name", "value", "unit", "reach", "holds"} <= set(written["rows"][0])
    same = next(row for row in written["rows"] if "identical symbols" in row["name"])
    assert (same["value"], same["reach"], same["holds"]) == (1.0, 1.0, True)
    for row in written["rows"]:
        assert row["name"] in done.stdout
    assert written["notes"][0] in done.stdout


def test_a_table_has_one_thread_and_several() -> None:
    threads = torch.get_num_threads()
    names = [row.name for row in importlib.import_module("benchmarks.sax").run(Options(quick=True, threads=2))]
    assert torch.get_num_threads() == threads
    assert len([name for name in names if "one thread" in name]) == len([name for name in names if "2 threads" in name])


def test_cases_take_turns() -> None:
    order: list[str] = []
    times, rates = compare(
        {
            "a": Case(lambda: order.append("a"), repetitions=2, warm=False),
            "b": Case(lambda: order.append("b"), repetitions=1, warm=False),
        },
        ONE,
        "cpu",
        quick=True,
    )
    assert order == ["a", "b", "a"]
    assert [len(times[name].wall) for name in "ab"] == [2, 1]
    assert rates.flops > 0
    assert rates.copy > 0


def test_figures_of_several_repetitions() -> None:
    times = Times(cpu=(3.0, 1.0, 2.0), wall=(4.0, 9.0, 5.0))
    assert times.best(ONE) == 1.0
    assert times.best(Setting("2 threads", 2, "wall")) == 4.0
    assert [row.value for row in times.rows("x", "ms", 1000.0)] == [1000.0, 2000.0, 4000.0, 5000.0]


def test_what_is_promised() -> None:
    assert at_least("x", 2.0, "x", 2.0).holds
    assert not at_least("x", 1.9, "x", 2.0).holds
    assert at_most("x", 2.0, "x", 2.0).holds
    assert not at_most("x", 2.1, "x", 2.0).holds
    assert at_most("x", 2.1, "x", 2.0, promised=False).reach is None
    options = Options(threads=4)
    assert [setting.label for setting in options.settings] == ["one thread", "4 threads"]
    assert [options.promised(setting) for setting in options.settings] == [True, False]
    assert Options(device="cuda").settings == (Setting("cuda", 1, "wall"),)
    assert not Options(device="cuda").promised(Options(device="cuda").settings[0])
    assert [size_name(count) for count in (100, 16384, 10**6, 1500)] == ["100", "16k", "1M", "1500"]


def test_bound_counts_seven_products() -> None:
    assert bound_ns(10**6, Rates(flops=86e9, copy=1.0)) == pytest.approx(7 * 2 * 70 * 64 / 86)


def test_peak_memory_of_the_core_is_a_few_arrays_and_linear() -> None:
    array = 8 * 16384 * 64 * 4
    peak = peak_memory("long:core", 16384, "cpu")
    assert 8 * array <= peak <= 14 * array  # q, k, v, their gradients, the output and its gradient


def test_peak_memory_names_the_case_that_failed() -> None:
    with pytest.raises(RuntimeError, match="long:nothing on 8"):
        peak_memory("long:nothing", 8, "cpu")


def test_windows_miss_the_same_share_of_each_sample() -> None:
    streams = modalities(8)
    batch = windows(streams, 20, "cpu", missing=0.4)
    assert (batch.present.sum(1) == 6).all()
    assert len({tuple(row) for row in batch.present.tolist()}) > 10
    for j, stream in enumerate(streams):
        assert len(batch.values[stream.name]) == batch.present[:, j].sum()
    assert windows(streams, 2, "cpu").present.all()
