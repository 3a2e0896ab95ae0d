"""The MiniRocket transform (Dempster, Schmidt, Webb, KDD 2021) in numpy: 84 kernels, dilated, shares of positives.

Written from the paper, because the packages that have it (aeon, sktime) need older releases of pandas than MLflow.
Random draws of the paper (the sample of each bias, the variates of a combination) are hashed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from maestro_dist import rng

LENGTH = 9
KERNELS = np.array(list(itertools.combinations(range(LENGTH), 3)))
"""[84, 3]: positions where a kernel has the weight 2; elsewhere it has -1."""
_MOST_DILATIONS = 32
_BLOCK = 1 << 18  # numbers of an array at a time; ten such arrays fit into the cache


@dataclass(frozen=True)
class MiniRocket:
    """A fitted transform.

    dilations  int [P], and `each` int [P]: biases of each kernel at that dilation
    variates   for each (dilation, kernel) the variates that it sums
    biases     float32 [F], in the order of dilation, kernel, bias
    """

    dilations: np.ndarray
    each: np.ndarray
    variates: list[np.ndarray]
    biases: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, features: int, seed: int) -> MiniRocket:
        """From training windows float32 [N, D, T], T >= 9; about `features` features, a multiple of 84."""
        samples, variates, steps = x.shape
        dilations, each = _dilations(steps, max(1, features // len(KERNELS)))
        pairs = len(dilations) * len(KERNELS)
        chosen = [_variates(variates, rng.key(seed, "variates", pair)) for pair in range(pairs)]
        golden = (np.sqrt(5) + 1) / 2
        shares = np.arange(1, int(each.sum()) * len(KERNELS) + 1) * golden % 1
        drawn = (rng.uniform_np(rng.key(seed, "bias"), np.arange(pairs)) * samples).astype(np.int64)
        biases, done = [], 0
        for position, dilation in enumerate(dilations.tolist()):
            for kernel in range(len(KERNELS)):
                pair = position * len(KERNELS) + kernel
                one = _Shifted(x[drawn[pair], chosen[pair]][None], dilation).output(kernel, None)
                count = int(each[position])
                biases.append(np.quantile(one, shares[done : done + count]))
                done += count
        return cls(dilations, each, chosen, np.concatenate(biases).astype(np.float32))

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Windows float32 [N, D, T] -> float32 [N, F]: the share of steps at which an output exceeds its bias.

        Every second (dilation, kernel) uses only the steps where the kernel lies inside the window.
        """
        result = np.empty((len(x), len(self.biases)), np.float32)
        size = max(1, _BLOCK // (x.shape[1] * x.shape[2]))
        for start in range(0, len(x), size):
            block = x[start : start + size]
            for column, share in enumerate(self._shares(block)):
                result[start : start + size, column] = share
        return result

    def _shares(self, x: np.ndarray) -> Iterator[np.ndarray]:
        done, steps = 0, x.shape[2]
        whole = x.shape[1] == 1
        for position, (dilation, count) in enumerate(zip(self.dilations.tolist(), self.each.tolist(), strict=True)):
            shifted = _Shifted(x, dilation)
            margin = LENGTH // 2 * dilation
            for kernel in range(len(KERNELS)):
                variates = self.variates[position * len(KERNELS) + kernel]
                output = shifted.output(kernel, None if whole else variates)
                if (position + kernel) % 2:
                    output = output[:, margin : steps - margin]
                for bias in self.biases[done : done + count]:
                    yield np.count_nonzero(output > bias, axis=1) / output.shape[1]
                done += count


class _Shifted:
    """Windows [N, D, T] shifted by each tap of a kernel, filled with zeros; gives the output of every kernel."""

    def __init__(self, x: np.ndarray, dilation: int) -> None:
        steps = x.shape[2]
        self._taps = np.zeros((LENGTH, *x.shape), np.float32)
        for tap in range(LENGTH):
            shift = (tap - LENGTH // 2) * dilation
            if abs(shift) < steps:
                target, source = (
                    slice(max(0, -shift), steps - max(0, shift)),
                    slice(max(0, shift), steps + min(0, shift)),
                )
                self._taps[tap, :, :, target] = x[:, :, source]
        self._minus = -self._taps.sum(0)
        self._taps *= 3  # a weight of 2 is 3 on top of the -1

    def output(self, kernel: int, variates: np.ndarray | None) -> np.ndarray:
        """[N, T]: summed over some of the variates (None: over all)."""
        one, two, three = KERNELS[kernel]
        if variates is not None and len(variates) == 1:
            at = variates[0]
            return self._minus[:, at] + self._taps[one, :, at] + self._taps[two, :, at] + self._taps[three, :, at]
        whole = self._minus + self._taps[one] + self._taps[two] + self._taps[three]
        if whole.shape[1] == 1:
            return whole[:, 0]
        return (whole if variates is None else whole[:, variates]).sum(1)


def _dilations(steps: int, biases: int) -> tuple[np.ndarray, np.ndarray]:
    """Dilations from 1 to the whole window, exponentially spaced, and how many of a kernel's `biases` each gets."""
    most = min(biases, _MOST_DILATIONS)
    longest = np.log2((steps - 1) / (LENGTH - 1))
    spaced = np.logspace(0, longest, most, base=2).astype(np.int64)
    dilations, count = np.unique(spaced, return_counts=True)
    each = (count * (biases / most)).astype(np.int64)
    for number in range(biases - int(each.sum())):
        each[number % len(each)] += 1
    return dilations, each


def _variates(variates: int, key: int) -> np.ndarray:
    """Some of the variates, more often few than many."""
    most = np.log2(min(variates, LENGTH) + 1)
    count = int(2 ** (rng.uniform_np(key, 0) * most))
    order = np.argsort(rng.bits_np(key, 1, np.arange(variates)), kind="stable")
    return np.sort(order[:count])
