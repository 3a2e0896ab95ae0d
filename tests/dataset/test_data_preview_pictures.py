"""What the pictures of a preview show: gaps, spikes, single steps; how much fits on a page."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from preview_pages import ECG, close_to

from maestro_dist.data.preview.curves import Curves
from maestro_dist.data.preview.draw import GAP, Pictures, label_shares
from maestro_dist.data.preview.recordings import ShownRecording
from maestro_dist.data.preview.samples import ShownSample
from maestro_dist.data.recordings.table import RecordingFacts


def drawn(values: np.ndarray) -> Image.Image:
    sample = ShownSample("train", 0, "w0", curves={"ecg": Curves.of_array(np.float32(values), 16.0, most=360)})
    return Image.open(io.BytesIO(Pictures([ECG], ["train"], "").sample(sample))).convert("RGB")


def test_a_gap_is_shaded_where_it_is() -> None:
    values = np.random.default_rng(0).normal(size=(64, 1))
    whole = drawn(values)
    values[16:32] = np.nan  # seconds 1 to 2 of 4
    gapped = close_to(drawn(values), GAP)
    assert close_to(whole, GAP).mean() < 0.005
    columns = np.flatnonzero(gapped.sum(axis=0) > 40)
    left, right = 2 * 50, 2 * 370  # the axes, in pixels
    assert np.allclose([columns[0], columns[-1]], left + (right - left) * np.array([0.25, 0.5]), atol=4)
    assert len(columns) > 0.9 * (columns[-1] - columns[0])


def test_a_single_observed_step_is_seen() -> None:
    blue = "#0072B2"
    values = np.full((64, 1), np.nan)
    nothing = int(close_to(drawn(values), blue).sum())
    values[30] = 1.0
    assert int(close_to(drawn(values), blue).sum()) >= nothing + 10
    long = np.full((4000, 1), np.nan)
    long[2000] = 1.0
    assert int(close_to(drawn(long), blue).sum()) >= nothing + 10


@pytest.mark.parametrize("steps", [1, 2, 399, 400, 401, 1000, 300_001])
def test_no_spike_and_no_gap_is_lost(steps: int) -> None:
    draw = np.random.default_rng(steps)
    values = draw.normal(size=(steps, 2)).astype(np.float32)
    at = int(draw.integers(steps))
    values[at, 1] = 1e6
    values[draw.random(steps) < 0.3, 0] = np.nan
    curves = Curves.of_array(values, 10.0, start_s=5.0, most=400)
    assert len(curves.time_s) == min(steps, 400)
    edges = np.arange(len(curves.time_s) + 1) * steps // len(curves.time_s)
    for column, (first, end) in enumerate(pairwise(edges.tolist())):  # slow and obvious
        part = values[first:end]
        for variate in range(2):
            own = part[~np.isnan(part[:, variate]), variate]
            expected = (own.min(), own.max()) if len(own) else (np.nan, np.nan)
            found = curves.low[column, variate], curves.high[column, variate]
            assert np.array_equal(found, expected, equal_nan=True)
        assert curves.missing[column] == pytest.approx(np.isnan(part).mean())
    assert curves.high[:, 1].max() == 1e6
    spike = curves.time_s[np.nanargmax(curves.high[:, 1])]
    assert abs(spike - (5.0 + at / 10)) <= curves.width_s / 2 + 1e-9
    gone = np.isnan(values).all(axis=1)
    assert (len(curves.runs(curves.missing >= 1)) > 0) == gone.any() or steps > 400


def test_labels_that_change_often_are_shares() -> None:
    ends = np.cumsum(np.random.default_rng(0).uniform(0.1, 2, 2001))
    intervals = np.stack([ends[:-1], ends[1:] - 0.05, np.arange(2000) % 3], axis=1)
    edges, shares = label_shares(intervals, 50)
    total = sum(shares.values())
    assert total.max() <= 1 + 1e-9
    for number, share in shares.items():  # slow and obvious
        for column in (0, 17, 49):
            low, high = edges[column], edges[column + 1]
            own = intervals[intervals[:, 2] == number]
            seconds = np.maximum(np.minimum(own[:, 1], high) - np.maximum(own[:, 0], low), 0).sum()
            assert share[column] == pytest.approx(seconds / (high - low))


def test_a_brief_label_and_a_brief_window_are_seen() -> None:
    intervals = np.array([[0.0, 50_000.0, 0], [50_000.0, 50_001.0, 1], [50_001.0, 100_000.0, 0]])
    curves = Curves.of_array(np.zeros((100, 1), dtype=np.float32), 0.001)
    facts = RecordingFacts("r", "", "", "", 100_000.0, np.nan, intervals, ())
    windows = {"train": [(0.0, 40_000.0)], "test": [(70_000.0, 1.0)]}
    shown = ShownRecording(facts, windows, {}, {"ecg": curves})
    picture = Image.open(io.BytesIO(Pictures([ECG], ["train", "test"], "").recording(shown, 2))).convert("RGB")
    pixels = np.asarray(picture).astype(int)
    orange = pixels[:, :, 0] - pixels[:, :, 2] > 120  # of the second class and of the second split
    assert orange[30:75].sum() >= 10  # the strip of windows
    assert orange[105:150].sum() >= 10  # the strip of labels
