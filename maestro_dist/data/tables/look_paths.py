"""Which parts of paths differ, and what they may mean. Part of `--infer`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
}  # fmt: skip
"""What splits are called -> the names that a run uses."""

_SENSORS = re.compile(
    r"acc\w*|gyr\w*|mag\w*|imu\w*|left|right|chest|wrist|ankle|hand|arm|leg|foot|hip|head|back|pocket|ecg|ekg|ppg|bvp|eda|gsr"
    r"|emg|eeg|eog|resp\w*|temp\w*|hr|heart\w*|bpm|spo2|abp|press\w*|ibi|watch|phone|sensor\w*|device\w*|light|hum\w*|co2",
    re.IGNORECASE,
)
_PERSON = re.compile(r"(s|p|sub|subj|subject|person|patient|participant|user|id)[-_]?\d+", re.IGNORECASE)
_PERSON_WORD = re.compile(r"(sub|subj|subject|person|patient|participant|user)s?", re.IGNORECASE)
_CUT = re.compile(r"([/_\-. ])")
_LITERAL = re.compile(r"[{}*]")
"""Letters that a pattern cannot hold; `*` matches them."""
_MOST_SENSORS = 12


@dataclass(frozen=True)
class PathKind:
    """Files with one meaning: the pattern of their paths, the paths, and a word that tells them from others."""

    pattern: str
    paths: tuple[str, ...]
    word: str = ""
    doubts: tuple[str, ...] = ()
    names: tuple[str, ...] = field(default=())


def kinds_of(paths: Sequence[str], *, labelled: bool) -> list[PathKind]:
    """The kinds of some files that have the same columns. `labelled`: other files or columns have labels.

    Paths that do not follow one pattern are divided by their depth.
    """
    found = []
    by_shape: dict[tuple[int, int], list[str]] = {}
    for path in sorted(paths):
        tokens = _CUT.split(path)
        by_shape.setdefault((path.count("/"), len(tokens)), []).append(path)
    if len({shape[1] for shape in by_shape}) > 1 and len({shape[0] for shape in by_shape}) == 1:
        return _kinds([_by_components(path) for path in sorted(paths)], labelled)
    for shape in sorted(by_shape):
        found += _kinds([_CUT.split(path) for path in by_shape[shape]], labelled)
    return found


def _by_components(path: str) -> list[str]:
    """Folders, the stem and the ending."""
    *folders, name = path.split("/")
    stem, dot, ending = name.partition(".")
    pieces = [piece for folder in folders for piece in (folder, "/")]
    return [*pieces, stem, dot, ending]


def _kinds(rows: list[list[str]], labelled: bool) -> list[PathKind]:
    varying = [p for p in range(0, len(rows[0]), 2) if len({row[p] for row in rows}) > 1]
    splits = [p for p in varying if all(row[p].lower() in SPLITS for row in rows)]
    sensors, labels = [], []
    for p in varying:
        if p in splits:
            continue
        meaning = _meaning(rows, p, [q for q in varying if q != p], labelled)
        if meaning == "sensor":
            sensors.append(p)
        elif meaning == "label":
            labels.append(p)
    if not sensors:
        return [_kind(rows, splits, labels, "")]
    found = []
    for values in sorted({tuple(row[p] for p in sensors) for row in rows}):
        own = [row for row in rows if tuple(row[p] for p in sensors) == values]
        found.append(_kind(own, splits, labels, "_".join(values)))
    return found


def _meaning(rows: list[list[str]], place: int, others: Sequence[int], labelled: bool) -> str:
    """sensor: each recording has a file of each value; label: each file has one; else it names the recording."""
    values = {row[place] for row in rows}
    if len(values) > _MOST_SENSORS or len(values) == len(rows) or any(re.search(r"\d", v) for v in values):
        return "name"
    sensor_words = sum(bool(_SENSORS.fullmatch(value)) for value in values)
    rest = {tuple(row[q] for q in others) for row in rows}
    complete = len(rows) >= 0.9 * len(values) * len(rest)
    if complete and sensor_words >= 0.5 * len(values):
        return "sensor"
    return "name" if labelled or sensor_words else "label"


def _kind(rows: list[list[str]], splits: Sequence[int], labels: Sequence[int], word: str) -> PathKind:
    first = rows[0]
    names: dict[int, str] = {}
    varying = [p for p in range(0, len(first), 2) if len({row[p] for row in rows}) > 1]
    doubts = []
    free = [p for p in varying if p not in splits and p not in labels]
    if labels and len(labels) == 1:
        names[labels[0]] = "label"
        values = sorted({row[labels[0]] for row in rows})
        doubts.append(f"the label is part of the path ({', '.join(values[:5])}{', ...' if len(values) > 5 else ''})")
    else:
        free = sorted({*free, *labels})
    names |= dict.fromkeys(splits[:1], "split")
    runs = _runs(first, free)
    for number, run in enumerate(runs):
        names[run[0]] = _name(rows, run, number, len(runs))
    ends = {run[0]: run[-1] for run in runs}
    pieces, place = [], 0
    while place < len(first):
        pieces.append(f"{{{names[place]}}}" if place in names else _LITERAL.sub("*", first[place]))
        place = ends.get(place, place) + 1
    stem = next((t for p, t in reversed(list(enumerate(first[:-1]))) if p % 2 == 0 and p not in varying and t), "")
    paths = tuple("".join(row) for row in rows)
    return PathKind("".join(pieces), paths, word or stem, tuple(doubts), tuple(dict.fromkeys(names.values())))


def _runs(first: Sequence[str], places: Sequence[int]) -> list[list[int]]:
    """Places that follow each other inside one folder or name; the first of them may be the person, the rest is one."""
    runs: list[list[int]] = []
    for _, group in groupby(enumerate(places), key=lambda item: item[1] - 2 * item[0]):
        run: list[int] = []
        for _, p in group:
            if run and first[p - 1] == "/":
                runs.append(run)
                run = []
            run.append(p)
        runs.append(run)
    divided = []
    for run in runs:
        divided += [run[:1], run[1:]] if len(run) > 1 else [run]
    return divided


def _name(rows: list[list[str]], run: Sequence[int], number: int, count: int) -> str:
    place = run[0]
    values = {row[place] for row in rows}
    before = rows[0][place - 2] if place >= 2 else ""
    person = all(_PERSON.fullmatch(v) for v in values) or bool(_PERSON_WORD.fullmatch(before))
    if number == 0 and (person or (count > 1 and len(values) < len(rows))):
        return "subject"
    if count == 1 or (count == 2 and number == 1):
        return "recording"
    return f"part{number + 1}"
