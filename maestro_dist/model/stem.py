"""The convolutional stem inside a modality."""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_dist.config.model import StemConfig
from maestro_dist.errors import ConfigError
from maestro_dist.model.context import SequenceContext
from maestro_dist.model.layers import Linear, Windowed


def stem_steps(config: StemConfig, word: int) -> list[int]:
    """Steps of a word in the input of each convolution of the stem."""
    steps = [word]
    for _ in range(config.layers - 1):
        steps.append(steps[-1] // config.pool if steps[-1] % config.pool == 0 else steps[-1])
    return steps


class Stem(nn.Module):
    """Convolutions over the steps of one modality, averaged into words.

    They see z-scores and the observed mask. A step with no observation is zero for every convolution and does not count
    in an average.
    """

    def __init__(self, variates: int, config: StemConfig, word: int, width: int, sequence: SequenceContext) -> None:
        super().__init__()
        if config.kernel % 2 == 0:
            raise ConfigError(f"model.stem.kernel is {config.kernel}; choose an odd length")
        self.sequence, self.reach, self.steps = sequence, config.kernel // 2, stem_steps(config, word)
        inputs = [2 * variates] + [config.channels] * (config.layers - 1)
        self.convolutions = nn.ModuleList(Windowed(size, config.channels, config.kernel) for size in inputs)
        self.linear = Linear(config.channels, width)

    def forward(self, samples: Tensor, whole: bool) -> Tensor:
        """Samples [R, W, w, 2 D] of `sax.SaxWords` -> [R, W, d]; `whole` if all steps are known to be observed."""
        rows, words, _, inputs = samples.shape
        x = samples.flatten(1, 2)
        observed = None
        if not whole:
            observed = reduce(torch.maximum, samples[..., inputs // 2 :].unbind(-1)).view(rows, x.shape[1], 1)
        for convolution, steps, steps_after in zip(self.convolutions, self.steps, [*self.steps[1:], 1], strict=True):
            x = F.gelu(convolution(self.sequence.halo_exchange(x, self.reach)))
            if steps > steps_after:
                x, observed = _averaged(x, observed, steps // steps_after)
            elif observed is not None:
                x = x * observed
        out: Tensor = self.linear(x.view(rows, words, x.shape[2]))
        return out


def _averaged(x: Tensor, observed: Tensor | None, size: int) -> tuple[Tensor, Tensor | None]:
    """Means over `size` neighbouring observed steps of x [R, T, C], and whether any of them was observed."""
    shape = (len(x), x.shape[1] // size, size, x.shape[2])
    if observed is None:
        return x.view(shape).sum(2) / size, None
    seen = observed.view(*shape[:3], 1)
    return (x.view(shape) * seen).sum(2) / seen.sum(2).clamp_min(1), seen.amax(2)
