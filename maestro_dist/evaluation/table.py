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
    """Display name of a metric; that of one target is `MAE of systolic`, say."""
    metric, _, target = name.partition(".")
    return f"{metric_label(metric)} of {target}" if target else _LABELS.get(name, name)


def results_table(evaluation: Evaluation) -> str:
    """One line for each missing rate, one column for each metric: mean, and standard deviation over the draws.

    Of several targets a second table has a line for each target, with its metrics in its own unit.
    """
    of_all = [name for name in evaluation.metrics if "." not in name]
    targets = list(dict.fromkeys(name.partition(".")[2] for name in evaluation.metrics if "." in name))
    rows = [["missing", *(metric_label(name) for name in of_all)]]
    of_target = [["missing", "target", *rows[0][1:]]]
    for rate in evaluation.rates:
        missing = percent(rate) if rate else "none"
        rows.append([missing, *(_cell(evaluation, name, rate) for name in of_all)])
        for target in targets:
            cells = [_cell(evaluation, f"{name}.{target}", rate) for name in of_all]
            of_target.append([missing, target, *cells])
    parts = "" if evaluation.labels is None else f", {evaluation.labels:,} labelled parts"
    lines = [f"{evaluation.split}: {evaluation.samples:,} samples{parts}", *_lined_up(rows)]
    if targets:
        known, labels = evaluation.known or {}, evaluation.samples if evaluation.labels is None else evaluation.labels
        unknown = [f"{name} in {known.get(name, 0):,}" for name in targets if known.get(name, 0) < labels]
        of = "samples" if evaluation.labels is None else f"{labels:,} labelled parts"
        note = f" ({', '.join(unknown)} of the {of})" if unknown and known else ""
        lines += ["", f"by target{note}", *_lined_up(of_target)]
    return "\n".join(lines)


def _cell(evaluation: Evaluation, name: str, rate: float) -> str:
    mean, spread = evaluation.mean(name, rate), evaluation.spread(name, rate)
    if mean is None:
        return "-"
    return format_metric(mean) + (f" ± {format_metric(spread)}" if spread is not None else "")


def _lined_up(rows: list[list[str]]) -> list[str]:
    """The rows with columns of equal width, and a line under the first one."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def format_metric(value: float) -> str:
    """Three decimals, or four digits from 10 on."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
