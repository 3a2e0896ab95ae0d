"""The pictures of a run: one file each, and one that shows them all."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.tracking import panels
from maestro_dist.tracking.history import History
from maestro_dist.tracking.panels import MissingCurve
from maestro_dist.tracking.run import log_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = "figures"
_COLUMNS = 3
_DPI = 150

Panel = Callable[["Axes"], None]


@dataclass(frozen=True)
class Story:
    """What the pictures of a run are drawn from. A picture whose numbers are not there is left out.

    history     metrics so far (`MetricLog.history`)
    modalities  names, in the model's order
    metric      the metric that chooses the weights, and `label`, its name for people
    confusion   counts [C, C] of true by predicted class, and the `classes`
    missing     the metric against the missing rate
    sets        names of missing sets, and `set_loads`, their tokens by expert [layers, sets, E]
    """

    title: str
    history: History
    modalities: Sequence[str]
    metric: str
    label: str
    classes: Sequence[str] = ()
    confusion: Sequence[Sequence[int]] | None = None
    missing: MissingCurve | None = None
    sets: Sequence[str] = ()
    set_loads: np.ndarray | None = None

    def panels(self) -> dict[str, Panel]:
        """Each picture's name and how it is drawn."""
        found: dict[str, Panel] = {}
        history = self.history
        if "train/loss" in history:
            found["loss"] = lambda axes: panels.loss_panel(axes, history)
        if panels.validation_names(history, self.metric):
            found["validation"] = lambda axes: panels.validation_panel(axes, history, self.metric, self.label)
        missing = self.missing
        if missing is not None and len(missing.rates) > 1:
            found["missing"] = lambda axes: panels.missing_panel(axes, missing)
        if any(name.startswith("budgets/") for name in history):
            found["budgets"] = lambda axes: panels.budgets_panel(axes, history, self.modalities)
        layer = 0
        while (load := panels.expert_load(history, self.modalities, layer)) is not None:
            several = f"experts/layer{layer + 1}/0" in history or layer > 0
            found["experts" + (f"_{layer}" if several else "")] = self._experts(load, layer if several else None)
            layer += 1
        for layer, tokens in enumerate(() if self.set_loads is None else self.set_loads):
            several = self.set_loads is not None and len(self.set_loads) > 1
            found["sets" + (f"_{layer}" if several else "")] = self._sets(tokens, layer if several else None)
        if self.confusion is not None:
            counts = np.asarray(self.confusion)
            found["confusion"] = lambda axes: panels.confusion_panel(axes, counts, self.classes)
        return found

    def _experts(self, load: np.ndarray, layer: int | None) -> Panel:
        return lambda axes: panels.experts_panel(axes, load, self.modalities, layer)

    def _sets(self, tokens: np.ndarray, layer: int | None) -> Panel:
        shares = tokens / np.maximum(tokens.sum(1, keepdims=True), 1)
        return lambda axes: panels.experts_panel(axes, shares, self.sets, layer, by="missing set")

    def tables(self) -> dict[str, str]:
        """Tables by name, as CSV text."""
        if self.set_loads is None:
            return {}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["layer", "missing set", "expert", "tokens"])
        for (layer, number, expert), tokens in np.ndenumerate(self.set_loads):
            writer.writerow([layer, self.sets[number], expert, int(tokens)])
        return {"experts_by_missing_set": text.getvalue()}


def draw(story: Story) -> dict[str, Figure]:
    """Every picture of the story by name, and `overview` with all of them. No display and no global state is used."""
    import matplotlib
    from matplotlib.figure import Figure

    found = story.panels()
    figures: dict[str, Figure] = {}
    with matplotlib.rc_context(panels.STYLE):  # type: ignore[arg-type]
        for name, panel in found.items():
            heat = name.startswith(("experts", "sets", "confusion"))
            rows = max(len(story.modalities), len(story.sets), len(story.classes), 1)
            figures[name] = Figure(figsize=(6.4, max(4.2, 0.22 * rows) if heat else 4.2), layout="constrained")
            panel(figures[name].subplots())
        if found:
            figures["overview"] = _overview(story.title, list(found.values()))
    return figures


def save(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Write PNG files into `<folder>/figures` and return their paths."""
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        path = target / f"{name}.png"
        figure.savefig(path, dpi=_DPI, metadata={"Software": None})
        paths.append(path)
    return paths


def log_figures(
    figures: dict[str, Figure], folder: Path, uri: str, run_id: str, tables: Mapping[str, str] | None = None
) -> bool:
    """Write pictures and tables to `<folder>/figures` and to the MLflow run. False when the server took them not."""
    paths = save(figures, folder)
    for name, text in (tables or {}).items():
        paths.append(folder / FOLDER / f"{name}.csv")
        paths[-1].write_text(text, encoding="utf-8")
    return log_files(uri, run_id, paths, FOLDER)


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
