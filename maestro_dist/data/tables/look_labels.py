"""Labels of a folder of tables, who was measured, and a first window. Part of `--infer`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import PurePosixPath

import numpy as np

from maestro_dist.data.parts import join_names
from maestro_dist.data.tables.labels import intervals_of_rows
from maestro_dist.data.tables.layout import joined_texts, label_text
from maestro_dist.data.tables.look_kinds import LEAST_STEPS, Found, Kind
from maestro_dist.data.tables.look_names import plain_name
from maestro_dist.data.tables.look_sets import divided, may_hold_together, say_yes_or_no, separator_of
from maestro_dist.data.tables.look_times import file_times
from maestro_dist.data.tables.paths import PathPattern
from maestro_dist.data.tables.times import SECOND, UNITS
from maestro_dist.types import MULTILABEL

_MOST_CLASSES = 50
_USUAL_LABEL_S = 30.0
_FEW_TEXTS = 12
_NICE_S = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400)


def find_labels(found: Found) -> None:
    """Task and classes: from intervals, else a column of rows, else facts, else paths."""
    sources = sorted(
        (kind for kind in found.kinds if kind.roles.label_columns and kind.role != "unused"),
        key=lambda kind: ("intervals", "signals", "facts").index(kind.role),
    )
    for kind in sources[1:]:
        names = " and ".join(map(repr, kind.roles.label_columns))
        kind.doubts.append(f"column {names} may be a label too; labels come from {sources[0].path.pattern}")
        kind.roles.left_out += [(column, "labels come from another file") for column in kind.roles.label_columns]
        kind.roles.label, kind.roles.labels = None, []
    if sources and sources[0].roles.labels:
        found.task, found.target = MULTILABEL, "labels that may hold at the same time"
        found.classes = [label_text(column) for column in sources[0].roles.labels]
        return
    if sources:
        kind = sources[0]
        label = kind.roles.label
        assert label is not None
        texts = {t for file in kind.files for t in set(file.labels(label)) if t is not None}
        values = [v for file in kind.files if (v := file.numbers(label)) is not None]
        found.target = label
        several = separator_of(texts)
        if several is not None:
            mark, single = several
            kind.roles.separator = mark
            found.task, found.classes = MULTILABEL, sorted({label_text(name) for name in single}, key=_label_order)
            cell = next(text for text in sorted(texts) if mark in text.strip(mark))
            kind.doubts.append(f"{cell!r} in column {label!r}: several labels, divided by {mark!r}?")
            return
        if divided(texts):
            kind.doubts.append(
                f"is {divided(texts)!r} in column {label!r} several labels? then task: multilabel, and separator"
            )
        whole = all(np.equal(np.mod(v[~np.isnan(v)], 1), 0).all() for v in values)
        if values and (not whole or len(texts) > _MOST_CLASSES):
            found.task = "regression"
        elif 2 <= len(texts) <= _MOST_CLASSES:
            found.task, found.classes = "classification", sorted(texts, key=_label_order)
            if kind.role == "intervals" and _overlap(kind):
                kind.doubts.append("labels overlap: if several may hold at the same time, write task: multilabel")
            if values and whole and "0" in texts and len(texts) > 2:
                kind.doubts.append("is label 0 a class, or no label? then put it under ignore")
        else:
            kind.doubts.append(f"column {label!r} has {len(texts)} different labels; there is no task")
            kind.roles.left_out.append((label, f"{len(texts)} different labels"))
            kind.roles.label = None
        return
    for kind in found.kinds:
        pattern = PathPattern.of(kind.path.pattern)
        if "label" in pattern.names and kind.role == "signals":
            matched = [pattern.match(PurePosixPath(file.path)) or {} for file in kind.files]
            found.task, found.target = "classification", "the label in the path"
            found.classes = sorted({m["label"] for m in matched if "label" in m}, key=_label_order)
            return
    _maybe_labels(found)


def _maybe_labels(found: Found) -> None:
    """Without any label: columns with a few texts may be some, and so may columns that say yes or no."""
    for kind in found.kinds:
        marked = [c for c in kind.files[0].columns if c in {*kind.roles.numbers, *(c for c, _ in kind.roles.left_out)}]
        marked = [c for c in marked if say_yes_or_no(kind.whole, c)] if kind.role in ("signals", "facts") else []
        if may_hold_together(kind.whole, marked):
            kind.doubts.append(
                f"no label was found; columns {join_names(marked, 8)} say yes or no: labels? then task: multilabel, "
                "classes, and label with a list of them"
            )
        for column, _ in kind.roles.left_out if kind.role in ("signals", "facts") else ():
            long = kind.roles.long
            if column == kind.roles.unit or (long is not None and column in (long.name, long.value)):
                continue
            texts = {
                t for file in kind.files if column in file.columns for t in set(file.labels(column)) if t is not None
            }
            if 2 <= len(texts) <= _FEW_TEXTS and not plain_name(column)[0].endswith("id"):
                shown = join_names(sorted(texts), 5)
                kind.doubts.append(
                    f"no label was found; is column {column!r} one ({shown})? see task, classes and label"
                )


def find_people(found: Found) -> None:
    """Ask who was measured if nothing says it: one person in two splits is easy to predict."""
    for kind in found.kinds:
        names = PathPattern.of(kind.path.pattern).names
        if kind.roles.subject or "subject" in names:
            return
    if sum(len(kind.files) for kind in found.kinds if kind.role == "signals") > 1:
        found.doubts.append(
            "no person is named: if some have several recordings, name them ({subject} in a path, or subject: COLUMN)"
        )


def _label_order(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, label_text(text)


def choose_window(found: Found) -> None:
    """A first choice: enough steps of the slowest modality, and a third of a usual label."""
    rates = [float(str(m["rate_hz"])) for k in found.kinds if k.role == "signals" for m in k.modalities.values()]
    spans = sorted(span for kind in found.kinds for span in kind.spans if span > 0)
    usual = spans[len(spans) // 2] if spans else 100.0
    label = _label_length(found)
    wanted = max(LEAST_STEPS / min(rates), min((label or _USUAL_LABEL_S) / 3, usual / 4, 30 * 86_400))
    length = next((nice for nice in _NICE_S if nice >= wanted * 0.999), wanted)
    if length > usual / 2:
        length = max((nice for nice in _NICE_S if nice <= usual / 2), default=usual / 2)
    found.window = float(f"{length:.3g}"), float(f"{length / 2:.3g}")
    if label is not None and length > label:
        found.doubts.append(f"the window of {length:g} s is longer than a usual label of {label:.3g} s")


def _label_length(found: Found) -> float | None:
    """Seconds that a usual label lasts; None if labels have no times."""
    lengths: list[float] = []
    for kind in found.kinds:
        columns = kind.roles.label_columns
        if kind.role == "signals" and columns and kind.time is not None and found.task != "none":
            for file in kind.whole:
                rows = list(map(joined_texts, zip(*map(file.labels, columns), strict=True)))
                lengths += _lengths_of_rows(rows, file_times(file, kind.roles.times, kind.time))
        if kind.role == "intervals" and kind.time is not None and kind.roles.start:
            for file in kind.whole:
                start = file_times(file, [kind.roles.start], kind.time)
                end = file_times(file, [kind.roles.end], kind.time) if kind.roles.end else None
                if kind.roles.duration:
                    lasts = file.numbers(kind.roles.duration)
                    unit = UNITS.get(str(kind.time.unit), SECOND) / SECOND
                    lengths += [] if lasts is None else (lasts[~np.isnan(lasts)] * unit).tolist()
                elif start is not None:
                    ends = np.sort(start)[1:] if end is None else end
                    lengths += ((ends - (np.sort(start)[:-1] if end is None else start)) / SECOND).tolist()
    positive = sorted(length for length in lengths if length > 0)
    return positive[len(positive) // 2] if positive else None


def _overlap(kind: Kind) -> bool:
    """Whether two intervals of a file with one recording overlap."""
    if kind.time is None or kind.roles.start is None or kind.roles.end is None:
        return False
    for file in kind.whole if PathPattern.of(kind.path.pattern).names and not kind.roles.recording else ():
        starts, ends = (file_times(file, [column], kind.time) for column in (kind.roles.start, kind.roles.end))
        if starts is not None and ends is not None:
            order = np.argsort(starts, kind="stable")
            if (starts[order][1:] < np.maximum.accumulate(ends[order])[:-1]).any():
                return True
    return False


def _lengths_of_rows(labels: list[str | None], times: np.ndarray | None) -> list[float]:
    """How long the labels of rows last, in seconds. Where time goes back, another recording begins."""
    if times is None:
        return []
    cuts = [0, *(np.flatnonzero(np.diff(times) < 0) + 1).tolist(), len(times)]
    found = [i for a, b in pairwise(cuts) for i in intervals_of_rows(times[a:b], labels[a:b])]
    return [(end - start) / SECOND for start, end, _ in found]
