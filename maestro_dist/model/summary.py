"""One more token a present modality: what the whole window was like.

Features are in units of the training split, or of the recording when the words are normalised by it. Every one is a
sum, a minimum or a maximum over steps, or a function of such, and none looks across a border of words: ranks that share
the time axis combine theirs exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maestro_dist.model.context import SequenceContext
from maestro_dist.model.layers import Linear
from maestro_dist.model.sax import Moments

LEVEL, STATISTICS = 2, 11
"""Features a variate: mean, log std; and minimum, maximum, first, last, slope, observed share, three log energies."""

_FLOOR = 1e-4
"""Smallest spread, in units, that a logarithm still tells from zero."""


class Summary(nn.Module):
    """Window statistics of one modality -> one token."""

    def __init__(self, variates: int, kind: str, width: int, sequence: SequenceContext) -> None:
        super().__init__()
        self.full, self.sequence = kind == "statistics", sequence
        self.linear = Linear(variates * (STATISTICS if self.full else LEVEL), width)

    def forward(self, samples: Tensor, mean: Tensor, window: Moments, unit: Tensor, start: int) -> Tensor:
        """The summary token [R, d].

        samples [R, W, w, 2 D] of `sax.Words`, in units; mean float64 [R, D] in units; window: moments in raw units;
        unit: one unit, float64 [D] or [R, D]; start: global number of the first step.
        """
        spread = (window.m2 / window.n.clamp_min(1)).sqrt() / unit
        observed = window.n > 0
        features = [mean.asinh(), _log(spread)]
        if self.full:
            features += self._statistics(samples, mean, spread, window.n, start)
        stacked = torch.where(observed[..., None], torch.stack(features, -1), 0)
        out: Tensor = self.linear(stacked.flatten(1).to(samples.dtype))
        return out

    def _statistics(self, samples: Tensor, mean: Tensor, spread: Tensor, count: Tensor, start: int) -> list[Tensor]:
        z, mask = samples.double().chunk(2, -1)
        steps = mask > 0
        rows, words, word, variates = z.shape
        time = torch.arange(start, start + words * word, dtype=z.dtype, device=z.device).view(words, word, 1)
        far = torch.finfo(z.dtype).max
        peaks = torch.stack(
            [
                _largest(torch.where(steps, value, -far), -far)
                for value in (z, -z, time.expand_as(z), -time.expand_as(z))
            ]
        )
        largest, smallest, last, first = self.sequence.maximum(peaks)
        # Words' own spread: what the mean of a word averages away, all of it and between neighbouring steps.
        inside = z - (z.sum(2, keepdim=True) / mask.sum(2, keepdim=True).clamp_min(1))
        pairs = mask[:, :, 1:] * mask[:, :, :-1]
        sums = [
            (z * (time == last[:, None, None])).sum((1, 2)),
            (z * (time == -first[:, None, None])).sum((1, 2)),
            (mask * time).sum((1, 2)),
            (mask * time.square()).sum((1, 2)),
            (z * time).sum((1, 2)),
            (inside.square() * mask).sum((1, 2)),
            ((z[:, :, 1:] - z[:, :, :-1]).square() * pairs / 4).sum((1, 2)),
            pairs.sum((1, 2)),
            mask.new_full((rows, variates), float(words * word)),
        ]
        end, begin, t, tt, zt, within, quick, neighbours, capacity = self.sequence.sum(torch.stack(sums))
        n = count.clamp_min(1)
        variance = tt / n - (t / n).square()
        slope = (zt / n - mean * t / n) / variance.clamp_min(1e-9) * variance.clamp_min(0).sqrt()
        slow = (spread.square() - within / n).clamp_min(0)
        energies = [slow, within / n, quick / neighbours.clamp_min(1)]
        return [
            (-smallest).asinh(),
            largest.asinh(),
            begin.asinh(),
            end.asinh(),
            slope.asinh(),
            count / capacity.clamp_min(1),
            *(_log(energy.sqrt()) for energy in energies),
        ]


def _log(spread: Tensor) -> Tensor:
    return spread.clamp_min(_FLOOR).log()


def _largest(x: Tensor, fill: float) -> Tensor:
    """Maximum of [R, W, w, D] over all steps, also when there are none."""
    flat = torch.nn.functional.pad(x.flatten(1, 2), (0, 0, 0, 1), value=fill)
    return flat.amax(1)
