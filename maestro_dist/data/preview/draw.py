"""The pictures of the page, as PNG files. Names stay plain text, also where they have a dollar sign or a backslash.

Each picture is `WIDTH` or `WIDE` pixels of the page wide, so that its letters can be read on a phone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maestro_dist.data.moments import RunningMoments
from maestro_dist.data.preview.curves import Curves
from maestro_dist.data.preview.recordings import ShownRecording
from maestro_dist.data.preview.samples import MOST_VARIATES, ShownSample, ValueFacts
from maestro_dist.system.figure_labels import LabelFonts
from maestro_dist.system.figure_style import COLOURS, INK, figure_style
from maestro_dist.types import Modality

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, WIDE = 380, 760
MOST_ROWS = 16
"""Modalities that are drawn of a sample or a recording."""
GAP, PART = "#C9C9C9", "#EBEBEB"
"""Colours of steps at which nothing was observed, and at which some variates were not."""
_SHARP = 2  # pixels of the picture for a pixel of the page
_ROW, _SPACE, _EDGE = 0.58, 0.2, 0.3  # inches: height of a row, its title above it, the time axis
_LEFT, _RIGHT = 0.5, 0.1
_SHADES = 128  # of a picture: a third of the bytes
_COLUMNS = 600  # of labels that change often
_DOTS = 80  # columns up to which each value also gets a dot
_BINS = 40
_MARGIN = 0.02  # of the axis of a histogram, beside the lowest and the highest value
_MOST_BANDS = 300  # labels that are drawn one by one; of more, the share of each class in a pixel is drawn
_SEEN = 0.6  # points around a bar: without them, one that is narrower than a pixel could vanish
_CHANGES = {"axes.titlesize": 8, "axes.titlepad": 2, "axes.titleweight": "normal", "font.size": 8}
_PALETTE = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
    *("#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#c7c7c7", "#dbdb8d", "#9edae5"),
)


def split_colour(place: int) -> str:
    """The colour of the split with this place in the manifest."""
    return COLOURS[place % len(COLOURS)]


def class_colour(number: int) -> str:
    """The colour of a class; after 20 classes they come again."""
    return _PALETTE[number % len(_PALETTE)]


class Pictures:
    """Draws the pictures of one data set, with fonts that have its letters."""

    def __init__(self, modalities: Sequence[Modality], splits: Sequence[str], targets: Sequence[str]) -> None:
        """`targets`: what is predicted, then the names of several targets."""
        units = sorted({modality.unit for modality in modalities})
        self._fonts = LabelFonts([*units, *targets])
        self._targets = [self._fonts.title(name) for name in targets[1:]]
        self._units = dict(zip(units, self._fonts.labels(units, "unit"), strict=True))
        self._modalities, self._splits = {m.name: m for m in modalities}, list(splits)

    def sample(self, sample: ShownSample) -> bytes:
        """One row for each modality, over the seconds of the window."""
        names = list(sample.curves)[:MOST_ROWS]
        ends = [self._span(sample.curves[name]) for name in names]
        span = min(begin for begin, _ in ends), max(end for _, end in ends)
        with figure_style(self._fonts.families, **_CHANGES):
            figure, rows = _rows(WIDTH, len(names))
            for axes, name in zip(rows, names, strict=True):
                _draw_curves(axes, sample.curves[name], ())
                axes.set_title(self._title(name, sample.curves[name]))
            _time_axis(rows, span)
            return _png(figure)

    def recording(self, recording: ShownRecording, classes: int) -> bytes:
        """The splits of its windows, its labels, then one row for each modality. `classes`: 0 for regression."""
        names = list(recording.curves)[:MOST_ROWS]
        ends = [(0.0, recording.facts.length_s), *(self._span(recording.curves[name]) for name in names)]
        span = min(begin for begin, _ in ends), max(end for _, end in ends)
        intervals = recording.facts.intervals
        strips = 1 + bool(len(intervals))
        with figure_style(self._fonts.families, **_CHANGES):
            figure, rows = _rows(WIDE, len(names), strips)
            self._windows(rows[0], recording)
            if len(intervals):
                _labels(rows[1], intervals, classes, self._targets)
            for axes, name in zip(rows[strips:], names, strict=True):
                if classes and len(intervals) <= _MOST_BANDS:
                    _bands(axes, intervals, alpha=0.22)
                begin, end = self._span(recording.curves[name])
                after = [] if name in recording.cut_short else [(end, span[1] - end)]
                _draw_curves(axes, recording.curves[name], [(span[0], begin - span[0]), *after])
                axes.set_title(self._title(name, recording.curves[name]))
            _time_axis(rows, span)
            return _png(figure)

    def histogram(self, facts: ValueFacts) -> bytes:
        """One panel for each variate: the share of values in each bin, by split."""
        count = min(facts.modality.variates, MOST_VARIATES)
        parts = {split: np.concatenate(values) for split, values in facts.values.items()}
        columns = 1 if count == 1 else 2
        with figure_style(self._fonts.families, **_CHANGES):
            figure, panels = _panels(count, columns)
            for variate, axes in enumerate(panels):
                own = {split: values[:, variate] for split, values in parts.items()}
                name = "" if facts.modality.variates == 1 else f"variate {variate}"
                _histogram(axes, own, self._colours(), name)
            return _png(figure)

    def targets(self, targets: Mapping[str, np.ndarray], names: Sequence[str]) -> bytes:
        """Histogram of each of the first targets of a regression, by split; `targets` [N] or [N, K]."""
        with figure_style(self._fonts.families, **_CHANGES):
            figure, panels = _panels(min(len(names), MOST_VARIATES), min(len(names), 2))
            for column, (axes, name) in enumerate(zip(panels, names, strict=False)):
                own = {split: of if of.ndim == 1 else of[:, column] for split, of in targets.items()}
                _histogram(axes, own, self._colours(), self._fonts.title(name))
            return _png(figure)

    def _colours(self) -> dict[str, str]:
        return {name: split_colour(place) for place, name in enumerate(self._splits)}

    def _span(self, curves: Curves) -> tuple[float, float]:
        half = curves.width_s / 2
        return float(curves.time_s[0]) - half, float(curves.time_s[-1]) + half

    def _title(self, name: str, curves: Curves) -> str:
        modality = self._modalities[name]
        drawn = curves.low.shape[1]
        more = f", variates 0 to {drawn - 1} of {curves.variates:,}" if drawn < curves.variates else ""
        return f"{name} [{self._units[modality.unit]}]{more}" if modality.unit else f"{name}{more}"

    def _windows(self, axes: Axes, recording: ShownRecording) -> None:
        """A lane for each split that has windows of the recording."""
        lanes = [split for split in self._splits if recording.windows.get(split)]
        for lane, split in enumerate(lanes):
            height = 1 / len(lanes)
            colour = split_colour(self._splits.index(split))
            axes.broken_barh(recording.windows[split], (1 - (lane + 1) * height, 0.9 * height), color=colour, lw=_SEEN)
        axes.set(ylim=(0, 1), yticks=[])
        axes.grid(visible=False)
        axes.set_title("windows, coloured by split")


def _draw_curves(axes: Axes, curves: Curves, outside: Sequence[tuple[float, float]]) -> None:
    """`outside`: begin and length of the times that the stream does not cover."""
    missing, beyond = curves.missing, [(begin, length) for begin, length in outside if length > curves.width_s]
    gaps = [*curves.runs(missing >= 1), *beyond]
    for runs, colour in ((gaps, GAP), (curves.runs((missing > 0) & (missing < 1)), PART)):
        if runs:
            axes.broken_barh(runs, (0, 1), transform=axes.get_xaxis_transform(), color=colour, lw=0, zorder=0.5)
    low, high = curves.low.astype(np.float64), curves.high.astype(np.float64)
    envelope = bool((low < high).any())
    times = np.repeat(curves.time_s, 2) if envelope else curves.time_s
    for variate in range(low.shape[1]):
        colour, own = COLOURS[variate % len(COLOURS)], low[:, variate]
        line = np.stack([own, high[:, variate]], axis=1).reshape(-1) if envelope else own
        axes.plot(times, line, color=colour, linewidth=0.7, solid_joinstyle="round", zorder=2)
        seen = np.concatenate([[False], ~np.isnan(own), [False]])
        alone = seen[1:-1] & ~seen[:-2] & ~seen[2:] if len(own) > _DOTS else seen[1:-1]  # a line needs two points
        axes.plot(curves.time_s[alone], own[alone], color=colour, linestyle="", marker=".", markersize=3, zorder=2)
    axes.margins(x=0, y=0.08)


def _labels(axes: Axes, intervals: np.ndarray, classes: int, targets: Sequence[str]) -> None:
    """Labels over time: coloured bands, or the line of a number, or of each of several `targets`."""
    if classes:
        many = len(intervals) > _MOST_BANDS
        if many:
            edges, shares = label_shares(intervals, _COLUMNS)
            below = np.zeros(_COLUMNS)
            for number, share in shares.items():
                axes.stairs(below + share, edges, baseline=below, fill=True, color=class_colour(number), lw=0)
                below = below + share
        else:
            _bands(axes, intervals, alpha=1.0)
        axes.set(ylim=(0, 1), yticks=[])
        axes.grid(visible=False)
        axes.set_title("labels: the share of time of each, because they change often" if many else "labels")
        return
    nothing = np.full(len(intervals), np.nan)
    if intervals.shape[1] > 3:
        moments = RunningMoments(intervals.shape[1] - 2)
        moments.add(intervals[:, 2:])
        scaled = (intervals[:, 2:] - moments.mean) / np.where(moments.std > 0, moments.std, 1.0)
        times = np.stack([intervals[:, 0], intervals[:, 1], intervals[:, 1]], axis=1).reshape(-1)
        for column, (own, name) in enumerate(zip(scaled.T, targets, strict=False)):
            line = np.stack([own, own, nothing], axis=1).reshape(-1)
            axes.plot(times, line, color=COLOURS[column % len(COLOURS)], lw=1.2, label=name if column < 4 else None)
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.95), ncols=4, fontsize=7, frameon=False)
        axes.margins(x=0, y=0.2)
        axes.set(yticks=[], title="targets, each in its standard deviations")
        return
    times = np.stack([intervals[:, 0], intervals[:, 1], intervals[:, 1]], axis=1).reshape(-1)
    axes.plot(times, np.stack([intervals[:, 2], intervals[:, 2], nothing], axis=1).reshape(-1), color=INK, lw=1.2)
    axes.set_title("target")


def _bands(axes: Axes, intervals: np.ndarray, alpha: float) -> None:
    for number in np.unique(intervals[:, 2]).astype(int).tolist():
        own = intervals[intervals[:, 2] == number]
        bars = np.stack([own[:, 0], own[:, 1] - own[:, 0]], axis=1).tolist()
        place = axes.get_xaxis_transform()
        edge = _SEEN if alpha == 1 else 0.0
        axes.broken_barh(bars, (0, 1), transform=place, color=class_colour(number), alpha=alpha, lw=edge, zorder=0.4)


def label_shares(intervals: np.ndarray, columns: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Edges [columns + 1] of equal parts of the labelled time, and the share of each class in them, [columns]."""
    edges = np.linspace(intervals[0, 0], intervals[-1, 1], columns + 1)
    knots, shares = intervals[:, :2].reshape(-1), {}
    for number in np.unique(intervals[:, 2]).astype(int).tolist():
        seconds = (intervals[:, 1] - intervals[:, 0]) * (intervals[:, 2] == number)
        until = np.cumsum(seconds)
        before = np.interp(edges, knots, np.stack([until - seconds, until], axis=1).reshape(-1))
        shares[number] = np.diff(before) / (edges[1] - edges[0])
    return edges, shares


