"""Tables with a column for each of several targets."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import runs

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.load import load_data
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.errors import ConfigError, DataError

NAN = float("nan")
LAYOUT = """
name: cuffs
task: regression
target: blood pressure, mmHg
targets: [systolic, diastolic]
ignore: ["999"]
window: {length_s: 4}
files:
- path: "{recording}/pulse.csv"
  time: {column: time, unit: s}
  modalities:
    pulse: {columns: [bpm], rate_hz: 1}
"""
CUFFS = """- path: "{recording}/cuff.csv"
  intervals: {start: begin, end: end, unit: s}
  label: [sys, dia]
"""


def tables(folder: Path, layout: str, cuffs: dict[str, str]) -> tuple[Path, str]:
    for name, text in cuffs.items():
        (folder / "tables" / name).mkdir(parents=True)
        rows = "".join(f"{second},{60 + second}\n" for second in range(12))
        (folder / "tables" / name / "pulse.csv").write_text("time,bpm\n" + rows)
        (folder / "tables" / name / "cuff.csv").write_text("begin,end,dia,sys\n" + text)
    (folder / "layout.yaml").write_text(layout)
    return folder / "tables", str(folder / "layout.yaml")


def test_tables_with_a_column_for_each_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cuffs = {"a": "0,4,80,120\n4,8,,130.5\n8,12,999,\n", "b": "0,12,70,110\n"}
    source, layout = tables(tmp_path, LAYOUT + CUFFS, cuffs)
    main = runpy.run_path(str(runs.ROOT / "tools" / "pack_dataset.py"))["main"]
    assert main(["csv", "--source", str(source), "--layout", layout, "--out", str(tmp_path / "x")]) == 0
    config = DataConfig.model_validate(
        {"url": str(tmp_path / "x"), "split": {"by": "recording", "validation": ["b"], "test": []}}
    )
    manifest = load_data(config)
    source = SplitSource(config.url, manifest, config, tuple(manifest.select(None)), "train")
    found = np.asarray(source.open().batch(Request(np.arange(2))).target)
    assert manifest.splits["train"].samples == 2
    np.testing.assert_array_equal(found, np.array([[120, 80], [130.5, NAN]], dtype=np.float32))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("label: [sys, dia]", "label: sys"), "label of {recording}/cuff.csv has 2 columns, as targets, not sys"),
        (("targets: [systolic, diastolic]\n", ""), "label of {recording}/cuff.csv is one column, not sys, dia"),
        (("task: regression", "task: none"), "targets belong to task: regression"),
        (("[systolic, diastolic]", "[systolic, systolic]"), "two targets are named 'systolic'"),
        (("{recording}/pulse", "{recording}/{label}/pulse"), "has one label, targets need 2"),
        (('ignore: ["999"]', "ignore: []"), "cuff.csv, row 1: diastolic 'high' is not a number"),
    ],
)
def test_layouts_that_do_not_fit_several_targets(
    change: tuple[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (LAYOUT + CUFFS).replace(*change)
    source, layout = tables(tmp_path, text, {"a": "0,4,high,120\n"})
    main = runpy.run_path(str(runs.ROOT / "tools" / "pack_dataset.py"))["main"]
    with pytest.raises((ConfigError, DataError), match=re.escape(said)):
        main(["csv", "--source", str(source), "--layout", layout, "--out", str(tmp_path / "x")])
