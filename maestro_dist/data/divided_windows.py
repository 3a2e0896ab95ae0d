"""Packed windows in other splits than the packed ones: `data.split` of a data set of windows.

All packed splits are joined, in their order, and divided by what was packed with each window: its person, which the
index of its shard has, or its recording and its time, which its json member has. No shard is written: an entry of the
new manifest is a packed shard with those of its windows that are in the split (`Shard.rows`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import SplitConfig
from maestro_dist.data.label_sets import ClassCounter
from maestro_dist.data.manifest import Manifest, ManifestSplit, Shard
from maestro_dist.data.manifest_made import Divided
from maestro_dist.data.moments import RunningMoments
from maestro_dist.data.plain_values import person
from maestro_dist.data.reader import SplitReader, SplitSource
from maestro_dist.data.recordings.splitting import (
    TEST,
    TRAIN,
    VALIDATION,
    assigned,
    check_given_alone,
    lies_in,
    refuse_shared_people,
    time_cuts,
)
from maestro_dist.data.storage.plain_json import parse_json
from maestro_dist.data.target_numbers import target_statistics
from maestro_dist.errors import ConfigError, DataError

_LOG = logging.getLogger(__name__)
_SPLITS = (TRAIN, VALIDATION, TEST)
_ALL = "all"
"""Name of the one split that holds the windows of all packed splits."""


@dataclass(frozen=True)
class _Facts:
    """What is known about N windows, in the order of the joined splits.

    keys        names of the windows
    subjects    their people, "" where unknown
    targets     float64 [N]: class or target; [N, K]: several targets
    recordings  names of their recordings
    start_s     float64 [N]: where each begins in its recording, in seconds; `end_s`: where it ends
    """

    keys: list[str]
    subjects: np.ndarray
    targets: np.ndarray
    recordings: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray


def check_given(stored: Manifest, config: SplitConfig) -> None:
    """Check that packed splits can be used as they are.

    Raises:
        ConfigError: they have people in common, which the configuration does not allow; or it has folds, shares or
            names, which have no effect.
    """
    check_given_alone(config)
    if stored.shared_people and not config.allow_shared_people:
        first = stored.shared_people[0]
        raise ConfigError(
            f"data.split: {first.people:,} people are in both '{first.splits[0]}' and '{first.splits[1]}' as packed "
            f"({', '.join(first.some)}), so the result says little about new people; divide by subject, or allow it "
            "with data.split.allow_shared_people=true"
        )


def divided_windows(config: DataConfig, stored: Manifest, divided: Divided) -> Manifest:
    """The manifest of the new splits, with the means and deviations of the packed ones.

    Raises:
        ConfigError: a window lacks what it is divided by, a name is unknown, a person would be in two splits, or the
            symbols of the data set depend on its packed splits.
        DataError: the data is missing or damaged.
        StorageError: it cannot be read at present.
    """
    _check_dividable(stored)
    shards = [shard for split in stored.splits.values() for shard in split.shards]
    facts = _facts(config, _joined(stored, shards), divided.split)
    place = _places(facts, divided.split)
    if (place < 0).all():
        raise ConfigError(
            f"data.split.by: time, but each window of '{stored.name}' reaches over the border of two splits: the "
            "recordings are too short; use subject or recording"
        )
    if (place < 0).any():
        count = int((place < 0).sum())
        _LOG.info("%s: %s windows reach over the border of two splits and are in neither", stored.name, f"{count:,}")
    splits, ends = {}, np.cumsum([shard.samples for shard in shards])
    for number, name in enumerate(_SPLITS):
        own = place == number
        parts = np.split(own, ends[:-1])
        found = [shard.part(rows) for shard, rows in zip(shards, parts, strict=True) if rows.any()]
        splits[name] = _split(found, facts.targets[own], stored.counter)
        _warn_of_equal_keys(stored.name, name, [facts.keys[row] for row in np.flatnonzero(own).tolist()])
    return stored.model_copy(update={"splits": splits, "divided": divided})


def _check_dividable(stored: Manifest) -> None:
    if stored.divided is not None or stored.cut is not None:
        raise DataError(
            f"'{stored.name}': its manifest is that of a run, not of a packed data set; name the packed data set"
        )
    symbols = stored.symbols
    if symbols is not None and (not symbols.raw or symbols.normalize == "dataset"):
        why = "made with the statistics of its training split" if symbols.raw else "stored without raw windows"
        raise ConfigError(f"data.split: the symbols of '{stored.name}' are {why}; use the data set without symbols")


def _joined(stored: Manifest, shards: list[Shard]) -> Manifest:
    """The manifest with one split, which has all windows."""
    paths = {shard.path for shard in shards}
    if not shards:
        raise DataError(f"'{stored.name}' has no samples to divide")
    if len(paths) != len(shards):
        raise DataError(f"'{stored.name}': two splits name the same shard; pack the data set again")
    whole = ManifestSplit.model_construct(shards=shards, samples=sum(shard.samples for shard in shards))
    return stored.model_copy(update={"splits": {_ALL: whole}})


def _facts(config: DataConfig, joined: Manifest, split: SplitConfig) -> _Facts:
    source = SplitSource(config.url, joined, config, (), _ALL)
    indexes = list(source.indexes())
    keys = [key for index in indexes for key in index.keys]
    unknown = any(index.subjects is None or index.targets is None for index in indexes)  # of an older version
    if not unknown and split.by not in ("recording", "time"):
        subjects = [subject for index in indexes for subject in index.subjects or ()]
        targets = np.concatenate([index.targets for index in indexes if index.targets is not None])
        nothing = np.zeros(len(keys))
        return _Facts(keys, np.array(subjects), targets, np.array([""] * len(keys)), nothing, nothing)
    with closing(source.open()) as reader:
        rows = [_row(reader, number, joined.window_s) for number in range(len(keys))]
    people, labels, recordings, starts, ends = (np.array(column) for column in zip(*rows, strict=True))
    return _Facts(keys, people, labels.astype(np.float64), recordings, starts, ends)


def _row(reader: SplitReader, number: int, window_s: float) -> tuple[str, float | Sequence[float], str, float, float]:
    """Subject, target, recording, start and end of a window, from its json member."""
    stored = reader.stored(number, np.zeros(0, dtype=bool))
    target = reader.decode(number, replace(stored, arrays={})).target
    try:
        body: dict[str, Any] = parse_json(stored.meta)
        start, length = float(body.get("start_s", np.nan)), float(body.get("duration_s", 0.0))
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{stored.where}: its json cannot be read ({error}); pack the data set again") from error
    return person(body.get("subject")), target, person(body.get("recording")), start, start + (length or window_s)


def _places(facts: _Facts, config: SplitConfig) -> np.ndarray:
    """The number of the split of each window, int64 [N]; -1: none."""
    if config.by == "group":
        raise ConfigError("data.split.by: group, but windows are packed without groups; use subject, recording or time")
    units = facts.subjects if config.by == "subject" else _recordings(facts)
    lacking = np.flatnonzero(units == "")
    if len(lacking):
        what = "subject" if config.by == "subject" else "recording"
        raise ConfigError(f"data.split.by: {config.by}, but sample {facts.keys[lacking[0]]} has no {what}")
    names, unit = np.unique(units, return_inverse=True)
    if config.by == "time":
        return _by_time(facts, names, unit, config)
    of_unit = assigned(names.tolist(), config)
    place = np.array([_SPLITS.index(of_unit[name]) for name in names.tolist()])[unit]
    if not config.allow_shared_people:
        people, person_of = np.unique(facts.subjects, return_inverse=True)
        pairs = np.unique(np.stack([person_of, place]), axis=1)
        refuse_shared_people(people[pairs[0]].tolist(), [_SPLITS[number] for number in pairs[1].tolist()])
    return place


def _recordings(facts: _Facts) -> np.ndarray:
    """Names of the recordings, str [N]: those as packed; `person/name` where several people have one of that name."""
    names, recording = np.unique(facts.recordings, return_inverse=True)
    pairs = np.unique(np.stack([recording, np.unique(facts.subjects, return_inverse=True)[1]]), axis=1)
    several = ((np.bincount(pairs[0], minlength=len(names)) > 1) & (names != ""))[recording]
    joined = np.char.add(np.char.add(facts.subjects, "/"), facts.recordings)
    return np.where(several, joined, facts.recordings)


def _by_time(facts: _Facts, names: np.ndarray, unit: np.ndarray, config: SplitConfig) -> np.ndarray:
    """As `_places`. A recording goes from its first window's start to its last window's end."""
    cuts = time_cuts(config, people=bool((facts.subjects != "").any()))
    if not np.isfinite(facts.start_s).all():
        sample = facts.keys[np.argmin(np.isfinite(facts.start_s))]
        raise ConfigError(f"data.split.by: time, but sample {sample} has no start_s")
    first, last, end = np.full(len(names), np.inf), np.full(len(names), -np.inf), np.full(len(names), -np.inf)
    np.minimum.at(first, unit, facts.start_s)
    np.maximum.at(last, unit, facts.start_s)
    np.maximum.at(end, unit, facts.end_s)
    same = np.flatnonzero((np.bincount(unit) > 1) & (first == last))
    if len(same):
        raise ConfigError(
            f"data.split.by: time, but all windows of recording {names[same[0]]} start at {first[same[0]]:g} s; use "
            "subject or recording"
        )
    place, start = np.full(len(unit), -1), first[unit]
    for number in range(len(_SPLITS)):
        place[lies_in(number, cuts, facts.start_s - start, facts.end_s - start, (end - first)[unit])] = number
    return place


def _split(shards: list[Shard], targets: np.ndarray, counter: ClassCounter) -> ManifestSplit:
    """As `pack` counts it, to the last bit."""
    moments = RunningMoments(1)
    several = counter.targets > 1
    for target in targets.tolist() if not counter.classes and not several else ():
        moments.add(np.array([[target]]))
    numbers = not counter.classes and not several and bool(shards)
    return ManifestSplit(
        shards=shards,
        samples=len(targets),
        class_counts=counter.counts(targets),
        target_mean=float(moments.mean[0]) if numbers else None,
        target_std=float(moments.std[0]) if numbers else None,
        targets=target_statistics(targets, counter.targets),
    )


def _warn_of_equal_keys(name: str, split: str, keys: list[str]) -> None:
    """Keys are unique within a packed split; two of them may have the same ones."""
    if len(set(keys)) < len(keys):
        again = [key for key, count in Counter(keys).items() if count > 1]
        text = "%s: %s keys are those of several samples of the new split '%s' (%s, say): predictions name both"
        _LOG.warning(text, name, f"{len(again):,}", split, again[0])
