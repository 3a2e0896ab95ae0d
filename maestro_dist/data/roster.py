"""Who the samples of a split are: their keys, and the people they are of."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import numpy as np

from maestro_dist.data.plain import whole
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.sample import BadSample


def roster(source: SplitSource) -> tuple[np.ndarray, np.ndarray]:
    """Key and subject of each sample of a split, str [N] each, in manifest order. Only the json members are read.

    A sample whose json names no subject is one of its own: the key stands for it. A number and its text (0 and "0")
    are one subject. Raises BadSample.
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
    """The name of a subject as it is stored; empty where there is none."""
    number = None if isinstance(subject, str) else whole(subject)
    name = "" if subject is None else str(subject if number is None else number)
    return name if name.strip() else ""
