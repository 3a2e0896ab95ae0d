"""One more token a present modality: what the whole window was like.

Features are in units of the training split, or of the recording when the words are normalised by it. Every one is a
sum, a minimum or a maximum over steps, or a function of such, and none looks across a border of words: ranks that share
the time axis combine theirs exactly. Each is brought to about [-2, 2], and may be encoded piece by piece besides, so
that a linear layer can bend where it wants: what trees do with their thresholds.

Letters besides those of `maestro`: F features a variate, K pieces.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maestro_dist.model.context import SequenceContext
from maestro_dist.model.layers import Linear
from maestro_dist.model.sax import Moments

LEVEL, STATISTICS = 2, 18
"""Features F a variate: mean, log std; and minimum, maximum, first, last and their difference, slope, observed share,
three log energies, the means of the window's quarters, the times of the first and the last observation."""

QUARTERS = 4

_FLOOR = 1e-4
"""Smallest spread, in units, that a logarithm still tells from zero."""

_ENDS = (-2.0, 2.0)
"""Where the first piece begins and the last one ends."""


class Summary(nn.Module):
    """Window statistics of one modality -> one token."""

    def __init__(self, variates: int, kind: str, width: int, sequence: SequenceContext, pieces: int = 0) -> None:
        """`kind`: level or statistics; `pieces`: K of each feature's piecewise-linear encoding, 0: its value alone."""
        super().__init__()
        self.full, self.sequence, self.pieces = kind == "statistics", sequence, pieces
        self.linear = Linear(variates * (STATISTICS if self.full else LEVEL) * (1 + pieces), width)

    def forward(self, features: Tensor) -> Tensor:
        """`features` [R, F'] of each row -> its summary token [R, d]."""
        out: Tensor = self.linear(features)
        return out

    def features(self, samples: Tensor, mean: Tensor, window: Moments, unit: Tensor, start: int, steps: int) -> Tensor:
        """What the token is made from, [R, D F (1 + K)]; it takes no parameters, so modalities can share a call.

        samples [R, W, w, 2 D] of `sax.Words`, in units; mean float64 [R, D] in units; window: moments in raw units;
        unit: one unit, float64 [D] or [R, D]; start: global number of the first step; steps: how many there are over
        all ranks.
        """
        spread = (window.m2 / window.n.clamp_min(1)).sqrt() / unit
        observed = window.n > 0
        features = [mean.asinh(), _log(spread)]
        if self.full:
            features += self._statistics(samples, mean, spread, window.n, start, steps)
        stacked = torch.where(observed[..., None], torch.stack(features, -1), 0).to(samples.dtype)
        if self.pieces:
            encoded = piecewise(stacked, self.pieces).flatten(2) * observed[..., None]
            stacked = torch.cat((stacked, encoded.to(stacked.dtype)), 2)
        return stacked.flatten(1)

    def _statistics(
        self, samples: Tensor, mean: Tensor, spread: Tensor, count: Tensor, start: int, steps: int
    ) -> list[Tensor]:
        z, mask = samples.double().chunk(2, -1)
        seen = mask > 0
        words, word = z.shape[1:3]
        time = torch.arange(start, start + words * word, dtype=z.dtype, device=z.device).view(words, word, 1)
        far = torch.finfo(z.dtype).max
        peaks = torch.stack(
            [_largest(torch.where(seen, value, -far), -far) for value in (z, -z, time.expand_as(z), -time.expand_as(z))]
        )
        largest, smallest, last, first = self.sequence.maximum(peaks)
        # Words' own spread: what the mean of a word averages away, all of it and between neighbouring steps.
        inside = z - (z.sum(2, keepdim=True) / mask.sum(2, keepdim=True).clamp_min(1))
        pairs = mask[:, :, 1:] * mask[:, :, :-1]
        quarter = (time * QUARTERS / steps).long().clamp_max(QUARTERS - 1)
        inner = (quarter == torch.arange(QUARTERS, device=z.device)).to(z.dtype)  # [W, w, quarters]
        sums = [
            (z * (time == last[:, None, None])).sum((1, 2)),
            (z * (time == -first[:, None, None])).sum((1, 2)),
            (mask * time).sum((1, 2)),
            (mask * time.square()).sum((1, 2)),
            (z * time).sum((1, 2)),
            (inside.square() * mask).sum((1, 2)),
            ((z[:, :, 1:] - z[:, :, :-1]).square() * pairs / 4).sum((1, 2)),
            pairs.sum((1, 2)),
            *torch.einsum("rwsd,wsq->qrd", z, inner),
            *torch.einsum("rwsd,wsq->qrd", mask, inner),
        ]
        end, begin, t, tt, zt, within, quick, neighbours, *quarters = self.sequence.sum(torch.stack(sums))
        n = count.clamp_min(1)
        variance = tt / n - (t / n).square()
        slope = (zt / n - mean * t / n) / variance.clamp_min(1e-9) * variance.clamp_min(0).sqrt()
        slow = (spread.square() - within / n).clamp_min(0)
        energies = [slow, within / n, quick / neighbours.clamp_min(1)]
        # a quarter without any observation says nothing: it is as the whole window
        pairs_of = zip(quarters[:QUARTERS], quarters[QUARTERS:], strict=True)
        means = [torch.where(there > 0, total / there.clamp_min(1), mean) for total, there in pairs_of]
        return [
            (-smallest).asinh(),
            largest.asinh(),
            begin.asinh(),
            end.asinh(),
            (end - begin).asinh(),
            slope.asinh(),
            (count / steps).clamp(1e-3, 1).log() / 1.5 + 1.5,
            *(_log(energy.sqrt()) for energy in energies),
            *(quarter_mean.asinh() for quarter_mean in means),
            *(4 * (moment / max(1, steps - 1)) - 2 for moment in (-first, last)),
        ]


def piecewise(x: Tensor, pieces: int) -> Tensor:
    """How much of each of K pieces between -2 and 2 lies below x [...]: [..., K] in [0, 1].

    Piecewise-linear encoding (Gorishniy et al., On Embeddings for Numerical Features in Tabular Deep Learning, 2022),
    with pieces of one length.
    """
    low, high = _ENDS
    first = torch.arange(pieces, dtype=x.dtype, device=x.device)
    return ((x[..., None] - low) * (pieces / (high - low)) - first).clamp(0, 1)


def _log(spread: Tensor) -> Tensor:
    """About [-2, 2] for what is seen: from a 400th of a unit to some units."""
    return spread.clamp_min(_FLOOR).log() / 2 + 1


def _largest(x: Tensor, fill: float) -> Tensor:
    """Maximum of [R, W, w, D] over all steps, also when there are none."""
    flat = torch.nn.functional.pad(x.flatten(1, 2), (0, 0, 0, 1), value=fill)
    return flat.amax(1)
