"""Converters that pack whole recordings: by default a run cuts exactly the windows that they pack."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from maestro_dist.config.schema import DataConfig, SourceConfig
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.prepare import prepare
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.errors import ConfigError
from maestro_dist.types import Batch

ROOT = Path(__file__).parents[2]
EXCERPTS = ROOT / "tests" / "data"
ALL_AT_ONCE = 500


def packed(name: str, folder: Path, form: str) -> tuple[DataConfig, Manifest]:
    url = str(folder / form)
    prepare(SourceConfig(converter=name, path=str(EXCERPTS / name), options={"form": form}), url)
    config = DataConfig(url=url, cache=str(folder / "cache"))
    return config, load_data(config)


def batch(config: DataConfig, manifest: Manifest, split: str) -> Batch:
    numbers = np.arange(min(ALL_AT_ONCE, manifest.split(split).samples))
    return SplitSource(config.url, manifest, config, tuple(manifest.select(None)), split).open().batch(Request(numbers))


@pytest.mark.parametrize("name", ["stress_predict", "uci_hapt", "physionet2012"])
def test_the_windows_are_the_same(name: str, tmp_path: Path) -> None:
    (config, cut), (other, whole) = packed(name, tmp_path, "recordings"), packed(name, tmp_path, "windows")
    assert cut.classes == whole.classes
    for found, expected in zip(cut.modalities, whole.modalities, strict=True):
        assert (found.name, found.steps, found.always) == (expected.name, expected.steps, expected.always)
        for part in ("mean", "std"):  # summed in another order: the same for a model, which has float32
            np.testing.assert_allclose(getattr(found, part), getattr(expected, part), rtol=1e-12)
    for split, entry in whole.splits.items():
        assert cut.split(split).class_counts == entry.class_counts
        found, expected = batch(config, cut, split), batch(other, whole, split)
        np.testing.assert_array_equal(found.target, expected.target)
        np.testing.assert_array_equal(found.present, expected.present)
        for part, arrays in (("values", expected.values), ("recording", expected.recording)):
            for modality, array in arrays.items():
                np.testing.assert_array_equal(getattr(found, part)[modality], array)


def tool(*arguments: str) -> int:
    main = runpy.run_path(str(ROOT / "tools" / "pack_dataset.py"))["main"]
    code: int = main(["stress_predict", "--source", str(EXCERPTS / "stress_predict"), *arguments])
    return code


def test_the_tool_says_how_recordings_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool("--out", str(tmp_path), "--form", "recordings", "--window", "60", "--stride", "30") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "recordings │ 6 │ 1 │" in shown
    splits = load_data(DataConfig(url=str(tmp_path), cache=str(tmp_path / "cache"))).splits
    counts = ", ".join(f"{name} {split.samples}" for name, split in splits.items())
    assert f"windows of 60 s every 30 s, if a run does not say otherwise: {counts}" in shown
    with pytest.raises(ConfigError, match="--symbols: they are made of windows"):
        tool("--out", str(tmp_path / "other"), "--form", "recordings", "--symbols", "beside")
