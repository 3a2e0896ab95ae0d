"""Which columns belong to one sensor. Part of `--infer`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from maestro_dist.data.tables.look_names import plain_name

_AXES = re.compile(r"^(?P<front>.*?)_?(?P<axis>x|y|z|w|\d{1,2})(?P<back>(_[a-z]+)?)$")
_AXIS_FIRST = re.compile(r"^(?P<axis>x|y|z|w)_(?P<back>.+)$")
_LETTERS = 40


@dataclass(frozen=True)
class ModalityGuess:
    """Columns of one sensor, its name, and the unit of its first column."""

    name: str
    columns: tuple[str, ...]
    unit: str


def modalities_of(columns: Sequence[str], word: str, *, prefix: bool) -> list[ModalityGuess]:
    """Group columns such as acc_x, acc_y and acc_z, in their order.

    word    of the file: the name where columns are x, y, z only
    prefix  put the word in front of each name, because several files have such columns
    """
    file = plain_name(word)[0] or "signals"
    groups: dict[tuple[str, bool], list[str]] = {}
    for column in columns:
        groups.setdefault(_group(plain_name(column)[0]), []).append(column)
    found = []
    for (group, _), own in groups.items():
        name = (group if len(own) > 1 else plain_name(own[0])[0]) or file
        if len(columns) == 1 and name in ("value", "values", "data", "signal", "v", "reading", "measurement"):
            name = file
        elif prefix and name != file:
            name = f"{file}_{name}"
        found.append(ModalityGuess(name[:_LETTERS].strip("_") or "signals", tuple(own), plain_name(own[0])[1]))
    return found


def _group(name: str) -> tuple[str, bool]:
    """The name without the axis or number, and whether it has one: co and co2 are no axes of one sensor."""
    first = _AXIS_FIRST.match(name)
    if first:
        return first["back"], True
    axes = _AXES.match(name)
    return (f"{axes['front']}{axes['back']}".strip("_"), True) if axes else (name, False)
