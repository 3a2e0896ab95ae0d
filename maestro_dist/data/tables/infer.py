"""Look at a folder of tables, and write the layout that packs it (`tools/pack_dataset.py csv --infer`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from maestro_dist.data.converters.files import AnySource, SourceFile, SourceFiles, join_names
from maestro_dist.data.tables.look_columns import Roles, roles_of, unit_of_item
from maestro_dist.data.tables.look_files import Looked, look_at
from maestro_dist.data.tables.look_joins import join_by_values
from maestro_dist.data.tables.look_kinds import MOST_FILES, Found, Kind, find_kinds
from maestro_dist.data.tables.look_labels import choose_window, find_labels, find_people
from maestro_dist.data.tables.look_modalities import modalities_of
from maestro_dist.data.tables.look_names import plain_name
from maestro_dist.data.tables.look_sessions import find_sessions
from maestro_dist.data.tables.look_times import file_times, guess_rate, guess_time, is_absolute, time_problem
from maestro_dist.data.tables.paths import PathPattern, same_names
from maestro_dist.data.tables.reading import ENDINGS, is_binary
from maestro_dist.data.tables.times import SECOND
from maestro_dist.errors import DataError

_LEAST_LETTERS = 3
"""Of a footer: with fewer ones it may be something else."""


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
    _one_footer(looked)
    found = Found(_name_of(files.path), [], remarks=[*files.warnings(), *remarks])
    found.kinds = find_kinds(looked, lambda path: _look_at(files, path, named[path]))
    found.kinds.sort(key=lambda kind: (kind.role == "intervals", kind.path.pattern))
    _find_facts(found)
    _one_way_to_name_recordings(found)
    _one_name_of_people(found)
    signals = [kind for kind in found.kinds if kind.role == "signals"]
    for kind in found.kinds:
        _guess_times(kind)
    _use_absolute_times(signals)
    for kind in signals:
        if kind.time is not None:
            alone = sum(k.role in ("signals", "intervals") for k in found.kinds) == 1
            find_sessions(kind.whole, kind.roles, kind.time, alone=alone)
    join_by_values(found)
    for kind in found.kinds:
        _understand(kind, found)
        kind.doubts += kind.roles.doubts
    if not any(kind.role == "signals" and kind.modalities for kind in found.kinds):
        raise files.error("no table has columns with measured numbers; write a layout by hand")
    find_labels(found)
    find_people(found)
    choose_window(found)
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
            looked.append(found if seen[found.signature] <= MOST_FILES else found.without_measurements())
        except DataError as error:
            broken.append(str(error))
    remarks = [f"files that cannot be read as tables, left out ({len(broken)}): {broken[0]}"] if broken else []
    if empty:
        remarks.append(f"files without any row, left out ({len(empty)}): {join_names(empty, 5)}")
    return looked, remarks


def _one_footer(looked: Sequence[Looked]) -> None:
    """Files that differ only in what is below their rows are of one kind: a footer that is not there does no harm."""
    alike: dict[object, list[Looked]] = {}
    for file in looked:
        alike.setdefault((file.columns, replace(file.dialect, footer=None)), []).append(file)
    for files in alike.values():
        footers = sorted(file.dialect.footer for file in files if file.dialect.footer is not None)
        if footers:
            first, last = footers[0], footers[-1]  # of texts in order, these two have least in common
            same = [one == other for one, other in zip(first, last, strict=False)]
            start = first[: same.index(False) if False in same else len(same)].strip()
            footer = start if len(start) >= _LEAST_LETTERS else max(footers, key=footers.count)
            for file in files:
                file.read_as(replace(file.dialect, footer=footer))


def _look_at(files: SourceFiles, path: str, file: SourceFile) -> Looked:
    content = file.read_binary() if is_binary(file.name) else file.read(files.remarks)
    return look_at(path, file.name, content)


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
            known = len(values & names) >= 0.5 * min(len(names) or 1, len(values))
            known = known or len(same_names(names, values)) >= 0.5 * len(values)
            if len(values) == len(texts) and values and known:
                kind.role = "facts"
                kind.roles = roles_of([file], facts=True)
                by_recording = column == kind.roles.recording
                kind.roles.recording, kind.roles.subject = (
                    (column, kind.roles.subject) if by_recording else (None, column)
                )
                kind.roles.numbers = [name for name in kind.roles.numbers if name != column]
                kind.roles.left_out = [(name, why) for name, why in kind.roles.left_out if name != column]
                break
        both = [column for column in (kind.roles.subject, kind.roles.recording) if column]
        if kind.role == "signals" and len(both) > 1:
            ids = ["-".join(map(str, row)) for row in zip(*(file.table.texts(column) for column in both), strict=True)]
            if len(set(ids)) == len(ids) and len(set(ids) & names) >= 0.5 * min(len(names) or 1, len(ids)):
                kind.role, kind.roles = "facts", roles_of([file], facts=True)


def _one_way_to_name_recordings(found: Found) -> None:
    """Signals whose paths name recordings in another way than most are left out: a layout cannot join them."""
    ways: dict[frozenset[str], list[Kind]] = {}
    for kind in found.kinds:
        if kind.role == "signals":
            ways.setdefault(frozenset(PathPattern.of(kind.path.pattern).names), []).append(kind)
    usual = max(ways.values(), key=lambda kinds: sum(len(kind.files) for kind in kinds), default=[])
    for kind in (kind for kinds in ways.values() for kind in kinds if kinds is not usual):
        kind.role = "unused"
        found.doubts.append(
            f"{kind.path.pattern} is left out: its path does not name recordings as {usual[0].path.pattern} does"
        )


def _one_name_of_people(found: Found) -> None:
    """Where a column names people in another way than paths do, the column counts, and the path names recordings."""
    for kind in found.kinds:
        pattern, column = PathPattern.of(kind.path.pattern), kind.roles.subject
        if kind.role != "signals" or column is None or "subject" not in pattern.names:
            continue
        told = [
            ((pattern.match(PurePosixPath(f.path)) or {}).get("subject"), set(f.labels(column))) for f in kind.files
        ]
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
    problem = next((text for file in files if kind.time and (text := time_problem(file, roles.times, kind.time))), "")
    if problem and not (kind.time and kind.time.doubt):
        kind.doubts.append(problem)
    alike = [k for k in found.kinds if k.role == "signals" and set(k.roles.numbers) & set(roles.numbers)]
    parts = [[name] for name in roles.numbers] if roles.long else [roles.numbers]
    guesses = [g for part in parts for g in modalities_of(part, kind.path.word, prefix=len(alike) > 1)]
    sensors = [None] if roles.apart is None else roles.apart[1]
    for guess, sensor in ((guess, sensor) for sensor in sensors for guess in guesses):
        if clocks:  # their columns have no names
            guess = replace(guess, name=plain_name(kind.path.word)[0] or guess.name)
        unit = guess.unit or files[0].units.get(guess.columns[0], "") or unit_of_item(files, roles, guess.columns[0])
        about: dict[str, object] = {"columns": list(guess.columns), "rate_hz": 1.0, "unit": unit}
        if roles.apart is not None and sensor is not None:
            about["rows"] = {roles.apart[0]: sensor}
            guess = replace(guess, name=plain_name(f"{guess.name[:30]} {sensor}")[0][:40])
        if kind.time is not None and roles.time is not None:
            times = []
            for file in files:
                of = file_times(file, roles.times, kind.time)
                if of is not None:
                    times += _of_recordings(file, roles, of, guess.columns, sensor)
            kind.spans += [float(of[-1] - of[0]) / SECOND for of in times if len(of) > 1]
            rate = guess_rate(times)
            about["rate_hz"] = rate.rate_hz
            if rate.grid != "auto":
                about["grid"] = rate.grid
            if rate.doubt and times:
                kind.doubts.append(f"{guess.name}: {rate.doubt}")
        else:
            about["rate_hz"] = min(clocks, default=files[0].hertz or 1.0)
            kind.spans += [file.rows / float(str(about["rate_hz"])) for file in files]
        kind.modalities[_free(guess.name, found)] = about


def _of_recordings(
    file: Looked, roles: Roles, times: np.ndarray, columns: Sequence[str], sensor: str | None = None
) -> list[np.ndarray]:
    """The times of rows that have a value in one of the columns, apart for each recording that a column names.

    sensor  only the rows of this one
    """
    there = np.zeros(len(times), dtype=bool)
    for column in columns:
        values = file.numbers(column)
        if values is not None:
            there |= ~np.isnan(values)
    if roles.apart is not None:
        there &= np.array([text == sensor for text in file.labels(roles.apart[0])])
    by = [column for column in (roles.subject, roles.recording) if column]
    texts: list[Sequence[object]] = [file.table.texts(column) for column in by]
    if roles.restarts:
        texts.append(np.cumsum(np.diff(times, prepend=times[:1]) < 0).tolist())
    if not texts:
        return [np.sort(times[there])]
    ids = np.array(["-".join(map(str, row)) for row in zip(*texts, strict=True)])
    return [np.sort(times[there & (ids == one)]) for one in np.unique(ids)[:MOST_FILES]]


def _free(name: str, found: Found) -> str:
    """The name, or with a number if another modality has it."""
    taken = {m for kind in found.kinds for m in kind.modalities}
    return next(n for n in (name, *(f"{name[:37]}_{k}" for k in range(2, 1000))) if n not in taken)


def _name_of(path: str) -> str:
    name = PurePosixPath(path.rstrip("/").partition("?")[0]).name.partition(".")[0]
    return plain_name(name)[0] or "recordings"
