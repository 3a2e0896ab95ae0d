"""One more token for each present modality: statistics of the complete window.

Features are in units of the training split, or of the recording if the words are normalized by it. Each is a sum, a
minimum or a maximum over steps, or a function of these, and none crosses the border of a word. So ranks that share the
time axis combine their features exactly. Features are scaled to about [-2, 2] and standardized over the training split.
They can also be encoded piecewise, so that a linear layer can use thresholds as trees do.

Letters as in `maestro`, and: F features per variate, K pieces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from maestro_dist.model.context import SequenceContext
from maestro_dist.model.layers import Key, Linear
from maestro_dist.model.sax import FARTHEST, WindowMoments

LEVEL, STATISTICS = 2, 18
"""Features F per variate: mean, log std; and minimum, maximum, first, last and their difference, slope, observed share,
three log energies, the means of the window's quarters, the times of the first and the last observation."""

QUARTERS = 4

EXTREMES, SUMS = 4, 8 + 2 * QUARTERS
"""Float64 numbers per variate that ranks with a shared time axis combine: by maximum, and by sum (without the powers of
the bands)."""

_FLOOR = 1e-4
"""Smallest spread, in units: a smaller spread is raised to this."""

_FARTHEST = 5.0
"""Features are limited to this many standard deviations from their mean."""

_ENDS = (-2.0, 2.0)
"""Start of the first piece and end of the last."""


