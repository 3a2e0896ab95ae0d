"""The keys and the people (subjects) of the samples of a split."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from maestro_dist.data.plain_values import person
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.sample import BadSample
from maestro_dist.data.storage.plain_json import parse_json


def keys_and_subjects(source: SplitSource) -> tuple[np.ndarray, np.ndarray]:
    """Key and subject of each sample of a split, str [N] each, in manifest order. Reads only the indexes.

    Shards of an older version have no subjects in their index; of these, the json members are read.

    A sample without a subject counts as one person, named by its key. A number and its text (0 and "0") are
    the same subject. Raises BadSample.
    """
    keys, subjects = _from_indexes(source)
    if subjects is not None:
        return np.array(keys), np.array([subject or key for key, subject in zip(keys, subjects, strict=True)])
    keys, subjects = [], []
    nothing = np.zeros(len(source.modalities), dtype=bool)
    with closing(source.open()) as reader:
        for number in range(source.manifest.split(source.split).samples):
            stored = reader.stored(number, nothing)
            try:
                subject = parse_json(stored.meta).get("subject")
            except (ValueError, AttributeError) as error:
                raise BadSample(f"{stored.where}: its json cannot be read ({error})") from error
            keys.append(stored.key)
            subjects.append(person(subject) or stored.key)
    return np.array(keys), np.array(subjects)


def _from_indexes(source: SplitSource) -> tuple[list[str], list[str] | None]:
    keys: list[str] = []
    subjects: list[str] = []
    for index in source.indexes():
        if index.subjects is None:
            return [], None
        keys += index.keys
        subjects += index.subjects
    return keys, subjects
