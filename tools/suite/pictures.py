"""One picture a data set: its first metric against the missing rate, a line a model."""

from __future__ import annotations

import io
from statistics import fmean, stdev
from typing import Any

import numpy as np

from maestro_dist.data.storage import Storage
from maestro_dist.evaluation.table import metric_label
from maestro_dist.tracking.plots import COLOURS, STYLE
from suite.collect import Results

FOLDER = "results"
_DPI = 110


def draw_pictures(results: Results, out: Storage, labels: dict[str, str]) -> dict[str, str]:
    """Draw all pictures below `out`; returns their paths by data set. `labels`: entries that have a line."""
    found = {}
    for data in results.plan.suite.data:
        content = _picture(results, data.name, labels)
        if content is not None:
            found[data.name] = f"{FOLDER}/{data.name}.png"
            out.write(found[data.name], content)
    return found


def _picture(results: Results, data: str, labels: dict[str, str]) -> bytes | None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    metric = results.plan.data(data).metrics[0]
    rates = sorted(results.plan.suite.rates)
    lines = {}
    for entry in labels:
        by_rate = [results.values(entry, data, metric, rate) for rate in rates]
        if by_rate[0]:
            lines[entry] = by_rate
    if not lines or len(rates) < 2:
        return None
    style: Any = STYLE
    with rc_context(style):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for number, (entry, by_rate) in enumerate(lines.items()):
            axes.errorbar(
                [100 * rate for rate in rates],
                [fmean(values) for values in by_rate],
                yerr=[stdev(values) if len(values) > 1 and np.isfinite(values).all() else 0.0 for values in by_rate],
                color=COLOURS[number % len(COLOURS)],
                linestyle=("-", "--", ":")[number // len(COLOURS) % 3],
                marker="o",
                markersize=4,
                linewidth=1.6,
                elinewidth=1.0,
                label=labels[entry],
            )
        axes.set_xticks([100 * rate for rate in rates])
        axes.set(title=f"{data}, sensors missing", xlabel="modalities missing (%)", ylabel=metric_label(metric))
        figure.legend(loc="outside right center", frameon=False, fontsize=9)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})  # the same results, the same bytes
        return file.getvalue()
