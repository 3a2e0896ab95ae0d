"""Look at a folder of tables, and write the layout that packs it (`tools/pack_dataset.py csv --infer`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np

from maestro_dist.data.converters.files import AnySource, SourceFile, SourceFiles, join_names
from maestro_dist.data.tables.layout import label_text
from maestro_dist.data.tables.look_columns import Roles, roles_of, unit_of_item
from maestro_dist.data.tables.look_files import Looked, look_at
from maestro_dist.data.tables.look_modalities import modalities_of
from maestro_dist.data.tables.look_names import plain_name
from maestro_dist.data.tables.look_paths import PathKind, kinds_of
from maestro_dist.data.tables.look_sessions import find_sessions
from maestro_dist.data.tables.look_times import TimeGuess, file_times, guess_rate, guess_time, is_absolute
from maestro_dist.data.tables.look_values import use_number_form
from maestro_dist.data.tables.paths import PathPattern, same_names
from maestro_dist.data.tables.reading import ENDINGS, is_binary
from maestro_dist.data.tables.times import SECOND, UNITS
from maestro_dist.errors import DataError

_SAMPLE = 12
"""Files of a kind that are looked at for times and rates."""
_MOST_CLASSES = 50
_NICE_S = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400)
_LEAST_STEPS = 8
_FEW_TEXTS = 12


@dataclass
class Kind:
    """Files with one meaning, and what was found out about them.

    role        signals, intervals, facts, or unused
    modalities  name -> what the layout says of it
    doubts      what a person should check
    """

    path: PathKind
    files: list[Looked]
    roles: Roles
    role: str
    time: TimeGuess | None = None
    modalities: dict[str, dict[str, object]] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    spans: list[float] = field(default_factory=list)

    @property
    def whole(self) -> list[Looked]:
        """The files that are looked at closely."""
        return [file for file in self.files if file.complete][:_SAMPLE]


@dataclass
class Found:
    """All that was found out about a source. `labels`: task and classes; `window`: length and stride in seconds."""

    name: str
    kinds: list[Kind]
    task: str = "none"
    target: str = ""
    classes: list[str] = field(default_factory=list)
    window: tuple[float, float] = (10.0, 5.0)
    remarks: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def look(source: AnySource, progress: Callable[[str], None] = lambda _: None) -> Found:
    """Look at all tables of a source. `progress` is told which file is read.

    Raises:
        DataError: there is no table, or no signal.
        StorageError: the source cannot be read at present.
    """
    files = SourceFiles(source)
    named = files.find(lambda path: str(path) if path.name.lower().endswith(ENDINGS) else None)
    if not named:
        raise files.error(f"no table; the names of tables end with {', '.join(ENDINGS[:5])}")
    looked, remarks = _look_at_all(files, named, progress)
    if not looked:
        raise files.error(f"no file can be read as a table; {remarks[0]}")
    found = Found(_name_of(files.path), [], remarks=[*files.warnings(), *remarks])
    found.kinds = _kinds(looked, lambda path: _look_at(files, path, named[path]))
    found.kinds.sort(key=lambda kind: (kind.role == "intervals", kind.path.pattern))
    _find_facts(found)
    _one_name_of_people(found)
    signals = [kind for kind in found.kinds if kind.role == "signals"]
    for kind in found.kinds:
        _guess_times(kind)
    _use_absolute_times(signals)
    for kind in signals:
        if kind.time is not None:
            alone = sum(k.role in ("signals", "intervals") for k in found.kinds) == 1
            find_sessions(kind.whole, kind.roles, kind.time, alone=alone)
    for kind in found.kinds:
        _understand(kind, found)
        kind.doubts += kind.roles.doubts
    if not any(kind.role == "signals" and kind.modalities for kind in found.kinds):
        raise files.error("no table has columns with measured numbers; write a layout by hand")
    _labels(found)
    _people(found)
    _window(found)
    found.kinds.sort(key=lambda kind: kind.role == "facts")
    return found


def _look_at_all(
    files: SourceFiles, named: dict[str, SourceFile], progress: Callable[[str], None]
) -> tuple[list[Looked], list[str]]:
    looked, broken, empty, seen = [], [], list[str](), dict[object, int]()
    for path, file in sorted(named.items()):
        progress(path)
        try:
            content = file.read_binary() if is_binary(file.name) else file.read(files.remarks)
            if not content.strip():
                empty.append(path)
                continue
            found = look_at(path, file.name, content)
            if not found.rows:
                empty.append(path)
                continue
            seen[found.signature] = seen.get(found.signature, 0) + 1
            looked.append(found if seen[found.signature] <= _SAMPLE else found.without_measurements())
        except DataError as error:
            broken.append(str(error))
    remarks = [f"files that cannot be read as tables, left out ({len(broken)}): {broken[0]}"] if broken else []
    if empty:
        remarks.append(f"files without any row, left out ({len(empty)}): {join_names(empty, 5)}")
    return looked, remarks


def _look_at(files: SourceFiles, path: str, file: SourceFile) -> Looked:
    content = file.read_binary() if is_binary(file.name) else file.read(files.remarks)
    return look_at(path, file.name, content)


def _kinds(looked: Sequence[Looked], again: Callable[[str], Looked]) -> list[Kind]:
    """Files by what they are. `again` reads a file completely."""
    groups: dict[object, list[Looked]] = {}
    for file in looked:
        groups.setdefault(file.signature, []).append(file)
    roles = {signature: roles_of(files[:_SAMPLE], facts=False) for signature, files in groups.items()}
    labelled = any(of.label for of in roles.values())
    kinds = []
    for signature, files in groups.items():
        by_path = {file.path: file for file in files}
        for path in kinds_of(list(by_path), labelled=labelled):
            own = [by_path[one] for one in path.paths]
            if not any(file.complete for file in own):
                own = [*(again(file.path) for file in own[:_SAMPLE]), *own[_SAMPLE:]]
            whole = [file for file in own if file.complete][:_SAMPLE]
            doubts = [*path.doubts, *use_number_form(own, whole)]
            of = roles_of(whole, facts=False)
            role = "intervals" if of.is_intervals else "signals" if of.numbers or of.label else "unused"
            kinds.append(Kind(path, own, of, role, doubts=doubts))
    return kinds


def _find_facts(found: Found) -> None:
    """Tables whose rows are recordings or people: few rows, one for each name that paths or columns of signals have."""
    names: set[str] = set()
    for kind in found.kinds:
        pattern = PathPattern.of(kind.path.pattern)
        if pattern.names and kind.role == "signals":
            for file in kind.files:
                matched = pattern.match(PurePosixPath(file.path)) or {}
                names |= {*matched.values(), "-".join(matched.values())}
    big = [kind for kind in found.kinds if kind.role == "signals"]
    for kind in big:
        column = kind.roles.subject or kind.roles.recording
        if column and not PathPattern.of(kind.path.pattern).names and not _is_one_row_each(kind, column):
            names |= {text for text in kind.files[0].table.texts(column) if text is not None}
    for kind in found.kinds:
        if len(kind.files) != 1 or kind.role == "intervals":
            continue
        file = kind.files[0]
        for column in dict.fromkeys([kind.roles.recording, kind.roles.subject, *file.columns[:3]]):
            if column is None:
                continue
            texts = file.table.texts(column)
            values = {text for text in texts if text is not None}
            known = len(values & names) + len(same_names(names, values))
            if len(values) == len(texts) and values and known >= 0.5 * min(len(names) or 1, len(values)):
                kind.role = "facts"
                kind.roles = roles_of([file], facts=True)
                by_recording = column == kind.roles.recording
                kind.roles.recording, kind.roles.subject = (
                    (column, kind.roles.subject) if by_recording else (None, column)
                )
                kind.roles.numbers = [name for name in kind.roles.numbers if name != column]
                break


def _one_name_of_people(found: Found) -> None:
    """Where a column names people in another way than paths do, the column counts, and the path names recordings."""
    for kind in found.kinds:
        pattern, column = PathPattern.of(kind.path.pattern), kind.roles.subject
        if kind.role != "signals" or column is None or "subject" not in pattern.names:
            continue
        told = [((pattern.match(PurePosixPath(f.path)) or {}).get("subject"), set(f.labels(column))) for f in kind.files]
        if any(texts - {path, None} for path, texts in told):
            for other in found.kinds:
                doubts = tuple(doubt for doubt in other.path.doubts if "{subject}" not in doubt)
                text = other.path.pattern.replace("{subject}", "{part1}")
                other.doubts = [doubt for doubt in other.doubts if "{subject}" not in doubt]
                other.path = replace(other.path, pattern=text, doubts=doubts)
            return


def _is_one_row_each(kind: Kind, column: str) -> bool:
    texts = kind.files[0].table.texts(column)
    return len(set(texts)) == len(texts)


def _guess_times(kind: Kind) -> None:
    columns = [kind.roles.start] if kind.role == "intervals" else kind.roles.times if kind.role == "signals" else []
    if columns and columns[0] is not None:
        kind.time = guess_time(kind.whole, [column for column in columns if column])


def _use_absolute_times(signals: Sequence[Kind]) -> None:
    """Where some files have dates, and others times from their start but dates too: take the dates."""
    timed = [kind for kind in signals if kind.roles.times]
    relative = [kind for kind in timed if not is_absolute(kind.whole, kind.roles.times)]
    if len(relative) in (0, len(timed)):
        return
    for kind in relative:
        other = next((column for column, _ in kind.roles.left_out if is_absolute(kind.whole, [column])), None)
        if other is None:
            kind.doubts.append("times count from a start, those of other files are dates: they do not fit together")
            continue
        was, kind.roles.time, kind.roles.clock = kind.roles.time, other, None
        kind.roles.left_out = [(c, why) for c, why in kind.roles.left_out if c != other] + [(was or "", "another time")]
        kind.time = guess_time(kind.whole, [other])
        kind.doubts.append(f"times are {other!r}, as other files have dates, and not {was!r}")


def _understand(kind: Kind, found: Found) -> None:
    """Times, rates and modalities of a kind."""
    roles, files = kind.roles, kind.whole
    if kind.time is not None and kind.time.doubt:
        kind.doubts.append(kind.time.doubt)
    if kind.role == "facts":
        for column in roles.numbers:
            name, unit = plain_name(column)
            kind.modalities[_free(name or column, found)] = {"columns": [column], "unit": unit}
    if kind.role != "signals":
        return
    dialect = files[0].dialect
    clocks = {file.table.clock[1] for file in files if file.table.clock is not None}
    if len(clocks) > 1:
        kind.doubts.append(f"files say different rates: {', '.join(f'{rate:g}' for rate in sorted(clocks))} Hz")
    if not dialect.header and not clocks:
        kind.doubts.append(f"there is no header: what are the columns {', '.join(files[0].columns)}?")
    if roles.time is None and not clocks:
        hertz = files[0].hertz
        says = f": {hertz:g} Hz, says a line before the header" if hertz else "; correct rate_hz"
        kind.doubts.append(f"there is no time: rows follow each other{says}")
    alike = [k for k in found.kinds if k.role == "signals" and set(k.roles.numbers) & set(roles.numbers)]
    parts = [[name] for name in roles.numbers] if roles.long else [roles.numbers]
    for guess in (g for part in parts for g in modalities_of(part, kind.path.word, prefix=len(alike) > 1)):
        if clocks:  # their columns have no names
            guess = replace(guess, name=plain_name(kind.path.word)[0] or guess.name)
        unit = guess.unit or files[0].units.get(guess.columns[0], "") or unit_of_item(files, roles, guess.columns[0])
        about: dict[str, object] = {"columns": list(guess.columns), "rate_hz": 1.0, "unit": unit}
        if kind.time is not None and roles.time is not None:
            times = []
            for file in files:
                of = file_times(file, roles.times, kind.time)
                if of is not None:
                    times += _of_recordings(file, roles, of, guess.columns)
            kind.spans += [float(of[-1] - of[0]) / SECOND for of in times if len(of) > 1]
            rate = guess_rate(times)
            about["rate_hz"] = rate.rate_hz
            if rate.grid != "auto":
                about["grid"] = rate.grid
            if rate.doubt:
                kind.doubts.append(f"{guess.name}: {rate.doubt}")
        else:
            about["rate_hz"] = min(clocks, default=files[0].hertz or 1.0)
            kind.spans += [file.rows / float(str(about["rate_hz"])) for file in files]
        kind.modalities[_free(guess.name, found)] = about


def _of_recordings(file: Looked, roles: Roles, times: np.ndarray, columns: Sequence[str]) -> list[np.ndarray]:
    """The times of rows that have a value in one of the columns, apart for each recording that a column names."""
    there = np.zeros(len(times), dtype=bool)
    for column in columns:
        values = file.numbers(column)
        if values is not None:
            there |= ~np.isnan(values)
    by = [column for column in (roles.subject, roles.recording) if column]
    texts: list[Sequence[object]] = [file.table.texts(column) for column in by]
    if roles.restarts:
        texts.append(np.cumsum(np.diff(times, prepend=times[:1]) < 0).tolist())
    if not texts:
        return [np.sort(times[there])]
    ids = np.array(["-".join(map(str, row)) for row in zip(*texts, strict=True)])
    return [np.sort(times[there & (ids == one)]) for one in np.unique(ids)[:_SAMPLE]]


def _free(name: str, found: Found) -> str:
    """The name, or with a number if another modality has it."""
    taken = {m for kind in found.kinds for m in kind.modalities}
    return next(n for n in (name, *(f"{name[:37]}_{k}" for k in range(2, 1000))) if n not in taken)


def _labels(found: Found) -> None:
    """Task and classes: from intervals, else a column of rows, else facts, else paths."""
    sources = sorted(
        (kind for kind in found.kinds if kind.roles.label and kind.role != "unused"),
        key=lambda kind: ("intervals", "signals", "facts").index(kind.role),
    )
    for kind in sources[1:]:
        kind.doubts.append(
            f"column {kind.roles.label!r} may be a label too; labels come from {sources[0].path.pattern}"
        )
        kind.roles.left_out.append((kind.roles.label or "", "labels come from another file"))
        kind.roles.label = None
    if sources:
        kind = sources[0]
        label = kind.roles.label
        assert label is not None
        texts = {t for file in kind.files for t in set(file.labels(label)) if t is not None}
        values = [v for file in kind.files if (v := file.numbers(label)) is not None]
        found.target = label
        whole = all(np.equal(np.mod(v[~np.isnan(v)], 1), 0).all() for v in values)
        if values and (not whole or len(texts) > _MOST_CLASSES):
            found.task = "regression"
        elif 2 <= len(texts) <= _MOST_CLASSES:
            found.task, found.classes = "classification", sorted(texts, key=_label_order)
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
    """Without any label: columns with a few texts may be some."""
    for kind in found.kinds:
        for column, _ in kind.roles.left_out if kind.role in ("signals", "facts") else ():
            if column in {kind.roles.unit, *(kind.roles.long and (kind.roles.long.name, kind.roles.long.value) or ())}:
                continue
            texts = {t for file in kind.files if column in file.columns for t in set(file.labels(column)) if t is not None}
            if 2 <= len(texts) <= _FEW_TEXTS and not plain_name(column)[0].endswith("id"):
                shown = join_names(sorted(texts), 5)
                kind.doubts.append(f"no label was found; is column {column!r} one ({shown})? see task, classes and label")


def _people(found: Found) -> None:
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


def _window(found: Found) -> None:
    """A first choice: enough steps of the slowest modality, and a third of a usual label."""
    rates = [float(str(m["rate_hz"])) for k in found.kinds if k.role == "signals" for m in k.modalities.values()]
    spans = sorted(span for kind in found.kinds for span in kind.spans if span > 0)
    usual = spans[len(spans) // 2] if spans else 100.0
    wanted = max(_LEAST_STEPS / min(rates), min(_label_length(found) / 3, usual / 4, 30 * 86_400))
    length = next((nice for nice in _NICE_S if nice >= wanted * 0.999), wanted)
    if length > usual / 2:
        length = max((nice for nice in _NICE_S if nice <= usual / 2), default=usual / 2)
    found.window = float(f"{length:.3g}"), float(f"{length / 2:.3g}")


def _label_length(found: Found) -> float:
    lengths: list[float] = []
    for kind in found.kinds:
        if kind.role == "intervals" and kind.time is not None and kind.roles.start:
            for file in [file for file in kind.files if file.complete][:_SAMPLE]:
                start = file_times(file, [kind.roles.start], kind.time)
                end = file_times(file, [kind.roles.end], kind.time) if kind.roles.end else None
                if kind.roles.duration:
                    lasts = file.numbers(kind.roles.duration)
                    unit = UNITS.get(kind.time.unit, SECOND) / SECOND
                    lengths += [] if lasts is None else (lasts[~np.isnan(lasts)] * unit).tolist()
                elif start is not None and end is not None:
                    lengths += ((end - start) / SECOND).tolist()
    positive = sorted(length for length in lengths if length > 0)
    return positive[len(positive) // 2] if positive else 30.0


def _name_of(path: str) -> str:
    name = PurePosixPath(path.rstrip("/").partition("?")[0]).name.partition(".")[0]
    return plain_name(name)[0] or "recordings"
