"""Missing modalities: the training curriculum (counter draws) and the masks of the evaluation protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maestro_dist import rng
from maestro_dist.config.learning import MissingConfig


def drop_probability(config: MissingConfig, step: int, total_steps: int) -> float:
    """Probability that a modality is dropped at a step: 0 up to `ramp_start`, linear to `max_rate` at `ramp_end`."""
    share = step / total_steps
    if share >= config.ramp_end:
        return config.max_rate
    if share <= config.ramp_start:
        return 0.0
    return config.max_rate * (share - config.ramp_start) / (config.ramp_end - config.ramp_start)


def drop_modalities(
    present: np.ndarray,
    sample: np.ndarray,
    names: Sequence[str],
    *,
    p: float,
    seed: int,
    step: int,
    always: Sequence[bool] | None = None,
) -> np.ndarray:
    """What is left of `present` (bool [B, M]) after dropping each modality with probability `p`; never nothing.

    A draw belongs to (seed, step, sample number, modality name), so neither the cut of the batch nor the order of the
    modalities matters. Where all would go, the present one with the largest draw stays. `always` marks modalities that
    are never dropped; the others are then treated as if these were not there.
    """
    if always is not None and any(always):
        left, others = present.copy(), np.flatnonzero(~np.asarray(always, dtype=bool))
        some = [names[column] for column in others.tolist()]
        left[:, others] = drop_modalities(present[:, others], sample, some, p=p, seed=seed, step=step)
        return left
    if p <= 0.0 or not present.size:
        return present.copy()
    draws = np.stack([rng.uniform_np(rng.key(seed, "missing", step, name), sample) for name in names], axis=1)
    kept = present & (draws >= p)
    lost = np.flatnonzero(present.any(axis=1) & ~kept.any(axis=1))
    kept[lost, np.argmax(np.where(present, draws, -1.0)[lost], axis=1)] = True
    return kept


def evaluation_mask(present: np.ndarray, rate: float, draw: int, always: Sequence[bool] | None = None) -> np.ndarray:
    """What is left of `present` (bool [N, M]) at a missing rate; the same on every machine and rank.

    The protocol: numpy's `default_rng(draw).random([N, M]) < rate` removes modality m of sample n (samples in manifest
    order, modalities by sorted name). Where none is left the same generator keeps `choice(naturally present)`, row by
    row. `always` marks modalities that are never removed; the protocol then speaks of the others alone.
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
