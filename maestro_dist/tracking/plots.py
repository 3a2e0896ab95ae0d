"""The plots of a run. Each function draws on given axes.

Lines are labelled at their right end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.system.figure_style import BLUE, COLOURS, FAINT, INK, ORANGE, PURPLE, VERMILION
from maestro_dist.tracking.metric_file import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_LINES = len(COLOURS)
_MOST_POINTS = 4000
_MOST_GREY_LINES = 100
_MOST_NUMBERED = 24
_MOST_COLUMNS = 64
_MOST_LEVEL = 30
MOST_ROWS = 40
"""Maximum rows of a heat map: more are not readable, and take minutes to draw."""


@dataclass(frozen=True)
class MissingCurve:
    """A metric against the share of missing modalities: mean and standard deviation over the draws at each rate.

    `baseline`: the value of the metric if the prediction is always the most frequent class; None if it has no meaning.
    """

    label: str
    rates: Sequence[float]
    means: Sequence[float]
    spreads: Sequence[float]
    baseline: float | None = None


def loss_panel(axes: Axes, history: History) -> None:
    """Training loss of every step (faint) and smoothed; validation losses as points.

    The training loss includes the auxiliary heads, dropout and dropped modalities; the validation loss does not.
    """
    steps, values = history["train/loss"]
    stride = max(1, len(steps) // _MOST_POINTS)
    smooth = smoothed(values)
    axes.plot(steps[::stride], values[::stride], color=BLUE, alpha=0.25, linewidth=0.7)
    axes.plot(steps[::stride], smooth[::stride], color=BLUE, linewidth=1.8)
    ends = [(float(smooth[-1]), "training", BLUE)]
    for name, colour in zip(validation_names(history, "loss"), (VERMILION, ORANGE, PURPLE), strict=False):
        validation_steps, losses = history[name]
        axes.plot(validation_steps, losses, color=colour, marker="o", markersize=4, linewidth=1.0)
        ends.append((float(losses[-1]), validation_label(name), colour))
    low, high = np.min([*smooth, *(end for end, _, _ in ends)]), np.quantile(values, 0.995)
    span = max(high - low, 1e-3 * abs(high), 1e-9)
    axes.set_ylim(max(0.0, low - 0.08 * span) if low >= 0.0 else low - 0.08 * span, high + 0.05 * span)
    axes.set(title="Loss", xlabel="optimizer step", ylabel="mean loss of a sample")
    label_ends(axes, ends)


def validation_panel(axes: Axes, history: History, metric: str, label: str) -> None:
    """A validation metric over training: complete samples, and with modalities missing."""
    ends = []
    for name, colour in zip(validation_names(history, metric), (VERMILION, ORANGE, PURPLE), strict=False):
        steps, values = history[name]
        axes.plot(steps, values, color=colour, marker="o", markersize=4, linewidth=1.6)
        ends.append((float(values[-1]), validation_label(name).removeprefix("validation, "), colour))
    axes.set(title=f"Validation {label}", xlabel="optimizer step", ylabel=label)
    label_ends(axes, ends)


def budgets_panel(axes: Axes, history: History, modalities: Sequence[str], labels: Sequence[str]) -> None:
    """Mean budget of each modality in samples that have it, over training. Of many lines, only extremes get labels."""
    lines = {
        label: history[f"budgets/{name}"]
        for name, label in zip(modalities, labels, strict=True)
        if f"budgets/{name}" in history
    }
    order = sorted(lines, key=lambda name: float(lines[name][1][-1]), reverse=True)
    named = order if len(order) <= _MOST_LINES else order[:4] + order[-3:]
    drawn = set(order[:: -(-len(order) // _MOST_GREY_LINES)]) | set(named)
    ends = []
    for name in order:
        if name not in drawn:
            continue
        colour = COLOURS[named.index(name)] if name in named else "#CFCFCF"
        steps, values = (part[:: max(1, len(part) // _MOST_POINTS)] for part in lines[name])
        axes.plot(
            steps, values, color=colour, linewidth=1.6 if name in named else 0.8, zorder=3 if name in named else 2
        )
        if name in named:
            ends.append((float(values[-1]), name, colour))
    title = "Attention budget by modality" + _part(len(drawn), len(order))
    axes.set(title=title, xlabel="optimizer step", ylabel="budget u (u ln L queries)")
    axes.margins(y=0.08)
    label_ends(axes, ends)


def experts_panel(
    axes: Axes, load: np.ndarray, rows: Sequence[str], layer: int | None = None, *, by: str = "modality"
) -> None:
    """Share of the tokens of a modality (or missing set) that each expert receives: `load` [rows, E], rows sum to 1.

    If there are too many rows, the most specialized ones are shown: their load differs most from the mean.
    """
    total = len(rows)
    if total > MOST_ROWS:
        unlike = np.abs(load - load.mean(axis=0)).sum(axis=1)
        kept = np.sort(np.argsort(-unlike, kind="stable")[:MOST_ROWS])
        load, rows = load[kept], [rows[number] for number in kept]
    axes.imshow(load, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    _cells(axes, load, [[f"{100 * share:.0f}" for share in row] for row in load])
    shown = range(0, load.shape[1], -(-load.shape[1] // _MOST_NUMBERED))
    axes.set_xticks(shown, [str(expert) for expert in shown])
    axes.set_yticks(range(len(rows)), rows, fontsize=_fit(len(rows)))
    where = "" if layer is None else f", layer {layer}"
    title = f"Expert load by {by}{where}{_part(len(rows), total, 'the most specialized')}"
    axes.set(title=title, xlabel=f"expert (% of the {by}'s tokens)")


def confusion_panel(axes: Axes, pairs: np.ndarray, classes: Sequence[str], note: str) -> None:
    """Confusion matrix: shade is the share of the true class (rows), numbers are what `note` says.

    `pairs` int [P, 3]: true class, predicted class, samples. If there are too many classes, the most confused ones are
    shown, then the most frequent ones.
    """
    kept, counts, of_class = most_confused(pairs, len(classes))
    shares = counts / np.maximum(of_class[:, None], 1)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    _cells(axes, shares, [[f"{count:,}" if count else "" for count in row] for row in counts])
    size, names = _fit(len(kept)), [classes[number] for number in kept]
    axes.set_xticks(range(len(kept)), names, fontsize=size)
    if sum(len(name) for name in names) > _MOST_LEVEL:
        axes.set_xticks(range(len(kept)), names, fontsize=size, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(kept)), names, fontsize=size)
    title = "Confusion, complete samples" + _part(len(kept), len(classes), "the most confused")
    axes.set(title=title, xlabel=f"predicted ({note})", ylabel="true")


def most_confused(pairs: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At most `MOST_ROWS` classes, ascending; their counts [n, n], true by predicted; all samples of each [n]."""
    true, predicted, samples = pairs.T
    of_class = np.bincount(true, samples, classes)
    wrong = np.where(true != predicted, samples, 0)
    confused = np.bincount(true, wrong, classes) + np.bincount(predicted, wrong, classes)
    kept = np.sort(np.lexsort((np.arange(classes), -of_class, -confused))[:MOST_ROWS])
    place = np.full(classes, -1)
    place[kept] = np.arange(len(kept))
    both = (place[true] >= 0) & (place[predicted] >= 0)
    counts = np.zeros((len(kept), len(kept)), np.int64)
    np.add.at(counts, (place[true[both]], place[predicted[both]]), samples[both])
    return kept, counts, of_class[kept]


