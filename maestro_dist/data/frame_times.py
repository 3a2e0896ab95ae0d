"""The times of pandas frames: whole nanoseconds from any index that has times, or an error that says what it has."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd

from maestro_dist.data.tables.times import SECOND, check_clock_changes, in_order
from maestro_dist.errors import DataError

Clock = Literal["seconds", "dates", "dates with a time zone"]
"""What times are counted by; those of one clock can be compared. Timedeltas are seconds."""

_MOST = 2**62
_WANTED = "use dates, timedeltas or seconds"
_ZONE = "Name the zone: frame.tz_localize('Europe/Berlin', ambiguous='infer'), or tz_localize('UTC') if it is a gap"
_APART = "if several recordings are in the frame, give each one a name of its own"


def frame_times(given: Any, where: str) -> tuple[np.ndarray, Clock]:
    """The times of an index or a column, int64 ns, and what they are counted by.

    Raises:
        DataError: a time is missing, or is none; the message begins with `where`.
    """
    if isinstance(given, pd.MultiIndex):
        raise DataError(f"{where}: its index has {given.nlevels} levels; keep the time only: frame.droplevel(...)")
    index = _plain(pd.Index(given), where)
    if index.hasnans:
        raise DataError(f"{where}: row {int(np.argmax(index.isna())) + 1:,} has no time")
    if isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex):
        zone = isinstance(index, pd.DatetimeIndex) and index.tz is not None
        clock: Clock = (
            "seconds" if isinstance(index, pd.TimedeltaIndex) else "dates with a time zone" if zone else "dates"
        )
        try:
            return np.asarray(index.as_unit("ns").asi8), clock
        except (ValueError, OverflowError):  # pandas' own errors of times that do not fit
            raise DataError(f"{where}: a date is before 1678 or after 2262; correct it") from None
    if not pd.api.types.is_any_real_numeric_dtype(index):
        kind = "text" if len(index) and isinstance(index[0], str) else f"values of type {index.dtype}"
        raise DataError(f"{where}: its index has {kind}; {_WANTED}")
    seconds = index.to_numpy(dtype=np.float64)
    far = ~(np.abs(seconds) * SECOND < _MOST)
    if far.any():
        row = int(np.argmax(far))
        raise DataError(
            f"{where}: row {row + 1:,} has the time {seconds[row]:g}, which is too large for seconds; if it is in "
            "milliseconds or another unit, use pd.to_datetime(index, unit='ms')"
        )
    return np.round(seconds * SECOND).astype(np.int64), "seconds"


def order_of(times: np.ndarray, clock: Clock, where: str) -> np.ndarray | None:
    """How to sort the times of rows, as `in_order`.

    Raises:
        DataError: two recordings are in one frame, or a clock was changed.
    """
    order = in_order(times, where, _APART)
    if clock == "dates":
        check_clock_changes(times if order is None else times[order], where, _ZONE)
    return order


def check_one_clock(clocks: dict[str, Clock], key: str) -> None:
    """Raise DataError unless the times of a recording are all counted by one clock. `clocks`: by what has the times."""
    for name, clock in clocks.items():
        first, expected = next(iter(clocks.items()))
        if clock != expected:
            raise DataError(
                f"recording {key}: the times of {first} are {expected}, those of {name} are {clock}, and nothing says "
                "how they belong together; give all of them in the same way"
            )


def _plain(index: pd.Index, where: str) -> pd.Index:
    """The index as one of dates, of timedeltas or of numbers, if it is one in another form."""
    if isinstance(index, pd.CategoricalIndex):
        index = pd.Index(index.astype(index.categories.dtype))
    if isinstance(index, pd.PeriodIndex):
        return index.to_timestamp()
    kind = index.dtype.kind
    if kind not in "mMO" or isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex) or not len(index):
        return index if len(index) else pd.Index([], dtype=np.float64)
    inferred = pd.api.types.infer_dtype(index, skipna=True)
    try:
        if inferred in ("datetime", "datetime64", "date"):
            zoned = [getattr(moment, "tzinfo", None) is not None for moment in index if not pd.isna(moment)]
            if any(zoned) != all(zoned):
                raise DataError(f"{where}: only some of its dates have a time zone")
            return pd.DatetimeIndex(pd.to_datetime(list(index), utc=any(zoned)))
        if inferred in ("timedelta", "timedelta64"):
            return pd.TimedeltaIndex(pd.to_timedelta(list(index)))
        if inferred in ("integer", "floating", "mixed-integer-float", "decimal"):
            return index.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: its index cannot be read as times ({' '.join(str(error).split())[:200]})") from None
    return index
