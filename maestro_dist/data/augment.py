"""Augmentation of training windows (the section `augment` of the configuration).

It works on complete windows, before sequence ranks take their slices. The order is: time warp and shift, rotation,
scaling, jitter, time mask. Statistics of the recording stay unchanged.

A random draw depends on (seed, kind, epoch, sample number, modality). Draws for the time axis do not depend on the
modality, so that all streams of a sample stay aligned. An augmented window is therefore the same for any number of
ranks, readers and micro-batches, and after a restart.

Shape letters: R samples that have a modality, T steps, D variates. Source: Um et al., Data Augmentation of Wearable
Sensor Data, ICMI 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from maestro_dist import rng
from maestro_dist.config.learning import AugmentConfig
from maestro_dist.data.sample import DecodedSample
from maestro_dist.errors import ConfigError
from maestro_dist.types import Modality

_STEPS = 1 << 16
"""Steps processed at a time, to limit memory: draws and positions take 8 bytes each."""
_WAVES = 3
"""Half waves whose sum is a time warp."""

Axis = tuple[str, int]
"""A variate of a modality: its name and the number of the variate."""
RotationGroup = tuple[str, list[tuple[Axis, Axis, Axis]]]
"""Triples of axes that rotate together, and the name that keys the random draw of their rotation."""

_KINDS = ("jitter", "scaling", "rotation", "time_warp", "shift", "time_mask")


def wanted_kinds(config: AugmentConfig) -> list[str]:
    """The keys of `augment` that are enabled."""
    return [kind for kind in (*_KINDS, "mixup") if getattr(config, kind) > 0.0]


def check_augment(config: AugmentConfig, modalities: Sequence[Modality]) -> None:
    """Raise `ConfigError` if an augmentation does not fit the modalities of the data."""
    modalities = [modality for modality in modalities if not modality.always]
    for key in ("jitter", "scaling"):
        for modality in modalities:
            if getattr(config, key) > 0.0 and not len(modality.mean) == len(modality.std) == modality.variates:
                raise ConfigError(
                    f"augment.{key}: the manifest has no mean and std of modality {modality.name!r}; "
                    "pack the data again"
                )
    if config.rotation > 0.0:
        rotation_groups(config, modalities)


def rotation_groups(config: AugmentConfig, modalities: Sequence[Modality]) -> list[RotationGroup]:
    """Which axes rotate together: `augment.rotation_groups`, or by default each modality with three variates.

    Raises:
        ConfigError: a group names a modality that is not used, its number of axes is not a multiple of three, or the
            axes of a triple differ in rate or length.
    """
    by_name = {modality.name: modality for modality in modalities}
    groups = config.rotation_groups or [[m.name] for m in modalities if m.variates == 3]
    if not groups:
        raise ConfigError(
            "augment.rotation: no modality has three variates; name the axes in augment.rotation_groups, as in "
            "[[acc_x, acc_y, acc_z]]"
        )
    result: list[RotationGroup] = []
    for group in groups:
        where = f"augment.rotation_groups: [{', '.join(group)}]"
        for name in group:
            if name not in by_name:
                raise ConfigError(f"{where}: modality {name!r} is not used; there are {', '.join(by_name)}")
        axes = [(name, variate) for name in group for variate in range(by_name[name].variates)]
        if not axes or len(axes) % 3 or len(set(axes)) < len(axes):
            raise ConfigError(f"{where} has {len(axes)} axes; give a multiple of three, each axis once")
        threes = [(axes[at], axes[at + 1], axes[at + 2]) for at in range(0, len(axes), 3)]
        for three in threes:
            if len({(by_name[name].steps, by_name[name].rate_hz) for name, _ in three}) > 1:
                names = ", ".join(name for name, _ in three)
                raise ConfigError(f"{where}: {names} rotate together, but differ in rate or length")
        result.append(("+".join(group), threes))
    return result


def augment(
    samples: Sequence[DecodedSample],
    config: AugmentConfig,
    modalities: Sequence[Modality],
    window_s: float,
    *,
    seed: int,
    epoch: int,
) -> list[DecodedSample]:
    """New samples with augmented windows [T_j, D_j]; the given samples are not changed.

    `window_s` is the length of a window in seconds. Modalities with `always` are not augmented.
    """
    modalities = [modality for modality in modalities if not modality.always]
    if not samples or not any(getattr(config, kind) > 0.0 for kind in _KINDS):
        return list(samples)

    def key(kind: str, *parts: str) -> int:
        return rng.key(seed, "augment", kind, epoch, *parts)

    numbers = np.array([sample.number for sample in samples], dtype=np.int64)
    having: dict[str, np.ndarray] = {}
    windows: dict[str, np.ndarray] = {}
    for modality in modalities:
        name = modality.name
        having[name] = np.flatnonzero([name in sample.values for sample in samples])
        if not len(having[name]):
            continue
        windows[name] = np.stack([samples[row].values[name] for row in having[name]])
        if config.time_warp or config.shift:
            windows[name] = _move(windows[name], numbers[having[name]], config, modality, window_s, key)
    if config.rotation:
        for label, threes in rotation_groups(config, modalities):
            matrices = _rotations(key("rotation", label), numbers, config.rotation)
            for three in threes:
                _turn(windows, having, three, matrices)
    for modality in modalities:
        name = modality.name
        if name not in windows:
            continue
        numbers_having = numbers[having[name]]
        if config.scaling or config.jitter:
            _scale(windows[name], numbers_having, config, modality, key)
        if config.time_mask:
            _mask(
                windows[name],
                rng.uniform_np(key("time_mask", name), numbers_having[:, None], np.arange(2)),
                config.time_mask,
            )
    changed = [dict(sample.values) for sample in samples]
    for name, window in windows.items():
        for at, row in enumerate(having[name]):
            changed[row][name] = window[at]
    return [replace(sample, values=values) for sample, values in zip(samples, changed, strict=True)]


def _move(
    x: np.ndarray, numbers: np.ndarray, config: AugmentConfig, modality: Modality, window_s: float, key: rng.Keyed
) -> np.ndarray:
    """Windows [R, T, D] read at warped and shifted times; all modalities of a sample use the same times.

    The warped time is t + strength * sum of sin(pi k t / window) c_k / (pi k), with c_k uniform in [-1/3, 1/3]. The
    speed stays within 1 +- strength, and both ends of the window do not move.
    """
    waves = np.arange(1, _WAVES + 1)
    span = window_s * modality.rate_hz  # steps of the shared axis
    size = (2 * rng.uniform_np(key("time_warp"), numbers[:, None], waves) - 1) / _WAVES
    size *= config.time_warp * span / (np.pi * waves)
    offset = (2 * rng.uniform_np(key("shift"), numbers) - 1) * config.shift * span
    moved = np.empty_like(x)
    for start in range(0, modality.steps, _STEPS):
        steps = np.arange(start, min(start + _STEPS, modality.steps), dtype=np.float64)
        position = steps - offset[:, None]
        if config.time_warp:
            for wave, height in zip(np.sin(np.pi * waves[:, None] * steps / span), size.T, strict=True):
                position += height[:, None] * wave
        else:
            position = np.rint(position)  # integer steps: a shift without a warp does not interpolate
        moved[:, start : start + len(steps)] = _read(x, position)
    return moved


def _read(x: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Linear interpolation of windows [R, T, D] at real-valued steps [R, S] -> [R, S, D].

    Where a neighbour was not observed, the nearer neighbour gives the value (NaN if the nearer one was not observed).
    Positions outside of the window give NaN.
    """
    last = x.shape[1] - 1
    inside = (position > -1) & (position < last + 1)  # a warp may reach up to one step beyond the ends
    at = np.clip(position, 0, last)
    low = np.floor(at).astype(np.int64)
    share = (at - low)[:, :, None]
    before = np.take_along_axis(x, low[:, :, None], 1)
    after = np.take_along_axis(x, np.minimum(low + 1, last)[:, :, None], 1)
    value = before * (1 - share) + after * share
    value = np.where(np.isnan(value), np.where(share < 0.5, before, after), value)
    return np.where(inside[:, :, None], value, np.nan)


