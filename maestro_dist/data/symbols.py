"""SAX symbols in the shards, made once when a data set is packed: for runs that are limited by reading data.

A symbol takes one byte; its word of w steps takes 4 w bytes. Symbols can be used by the embeddings `ordinal` and
`table`, in a model with the same alphabet, words and normalization. The tokens are then the same bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from typing import Any, Protocol

import numpy as np

from maestro_dist.config.learning import AugmentConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.schema import DataConfig
from maestro_dist.data.augment import wanted_kinds
from maestro_dist.data.fragments import SampleRows
from maestro_dist.data.label_sets import ClassCounter
from maestro_dist.data.manifest import Manifest, ManifestSplit, SymbolSpec, load_manifest
from maestro_dist.data.pack import open_for_packing, write_manifest
from maestro_dist.data.plain_values import person
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.sample_checks import Label
from maestro_dist.data.shard_assembly import LocalSink, ShardAssembly, remove_shards
from maestro_dist.data.shard_index import META, member_name
from maestro_dist.data.storage import Storage
from maestro_dist.data.tar_blocks import Blocks, npy_blocks, sample_blocks
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.types import Modality


class SymbolFunction(Protocol):
    """Makes the symbols that a model would make (`model.embedding.SymbolEncoder`)."""

    def __call__(self, name: str, values: np.ndarray, recording: np.ndarray | None) -> np.ndarray:
        """Window float32 [T_j, D_j] of modality `name`, recording mean and std [D_j, 2] -> symbols uint8 [W_j, D_j]."""
        ...


def reads_symbols(
    manifest: Manifest, model: ModelConfig, modalities: Sequence[Modality], augment: AugmentConfig | None = None
) -> bool:
    """Whether a run of `model` on `modalities` reads symbols instead of raw windows.

    `augment`: the augmentation of training; it needs raw windows.

    Raises:
        ConfigError: the data set holds symbols only, but the model needs other symbols or raw windows. The message
            names both values.
    """
    spec = manifest.symbols
    if spec is None:
        return False
    differences = list(_differences(spec, manifest, model, modalities))
    differences += [f"augment.{kind} needs raw windows" for kind in (wanted_kinds(augment) if augment else ())]
    if differences and not spec.raw:
        raise ConfigError(
            f"'{manifest.name}' holds symbols only, but {'; '.join(differences)}; "
            "change that, or pack the data set again with these symbols or with raw windows"
        )
    return not differences


def _differences(
    spec: SymbolSpec, manifest: Manifest, model: ModelConfig, modalities: Sequence[Modality]
) -> Iterable[str]:
    if model.embedding == "patch":
        yield "model.embedding is patch, which needs raw windows (ordinal and table do not)"
    if model.stem is not None:
        yield "model.stem needs raw windows"
    if model.summary != "none":
        yield f"model.summary is {model.summary}, which needs raw windows"
    if model.alphabet != spec.alphabet:
        yield f"model.alphabet is {model.alphabet}, the symbols have {spec.alphabet}"
    if model.normalize != spec.normalize:
        yield f"model.normalize is {model.normalize}, the symbols have {spec.normalize}"
    by_name = {modality.name: modality for modality in manifest.modalities}
    for modality in modalities:
        word = model.word if isinstance(model.word, int) else model.word.get(modality.name)
        if word != spec.word[modality.name]:
            yield f"model.word of {modality.name} is {word}, the symbols have {spec.word[modality.name]}"
        packed = by_name[modality.name]
        if spec.normalize == "dataset" and [*modality.mean, *modality.std] != [*packed.mean, *packed.std]:
            yield f"the model normalizes {modality.name} by the mean and std of another data set"


def add_symbols(
    source: str,
    url: str,
    spec: SymbolSpec,
    symbolise: SymbolFunction,
    *,
    shard_bytes: int = 32 << 20,
    overwrite: bool = False,
) -> Manifest:
    """Copy the packed data set `source` to `url` with symbols, and with its raw windows if `spec.raw` is true.

    Raises:
        DataError: `source` has no raw windows, is damaged or is the same as `url`, or `url` holds a data set already.
        ConfigError: `spec` needs recording statistics, but the data set has none.
    """
    manifest = load_manifest(source)
    if manifest.recordings is not None:
        raise DataError(f"{Storage(source).name()} holds recordings; symbols are made of packed windows")
    if manifest.symbols is not None and not manifest.symbols.raw:
        raise DataError(f"{Storage(source).name()}: symbols only; symbols are made from raw windows")
    if spec.normalize == "recording" and not manifest.recording:
        raise ConfigError(f"normalize: recording, but '{manifest.name}' has no statistics of recordings")
    if Storage(source).url == Storage(url).url:
        raise DataError(f"{Storage(url).name()}: this is the source; choose another place")
    storage, modalities, splits = open_for_packing(url, overwrite=overwrite), tuple(manifest.select(None)), {}
    with ExitStack() as stack:
        for name, split in manifest.splits.items():
            writer = stack.enter_context(_SplitWriter(storage, name, manifest.counter, shard_bytes))
            if split.samples:
                reader = SplitSource(source, manifest, DataConfig(url=source), modalities, name).open()
                stack.enter_context(closing(reader))
            for number in range(split.samples):
                stored = reader.stored(number)
                sample = reader.decode(number, stored)
                members: dict[str, Blocks] = {member_name(m): [data] for m, data in stored.arrays.items() if spec.raw}
                for modality, values in sample.values.items():
                    symbols = symbolise(modality, values, sample.recording.get(modality))
                    members[member_name(modality, symbols=True)] = npy_blocks(symbols)
                writer.add(sample.key, sample.target, stored.meta, members)
            splits[name] = writer.finish()
        packed = Manifest.model_validate({**manifest.to_json(), "splits": splits, "symbols": spec})
        write_manifest(storage, packed)
    return packed


class _SplitWriter:
    """Writes the shards of one split. A context manager: when packing fails, the files of the split are removed."""

    def __init__(self, storage: Storage, split: str, counter: ClassCounter, shard_bytes: int) -> None:
        self._storage, self._split, self._sink = storage, split, LocalSink(storage)
        self._assembly = ShardAssembly([split], counter, shard_bytes, self._sink)

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._sink.abort(error)
            remove_shards(self._storage, self._assembly.begun())

    def add(self, key: str, label: Label, meta: bytes, members: dict[str, Blocks]) -> None:
        """Write a sample: its json `meta`, and its other members by name."""
        data = np.frombuffer(b"".join(sample_blocks(key, {META: [meta], **members})), dtype=np.uint8)
        rows = SampleRows([key], [label], [person(json.loads(meta).get("subject"))], [len(data)])
        self._assembly.add(self._split, rows, data)

    def finish(self) -> ManifestSplit:
        """Close the last shard; returns the split's entry in the manifest."""
        return self._assembly.close()[self._split]