def _histogram(axes: Axes, parts: Mapping[str, np.ndarray], colours: Mapping[str, str], name: str) -> None:
    """Outlines by split. The axis holds nearly all values; the share of the others is in the title."""
    seen = {split: values[~np.isnan(values)].astype(np.float64) for split, values in parts.items()}
    together = np.concatenate([np.empty(0), *seen.values()])
    if not len(together):
        axes.set_title(f"{name}: no value observed".removeprefix(": "))
        axes.set(xticks=[], yticks=[])
        return
    low, high = axis_range(together)
    beyond = float(((together < low) | (together > high)).mean())
    edges = np.linspace(low, high, _BINS + 1)
    for split, values in seen.items():
        if len(values):
            counts, _ = np.histogram(values, edges)
            axes.stairs(100 * counts / len(values), edges, color=colours[split], linewidth=1.1)
    note = f"{100 * beyond:.2g} % beyond" if beyond else ""
    axes.set_title(", ".join(part for part in (name, note) if part))
    axes.set_ylabel("% of values", fontsize=7)
    _quiet_ticks(axes)
    axes.set_xlim(low, high)


def axis_range(values: np.ndarray) -> tuple[float, float]:
    """The part of the axis that is drawn: from the 0.5 % to the 99.5 % quantile and a tenth more, or all values."""
    low, high = float(values.min()), float(values.max())
    first, last = (float(end) for end in np.quantile(values, [0.005, 0.995], method="nearest"))
    wide = 0.1 * (last - first)
    low, high = max(low, first - wide), min(high, last + wide)
    if low < high and (high - low) > 1e-12 * max(abs(low), abs(high)):
        return low - _MARGIN * (high - low), high + _MARGIN * (high - low)
    half = max(0.5, 0.01 * abs(low))  # a constant
    return low - half, low + half


