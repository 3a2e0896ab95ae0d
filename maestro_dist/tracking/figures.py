"""The figures of a run: one file each, and an overview of all."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.system.figure_labels import LabelFonts
from maestro_dist.system.figure_style import figure_style
from maestro_dist.tracking import plots
from maestro_dist.tracking.best_effort import BestEffort
from maestro_dist.tracking.metric_file import History
from maestro_dist.tracking.plots import MissingCurve
from maestro_dist.tracking.run import log_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = "figures"
_COLUMNS = 3
_MOST_LAYERS = 6
_DPI = 150

Panel = Callable[["Axes"], None]
Table = Callable[[], str]


@dataclass(frozen=True)
class Story:
    """The data of a run's figures. A figure without data is left out.

    history     metrics so far (`MetricLog.history`)
    modalities  names, in the model's order
    metric      the metric that selects the best weights; `label` is its display name
    classes     class names
    confusion   counts [C, C], true by predicted class
    confused    these counts in sparse form: [P, 3] of (true class, predicted class, samples)
    counted     what has a label each: samples, or their parts
    missing     the metric against the missing rate
    sets        names of missing sets; `set_loads` has their tokens by expert, [layers, sets, E]
    """

    title: str
    history: History
    modalities: Sequence[str]
    metric: str
    label: str
    classes: Sequence[str] = ()
    confusion: Sequence[Sequence[int]] | None = None
    confused: Sequence[Sequence[int]] | None = None
    counted: str = "samples"
    missing: MissingCurve | None = None
    sets: Sequence[str] = ()
    set_loads: np.ndarray | None = None

    def letters(self) -> LabelFonts:
        """The fonts that the names need."""
        return LabelFonts([self.title, self.metric, self.label, *self.modalities, *self.classes, *self.sets])

    def panels(self, letters: LabelFonts) -> dict[str, Panel]:
        """Figure name -> the function that draws it on given axes."""
        result: dict[str, Panel] = {}
        history, label = self.history, letters.title(self.label)
        modalities = letters.labels(self.modalities, "modality")
        if "train/loss" in history:
            result["loss"] = lambda axes: plots.loss_panel(axes, history)
        if plots.validation_names(history, self.metric):
            result["validation"] = lambda axes: plots.validation_panel(axes, history, self.metric, label)
        missing = self.missing
        if missing is not None and len(missing.rates) > 1:
            curve = replace(missing, label=letters.title(missing.label))
            result["missing"] = lambda axes: plots.missing_panel(axes, curve)
        if any(f"budgets/{name}" in history for name in self.modalities):
            result["budgets"] = lambda axes: plots.budgets_panel(axes, history, self.modalities, modalities)
        loads: list[np.ndarray] = []
        while (load := plots.expert_load(history, self.modalities, len(loads))) is not None:
            loads.append(load)
        result |= _by_layer("experts", loads, modalities, "modality")
        if self.set_loads is not None:
            shares = [tokens / np.maximum(tokens.sum(1, keepdims=True), 1) for tokens in self.set_loads]
            result |= _by_layer("sets", shares, letters.labels(self.sets, "set"), "missing set")
        pairs = self._pairs()
        if pairs is not None:
            classes = letters.labels(self.classes, "class")
            unnamed = any(shown == f"class {number}" != self.classes[number] for number, shown in enumerate(classes))
            where = "confusion.csv" if unnamed else ""
            note = f"number of {self.counted}" + (f"; names in {where}" if where else "")
            result["confusion"] = lambda axes: plots.confusion_panel(axes, pairs, classes, note)
        return result

    def _pairs(self) -> np.ndarray | None:
        """int64 [P, 3]: (true class, predicted class, samples) of all pairs that occur; None without data."""
        if self.confused is not None:
            return np.array(self.confused, dtype=np.int64).reshape(-1, 3)
        if self.confusion is None:
            return None
        counts = np.asarray(self.confusion)
        true, predicted = np.nonzero(counts)
        return np.stack([true, predicted, counts[true, predicted]], axis=1)

    def tables(self) -> dict[str, Table]:
        """Table name -> a function that returns the table as CSV text."""
        result: dict[str, Table] = {}
        if self.set_loads is not None:
            loads = self.set_loads
            result["experts_by_missing_set"] = lambda: _csv(
                ["layer", "missing set", "expert", "tokens"],
                (
                    [layer, self.sets[row], expert, int(tokens)]
                    for (layer, row, expert), tokens in np.ndenumerate(loads)
                ),
            )
        pairs = self._pairs()
        if pairs is not None:
            result["confusion"] = lambda: _csv(
                ["true", "predicted", self.counted],
                ([self.classes[true], self.classes[predicted], samples] for true, predicted, samples in pairs.tolist()),
            )
        return result


def _by_layer(kind: str, loads: Sequence[np.ndarray], rows: Sequence[str], by: str) -> dict[str, Panel]:
    """One figure per layer; if there are many layers, only the first and last ones."""
    panels: dict[str, Panel] = {}
    chosen = list(range(len(loads)))
    if len(loads) > _MOST_LAYERS:
        chosen = chosen[: _MOST_LAYERS // 2] + chosen[-_MOST_LAYERS // 2 :]
    for number in chosen:
        layer = number if len(loads) > 1 else None
        panels[kind + ("" if layer is None else f"_{layer}")] = partial(
            plots.experts_panel, load=loads[number], rows=rows, layer=layer, by=by
        )
    return panels


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def draw(data: Story, effort: BestEffort | None = None) -> dict[str, Figure]:
    """All figures by name, and `overview`, which shows them all. Needs no display.

    A figure that cannot be drawn is left out and recorded in `effort`.
    """
    from matplotlib.figure import Figure

    effort = BestEffort() if effort is None else effort
    figures: dict[str, Figure] = {}
    drawn: list[Panel] = []
    rows = min(max(len(data.modalities), len(data.sets), len(data.classes), 1), plots.MOST_ROWS)
    letters = data.letters()
    with figure_style(letters.families):
        for name, panel in data.panels(letters).items():
            heat = name.startswith(("experts", "sets", "confusion"))
            figure = Figure(figsize=(6.4, max(4.2, 0.22 * rows) if heat else 4.2), layout="constrained")
            if effort.attempt(f"figure {name}", lambda figure=figure, panel=panel: _fill(figure, panel)):  # type: ignore[misc]
                figures[name] = figure
                drawn.append(panel)
        if drawn:
            overview = effort.attempt("figure overview", lambda: _overview(letters.title(data.title), drawn))
            figures |= {} if overview is None else {"overview": overview}
    return figures


def save(figures: dict[str, Figure], folder: Path, effort: BestEffort | None = None) -> list[Path]:
    """Write PNG files to `<folder>/figures`. Returns the paths of those that were written."""
    effort = BestEffort() if effort is None else effort
    paths = []
    for name, figure in figures.items():
        path = folder / FOLDER / f"{name}.png"
        if effort.attempt(f"figure {name}", lambda path=path, figure=figure: _write(path, _png(figure))):  # type: ignore[misc]
            paths.append(path)
    return paths


def _fill(figure: Figure, panel: Panel) -> bool:
    panel(figure.subplots())
    return True


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    with figure_style(figure.axes[0].title.get_fontfamily()):  # some labels are created while it is saved
        figure.savefig(file, dpi=_DPI, format="png", metadata={"Software": None})
    return file.getvalue()


def _write(path: Path, content: bytes | str) -> bool:
    """Write a complete file, or none."""
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.write_bytes(data)
    except OSError:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    return True


def log_figures(data: Story, folder: Path, uri: str, run_id: str, effort: BestEffort, *, upload: bool = True) -> None:
    """Write figures and tables to `<folder>/figures` and to the MLflow run. Errors go to `effort`, none is raised."""
    figures = effort.attempt("figures", lambda: draw(data, effort)) or {}
    paths = save(figures, folder, effort)
    for name, table in (effort.attempt("tables", data.tables) or {}).items():
        path = folder / FOLDER / f"{name}.csv"
        if effort.attempt(f"table {name}", lambda path=path, table=table: _write(path, table())):  # type: ignore[misc]
            paths.append(path)
    if upload:
        effort.attempt("upload of figures", lambda: log_files(uri, run_id, paths, FOLDER))


def figure_files(folder: Path) -> list[Path]:
    """The pictures and tables of a run that are in its `folder`."""
    return sorted(path for kind in ("png", "csv") for path in (folder / FOLDER).glob(f"*.{kind}"))


def _overview(title: str, drawn: list[Panel]) -> Figure:
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(4.5 * columns, 3.5 * rows + 0.4))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold")
    cells = figure.subplots(rows, columns, squeeze=False).flatten()
    for cell, panel in zip(cells, drawn, strict=False):
        panel(cell)
    for cell in cells[len(drawn) :]:
        cell.remove()
    return figure
