"""A layout as commented YAML."""

from __future__ import annotations

import json
from collections.abc import Iterator

from maestro_dist.data.tables.look_kinds import Found, Kind

CHECK = "# CHECK: "


def layout_text(found: Found) -> str:
    """The YAML of a layout; what a person should look at is behind `# CHECK:`."""
    return "\n".join([*_head(found), "files:", *(line for kind in _used(found) for line in _entry(kind))]) + "\n"


def doubts(text: str) -> list[str]:
    """What a person should look at."""
    return [line.partition(CHECK)[2] for line in text.splitlines() if CHECK in line]


def _used(found: Found) -> list[Kind]:
    return [kind for kind in found.kinds if kind.role != "unused" and _has_use(kind)]


def _has_use(kind: Kind) -> bool:
    return bool(kind.modalities or kind.roles.label_columns) or kind.role == "facts"


def _head(found: Found) -> Iterator[str]:
    length, stride = found.window
    yield "# How this folder of tables becomes a data set. Lines with CHECK are guesses; all values may be changed."
    yield f"name: {_text(found.name)}"
    for doubt in found.doubts:
        yield f"{CHECK}{_comment(doubt)}"
    yield 'licence: ""'
    yield 'citation: ""'
    yield 'source: ""'
    yield f"task: {found.task}  # classification, multilabel, regression, or none (no labels: for pre-training)"
    if found.target:
        yield f"target: {_text(found.target)}"
    if found.classes:
        yield f"classes: [{', '.join(map(_text, found.classes))}]  # or NAME: [texts in the files]"
        yield "ignore: []  # labels that count as no label"
    yield "window:  # a first choice; each run can choose its own with data.window"
    yield f"  length_s: {length:g}"
    yield f"  stride_s: {stride:g}"
    unused = [kind.path.pattern for kind in found.kinds if kind not in _used(found)]
    for pattern in unused:
        yield f"# not used: {_comment(pattern)}"


def _entry(kind: Kind) -> Iterator[str]:
    roles = kind.roles
    yield f"- path: {_text(kind.path.pattern)}  # {len(kind.files):,} file{'s' if len(kind.files) > 1 else ''}"
    for doubt in kind.doubts:
        yield f"  {CHECK}{_comment(doubt)}"
    for name, value in kind.files[0].dialect.changes().items():
        yield f"  {name}: {_text(list(value) if isinstance(value, tuple) else value)}"
    if kind.role == "intervals":
        assert kind.time is not None
        of_times = [("start", roles.start), ("end", roles.end), ("duration", roles.duration)]
        inside = [f"{name}: {_text(column)}" for name, column in of_times if column]
        yield f"  intervals: {{{', '.join([*inside, *_time_of(kind)])}}}"
    elif kind.role == "facts":
        yield "  facts: true  # one row a recording or person"
    elif roles.time is not None:
        yield f"  time: {{{', '.join([f'column: {_list(roles.times)}', *_time_of(kind)])}}}{_zone_hint(kind)}"
    if roles.long is not None:
        yield f"  long: {{name: {_text(roles.long.name)}, value: {_text(roles.long.value)}}}"
    if roles.restarts:
        yield "  restarts: true"
    by = [column for column in (None if roles.alone else roles.subject, roles.recording) if column]
    if kind.role == "facts":
        by = by if roles.recording else []
    elif kind.path.names:
        by = [roles.recording] if roles.recording else []
    if by:
        yield f"  recording: {_list(by)}"
    for name in ("subject", "group", "split", "label", "separator"):
        column = getattr(roles, name)
        if column:
            yield f"  {name}: {_text(column)}"
    if roles.labels:
        yield f"  label: [{', '.join(map(_text, roles.labels))}]"
    if kind.modalities:
        yield "  modalities:"
    for name, about in kind.modalities.items():
        columns = ", ".join(map(_text, about["columns"]))  # type: ignore[call-overload]
        rest = [f"{key}: {_text(about[key])}" for key in ("rate_hz", "grid") if key in about]
        if "rows" in about:
            inside = [f"{_text(column)}: {_text(text)}" for column, text in about["rows"].items()]  # type: ignore[attr-defined]
            rest.append(f"rows: {{{', '.join(inside)}}}")
        if kind.role == "facts":
            rest = []
        yield f"    {_text(name)}: {{{', '.join([f'columns: [{columns}]', *rest, 'unit: ' + _text(about['unit'])])}}}"
    for column, reason in roles.left_out:
        yield f"  # column {_comment(json.dumps(column, ensure_ascii=False))} is left out: {_comment(reason)}"


def _time_of(kind: Kind) -> list[str]:
    assert kind.time is not None
    form = [f"format: {_text(kind.time.form)}"] if kind.time.form else []
    unit = kind.time.unit if isinstance(kind.time.unit, str) else f"{kind.time.unit:g}"
    return [f"unit: {unit}", *form]


def _zone_hint(kind: Kind) -> str:
    return (
        "  # zone: Europe/Berlin, say, if clocks change" if kind.time is not None and kind.time.unit == "date" else ""
    )


def _text(value: object) -> str:
    """A value as YAML in one line: JSON is YAML."""
    if isinstance(value, float):
        return f"{value:.10g}"
    plain = isinstance(value, str) and value.isascii() and value.isidentifier()
    words = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    if plain and str(value).lower() not in words:
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _comment(text: str) -> str:
    return " ".join(text.split())


def _list(columns: list[str]) -> str:
    return _text(columns[0]) if len(columns) == 1 else f"[{', '.join(map(_text, columns))}]"
