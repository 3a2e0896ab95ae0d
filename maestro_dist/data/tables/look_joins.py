"""Columns that join labels and facts to recordings, found by what they hold. Part of `--infer`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import PurePosixPath

from maestro_dist.data.tables.look_kinds import Found, Kind
from maestro_dist.data.tables.look_names import SUBJECT, plain_name
from maestro_dist.data.tables.look_times import is_absolute
from maestro_dist.data.tables.paths import PathPattern

_ENOUGH = 0.9
"""Share of the names in a column that must be names of recordings."""
_MOST_COLUMNS = 8

Names = tuple[str, ...]
"""What names a recording: the parts of a path, or the texts of columns."""


def join_by_values(found: Found) -> None:
    """Take as names of recordings the columns of labels and facts that hold such names, whatever they are called."""
    recordings = _names_of_recordings(found)
    if not recordings:
        return
    for kind in found.kinds:
        if kind.role in ("intervals", "facts") and not PathPattern.of(kind.path.pattern).names:
            _join(kind, recordings, _people(found))


def _names_of_recordings(found: Found) -> set[Names]:
    """The names of all recordings, of the way in which most files name them."""
    ways: dict[Names, set[Names]] = {}
    for kind in found.kinds:
        if kind.role != "signals":
            continue
        pattern = PathPattern.of(kind.path.pattern)
        columns = [column for column in (kind.roles.subject, kind.roles.recording) if column]
        if pattern.names:
            matched = [pattern.match(PurePosixPath(file.path)) or {} for file in kind.files]
            ways.setdefault(pattern.names, set()).update(tuple(names.values()) for names in matched if names)
        elif columns:
            rows = {row for file in kind.files for row in zip(*map(file.labels, columns), strict=True)}
            there = {tuple(map(str, row)) for row in rows if None not in row}
            ways.setdefault(("",) * len(columns), set()).update(there)
    return max(ways.values(), key=len, default=set())


def _people(found: Found) -> set[str]:
    """What paths of signals call people."""
    people = set()
    for kind in found.kinds:
        pattern = PathPattern.of(kind.path.pattern)
        if kind.role == "signals" and "subject" in pattern.names:
            people |= {(pattern.match(PurePosixPath(file.path)) or {}).get("subject", "") for file in kind.files}
    return people - {""}


def _join(kind: Kind, recordings: set[Names], people: set[str]) -> None:
    roles = kind.roles
    used = {roles.start, roles.end, roles.duration, roles.time, roles.group, roles.split, *roles.label_columns}
    free = [column for column in kind.files[0].columns if column not in used | set(roles.numbers)]
    columns = [c for c in dict.fromkeys([roles.subject, roles.recording, *free]) if c][:_MOST_COLUMNS]
    whole = {"-".join(names) for names in recordings}
    parts = len(next(iter(recordings)))
    pair = (
        next((two for two in permutations(columns, 2) if _holds(kind, two, recordings)), None) if parts == 2 else None
    )
    one = next((column for column in columns if _holds(kind, [column], {(name,) for name in whole})), None)
    if pair is not None:
        _take(kind, *pair)
    elif one is not None and parts == 1:
        others = [c for c in columns if c != one and plain_name(c)[0] in SUBJECT]
        if kind.role == "facts" and not others and roles.recording is None:
            return  # it names people or recordings: that is the same
        _take(kind, others[0] if others else None, one, alone=True)
    elif one is not None:
        _take(kind, None, one, alone=True)
    elif not (roles.subject or roles.recording):
        person = next((column for column in columns if _holds(kind, [column], {(name,) for name in people})), None)
        if person is not None:
            _take(kind, person, None)
    if kind.role == "intervals" and pair is None and one is None and len(recordings) > len(people) > 0:
        _ask_which_recording(kind)


def _ask_which_recording(kind: Kind) -> None:
    """Ask where labels name a person who has several recordings, and times that count from the start of each."""
    start = kind.roles.start
    if start is not None and not is_absolute(kind.whole, [start]):
        kind.doubts.append(
            "labels name the person only, and all recordings of a person get all of them; if each has its own, name "
            "the recording too, as the signals do"
        )


def _holds(kind: Kind, columns: Sequence[str], names: set[Names]) -> bool:
    """Whether rows have such names in these columns."""
    if not names:
        return False
    rows = {row for file in kind.files for row in zip(*map(file.labels, columns), strict=True)}
    return bool(rows) and sum(row in names for row in rows) >= _ENOUGH * len(rows)


def _take(kind: Kind, subject: str | None, recording: str | None, *, alone: bool = False) -> None:
    roles = kind.roles
    if (subject, recording, alone or subject is None) == (roles.subject, roles.recording, roles.subject is None):
        return
    new = [column for column in (subject, recording) if column and column not in (roles.subject, roles.recording)]
    roles.left_out += [
        (c, "another name") for c in (roles.subject, roles.recording) if c and c not in (subject, recording)
    ]
    roles.left_out = [(column, why) for column, why in roles.left_out if column not in (subject, recording)]
    roles.subject, roles.recording, roles.alone = subject, recording, alone
    for column in new:
        what = "recordings" if column == recording else "people"
        kind.doubts.append(f"column {column!r} holds the names of {what}, as the signals have them")
