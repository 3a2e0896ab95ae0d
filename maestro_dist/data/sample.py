"""Decode the bytes of a sample into checked arrays. Nothing is unpickled."""

from __future__ import annotations

import io
import json
import math
import tokenize
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from maestro_dist.data.manifest import Manifest, SymbolSpec
from maestro_dist.errors import DataError
from maestro_dist.types import Modality

_FLOAT32, _UINT8 = np.dtype("<f4"), np.dtype("u1")


_NO_HEADER = (ValueError, TypeError, SyntaxError, tokenize.TokenError, EOFError, RecursionError, MemoryError)
"""What numpy raises for a damaged npy header; the last two for one that is nested too deeply."""


class BadSample(DataError):
    """A sample is bad. A run stops after more than `data.max_bad_samples` of them."""


@dataclass(frozen=True)
class SampleFormat:
    """The format of every sample of a data set.

    modalities  the modalities to decode
    classes     number of labels that are whole numbers, as `Manifest.label_numbers`; 0 for regression
    recording   whether samples have recording statistics
    symbols     how SAX symbols were made, if they are read instead of raw windows
    slices      steps [first, end) of each modality to keep; None: all
    targets     numbers of the target of a sample: `Manifest.target_width`
    """

    modalities: tuple[Modality, ...]
    classes: int
    recording: bool
    symbols: SymbolSpec | None = None
    slices: Mapping[str, tuple[int, int]] | None = None
    targets: int = 1

    @staticmethod
    def of(
        manifest: Manifest,
        modalities: Sequence[Modality],
        *,
        symbols: bool = False,
        slices: Mapping[str, tuple[int, int]] | None = None,
    ) -> SampleFormat:
        """The format that a manifest describes."""
        spec = manifest.symbols if symbols else None
        return SampleFormat(
            tuple(modalities),
            manifest.label_numbers,
            manifest.recording,
            spec,
            slices=slices,
            targets=manifest.target_width,
        )

    def target_array(self, samples: int) -> np.ndarray:
        """Memory for the targets of a micro-batch, not yet filled: int64 [B] (class), float32 [B] or [B, K].

        Classes over time are float32 too, because some may be unknown.
        """
        if self.targets == 1:
            return np.empty(samples, dtype=np.int64 if self.classes else np.float32)
        return np.empty((samples, self.targets), dtype=np.float32)

    def shape(self, modality: Modality) -> tuple[int, int]:
        """Stored shape: [T_j, D_j] of a raw window, [W_j, D_j] of symbols."""
        length = modality.steps if self.symbols is None else self.symbols.length(modality)
        return length, modality.variates

    def part(self, modality: Modality) -> slice:
        """Rows of `shape` to keep. The bounds of a slice are multiples of the word length."""
        start, end = (0, modality.steps) if self.slices is None else self.slices[modality.name]
        word = 1 if self.symbols is None else self.symbols.word[modality.name]
        return slice(start // word, -(-end // word))

    @property
    def dtype(self) -> np.dtype:
        """float32 for raw windows, uint8 for symbols."""
        return _FLOAT32 if self.symbols is None else _UINT8


@dataclass(frozen=True)
class DecodedSample:
    """A decoded sample; its dictionaries have the modalities that are present.

    target     class or target; of several numbers a list of them, NaN where one is unknown
    values     float32 windows [T_j, D_j], or uint8 symbols [W_j, D_j]
    recording  mean and std of the recording, float32 [D_j, 2]
    """

    number: int
    key: str
    target: int | float | Sequence[float]
    values: dict[str, np.ndarray]
    recording: dict[str, np.ndarray] = field(default_factory=dict)


def decode_sample(
    number: int, key: str, meta: bytes, arrays: Mapping[str, bytes], sample_format: SampleFormat, where: str
) -> DecodedSample:
    """Decode and check a sample. `where` names the shard and the sample in messages.

    Raises:
        BadSample: its json, label, a type, a shape or a value is wrong.
    """
    sample = decode_meta(number, key, meta, arrays, sample_format, where)
    for modality in sample_format.modalities:
        if modality.name in arrays:
            sample.values[modality.name] = _array(arrays[modality.name], modality, sample_format, where)
    return sample


def decode_meta(
    number: int, key: str, meta: bytes, names: Container[str], sample_format: SampleFormat, where: str
) -> DecodedSample:
    """A sample without its windows: its target, and the recording statistics of the modalities in `names`.

    Raises:
        BadSample: its json is wrong.
    """
    try:
        body = json.loads(meta)
        label = body["label"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadSample(f"{where}: its json has no label ({type(error).__name__}: {error})") from error
    sample = DecodedSample(number, key, _target(label, sample_format, where), {})
    if sample_format.recording:
        for modality in sample_format.modalities:
            if modality.name in names:
                sample.recording[modality.name] = _recording(body, modality, where)
    return sample


def _target(label: object, sample_format: SampleFormat, where: str) -> int | float | Sequence[float]:
    classes, several = sample_format.classes, sample_format.targets
    if several > 1:
        if not isinstance(label, list) or len(label) != several or all(number is None for number in label):
            raise BadSample(f"{where}: its label is not a list of {several} numbers")
        return [math.nan if number is None else _number(number, where) for number in label]
    if classes:
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < classes:
            shown = repr(label) if isinstance(label, int | float | str | None) else type(label).__name__
            raise BadSample(f"{where}: label {shown[:40]} is not one of 0..{classes - 1}")
        return label
    return _number(label, where)


def _number(label: object, where: str) -> float:
    try:
        if isinstance(label, int | float) and not isinstance(label, bool) and math.isfinite(label):
            return float(label)
    except OverflowError:  # an integer too large for a float
        pass
    raise BadSample(f"{where}: target {str(label)[:40]} is not a finite number")


def _array(data: bytes, modality: Modality, sample_format: SampleFormat, where: str) -> np.ndarray:
    where = f"{where}: {modality.name}{'' if sample_format.symbols is None else ' (symbols)'}"
    try:
        length = 10 + int.from_bytes(data[8:10], "little")
        dtype, fortran, shape = _npy_header(data[:length])
    except _NO_HEADER as error:
        raise BadSample(f"{where} is not an npy array ({_short(error)})") from error
    if dtype != sample_format.dtype or fortran:
        raise BadSample(
            f"{where} is {dtype}{' in Fortran order' if fortran else ''}, not {sample_format.dtype} in C order"
        )
    if shape != sample_format.shape(modality):
        raise BadSample(f"{where} has shape {shape}, not {sample_format.shape(modality)}")
    if len(data) - length != math.prod(shape) * dtype.itemsize:
        raise BadSample(f"{where} has {len(data) - length} bytes of data, not {math.prod(shape) * dtype.itemsize}")
    values = np.frombuffer(data, dtype=dtype, offset=length).reshape(shape)
    if sample_format.symbols is None:
        if np.isinf(values).any():
            raise BadSample(f"{where} has an infinite value")
    elif values.max() > sample_format.symbols.alphabet:
        raise BadSample(f"{where} has symbol {values.max()}, the alphabet is {sample_format.symbols.alphabet}")
    return values


def _short(error: BaseException) -> str:
    """An error in a few words: it may contain the damaged text."""
    return " ".join(str(error).split())[:80] or type(error).__name__


@lru_cache(maxsize=256)
def _npy_header(header: bytes) -> tuple[np.dtype, bool, tuple[int, ...]]:
    """(dtype, Fortran order, shape) of an npy header, version 1.0. numpy parses it as a literal; no code is run."""
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"npy version {version} instead of (1, 0)")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    return dtype, fortran, shape


def _recording(body: dict, modality: Modality, where: str) -> np.ndarray:
    try:
        pair = np.array([body["recording_mean"][modality.name], body["recording_std"][modality.name]], dtype=np.float32)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadSample(f"{where}: {modality.name} has no recording mean and std") from error
    if pair.shape != (2, modality.variates) or not np.isfinite(pair).all():
        raise BadSample(f"{where}: {modality.name} needs {modality.variates} finite recording means and stds")
    return pair.T
