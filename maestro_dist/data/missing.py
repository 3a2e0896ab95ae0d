"""Missing modalities: the curriculum of training, and the masks of the evaluation protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maestro_dist import rng
from maestro_dist.config.learning import MissingConfig
from maestro_dist.types import Modality


def drop_probability(config: MissingConfig, step: int, total_steps: int) -> float:
    """Probability that a modality is dropped at a step: 0 until `ramp_start`, linear up to `max_rate` at `ramp_end`."""
    share = step / total_steps
    if share >= config.ramp_end:
        return config.max_rate
    if share <= config.ramp_start:
        return 0.0
    return config.max_rate * (share - config.ramp_start) / (config.ramp_end - config.ramp_start)


def drop_modalities(
    present: np.ndarray,
    sample: np.ndarray,
    modalities: Sequence[Modality],
    *,
    p: float,
    seed: int,
    step: int,
) -> np.ndarray:
    """The rest of `present` (bool [B, M]) after each modality was dropped with probability `p`.

    A sample always keeps at least one modality: where all would be dropped, the present one with the largest draw
    stays. A draw depends on (seed, step, sample number, modality name), so neither the size of the batch nor the order
    of the modalities matters. Modalities with `always` are never dropped and do not count as the kept modality.
    """
    others = [column for column, modality in enumerate(modalities) if not modality.always]
    if len(others) < len(modalities):
        left, droppable = present.copy(), [modalities[column] for column in others]
        left[:, others] = drop_modalities(present[:, others], sample, droppable, p=p, seed=seed, step=step)
        return left
    if p <= 0.0 or not present.size:
        return present.copy()
    draws = np.stack([rng.uniform_np(rng.key(seed, "missing", step, m.name), sample) for m in modalities], axis=1)
    kept = present & (draws >= p)
    all_dropped = np.flatnonzero(present.any(axis=1) & ~kept.any(axis=1))
    kept[all_dropped, np.argmax(np.where(present, draws, -1.0)[all_dropped], axis=1)] = True
    return kept


def evaluation_mask(present: np.ndarray, rate: float, draw: int, always: Sequence[bool] | None = None) -> np.ndarray:
    """The rest of `present` (bool [N, M]) at a missing rate; the same on every machine and rank.

    The protocol: modality m of sample n is removed where numpy's `default_rng(draw).random([N, M]) < rate` (samples in
    manifest order, modalities sorted by name). Where all present modalities of a sample would be removed, the same
    generator keeps `choice(present)`, row by row. Modalities marked in `always` are never removed; the protocol then
    applies to the others only.
    """
    if always is not None and any(always):
        left, others = present.copy(), np.flatnonzero(~np.asarray(always, dtype=bool))
        left[:, others] = evaluation_mask(present[:, others], rate, draw)
        return left
    generator = np.random.default_rng(draw)
    kept = present & ~(generator.random(present.shape) < rate)
    for row in np.flatnonzero(present.any(axis=1) & ~kept.any(axis=1)):
        kept[row, generator.choice(np.flatnonzero(present[row]))] = True
    return kept