class Summary(nn.Module):
    """Window statistics of one modality -> one token.

    The linear layer gets (feature - `shift`) exp(`log_scale`). These parameters start with values that give the
    training split mean 0 and deviation 1 (`standardise`). Otherwise the model would learn
    features with a small spread very late.
    """

    def __init__(
        self,
        variates: int,
        kind: str,
        width: int,
        sequence: SequenceContext,
        pieces: int = 0,
        bands: Sequence[tuple[int, int]] = (),
    ) -> None:
        """`kind`: level or statistics; `pieces`: K of the piecewise-linear encoding, 0: the value alone;
        `bands`: bands of the words' spectrum, from `spectral_bands`."""
        super().__init__()
        self.full, self.sequence, self.pieces, self.bands = kind == "statistics", sequence, pieces, tuple(bands)
        self.count = (STATISTICS if self.full else LEVEL) + len(self.bands)
        # Both have one dimension, so weight decay does not apply to them.
        self.shift = nn.Parameter(torch.empty(variates * self.count))
        self.log_scale = nn.Parameter(torch.empty(variates * self.count))
        self.linear = Linear(variates * self.count * (1 + pieces), width)

    def fill(self, key: Key) -> None:
        """Leave features unscaled until `standardise` is called."""
        with torch.no_grad():
            self.shift.zero_()
            self.log_scale.zero_()

    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Scale features with this mean and deviation [D, F] to 0 and 1. A constant feature is not scaled.

        Only before training: trained weights depend on the scales that they were trained with.
        """
        std = torch.where(std > _FLOOR, std, 1.0)
        with torch.no_grad():
            self.log_scale.copy_(-std.log().flatten())
            self.shift.copy_(mean.flatten())

    def forward(self, features: Tensor) -> Tensor:
        """`features` [R, D, F] of each row, NaN where nothing was observed -> its summary token [R, d]."""
        missing = features.isnan()
        z = (torch.where(missing, 0, features).flatten(1) - self.shift) * self.log_scale.exp()
        z = torch.where(missing, 0, z.clamp(-_FARTHEST, _FARTHEST).view(features.shape))
        if self.pieces:
            encoded = torch.where(missing[..., None], 0, piecewise(z, self.pieces))
            z = torch.cat((z, encoded.flatten(2)), 2)
        out: Tensor = self.linear(z.flatten(1))
        return out

    def features(
        self, samples: Tensor, mean: Tensor, window: WindowMoments, unit: Tensor, start: int, steps: int
    ) -> Tensor:
        """Features [R, D, F], NaN where nothing was observed. No parameters, so that modalities can share a call.

        samples [R, W, w, 2 D] of `sax.SaxWords`, in units; mean float64 [R, D] in units; window: moments in raw units;
        unit: one unit, float64 [D] or [R, D]; start: global number of the first step; steps: their number over all
        ranks.
        """
        mean = mean.clamp(-FARTHEST, FARTHEST)
        spread = ((window.m2 / window.n.clamp_min(1)).sqrt() / unit).clamp_max(FARTHEST)
        features = [mean.asinh(), _log(spread)]
        if self.full or self.bands:
            features += self._statistics(samples, mean, spread, window.n, start, steps)
        return torch.where(window.n[..., None] > 0, torch.stack(features, -1), math.nan).to(samples.dtype)

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
        largest, smallest, last, first = self.sequence.all_reduce_max(peaks)
        # Spread inside the words, which their means do not show: in total, and between neighbouring steps.
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
            *self._powers(inside * mask, samples.dtype),
            *torch.einsum("rwsd,wsq->qrd", z, inner),
            *torch.einsum("rwsd,wsq->qrd", mask, inner),
        ]
        end, begin, t, time_square, z_time, within, differences, neighbours, *rest = self.sequence.all_reduce_sum(
            torch.stack(sums)
        )
        powers, quarters = rest[: len(self.bands)], rest[len(self.bands) :]
        n = count.clamp_min(1)
        spectrum = [_log((power / n).sqrt()) for power in powers]
        if not self.full:
            return spectrum
        variance = time_square / n - (t / n).square()
        slope = (z_time / n - mean * t / n) / variance.clamp_min(1e-9) * variance.clamp_min(0).sqrt()
        between = (spread.square() - within / n).clamp_min(0)
        energies = [between, within / n, differences / neighbours.clamp_min(1)]
        # a quarter without any observation gets the mean of the complete window
        quarter_sums = zip(quarters[:QUARTERS], quarters[QUARTERS:], strict=True)
        means = [torch.where(observed > 0, total / observed.clamp_min(1), mean) for total, observed in quarter_sums]
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
            *spectrum,
        ]

    def _powers(self, inside: Tensor, dtype: torch.dtype) -> Tensor:
        """Power of each band summed over the words, float64 [bands, R, D]; `inside` [R, W, w, D]: steps minus the mean
        of their word, 0 where not observed. A Hann window reduces leakage into neighbouring bands (Welch, 1967)."""
        if not self.bands or not inside.numel():
            return inside.new_zeros(len(self.bands), len(inside), inside.shape[3])
        kind = torch.promote_types(dtype, torch.float32)
        taper = torch.hann_window(inside.shape[2] + 1, dtype=kind, device=inside.device)[1:, None]
        spectrum = torch.fft.rfft(inside.to(kind) * taper, dim=2)
        power = (spectrum.real.square() + spectrum.imag.square()).sum(1) / taper.square().mean()
        return torch.stack([power[:, first:end].mean(1) for first, end in self.bands]).double()


def spectral_bands(word: int, count: int) -> list[tuple[int, int]]:
    """Up to `count` bands of the spectrum of words of `word` steps, with equal width in octaves: (first bin, end).

    Bin b is the frequency b / word of the rate. Low bands without a bin are left out.
    """
    last = word // 2
    edges = [math.floor((last + 1) ** (band / max(1, count)) + 1e-9) for band in range(count + 1)]
    return [(first, end) for first, end in pairwise(edges) if end > first] if last else []


def piecewise(x: Tensor, pieces: int) -> Tensor:
    """Piecewise-linear encoding of x [...]: the share of each of K equal pieces of [-2, 2] below x, [..., K] in [0, 1].

    Gorishniy et al., On Embeddings for Numerical Features in Tabular Deep Learning, 2022.
    """
    low, high = _ENDS
    first = torch.arange(pieces, dtype=x.dtype, device=x.device)
    return ((x[..., None] - low) * (pieces / (high - low)) - first).clamp(0, 1)


def _log(spread: Tensor) -> Tensor:
    """About [-2, 2] for usual spreads: from 1/400 of a unit to a few units."""
    return spread.clamp_min(_FLOOR).log() / 2 + 1


def _largest(x: Tensor, fill: float) -> Tensor:
    """Maximum of [R, W, w, D] over all steps; `fill` if there are no steps."""
    flat = torch.nn.functional.pad(x.flatten(1, 2), (0, 0, 0, 1), value=fill)
    return flat.amax(1)
