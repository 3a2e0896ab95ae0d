"""What a data set says of itself, checked before its first sample is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from maestro_dist.data.plain import flag, kind_of, listed, real, shown, text, twice, whole
from maestro_dist.errors import DataError
from maestro_dist.types import Modality

Kind = Literal["classification", "regression", "none"]

_NAME = re.compile(r"[a-z0-9_]{1,40}")
_SPLIT = re.compile(r"[A-Za-z0-9_-]{1,40}")

_STEPS_OFF, _SHARE_OFF = 1.0, 0.01
"""How far the steps may be from rate x window: one step (a window may or may not hold both its ends), or 1 %."""

_STATISTICS = "_recording"
"""An exported model takes the statistics of modality `x` in a column `x_recording`."""


@dataclass(frozen=True)
class Description:
    """What a converter knows of a data set; the fields are those of `Manifest`. `notice`: terms a person must read."""

    name: str
    licence: str
    citation: str
    source: str
    task: Kind
    classes: tuple[str, ...]
    target: str
    window_s: float
    modalities: tuple[Modality, ...]
    recording: bool = False
    notice: str = ""


def checked_description(given: Description) -> Description:
    """The same in plain Python values.

    Raises:
        DataError: something in it cannot be packed; the message names it.
    """
    if not isinstance(given, Description):
        raise DataError(f"the description is {kind_of(given)}, not a Description")
    name = text(given.name, "name", "description", most=200)
    if not name.strip():
        raise DataError("description: name is empty; give the data set one")
    where = f"description of '{name}'"
    if given.task not in get_args(Kind):
        raise DataError(f"{where}: task {shown(given.task)} is not one of {', '.join(get_args(Kind))}")
    window_s = real(given.window_s)
    if window_s is None or window_s <= 0:
        raise DataError(f"{where}: window_s {shown(given.window_s)} is not a positive number (of seconds)")
    modalities = listed(given.modalities, "modalities", where)
    if not modalities:
        raise DataError(f"{where}: there are no modalities")
    plain = tuple(_modality(modality, float(window_s), where) for modality in modalities)
    recording = flag(given.recording, "recording", where)
    _check_names([modality.name for modality in plain], recording, where)
    return replace(
        given,
        name=name,
        licence=text(given.licence, "licence", where, line=False),
        citation=text(given.citation, "citation", where, line=False),
        source=text(given.source, "source", where, line=False),
        classes=_classes(given, where),
        target=text(given.target, "target", where),
        window_s=window_s,
        modalities=plain,
        recording=recording,
        notice=text(given.notice, "notice", where, line=False),
    )


def checked_splits(splits: Sequence[str]) -> list[str]:
    """The names of the splits.

    Raises:
        DataError: none, or a name that cannot be that of a file, or the same one twice.
    """
    names = listed(splits, "splits", "pack")
    if not names:
        raise DataError("pack: splits is empty; name at least one, such as 'train'")
    for name in names:
        if not isinstance(name, str) or not _SPLIT.fullmatch(name):
            raise DataError(f"pack: split {shown(name)}: a name has up to 40 letters, digits, - or _")
    again = twice(name.lower() for name in names)  # some file systems do not tell 'Train' from 'train'
    if again is not None:
        raise DataError(f"pack: split '{again}' is named twice")
    return [str(name) for name in names]


def _modality(given: Any, window_s: float, where: str) -> Modality:
    if not isinstance(given, Modality):
        raise DataError(f"{where}: modality {shown(given)} is {kind_of(given)}, not a Modality")
    if not isinstance(given.name, str) or not _NAME.fullmatch(given.name):
        raise DataError(f"{where}: modality {shown(given.name)}: a name has up to 40 small letters, digits or _")
    where = f"{where}: modality '{given.name}'"
    variates, steps = (_count(getattr(given, key), key, where) for key in ("variates", "steps"))
    rate_hz = real(given.rate_hz)
    if rate_hz is None or rate_hz <= 0:
        raise DataError(f"{where}: rate_hz {shown(given.rate_hz)} is not a positive number (of Hz)")
    always, wanted = flag(given.always, "always", where), rate_hz * window_s
    fits = abs(steps - wanted) <= max(_STEPS_OFF, _SHARE_OFF * wanted) * (1 + 1e-9)
    if not fits and not (always and steps == 1):  # what is always known, age say, has no rate of its own
        raise DataError(
            f"{where}: {steps} steps at {rate_hz:g} Hz are {steps / rate_hz:g} s, but window_s is {window_s:g} s, or "
            f"{wanted:g} steps; mend steps, rate_hz or window_s"
        )
    return Modality(str(given.name), variates, rate_hz, steps, text(given.unit, "unit", where), always=always)


def _count(value: Any, key: str, where: str) -> int:
    found = whole(value)
    if found is None or found < 1:
        raise DataError(f"{where}: {key} {shown(value)} is not a whole number from 1")
    return found


def _check_names(names: list[str], recording: bool, where: str) -> None:
    again = twice(names)
    if again is not None:
        raise DataError(f"{where}: two modalities are named '{again}'")
    for name in names:
        if recording and name + _STATISTICS in names:
            raise DataError(
                f"{where}: modality '{name + _STATISTICS}' has the name that a model gives to the recording statistics "
                f"of '{name}'; choose another one"
            )


def _classes(given: Description, where: str) -> tuple[str, ...]:
    classes = listed(given.classes, "classes", where)
    if given.task != "classification":
        if classes:
            raise DataError(f"{where}: classes are given, but task is {given.task}, which has none; use classes=()")
        return ()
    for number, name in enumerate(classes):
        if not isinstance(name, str):
            raise DataError(
                f"{where}: class {shown(name)} is {kind_of(name)}; name each class by text, such as '{name}'"
            )
        if not text(name, f"class {number}", where, most=200).strip():
            raise DataError(f"{where}: class {number} has an empty name")
    if len(classes) < 2:
        raise DataError(f"{where}: a classification has two classes or more, not {len(classes)}")
    again = twice(name.strip() for name in classes)
    if again is not None:
        raise DataError(f"{where}: two classes are named '{again}'")
    return tuple(str(name) for name in classes)
