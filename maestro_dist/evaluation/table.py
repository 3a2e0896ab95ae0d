"""The result of an evaluation as a text table."""

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
    """Display name of a metric."""
    return _LABELS.get(name, name)


def results_table(evaluation: Evaluation) -> str:
    """One line for each missing rate, one column for each metric: mean, and standard deviation over the draws."""
    rows = [["missing", *(metric_label(name) for name in evaluation.metrics)]]
    for rate in evaluation.rates:
        cells = [percent(rate) if rate else "none"]
        for name in evaluation.metrics:
            mean, spread = evaluation.mean(name, rate), evaluation.spread(name, rate)
            cells.append(
                "-"
                if mean is None
                else format_metric(mean) + (f" ± {format_metric(spread)}" if spread is not None else "")
            )
        rows.append(cells)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"{evaluation.split}: {evaluation.samples:,} samples", lines[0], "-" * len(lines[0]), *lines[1:]])


def format_metric(value: float) -> str:
    """Three decimals, or four digits from 10 on."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
