"""Who the samples of a split are: their keys, and the people they are of."""

from __future__ import annotations

import json
from contextlib import closing

import numpy as np

from maestro_dist.data.reader import SplitSource
from maestro_dist.data.sample import BadSample


def roster(source: SplitSource) -> tuple[np.ndarray, np.ndarray]:
    """Key and subject of each sample of a split, str [N] each, in manifest order. Only the json members are read.

    A sample whose json names no subject is one of its own: the key stands for it. Raises BadSample.
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
            subjects.append(str(subject or stored.key))
    return np.array(keys), np.array(subjects)
