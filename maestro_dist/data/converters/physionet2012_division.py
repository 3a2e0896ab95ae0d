"""Divisions of the stays of PhysioNet 2012 into training, validation and test.

The benchmark P12 (Raindrop, Zhang et al., ICLR 2022) takes the stays of set-a, set-b and set-c, each by RecordID,
without 12 of them: 11,988 stays. Its five published divisions, 80/10/10, are lists of places in this order, from 0.
Their files, `phy12_split1.npy` to `phy12_split5.npy`, contain pickles, which are not read: write their three arrays
(training, validation, test) to JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maestro_dist import rng
from maestro_dist.data.storage import Storage, redact
from maestro_dist.errors import ConfigError, DataError, StorageError

CHALLENGE, RANDOM = "challenge", "random"
FOLDS = 5
LEFT_OUT = frozenset((140501, 140936, 141264, 142731, 142998, 143656, 145611, 147514, 150309, 150649, 155655, 156254))
"""Stays that P12 leaves out."""
PUBLISHED_STAYS = 11_988
_SPLITS = ("train", "validation", "test")
_TRAIN, _VALIDATION = 0.8, 0.1


def divided(records: Mapping[str, Sequence[int]], division: str, fold: int) -> tuple[dict[int, str], list[str]]:
    """The split of each stay that is used, and warnings.

    records   sorted RecordIDs by set
    division  challenge: stay i of set-a is for validation where i mod 5 = `fold`, other sets are the test; random: one
              of five random ones, number `fold`; or a JSON file

    Raises what `published_division` raises.
    """
    if division == CHALLENGE:
        return {
            record: ("validation" if number % FOLDS == fold else "train") if part == "a" else "test"
            for part, stays in records.items()
            for number, record in enumerate(stays)
        }, []
    stays = stays_of_p12(records)
    absent = sorted({record for listed in records.values() for record in listed} - set(stays))
    remarks = [f"stays that P12 leaves out ({len(absent)}): {', '.join(map(str, absent))}"] if absent else []
    if division == RANDOM:
        return random_division(stays, fold), [*remarks, "the random division is not one of the published ones of P12"]
    return published_division(stays, division), remarks


def stays_of_p12(records: Mapping[str, Sequence[int]]) -> list[int]:
    """The stays of P12 in its order. `records`: RecordIDs by set."""
    return [record for part in sorted(records) for record in sorted(records[part]) if record not in LEFT_OUT]


def random_division(stays: Sequence[int], number: int) -> dict[int, str]:
    """Division `number` into 80/10/10: drawn here, so not one of the published ones. The split of each stay."""
    bits = rng.bits_np(rng.key(number, "physionet2012", "division"), np.arange(len(stays), dtype=np.int64))
    order = np.argsort(bits, kind="stable").tolist()
    train, validation = round(_TRAIN * len(stays)), round(_VALIDATION * len(stays))
    names = ["train"] * train + ["validation"] * validation + ["test"] * (len(stays) - train - validation)
    return {stays[place]: split for place, split in zip(order, names, strict=True)}


def published_division(stays: Sequence[int], path: str) -> dict[int, str]:
    """The split of each stay, of a JSON file {"train": [...], "validation": [...], "test": [...]} of places in `stays`.

    Raises:
        ConfigError: there is no such file.
        DataError: the stays are not all those of P12, or the file does not name each place once.
    """
    name = redact(path)
    try:
        given: Any = json.loads(Storage(path).read(expected=True))
    except StorageError as error:
        raise ConfigError(f"--division {name}: {CHALLENGE}, {RANDOM}, or a JSON file ({error})") from None
    except ValueError as error:
        raise DataError(f"{name}: not a JSON file ({' '.join(str(error).split())[:200]})") from None
    if len(stays) != PUBLISHED_STAYS:
        raise DataError(
            f"{name}: published divisions are of {PUBLISHED_STAYS:,} stays of set-a, set-b and set-c; the source has "
            f"{len(stays):,} of them"
        )
    if not isinstance(given, dict) or sorted(given) != sorted(_SPLITS):
        raise DataError(f"{name}: write lists of places under the names {', '.join(_SPLITS)}")
    places: list[Any] = [
        place for split in _SPLITS for place in (given[split] if isinstance(given[split], list) else [None])
    ]
    if not all(type(place) is int for place in places) or sorted(places) != list(range(len(stays))):
        raise DataError(f"{name}: each whole number from 0 to {len(stays) - 1:,} has to be in one list, once")
    return {stays[place]: split for split in _SPLITS for place in given[split]}
