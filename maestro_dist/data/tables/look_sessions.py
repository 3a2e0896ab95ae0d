"""Several recordings in one file: a column that tells them apart without such a name, or time that starts again.

Part of `--infer`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maestro_dist.data.tables.look_columns import Roles
from maestro_dist.data.tables.look_files import Looked
from maestro_dist.data.tables.look_names import plain_name
from maestro_dist.data.tables.look_times import TimeGuess, file_times
from maestro_dist.data.tables.times import HOUR, in_order
from maestro_dist.errors import DataError


def find_sessions(files: Sequence[Looked], roles: Roles, time: TimeGuess, *, alone: bool) -> None:
    """If time goes back in files of signals, say in `roles` what tells the recordings apart.

    alone  no other file has signals or labels, whose recordings would need the same names
    """
    found = [(file, of) for file in files if (of := file_times(file, roles.times, time)) is not None]
    known = [column for column in (roles.subject, roles.recording) if column]
    same = [_same(file, known) for file, _ in found]
    back = [(np.diff(times) < 0) & of for (_, times), of in zip(found, same, strict=True)]
    if not any(_two_recordings(times, of, at) for (_, times), of, at in zip(found, same, back, strict=True)):
        return
    for column in files[0].columns if roles.recording is None else ():
        if column in {*roles.times, *known, *roles.label_columns, roles.group, roles.split}:
            continue
        cells = [np.array([str(text) for text in file.table.texts(column)]) for file, _ in found]
        if all(_tells_apart(cell, of, at) for cell, of, at in zip(cells, same, back, strict=True)):
            roles.recording = column
            if {"sensor", "channel", "device", "node", "probe"} & set(plain_name(column)[0].split("_")):
                roles.doubts.append(
                    f"column {column!r} names recordings; if it names sensors of one recording, sort the rows by time"
                )
            roles.numbers = [name for name in roles.numbers if name != column]
            roles.left_out = [(name, reason) for name, reason in roles.left_out if name != column]
            return
    places = sum(int(at.sum()) for at in back)
    steps = np.concatenate([np.diff(times)[at] for (_, times), at in zip(found, back, strict=True)])
    if time.unit == "date" and (np.abs(steps + HOUR) < HOUR // 10).all():
        roles.doubts.append("time goes back by an hour: the end of daylight saving? Name the zone")
        return
    if alone:
        roles.restarts = True
        roles.doubts.append(f"time goes back in {places:,} places: each time, another recording starts")
    else:
        roles.doubts.append(f"time goes back in {places:,} places: name the column that tells recordings apart")


def _same(file: Looked, columns: Sequence[str]) -> np.ndarray:
    """Whether a row and the next one have the same texts in some columns: bool [rows - 1]."""
    same = np.ones(max(0, file.rows - 1), dtype=bool)
    for column in columns:
        texts = np.array([str(text) for text in file.table.texts(column)])
        same &= texts[1:] == texts[:-1]
    return same


def _two_recordings(times: np.ndarray, same: np.ndarray, back: np.ndarray) -> bool:
    """Whether rows of one recording cannot be sorted: times occur that were there before."""
    if not back.any():
        return False
    cuts = np.flatnonzero(~same) + 1
    for own in np.split(times, cuts):
        try:
            in_order(own, "")
        except DataError:
            return True
    return False


def _tells_apart(cells: np.ndarray, same: np.ndarray, back: np.ndarray) -> bool:
    """Whether cells change exactly where time goes back, and never to what was there before."""
    changes = cells[1:] != cells[:-1]
    if not np.array_equal(changes & same, back):
        return False
    for own in np.split(cells, np.flatnonzero(~same) + 1):
        if len(set(own.tolist())) != 1 + int((own[1:] != own[:-1]).sum()):
            return False
    return True
