"""Symbols in the shards: the same logits as from raw windows, and clear errors where they cannot be used."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_data_damage import npy
from tiny import SIZES, rewrite, source_of

from maestro_dist.config.learning import AugmentConfig, MissingConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.schema import Config
from maestro_dist.data.manifest import Manifest, SymbolSpec, load_manifest
from maestro_dist.data.reader import presence
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream, evaluation_batches
from maestro_dist.data.symbols import add_symbols, reads_symbols
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.model import Maestro
from maestro_dist.model.embedding import SymbolEncoder
from maestro_dist.parallel.sequence import time_cuts
from maestro_dist.run.launch import prepare_data
from maestro_dist.training.builder import first_batch
from maestro_dist.types import Batch

WORD = {"ecg": 5, "acc": 4, "temp": 1}
VALUES: dict[str, Any] = {"alphabet": 12, "word": WORD, "normalize": "dataset"}


def model_of(**changes: Any) -> ModelConfig:
    fields = {"width": 12, "heads": 3, "embedding": "table", "summary": "none", **VALUES, **changes}
    return ModelConfig.model_validate(fields)


def symbols_of(source: str, url: Path, *, raw: bool, **changes: Any) -> str:
    values = {**VALUES, **changes}
    spec = SymbolSpec(**values, raw=raw)
    add_symbols(source, str(url), spec, SymbolEncoder(model_of(**changes), load_manifest(source).select(None)))
    return str(url)


def read(
    url: str,
    *,
    symbols: bool,
    split: str = "train",
    keep: np.ndarray | None = None,
    slices: dict[str, tuple[int, int]] | None = None,
) -> list[Batch]:
    return list(evaluation_batches(source_of(url, split, symbols=symbols, slices=slices), 16, DataRank(), keep))


def test_slices_of_symbols_join_to_the_whole(packed: str, tmp_path: Path) -> None:
    url = symbols_of(packed, tmp_path / "symbols", raw=False)
    manifest = load_manifest(url)
    assert manifest.symbols is not None
    word = manifest.symbols.word
    cuts = {m.name: time_cuts(m.steps, 2 * word[m.name], 3) for m in manifest.select(None)}
    shares = [read(url, symbols=True, slices={n: (ends[r], ends[r + 1]) for n, ends in cuts.items()}) for r in range(3)]
    for whole, *parts in zip(read(url, symbols=True), *shares, strict=True):
        assert whole.symbols.keys() == cuts.keys()
        for name, expected in whole.symbols.items():
            assert torch.equal(torch.cat([part.symbols[name] for part in parts], 1), expected)


@pytest.mark.parametrize("normalize", ["window", "recording", "dataset"])
@pytest.mark.parametrize("embedding", ["ordinal", "table"])
def test_logits_are_those_of_the_raw_windows(packed: str, tmp_path: Path, normalize: str, embedding: str) -> None:
    url = symbols_of(packed, tmp_path / "symbols", raw=False, normalize=normalize)
    model = model_of(normalize=normalize, embedding=embedding)
    manifest = load_manifest(url)
    modalities = manifest.select(None)
    assert reads_symbols(manifest, model, modalities)
    maestro = Maestro(model, modalities, 3, seed=1).eval()
    whole = presence(source_of(url, "validation", symbols=True))
    assert np.array_equal(whole, presence(source_of(packed, "validation")))
    keep = np.random.default_rng(0).random(whole.shape) < 0.7
    samples = 0
    for raw, symbols in zip(
        read(packed, symbols=False, split="validation", keep=keep),
        read(url, symbols=True, split="validation", keep=keep),
        strict=True,
    ):
        assert not symbols.values
        assert {name: rows.dtype for name, rows in symbols.symbols.items()} == dict.fromkeys(WORD, torch.uint8)
        assert torch.equal(raw.present, symbols.present)
        assert torch.equal(raw.target, symbols.target)
        assert torch.equal(maestro(raw)["logits"], maestro(symbols)["logits"])
        samples += len(symbols)
    assert samples == SIZES["validation"]


def test_training_reads_symbols_as_it_reads_windows(packed: str, tmp_path: Path) -> None:
    url = symbols_of(packed, tmp_path / "symbols", raw=True)
    manifest = load_manifest(url)
    modalities = manifest.select(None)
    maestro = Maestro(model_of(), modalities, 3, seed=1).train()
    logits = []
    for symbols in (False, True):
        schedule = TrainSchedule(1, 8, 10, curriculum=MissingConfig(max_rate=0.5, ramp_start=0.0, ramp_end=0.1))
        stream = TrainStream(source_of(url, symbols=symbols), schedule, DataRank())
        logits.append(torch.cat([maestro(batch, batch.step)["logits"] for batch in stream.batches(0, stream.samples)]))
    assert len(logits[0]) == SIZES["train"]
    assert torch.equal(*logits)


def test_symbols_beside_leave_the_raw_windows_as_they_were(packed: str, tmp_path: Path) -> None:
    url = symbols_of(packed, tmp_path / "symbols", raw=True)
    for before, now in zip(read(packed, symbols=False), read(url, symbols=False), strict=True):
        for name, values in before.values.items():
            assert np.array_equal(values.numpy(), now.values[name].numpy(), equal_nan=True)
    old, new = load_manifest(packed), load_manifest(url)
    assert old.fingerprint() != new.fingerprint()
    assert new.model_copy(update={"symbols": None, "splits": old.splits}) == old
    smaller = symbols_of(packed, tmp_path / "only", raw=False)
    assert sum(s.bytes for s in load_manifest(smaller).splits["train"].shards) < sum(
        s.bytes for s in old.splits["train"].shards
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": "patch"}, "model.embedding is patch, which needs raw windows"),
        ({"stem": {}}, "model.stem needs raw windows"),
        ({"summary": "level"}, "model.summary is level, which needs raw windows"),
        ({"alphabet": 20}, "model.alphabet is 20, the symbols have 12"),
        ({"normalize": "window"}, "model.normalize is window, the symbols have dataset"),
        ({"word": 4}, "model.word of ecg is 4, the symbols have 5"),
    ],
)
def test_another_model_wants_raw_windows(packed: str, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    for raw in (True, False):
        manifest = load_manifest(symbols_of(packed, tmp_path / f"symbols-{raw}", raw=raw))
        if raw:
            assert not reads_symbols(manifest, model_of(**changes), manifest.select(None))
            continue
        with pytest.raises(ConfigError, match=message):
            reads_symbols(manifest, model_of(**changes), manifest.select(None))


@pytest.mark.parametrize("kind", ["jitter", "rotation"])
def test_symbols_are_not_augmented(packed: str, tmp_path: Path, kind: str) -> None:
    for raw in (True, False):
        manifest = load_manifest(symbols_of(packed, tmp_path / f"symbols-{raw}", raw=raw))
        asked = manifest, model_of(), manifest.select(None)
        assert reads_symbols(*asked, AugmentConfig())
        if raw:  # training then reads the windows, which give the same tokens
            assert not reads_symbols(*asked, AugmentConfig.model_validate({kind: 0.1}))
            continue
        with pytest.raises(ConfigError, match=f"symbols only, but augment.{kind} needs raw windows"):
            reads_symbols(*asked, AugmentConfig.model_validate({kind: 0.1}))


def test_another_data_set_s_statistics(packed: str, tmp_path: Path) -> None:
    manifest = load_manifest(symbols_of(packed, tmp_path / "symbols", raw=False))
    trained_on = [dataclasses.replace(m, mean=tuple(x + 1 for x in m.mean)) for m in manifest.select(None)]
    with pytest.raises(ConfigError, match="normalizes acc by the mean and std of another data set"):
        reads_symbols(manifest, model_of(), trained_on)
    assert not reads_symbols(load_manifest(packed), model_of(), trained_on)


def test_a_run_is_refused_before_it_starts(packed: str, tmp_path: Path) -> None:
    url = symbols_of(packed, tmp_path / "symbols", raw=False)
    for embedding in ("table", "patch"):
        model = {"alphabet": 12, "word": WORD, "embedding": embedding, "summary": "none"}
        config = Config.model_validate({"data": {"url": url}, "run": {"launcher": "inline"}, "model": model})
        if embedding == "table":
            assert prepare_data(config)[0].symbols is not None
            loss, samples = first_batch(config)
            assert np.isfinite(loss)
            assert samples == SIZES["train"]
        else:
            with pytest.raises(ConfigError, match=r"'tiny' holds symbols only, but model.embedding is patch"):
                prepare_data(config)


def test_the_model_says_when_symbols_do_not_do(packed: str, tmp_path: Path) -> None:
    batch = read(symbols_of(packed, tmp_path / "symbols", raw=False), symbols=True)[0]
    maestro = Maestro(model_of(embedding="patch"), load_manifest(packed).select(None), 3, seed=1)
    with pytest.raises(DataError, match=r"comes without raw windows, but model.embedding patch"):
        maestro(batch)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((16, 3), np.int8), "acc (symbols) is int8, not uint8 in C order"),
        (np.zeros((16, 3), np.float32), "acc (symbols) is float32, not uint8"),
        (np.asfortranarray(np.zeros((16, 3), np.uint8)), "in Fortran order, not uint8 in C order"),
        (np.zeros((64, 3), np.uint8), "acc (symbols) has shape (64, 3), not (16, 3)"),
        (np.full((16, 3), 13, np.uint8), "acc (symbols) has symbol 13, the alphabet is 12"),
        (np.array([[{"a": 1}] * 3] * 16, object), "acc (symbols) is object, not uint8"),
        (b"\x80\x04}.", "acc (symbols) is not an npy array"),
        (npy(np.zeros((16, 3), np.uint8))[:-1], "acc (symbols) has 47 bytes of data, not 48"),
    ],
    ids=str,
)
def test_bad_symbols_are_named(packed: str, tmp_path: Path, array: Any, message: str) -> None:
    url = symbols_of(packed, tmp_path / "symbols", raw=False)
    data = array if isinstance(array, bytes) else npy(array, allow_pickle=True)
    changed: list[str] = []

    def change(key: str, members: dict[str, bytes]) -> None:
        if "acc.sax.npy" in members and not changed:
            members["acc.sax.npy"] = data
            changed.append(key)

    rewrite(url, change)
    with pytest.raises(DataError) as caught:
        read(url, symbols=True)
    assert message in str(caught.value)
    assert changed[0] in str(caught.value)


def test_a_damaged_spec_is_named(packed: str, tmp_path: Path) -> None:
    path = Path(symbols_of(packed, tmp_path / "symbols", raw=False)) / "manifest.json"
    raw = json.loads(path.read_text())
    for change, message in (
        ({"alphabet": 300}, "symbols.alphabet"),
        ({"word": {"acc": 4}}, r"symbols.word names \['acc'\], the modalities are \['acc', 'ecg', 'temp'\]"),
        ({"normalize": "none"}, "symbols.normalize"),
    ):
        path.write_text(json.dumps({**raw, "symbols": {**raw["symbols"], **change}}))
        with pytest.raises(DataError, match=message):
            load_manifest(str(path.parent))


def test_where_symbols_cannot_be_made(packed: str, tmp_path: Path) -> None:
    only = symbols_of(packed, tmp_path / "symbols", raw=False)
    with pytest.raises(DataError, match="symbols only"):
        symbols_of(only, tmp_path / "again", raw=False)
    with pytest.raises(DataError, match="is there already"):
        symbols_of(packed, tmp_path / "symbols", raw=False)
    with pytest.raises(DataError, match="this is the source; choose another place"):
        symbols_of(packed, Path(packed), raw=False)


def test_the_tool_adds_symbols(packed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "tools" / "pack_dataset.py"
    spec = importlib.util.spec_from_file_location("pack_dataset", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    words = [f"{name}={steps}" for name, steps in WORD.items()]
    target = str(tmp_path / "out")
    common = ["packed", "--source", packed, "--out", target, "--symbols", "instead", "--alphabet", "12"]
    assert tool.main([*common, "--word", *words, "--normalize", "recording"]) == 0
    assert "tiny at" in capsys.readouterr().out
    made: Manifest = load_manifest(target)
    assert made.symbols == SymbolSpec(alphabet=12, word=WORD, normalize="recording", raw=False)
    ours = read(symbols_of(packed, tmp_path / "ours", raw=False, normalize="recording"), symbols=True)
    for one, other in zip(read(target, symbols=True), ours, strict=True):
        assert all(torch.equal(one.symbols[name], other.symbols[name]) for name in WORD)
    with pytest.raises(DataError, match="is there already"):
        tool.main([*common, "--word", *words])
    with pytest.raises(ConfigError, match="--alphabet"):
        tool.main(["packed", "--source", packed, "--out", str(tmp_path / "no"), "--alphabet", "1"])
    with pytest.raises(ConfigError, match="no word length for modality"):
        tool.main(["packed", "--source", packed, "--out", str(tmp_path / "no"), "--word", "acc=3"])
