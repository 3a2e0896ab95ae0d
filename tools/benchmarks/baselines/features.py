"""Statistics of windows, the features of gradient boosting."""

from __future__ import annotations

import numpy as np

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
STATISTICS = (
    "mean", "std", "min", *(f"q{round(100 * q)}" for q in QUANTILES), "max", "first", "last", "slope",
    "energy of differences", "size of differences", "observed share", "last seen",
)  # fmt: skip


def statistics(values: np.ndarray) -> np.ndarray:
    """[N, T, D] with NaN where a step was not observed -> float32 [N, D * len(STATISTICS)].

    Over the observed steps of each variate: moments, order statistics, the first and last value, the slope of a line
    fitted by least squares (a window's length is 1), the mean square and the mean size of the differences between
    neighbours, the observed share, and the time since the last observed step. NaN where no step is observed.
    """
    samples, steps, variates = values.shape
    x = values.transpose(0, 2, 1).reshape(-1, steps).astype(np.float64)  # rows are (sample, variate)
    seen = ~np.isnan(x)
    count = seen.sum(1)
    some = np.maximum(count, 1)
    filled = np.where(seen, x, 0.0)
    mean = filled.sum(1) / some
    centred = np.where(seen, x - mean[:, None], 0.0)
    std = np.sqrt((centred**2).sum(1) / some)
    ordered = np.sort(x, axis=1)  # NaN comes last
    rows = np.arange(len(x))

    def at(share: float) -> np.ndarray:
        place = share * (some - 1)
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, some - 1)
        return ordered[rows, low] + (place - low) * (ordered[rows, high] - ordered[rows, low])

    first = seen.argmax(1)
    last = steps - 1 - seen[:, ::-1].argmax(1)
    time = np.arange(steps) / steps
    offset = np.where(seen, time - (np.where(seen, time, 0.0).sum(1) / some)[:, None], 0.0)
    slope = (offset * centred).sum(1) / np.maximum((offset**2).sum(1), 1e-12)
    previous = np.maximum.accumulate(np.where(seen, np.arange(steps), -1), axis=1)
    before = np.concatenate((np.full((len(x), 1), -1), previous[:, :-1]), axis=1)
    pair = seen & (before >= 0)
    difference = np.where(pair, filled - np.take_along_axis(filled, np.maximum(before, 0), axis=1), 0.0)
    pairs = np.maximum(pair.sum(1), 1)
    columns = [mean, std, at(0.0), *(at(q) for q in QUANTILES), at(1.0), x[rows, first], x[rows, last], slope]
    columns += [(difference**2).sum(1) / pairs, np.abs(difference).sum(1) / pairs]
    table = np.stack([*columns, count / steps, (steps - 1 - last) / steps], axis=1)
    table[count == 0] = np.nan
    table[count == 1, STATISTICS.index("slope")] = np.nan
    return table.reshape(samples, variates * len(STATISTICS)).astype(np.float32)
