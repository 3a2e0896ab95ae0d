"""Which parts of paths differ, and what they may mean. Part of `--infer`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from maestro_dist.data.tables.look_names import may_be_label, plain_name

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
_PERSON = re.compile(
    r"(s|p|u|sub|subj|subject|person|patient|participant|user|id|proband|vp|pt)[-_]?\d+([a-z]{3,})?", re.IGNORECASE
)
_PERSON_WORD = re.compile(
    r"(sub|subj|subject|person|patient|participant|user|proband|vp|pt|((subject|person|patient|participant|user)_?)?id)s?",
    re.IGNORECASE,
)
_CUT = re.compile(r"([/_\-. =])")
_DATE = re.compile(r"(19|20)\d{2}([-_.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])")
_IN_DATE = str.maketrans("-_.", "\0\1\2")
_OUT_OF_DATE = str.maketrans("\0\1\2", "-_.")
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
        tokens = _tokens(path)
        by_shape.setdefault((path.count("/"), len(tokens)), []).append(path)
    if len({shape[1] for shape in by_shape}) > 1 and len({shape[0] for shape in by_shape}) == 1:
        return _kinds([_by_components(path) for path in sorted(paths)], labelled)
    for shape in sorted(by_shape):
        found += _kinds([_tokens(path) for path in by_shape[shape]], labelled)
    return found


def _tokens(path: str) -> list[str]:
    """Words and what divides them; a date is one word."""
    found = _CUT.split(_DATE.sub(lambda date: date[0].translate(_IN_DATE), path))
    return [token.translate(_OUT_OF_DATE) for token in found]


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
    if place >= 2 and rows[0][place - 1] == "=" and may_be_label(plain_name(rows[0][place - 2])[0]):
        return "label"
    if len(values) > _MOST_SENSORS or len(values) == len(rows) or any(re.search(r"\d", v) for v in values):
        return "name"
    if any(len({row[q] for row in rows}) == len(values) == len({(row[q], row[place]) for row in rows}) for q in others):
        return "name"  # it goes with another part, as the letters of a person with the number
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
    parts = [p for p in free if _is_part_of_table(rows, p)]
    free = [p for p in free if p not in parts]
    again = {p: q for p in free for q in reversed(free) if q < p and all(row[p] == row[q] for row in rows)}
    runs = _runs(first, [p for p in free if p not in again])
    for number, run in enumerate(runs):
        name = _name(rows, run, number, len(runs))
        names[run[0]] = name
        if name == "subject" and not _is_person(rows, run):
            values = sorted({row[run[0]] for row in rows})
            doubts.append(f"is {{subject}} a person ({', '.join(values[:5])}{', ...' if len(values) > 5 else ''})?")
    names |= {p: names[q] for p, q in again.items() if q in names}
    stars = set(parts) | {p for p in again if p not in names}
    ends = {run[0]: run[-1] for run in runs}
    pieces, place = [], 0
    while place < len(first):
        text = "*" if place in stars else _LITERAL.sub("*", first[place])
        pieces.append(f"{{{names[place]}}}" if place in names else text)
        place = ends.get(place, place) + 1
    if len(rows) == 1:
        word = word or "".join(first).rpartition("/")[2].partition(".")[0]
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


def _is_part_of_table(rows: list[list[str]], place: int) -> bool:
    """Whether files are parts of one table, as Spark writes them: part-00000-0a1b2c.parquet."""
    first = rows[0]
    name = max((p for p in range(1, place) if first[p] == "/"), default=-1) + 1
    return name < place and first[name] == "part" and first[-1] in ("parquet", "csv")


def _is_person(rows: list[list[str]], run: Sequence[int]) -> bool:
    """Whether words say that a part of a path is a person."""
    place = run[0]
    before = rows[0][place - 2] if place >= 2 else ""
    return all(_PERSON.fullmatch(row[place]) for row in rows) or bool(_PERSON_WORD.fullmatch(before))


def _name(rows: list[list[str]], run: Sequence[int], number: int, count: int) -> str:
    values = {row[run[0]] for row in rows}
    dates = all(_DATE.fullmatch(value) for value in values)
    if number == 0 and (_is_person(rows, run) or (count > 1 and len(values) < len(rows) and not dates)):
        return "subject"
    if count == 1 or (count == 2 and number == 1):
        return "recording"
    return f"part{number + 1}"