def _rows(width: int, rows: int, strips: int = 0) -> tuple[Figure, list[Axes]]:
    """A figure with thin strips on top and rows below, all over the same time."""
    from matplotlib.figure import Figure

    heights = [0.16] * strips + [_ROW] * rows
    inches = width / 100
    total = sum(heights) + _SPACE * len(heights) + _EDGE
    figure = Figure(figsize=(inches, total))
    found, top = [], total
    for height in heights:
        top -= _SPACE + height
        place = (_LEFT / inches, top / total, (inches - _LEFT - _RIGHT) / inches, height / total)
        found.append(figure.add_axes(place))
    return figure, found


def _panels(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    inches, rows = WIDTH / 100, -(-count // columns)
    total = rows * 1.35
    figure = Figure(figsize=(inches, total))
    width = inches / columns
    found = []
    for number in range(count):
        left = (number % columns) * width + 0.48
        bottom = total - (number // columns + 1) * 1.35 + 0.25
        found.append(figure.add_axes((left / inches, bottom / total, (width - 0.58) / inches, 0.88 / total)))
    return figure, found


def _time_axis(rows: Sequence[Axes], span: tuple[float, float]) -> None:
    """The same seconds (or hours, days) for all rows; numbers only below the last one."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    unit, seconds = next((u for u in (("days", 86400.0), ("h", 3600.0)) if span[1] - span[0] > 3 * u[1]), ("s", 1.0))
    for axes in rows:
        axes.set_xlim(*span)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]) if unit == "s" else _every(span, seconds))
        axes.tick_params(labelbottom=axes is rows[-1], labelsize=7)
        if axes.get_yticks().size:
            _quiet_ticks(axes)
    rows[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / seconds:g}"))
    rows[-1].annotate(
        unit, (1, 0), xytext=(0, -18), xycoords="axes fraction", textcoords="offset points", ha="right", fontsize=7
    )


def _every(span: tuple[float, float], seconds: float) -> Any:
    """Ticks at round numbers of hours or days."""
    from matplotlib.ticker import MultipleLocator

    wanted = (span[1] - span[0]) / seconds / 6
    steps = (1, 2, 3, 6, 12, 24, 48) if seconds == 3600 else tuple(10.0**n * m for n in range(9) for m in (1, 2, 5))
    return MultipleLocator(seconds * next((step for step in steps if step >= wanted), steps[-1]))


def _quiet_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.xaxis.set_major_locator(MaxNLocator(4)) if axes.get_xlabel() else None
    axes.tick_params(labelsize=7)


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image  # matplotlib needs it, too

    figure.set_dpi(100 * _SHARP)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    file = io.BytesIO()
    drawn.quantize(colors=_SHADES, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(file, "PNG")
    return file.getvalue()
