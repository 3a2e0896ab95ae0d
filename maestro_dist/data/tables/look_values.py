"""How a file writes numbers and missing values: what stands for them beside plain numbers. Part of `--infer`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maestro_dist.data.tables.look_files import Looked
from maestro_dist.data.tables.look_names import TEXT_NAMES, TIME, plain_name
from maestro_dist.data.tables.reading import MISSING

_MARKS = (",", ".", " ", "'", "\u00a0", "\u202f", "\u2019")
_CODES = (-1.0, -9.0, -99.0, -999.0, -9999.0, -99999.0, -32768.0, 999.0, 9999.0, 99999.0, 32767.0, 65535.0)
"""Numbers that devices and people write where there is none."""
_BEHIND = re.compile(r"[-+]?\d+([.,]\d+)?\s*[^\d\s.,:/-][^\d:/]*")
_LEAST_CODES, _LEAST_VALUES = 3, 10
_MOST_TEXTS = 5


@dataclass
class NumberForm:
    """What stands for numbers and missing values in files of one kind, and what a person should check."""

    thousands: str = ""
    missing: list[str | float] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def use_number_form(files: Sequence[Looked], seen: Sequence[Looked]) -> list[str]:
    """Find out how files of one kind write numbers, and read them so. `seen`: those that are complete.

    Returns what a person should check.
    """
    form = NumberForm()
    for column in seen[0].columns:
        _texts(seen, column, form)
    _apply(files, form)
    codes = _codes(seen, form)
    form.missing += codes
    if codes:
        _apply(files, form)
    return form.doubts


def _apply(files: Sequence[Looked], form: NumberForm) -> None:
    if form.thousands or form.missing:
        for file in files:
            file.read_as(replace(file.dialect, thousands=form.thousands, missing=tuple(form.missing)))


def _texts(files: Sequence[Looked], column: str, form: NumberForm) -> None:
    """Texts in a column of numbers: marks of thousands, or words for a missing value."""
    if plain_name(column)[0] in TEXT_NAMES:
        return
    counts: Counter[str] = Counter()
    for file in files:
        if column not in file.table.data.column_names or not pa.types.is_string(file.table.column(column).type):
            continue
        for pair in pc.value_counts(pc.utf8_trim_whitespace(file.table.column(column))).to_pylist():
            if pair["values"] is not None and pair["values"] not in MISSING:
                counts[pair["values"]] += pair["counts"]
    if not counts:
        return
    mark = re.escape(files[0].dialect.decimal)
    number = re.compile(rf"[-+]?(\d+({mark}\d*)?|{mark}\d+)([eE][-+]?\d+)?")
    odd = {text: count for text, count in counts.items() if not number.fullmatch(text)}
    if not odd:
        return
    for group in _MARKS:
        grouped = re.compile(rf"[-+]?\d{{1,3}}({re.escape(group)}\d{{3}})+({mark}\d*)?")
        if group != files[0].dialect.decimal and all(grouped.fullmatch(text) for text in odd):
            if form.thousands not in ("", group):
                form.doubts.append(f"column {column!r} is left out: another mark of thousands than other columns")
            form.thousands = form.thousands or group
            sure = any(text.count(group) > 1 or files[0].dialect.decimal in text for text in odd)
            if group in ",." and not sure:
                form.doubts.append(f"column {column!r} has {next(iter(odd))!r}: is {group!r} a mark of thousands?")
            return
    if plain_name(column)[0] in TIME and sum(odd.values()) <= 0.5 * counts.total():
        text = next(iter(odd))
        path, row = next(
            (f.path, n)
            for f in files
            for n, cell in enumerate(f.table.column(column).to_pylist(), 1)
            if str(cell).strip() == text
        )
        form.doubts.append(f"column {column!r} has {text!r} in row {row:,} of {path}: remove the row")
        return
    if all(_BEHIND.fullmatch(text) for text in odd):
        form.doubts.append(f"column {column!r} is left out: text follows its numbers, such as {next(iter(odd))!r}")
        return
    if sum(odd.values()) > 0.5 * counts.total():
        return
    shown = ", ".join(repr(text) for text in list(odd)[:_MOST_TEXTS])
    if len(odd) > _MOST_TEXTS:
        form.doubts.append(f"column {column!r} is left out: it has numbers, and {len(odd)} other texts such as {shown}")
        return
    form.missing += [text for text in odd if text not in form.missing]
    form.doubts.append(f"column {column!r} has {sum(odd.values()):,} x {shown}, which now counts as missing")


def _codes(files: Sequence[Looked], form: NumberForm) -> list[str | float]:
    """Numbers far from all others of their column that occur again and again."""
    columns = {c: _values(files, c) for c in files[0].columns if plain_name(c)[0] not in TEXT_NAMES}
    codes: list[str | float] = []
    for code in _CODES:
        own = [column for column, values in columns.items() if _stands_out(values, code)]
        if not own:
            continue
        names = ", ".join(map(repr, own))
        others = [c for c, values in columns.items() if c not in own and (values == code).any()]
        if others:
            form.doubts.append(
                f"{code:g} in column {names} may stand for a missing value, but not in {others[0]!r}: correct the file"
            )
        else:
            codes.append(code)
            form.doubts.append(f"{code:g} in column {names} is far from all other values: it now counts as missing")
    return codes


def _values(files: Sequence[Looked], column: str) -> np.ndarray:
    found = [values for file in files if (values := file.numbers(column)) is not None]
    values = np.concatenate(found) if found else np.zeros(0)
    return values[~np.isnan(values)]


def _stands_out(values: np.ndarray, code: float) -> bool:
    is_code = values == code
    if is_code.sum() < _LEAST_CODES or is_code.mean() > 0.9:
        return False
    others = values[~is_code]
    if len(np.unique(others)) < _LEAST_VALUES:
        return False
    if code in (-1.0, -9.0):
        return bool(others.min() >= 0)
    low, high = np.quantile(others, [0.01, 0.99])
    near = np.abs(others - code).min()
    return bool(near > max(high - low, 1.0) and not low <= code <= high)
