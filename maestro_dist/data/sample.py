"""Bytes of a sample's members -> checked arrays. Nothing is ever unpickled."""

from __future__ import annotations

import io
import json
import math
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from maestro_dist.data.manifest import Manifest
from maestro_dist.errors import DataError
from maestro_dist.types import Modality

_FLOAT32 = np.dtype("<f4")


class BadSample(DataError):
    """One sample is wrong; `data.max_bad_samples` says how many of these a run bears."""


@dataclass(frozen=True)
class Layout:
    """What every sample must look like: the modalities wanted, the classes (0: regression), recording statistics."""

    modalities: tuple[Modality, ...]
    classes: int
    recording: bool

    @staticmethod
    def of(manifest: Manifest, modalities: Sequence[Modality]) -> Layout:
        """The layout that a manifest promises."""
        return Layout(tuple(modalities), len(manifest.classes), manifest.recording)


@dataclass(frozen=True)
class Sample:
    """A decoded sample: float32 [T_j, D_j] and recording statistics float32 [D_j, 2] by modality that is there."""

    number: int
    key: str
    target: int | float
    values: dict[str, np.ndarray]
    recording: dict[str, np.ndarray] = field(default_factory=dict)


def decode_sample(
    number: int, key: str, meta: bytes, arrays: Mapping[str, bytes], layout: Layout, where: str
) -> Sample:
    """Decode and check. `where` names the shard and the sample.

    Raises:
        BadSample: JSON, label, type, shape or a value is wrong.
    """
    try:
        body = json.loads(meta)
        label = body["label"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadSample(f"{where}: its json has no label ({type(error).__name__}: {error})") from error
    sample = Sample(number, key, _target(label, layout.classes, where), {})
    for modality in layout.modalities:
        if modality.name in arrays:
            sample.values[modality.name] = _array(arrays[modality.name], modality, where)
            if layout.recording:
                sample.recording[modality.name] = _recording(body, modality, where)
    return sample


def _target(label: object, classes: int, where: str) -> int | float:
    if classes:
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < classes:
            raise BadSample(f"{where}: label {label!r} is not one of 0..{classes - 1}")
        return label
    try:
        if isinstance(label, int | float) and not isinstance(label, bool) and math.isfinite(label):
            return float(label)
    except OverflowError:  # an integer beyond any float
        pass
    raise BadSample(f"{where}: target {str(label)[:40]} is not a finite number")


def _array(data: bytes, modality: Modality, where: str) -> np.ndarray:
    where = f"{where}: {modality.name}"
    try:
        length = 10 + int.from_bytes(data[8:10], "little")
        dtype, fortran, shape = _npy_header(data[:length])
    except (ValueError, SyntaxError, EOFError, tokenize.TokenError) as error:
        raise BadSample(f"{where} is not an npy array ({error})") from error
    if dtype != _FLOAT32 or fortran:
        raise BadSample(f"{where} is {dtype}{' in Fortran order' if fortran else ''}, not float32 in C order")
    if shape != (modality.steps, modality.variates):
        raise BadSample(f"{where} has shape {shape}, not {(modality.steps, modality.variates)}")
    if len(data) - length != math.prod(shape) * 4:
        raise BadSample(f"{where} has {len(data) - length} bytes of data, not {math.prod(shape) * 4}")
    values = np.frombuffer(data, dtype=_FLOAT32, offset=length).reshape(shape)
    if np.isinf(values).any():
        raise BadSample(f"{where} has an infinite value")
    return values


@lru_cache(maxsize=256)
def _npy_header(header: bytes) -> tuple[np.dtype, bool, tuple[int, ...]]:
    """(dtype, Fortran order, shape) of an npy header, version 1.0; numpy reads it as a literal, never as code."""
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"npy version {version} instead of (1, 0)")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    return dtype, fortran, shape


def _recording(body: dict, modality: Modality, where: str) -> np.ndarray:
    try:
        pair = np.array([body["recording_mean"][modality.name], body["recording_std"][modality.name]], dtype=np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise BadSample(f"{where}: {modality.name} has no recording mean and std") from error
    if pair.shape != (2, modality.variates) or not np.isfinite(pair).all():
        raise BadSample(f"{where}: {modality.name} needs {modality.variates} finite recording means and stds")
    return pair.T
