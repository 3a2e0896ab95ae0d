"""Evaluations as text."""

from __future__ import annotations

from maestro_dist.evaluation.result import Evaluation, percent

_LABELS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "mae": "MAE",
    "rmse": "RMSE",
}


def metric_label(name: str) -> str:
    """A metric's name as people write it."""
    return _LABELS.get(name, name)


def results_table(evaluation: Evaluation) -> str:
    """One line a missing rate, one column a metric: mean, and the standard deviation over the draws."""
    rows = [["missing", *(metric_label(name) for name in evaluation.metrics)]]
    for rate in evaluation.rates:
        cells = [percent(rate) if rate else "none"]
        for name in evaluation.metrics:
            mean, spread = evaluation.mean(name, rate), evaluation.spread(name, rate)
            cells.append("-" if mean is None else number(mean) + (f" ± {number(spread)}" if spread is not None else ""))
        rows.append(cells)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"{evaluation.split}: {evaluation.samples:,} samples", lines[0], "-" * len(lines[0]), *lines[1:]])


def number(value: float) -> str:
    """Three decimals, or four figures from 10 on."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
