"""The description of a data set, checked before its first sample is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.label_sets import MOST_LABELS
from maestro_dist.data.plain_values import (
    boolean,
    checked_list,
    checked_text,
    finite_number,
    first_duplicate,
    short_repr,
    type_name,
    whole_number,
)
from maestro_dist.data.target_numbers import checked_targets
from maestro_dist.errors import DataError
from maestro_dist.types import MULTILABEL, Modality

Kind = Literal["classification", "multilabel", "regression", "none"]

_NAME = re.compile(r"[a-z0-9_]{1,40}")
_SPLIT = re.compile(r"[A-Za-z0-9_-]{1,40}")
_SPLITS = ("train", "validation", "test")

_STEPS_OFF, _SHARE_OFF = 1.0, 0.01
"""Allowed difference between steps and rate x window: one step (both ends may be counted), or 1 %."""

_STATISTICS = "_recording"
"""An exported model reads the recording statistics of modality `x` from a column `x_recording`."""


@dataclass(frozen=True)
class Description:
    """Description of a data set; fields as in `Manifest`.

    notice   terms of use that are shown after packing
    targets  names of several targets of a regression, such as ("systolic", "diastolic"); none: one number
    window   for a data set of recordings: how a run cuts them, if its configuration does not say it
    """

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
    window: WindowConfig | None = None
    targets: tuple[str, ...] = ()


def checked_description(given: Description) -> Description:
    """The description with plain Python values.

    Raises:
        DataError: a field has a wrong value; the message names it.
    """
    if not isinstance(given, Description):
        raise DataError(f"the description is {type_name(given)}, not a Description")
    given = _of_recordings(given)
    name = checked_text(given.name, "name", "description", most=200)
    if not name.strip():
        raise DataError("description: name is empty; give the data set one")
    where = f"description of '{name}'"
    if given.task not in get_args(Kind):
        raise DataError(f"{where}: task {short_repr(given.task)} is not one of {', '.join(get_args(Kind))}")
    window_s = finite_number(given.window_s)
    if window_s is None or window_s <= 0:
        raise DataError(f"{where}: window_s {short_repr(given.window_s)} is not a positive number (of seconds)")
    modalities = checked_list(given.modalities, "modalities", where)
    if not modalities:
        raise DataError(f"{where}: there are no modalities")
    plain = tuple(_modality(modality, float(window_s), where) for modality in modalities)
    recording = boolean(given.recording, "recording", where)
    _check_names([modality.name for modality in plain], recording, where)
    return replace(
        given,
        name=name,
        licence=checked_text(given.licence, "licence", where, line=False),
        citation=checked_text(given.citation, "citation", where, line=False),
        source=checked_text(given.source, "source", where, line=False),
        classes=_classes(given, where),
        target=checked_text(given.target, "target", where),
        window_s=window_s,
        modalities=plain,
        recording=recording,
        notice=checked_text(given.notice, "notice", where, line=False),
        targets=checked_targets(given.targets, given.task, where),
    )


def _of_recordings(given: Description) -> Description:
    """The description with the lengths that its window gives; they are not asked for twice."""
    window = given.window
    if window is None:
        return given
    if not isinstance(window, WindowConfig):
        raise DataError(f"description: window {short_repr(window)} is {type_name(window)}, not a WindowConfig")
    modalities = tuple(
        replace(m, steps=window_steps(m, window)) if isinstance(m, Modality) else m
        for m in checked_list(given.modalities, "modalities", "description")
    )
    for before, after in zip(given.modalities, modalities, strict=True):
        if isinstance(after, Modality) and is_static(after) and not is_static(before):
            raise DataError(f"description: {without_time(after, window)}")
    return replace(given, window_s=window.length_s, modalities=modalities, recording=True)


def window_steps(modality: Modality, window: WindowConfig) -> int:
    """Steps of a window of recordings, which is at least one; also for a modality without time."""
    rate_hz = finite_number(modality.rate_hz)
    if is_static(modality) or rate_hz is None or rate_hz <= 0:
        return modality.steps
    return max(1, round(rate_hz * window.length_s))


def without_time(modality: Modality, window: WindowConfig) -> str:
    """Why such a window cannot be: a modality with time that is always known would become one value a recording."""
    return (
        f"modality '{modality.name}' is always known, and of {modality.rate_hz:g} Hz a window of {window.length_s:g} s "
        "has one step, so it cannot be told from one value without time; use a longer window, or pack it with "
        "always=False"
    )


def is_static(modality: Modality) -> bool:
    """Whether the modality is one value a recording, such as the age, and has no time."""
    return modality.always and modality.steps == 1


def checked_splits(splits: Sequence[str]) -> list[str]:
    """The names of the splits.

    Raises:
        DataError: there are no names, a name cannot be part of a file name, or a name occurs twice.
    """
    names = checked_list(splits, "splits", "pack")
    if not names:
        raise DataError("pack: splits is empty; name at least one, such as 'train'")
    for name in names:
        if not isinstance(name, str) or not _SPLIT.fullmatch(name):
            raise DataError(f"pack: split {short_repr(name)}: a name has up to 40 letters, digits, - or _")
    again = first_duplicate(name.lower() for name in names)  # some file systems do not distinguish 'Train' and 'train'
    if again is not None:
        raise DataError(f"pack: split '{again}' is named twice")
    return [str(name) for name in names]


def check_split(name: str, where: str) -> None:
    """Check the split of a recording; "" is none. Raises DataError."""
    if name and not _SPLIT.fullmatch(name):
        raise DataError(f"{where}: split {short_repr(name)}: a name has up to 40 letters, digits, - or _")
    if name.lower() in _SPLITS and name not in _SPLITS:
        raise DataError(f"{where}: split {short_repr(name)}: write it '{name.lower()}', as runs name it")


def _modality(given: Any, window_s: float, where: str) -> Modality:
    if not isinstance(given, Modality):
        raise DataError(f"{where}: modality {short_repr(given)} is {type_name(given)}, not a Modality")
    if not isinstance(given.name, str) or not _NAME.fullmatch(given.name):
        raise DataError(f"{where}: modality {short_repr(given.name)}: a name has up to 40 small letters, digits or _")
    where = f"{where}: modality '{given.name}'"
    variates, steps = (_count(getattr(given, key), key, where) for key in ("variates", "steps"))
    rate_hz = finite_number(given.rate_hz)
    if rate_hz is None or rate_hz <= 0:
        raise DataError(f"{where}: rate_hz {short_repr(given.rate_hz)} is not a positive number (of Hz)")
    always, wanted = boolean(given.always, "always", where), rate_hz * window_s
    fits = abs(steps - wanted) <= max(_STEPS_OFF, _SHARE_OFF * wanted) * (1 + 1e-9)
    if not fits and not (always and steps == 1):  # for instance the age: it has no rate
        raise DataError(
            f"{where}: {steps} steps at {rate_hz:g} Hz are {steps / rate_hz:g} s, but window_s is {window_s:g} s, or "
            f"{wanted:g} steps; correct steps, rate_hz or window_s"
        )
    return Modality(str(given.name), variates, rate_hz, steps, checked_text(given.unit, "unit", where), always=always)


def _count(value: Any, key: str, where: str) -> int:
    number = whole_number(value)
    if number is None or number < 1:
        raise DataError(f"{where}: {key} {short_repr(value)} is not a whole number from 1")
    return number


def _check_names(names: list[str], recording: bool, where: str) -> None:
    again = first_duplicate(names)
    if again is not None:
        raise DataError(f"{where}: two modalities are named '{again}'")
    for name in names:
        if recording and name + _STATISTICS in names:
            raise DataError(
                f"{where}: modality '{name + _STATISTICS}' has the name that a model gives to the recording statistics "
                f"of '{name}'; choose another one"
            )


def _classes(given: Description, where: str) -> tuple[str, ...]:
    classes = checked_list(given.classes, "classes", where)
    several = given.task == MULTILABEL
    if given.task != "classification" and not several:
        if classes:
            raise DataError(f"{where}: classes are given, but task is {given.task}, which has none; use classes=()")
        return ()
    for number, name in enumerate(classes):
        if not isinstance(name, str):
            raise DataError(
                f"{where}: class {short_repr(name)} is {type_name(name)}; name each class by text, such as '{name}'"
            )
        if not checked_text(name, f"class {number}", where, most=200).strip():
            raise DataError(f"{where}: class {number} has an empty name")
    if several and not 1 <= len(classes) <= MOST_LABELS:
        raise DataError(f"{where}: {given.task} has 1 to {MOST_LABELS} labels, not {len(classes)}")
    if not several and len(classes) < 2:
        raise DataError(f"{where}: a classification has two classes or more, not {len(classes)}")
    again = first_duplicate(name.strip() for name in classes)
    if again is not None:
        raise DataError(f"{where}: two classes are named '{again}'")
    return tuple(str(name) for name in classes)