def missing_panel(axes: Axes, curve: MissingCurve) -> None:
    """A metric against the share of missing modalities."""
    rates, means, spreads = (np.asarray(part, dtype=np.float64) for part in (curve.rates, curve.means, curve.spreads))
    axes.fill_between(100 * rates, means - spreads, means + spreads, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(100 * rates, means, color=BLUE, marker="o", markersize=5, linewidth=1.8)
    for index, side in ((0, "left"), (len(means) - 1, "right")):
        _note(axes, f"{means[index]:.3f}", (100 * rates[index], means[index]), 9, side)
    low, high = float((means - spreads).min()), float((means + spreads).max())
    if curve.baseline is not None:
        axes.axhline(curve.baseline, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2)
        _note(axes, "most frequent class", (100 * rates[-1], curve.baseline), 4, "right")
        low, high = min(low, curve.baseline), max(high, curve.baseline)
    span = max(high - low, 1e-3)
    axes.set_ylim(low - 0.1 * span, high + 0.18 * span)
    axes.set_xticks(100 * rates[:: -(-len(rates) // 12)])
    axes.set(title=f"{capitalised(curve.label)}, sensors missing", xlabel="modalities missing (%)", ylabel=curve.label)


def expert_load(history: History, modalities: Sequence[str], layer: int) -> np.ndarray | None:
    """The last recorded expert load of a layer by modality, [M, E]; None without data."""
    rows = []
    for name in modalities:
        row: list[float] = []
        while (key := f"experts/layer{layer}/{name}/{len(row)}") in history:
            row.append(float(history[key][1][-1]))
        rows.append(row)
    width = max((len(row) for row in rows), default=0)
    if width == 0:
        return None
    return np.array([row or [0.0] * width for row in rows])


def smoothed(values: np.ndarray) -> np.ndarray:
    """Centred moving average over about 1/40 of the values; over fewer at the ends."""
    width = max(1, len(values) // 40) | 1
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def validation_names(history: History, metric: str) -> list[str]:
    """Recorded names of a validation metric: complete samples first, then by missing rate."""
    prefix = f"validation/{metric}"
    own = re.compile(rf"{re.escape(prefix)}(_missing_[0-9.e+-]+)?")  # a target may be named x_missing_y
    names = [name for name in history if own.fullmatch(name)]
    return sorted(names, key=lambda name: float(name.removeprefix(prefix).removeprefix("_missing_") or 0))


def validation_label(name: str) -> str:
    """`validation/loss_missing_40` -> "validation, 40 % missing"."""
    _, separator, rate = name.partition("_missing_")
    return f"validation, {rate} % missing" if separator else "validation, complete"


def capitalised(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Label lines at the right of the axes, given (last value, name, colour). Labels that overlap are moved apart."""
    low, high = axes.get_ylim()
    gap = 0.062 if len(ends) <= _MOST_LINES else 0.05
    places = sorted((min(max((value - low) / (high - low), 0.0), 1.0), name, colour) for value, name, colour in ends)
    heights: list[float] = []
    for place, _, _ in places:
        heights.append(max(place, heights[-1] + gap) if heights else place)
    excess = max(0.0, heights[-1] - 1.0) if heights else 0.0
    for height, (_, name, colour) in zip(heights, places, strict=True):
        axes.text(1.015, height - excess, name, color=colour, transform=axes.transAxes, va="center", fontsize=9)


def _part(shown: int, total: int, which: str = "") -> str:
    """The second line of a title if not everything is shown."""
    return "" if shown == total else f"\n{shown} of {total:,}" + (f", {which}" if which else "")


def _note(axes: Axes, text: str, point: tuple[float, float], above: float, side: str) -> None:
    """A small text that ends or starts at a point, `above` typographic points over it."""
    axes.annotate(text, point, xytext=(0, above), textcoords="offset points", ha=side, fontsize=9)


def _cells(axes: Axes, shade: np.ndarray, texts: list[list[str]]) -> None:
    """Numbers in the cells of a heat map (white on dark cells), and white lines between the cells."""
    rows, columns = shade.shape
    axes.grid(visible=False, which="major")
    axes.spines[:].set_visible(False)
    if columns > _MOST_COLUMNS:
        return
    size = _fit(max(rows, columns))
    for row in range(rows if max(rows, columns) <= _MOST_NUMBERED else 0):
        for column in range(columns):
            colour = "white" if shade[row, column] > 0.55 else INK
            axes.text(column, row, texts[row][column], ha="center", va="center", color=colour, fontsize=size)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)


def _fit(count: int) -> float:
    """Font size for `count` labels along an axis."""
    return 9.0 if count <= 8 else 7.5 if count <= 14 else 6.0 if count <= 24 else 4.5
