"""The keys and the people (subjects) of the samples of a split."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import numpy as np

from maestro_dist.data.plain_values import whole_number
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.sample import BadSample


def keys_and_subjects(source: SplitSource) -> tuple[np.ndarray, np.ndarray]:
    """Key and subject of each sample of a split, str [N] each, in manifest order. Reads only the json members.

    A sample without a subject counts as one person, named by its key. A number and its text (0 and "0") are
    the same subject. Raises BadSample.
    """
    keys, subjects = [], []
    nothing = np.zeros(len(source.modalities), dtype=bool)
    with closing(source.open()) as reader:
        for number in range(source.manifest.split(source.split).samples):
            stored = reader.stored(number, nothing)
            try:
                subject = json.loads(stored.meta).get("subject")
            except (ValueError, AttributeError) as error:
                raise BadSample(f"{stored.where}: its json cannot be read ({error})") from error
            keys.append(stored.key)
            subjects.append(_person(subject) or stored.key)
    return np.array(keys), np.array(subjects)


def _person(subject: Any) -> str:
    """The name of a subject, from its json value; empty if there is none."""
    number = None if isinstance(subject, str) else whole_number(subject)
    name = "" if subject is None else str(subject if number is None else number)
    return name if name.strip() else ""
