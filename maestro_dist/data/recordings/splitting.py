"""Which recordings, or which parts of them, belong to which split. `divided_windows.py` uses the same rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maestro_dist import rng
from maestro_dist.config.windows import SplitConfig
from maestro_dist.data.recordings.cutting import CutWindows
from maestro_dist.data.recordings.table import RecordingTable
from maestro_dist.errors import ConfigError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SAME_S = 1e-6


@dataclass(frozen=True)
class Splitting:
    """The division of a data set.

    names       the splits, in the order of the manifest
    of          the split of each recording; "" if it is in none, or in several (by time)
    time_cuts   by time: shares of each recording's length at which validation and test begin
    """

    names: tuple[str, ...]
    of: list[str]
    time_cuts: tuple[float, float] | None = None

    def some(self, split: str, row: int, windows: CutWindows, times: tuple[float, float]) -> np.ndarray:
        """Which windows of recording `row` are in the split, bool [n]. `times`: lengths of the recording and a window.

        By time, a window that reaches over the border of two splits is in neither.
        """
        if self.time_cuts is None:
            return np.full(len(windows), self.of[row] == split)
        recording_s, window_s = times
        ends = windows.start_s + window_s
        return lies_in(self.names.index(split), self.time_cuts, windows.start_s, ends, recording_s)


def lies_in(
    part: int, cuts: tuple[float, float], starts: np.ndarray, ends: np.ndarray, recording_s: float | np.ndarray
) -> np.ndarray:
    """Which windows, bool [n], lie completely in part 0, 1 or 2 of recordings that are cut at these shares of them.

    Seconds from the begin of the recording; `recording_s`: its length.
    """
    bounds = (-np.inf, *(cut * recording_s for cut in cuts), np.inf)
    return (starts >= bounds[part] - _SAME_S) & (ends <= bounds[part + 1] + _SAME_S)


def split_recordings(table: RecordingTable, config: SplitConfig) -> Splitting:
    """Divide the recordings of a table.

    Raises:
        ConfigError: a recording lacks what it is divided by, a name is unknown, or a person would be in two splits.
    """
    if config.by == "time":
        cuts = time_cuts(config, people=any(table.texts["subject"]))
        return Splitting((TRAIN, VALIDATION, TEST), [""] * len(table), cuts)
    if config.by == "given":
        check_given_alone(config)
        of = list(table.texts["split"])
        if not any(of):
            raise ConfigError(
                "data.split.by: given, but the recordings were packed without splits; use subject, group, recording or "
                "time"
            )
        known = [TRAIN, VALIDATION, TEST]
        names = [*(name for name in known if name in of), *sorted({*of} - {*known, ""})]
        splitting = Splitting(tuple(names), of)
    else:
        units = table.texts["key" if config.by == "recording" else config.by]
        if not all(units):
            key = table.texts["key"][units.index("")]
            raise ConfigError(f"data.split.by: {config.by}, but recording {key} has no {config.by}")
        of_unit = assigned(sorted(set(units)), config)
        splitting = Splitting((TRAIN, VALIDATION, TEST), [of_unit[unit] for unit in units])
    if not config.allow_shared_people:
        refuse_shared_people(table.texts["subject"], splitting.of)
    return splitting


def check_given_alone(config: SplitConfig) -> None:
    """Raise ConfigError if packed splits are asked for together with folds, shares or names, which have no effect."""
    usual = SplitConfig()
    for key in ("folds", "test", "validation"):
        if getattr(config, key) != getattr(usual, key):
            raise ConfigError(
                f"data.split.{key}: it has no effect on the splits that were packed (data.split.by=given); say what is "
                "kept together, such as data.split.by=subject"
            )


def time_cuts(config: SplitConfig, *, people: bool) -> tuple[float, float]:
    """Shares of a recording at which validation and test begin. `people`: the people are known.

    Raises:
        ConfigError: the configuration has folds or names, or does not allow people in several splits.
    """
    if config.folds is not None or isinstance(config.validation, list) or isinstance(config.test, list):
        raise ConfigError("data.split.by: time needs shares for data.split.validation and data.split.test, no folds")
    if not config.allow_shared_people and people:
        raise ConfigError(
            "data.split.by: time puts each person into all splits, so the result says little about new people; allow "
            "it with data.split.allow_shared_people=true"
        )
    _check_shares(config)
    test = 1.0 - config.test
    return test - config.validation, test


def assigned(units: Sequence[str], config: SplitConfig) -> dict[str, str]:
    """The split of each subject, group or recording; `units`: their names, sorted.

    Raises:
        ConfigError: a name is unknown or given twice, or there are fewer than the folds.
    """
    key = rng.key(config.seed, "split", config.by)
    order = np.argsort(rng.bits_np(key, np.arange(len(units), dtype=np.int64)), kind="stable")
    drawn = [units[place] for place in order.tolist()]
    if config.folds is not None:
        if config.fold >= config.folds:
            raise ConfigError(f"data.split.fold: {config.fold} of {config.folds} folds; it counts from 0")
        if len(units) < config.folds:
            raise ConfigError(f"data.split.folds: {config.folds}, but there are only {len(units)} to divide")
        roles = {config.fold: TEST, (config.fold + 1) % config.folds: VALIDATION}
        return {unit: roles.get(place % config.folds, TRAIN) for place, unit in enumerate(drawn)}
    _check_shares(config)
    of: dict[str, str] = {}
    for name, wanted in ((TEST, config.test), (VALIDATION, config.validation)):
        if isinstance(wanted, list):
            _check_names(name, wanted, units, of)
            of |= dict.fromkeys(wanted, name)
    for name, wanted in ((TEST, config.test), (VALIDATION, config.validation)):
        if not isinstance(wanted, list):
            free = [unit for unit in drawn if unit not in of]
            count = round(wanted * len(units))
            of |= dict.fromkeys(free[: max(count, 1 if wanted > 0 else 0)], name)
    return {unit: of.get(unit, TRAIN) for unit in units}


def _check_shares(config: SplitConfig) -> None:
    shares = [share for share in (config.validation, config.test) if not isinstance(share, list)]
    if sum(shares) > 1.0 + 1e-9:  # rounding
        raise ConfigError(f"data.split: the shares of validation and test add up to {sum(shares):g}, which is above 1")


def _check_names(split: str, wanted: Sequence[str], units: Sequence[str], taken: dict[str, str]) -> None:
    for unit in wanted:
        if unit not in units:
            raise ConfigError(f"data.split.{split}: there is no {unit!r}; there are {_some(units)}")
        if unit in taken:
            raise ConfigError(f"data.split.{split}: {unit!r} is named twice")


def refuse_shared_people(subjects: Sequence[str], splits: Sequence[str]) -> None:
    """Raise ConfigError if a person is in two splits. `splits`: of each of the `subjects`; "" for none."""
    seen: dict[str, str] = {}
    shared = set()
    for subject, split in zip(subjects, splits, strict=True):
        if subject and split and seen.setdefault(subject, split) != split:
            shared.add(subject)
    if shared:
        raise ConfigError(
            f"data.split: {len(shared):,} people are in two splits ({_some(sorted(shared))}), so the result says "
            "little about new people; divide by subject, or allow it with data.split.allow_shared_people=true"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
