"""Samples from users and clients -> checked arrays."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from maestro_dist.errors import DataError
from maestro_dist.types import Modality

RECORDING = "_recording"
"""Suffix of a modality's name in the key of the statistics of its recording."""


def as_list(given: Any) -> list[Mapping[str, Any]]:
    """One sample or several samples as a list. Raises `DataError` for anything else."""
    if isinstance(given, Mapping):
        return [given]
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise DataError(f"give a sample (a dict: modality -> array) or a list of samples, not {_type(given)}")
    samples = list(given)
    for number, sample in enumerate(samples):
        if not isinstance(sample, Mapping):
            raise DataError(f"sample {number}: {_type(sample)} is not a dict: modality -> array")
    return samples


def check_modality_names(names: Iterable[Any], known: Sequence[str], where: str) -> None:
    """Raise `DataError` for a name that the model does not have, and suggest a similar one."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name).lower(), known, n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise DataError(f"{where}: no modality {name!r}{meant}; the model has {', '.join(known)}")


def split_recordings(row: Mapping[Any, Any], known: Sequence[str]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Split a row into windows and statistics of recordings (keys that end in `_recording`)."""
    statistics = {f"{name}{RECORDING}": name for name in known if f"{name}{RECORDING}" not in known}
    windows = {key: value for key, value in row.items() if key not in statistics}
    return windows, {statistics[key]: value for key, value in row.items() if key in statistics}


def window(given: Any, modality: Modality, where: str) -> np.ndarray | None:
    """A window float32 [T, D] of a modality; None if no value was observed, as for a missing sensor.

    Raises `DataError` for values that are not numbers, another shape, or an infinite value.
    """
    meaning = f"(steps, variates): {modality.seconds:g} s at {modality.rate_hz:g} Hz"
    array = _array(given, (modality.steps, modality.variates), where, meaning)
    if np.isinf(array).any():
        raise DataError(f"{where}: contains an infinite value; use NaN for a step that was not observed")
    return None if np.isnan(array).all() else array


def statistics(given: Any, variates: int, where: str) -> np.ndarray:
    """Mean and standard deviation of a recording, float32 [D, 2]. Raises `DataError` if they are not valid."""
    where = f"{where}, its recording"
    if given is None:
        raise DataError(f"{where}: mean and standard deviation are missing; this model normalizes by recording")
    array = _array(given, (variates, 2), where, "(variates, mean and standard deviation)")
    if not np.isfinite(array).all() or (array[:, 1] < 0).any():
        raise DataError(f"{where}: a mean is not finite, or a standard deviation is not finite or negative")
    return array


def _array(given: Any, shape: tuple[int, int], where: str, axes: str) -> np.ndarray:
    """The input as float32 of the given shape. An axis of length 1 may be left out."""
    wanted = f"[{shape[0]}, {shape[1]}]"
    try:
        array = _numbers(given, shape[1])
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # torch raises RuntimeError
        why = " ".join(str(error).split())[:120]
        raise DataError(f"{where}: not an array of numbers {wanted} ({why})") from error
    if array.ndim < 2 and 1 in shape and array.size == shape[0] * shape[1]:
        array = array.reshape(shape)
    if array.shape != shape:
        raise DataError(f"{where}: shape {list(array.shape)} should be {wanted} {axes}")
    with np.errstate(over="ignore", invalid="ignore"):  # a too large number becomes infinite and is refused later
        return array.astype(np.float32)


def _numbers(given: Any, variates: int) -> np.ndarray:
    """An array of a real type. None in lists and masked elements become NaN."""
    if isinstance(given, list | tuple):
        nested = any(isinstance(row, list | tuple | np.ndarray) for row in given)
        rows = [[None] * variates if nested and row is None else row for row in given]
        masked = any(isinstance(row, np.ma.MaskedArray) for row in rows)
        array = np.ma.array(rows) if masked else np.asarray(rows)
        if array.dtype == object:
            array = np.array([_number(item) for item in array.ravel()]).reshape(array.shape)
    else:
        array = np.asanyarray(given)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"dtype {array.dtype}")
    if isinstance(array, np.ma.MaskedArray):
        array = np.ma.filled(array.astype(np.float64), np.nan)
    return np.asarray(array)


def _number(item: Any) -> float:
    if item is None or item is np.ma.masked:
        return np.nan
    if isinstance(item, int | float | np.integer | np.floating):
        return float(item)
    raise TypeError(f"{_type(item)} in it")


def _type(given: Any) -> str:
    return type(given).__name__