def _rotations(key: int, numbers: np.ndarray, degrees: float) -> np.ndarray:
    """A rotation matrix for each sample, float64 [R, 3, 3], by Rodrigues' formula.

    The axis is uniform on the sphere, the angle uniform between 0 and `degrees`.
    """
    axis = rng.normal_np(key, numbers[:, None], np.arange(3))
    axis = axis / np.sqrt((axis * axis).sum(1, keepdims=True))
    angles = (rng.uniform_np(key, numbers, 3) * math.radians(degrees)).tolist()
    cos = np.array([math.cos(angle) for angle in angles])[:, None, None]
    sin = np.array([math.sin(angle) for angle in angles])[:, None, None]
    x, y, z = axis.T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(-1, 3, 3)
    return cos * np.eye(3) + (1 - cos) * axis[:, :, None] * axis[:, None, :] + sin * cross


def _turn(
    windows: dict[str, np.ndarray],
    having: dict[str, np.ndarray],
    three: tuple[Axis, Axis, Axis],
    matrices: np.ndarray,
) -> None:
    """Rotate three axes in place, in the samples that have all three. A step with one NaN becomes NaN in all three."""
    rows = having[three[0][0]]
    for name, _ in three[1:]:
        rows = np.intersect1d(rows, having[name], assume_unique=True)
    if not len(rows):
        return
    where = [(name, np.searchsorted(having[name], rows), variate) for name, variate in three]
    steps = windows[three[0][0]].shape[1]
    for start in range(0, steps, _STEPS):
        part = slice(start, start + _STEPS)
        old = [windows[name][at, part, variate].astype(np.float64) for name, at, variate in where]
        for axis, (name, at, variate) in enumerate(where):
            factor = matrices[rows, axis, :, None]
            windows[name][at, part, variate] = factor[:, 0] * old[0] + factor[:, 1] * old[1] + factor[:, 2] * old[2]


def _scale(x: np.ndarray, numbers: np.ndarray, config: AugmentConfig, modality: Modality, key: rng.Keyed) -> None:
    """In place, x [R, T, D]: scale the deviation from the training mean by a factor for each variate, and add noise."""
    mean, std = np.array(modality.mean), np.array(modality.std)
    variates = np.arange(modality.variates)
    factor = 1 + config.scaling * rng.normal_np(key("scaling", modality.name), numbers[:, None], variates)
    for start in range(0, modality.steps, _STEPS):
        part = x[:, start : start + _STEPS].astype(np.float64)
        if config.scaling:
            part = mean + (part - mean) * factor[:, None]
        if config.jitter:
            steps = np.arange(start, start + part.shape[1])[:, None] * modality.variates + variates
            part += config.jitter * std * rng.normal_np(key("jitter", modality.name), numbers[:, None, None], steps)
        x[:, start : start + _STEPS] = part


def _mask(x: np.ndarray, draws: np.ndarray, share: float) -> None:
    """In place: set one span of each window [R, T, D] to NaN. draws [R, 2]: length (up to `share`) and position."""
    steps = x.shape[1]
    length = np.rint(draws[:, 0] * share * steps)
    start = np.floor(draws[:, 1] * (steps - length + 1))
    at = np.arange(steps)
    x[(at >= start[:, None]) & (at < (start + length)[:, None])] = np.nan
