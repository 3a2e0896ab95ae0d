"""What a table looks like: its dialect, its columns and their values. Part of `--infer`."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maestro_dist.data.parts import Remarks
from maestro_dist.data.tables.layout import LongColumns, TableFile, TableModality
from maestro_dist.data.tables.look_names import TEXT_NAMES, plain_name
from maestro_dist.data.tables.reading import (
    MISSING,
    Table,
    column_names,
    grouped,
    is_parquet,
    parse_table,
    plain_content,
)
from maestro_dist.errors import DataError

_DELIMITERS = ("\t", ";", "|", ",", " ")
_LINES, _FEW = 300, 200
_TOGETHER = 3
_DIGITS_OF_DATE = 6
_END, _FOOTER_LINES = 1 << 14, 20
_ROW = set("+-.,0123456789")
_NUMBER = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?")
_DECIMAL_COMMA = re.compile(r"[-+]?(\d+|\d{1,3}(\.\d{3})+),\d+")
_GROUPS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?")
_SEPARATOR = re.compile(r'"?sep=(.)"?')
_HERTZ = re.compile(r"(\d+(?:\.\d+)?)\s*Hz\b", re.IGNORECASE)
_MOST_RATE = 1e5
_EMPTY = {text.lower() for text in MISSING}


@dataclass(frozen=True)
class Dialect:
    """How text is divided into cells; as in `TableFile`."""

    delimiter: str = ","
    decimal: str = "."
    encoding: str = "utf-8"
    skip_rows: int = 0
    header: bool = True
    units_row: bool = False
    group_row: bool = False
    footer: str | None = None
    start_and_rate: bool = False
    thousands: str = ""
    missing: tuple[str | float, ...] = ()

    def entry(self) -> TableFile:
        """An entry of a layout that reads such a file."""
        given = {**vars(self), "missing": list(self.missing)}
        if self.start_and_rate:
            return TableFile(path="x", modalities={"x": TableModality(columns=["c1"])}, **given)
        return TableFile(path="x", facts=True, subject="x", **given)

    def changes(self) -> dict[str, object]:
        """What differs from the usual one."""
        return {name: value for name, value in vars(self).items() if value != getattr(Dialect(), name)}


@dataclass
class Looked:
    """One file. `path`: below the source; `units`: of columns, from a row of units; `hertz`: said before the header;
    `long`: its rows have one value each, and its name."""

    path: str
    dialect: Dialect
    columns: tuple[str, ...]
    table: Table
    complete: bool = True
    units: dict[str, str] = field(default_factory=dict)
    hertz: float | None = None
    long: LongColumns | None = None
    _numbers: dict[str, np.ndarray | None] = field(default_factory=dict)

    @property
    def signature(self) -> tuple[tuple[str, ...], Dialect]:
        """Files of one kind have the same."""
        return self.columns, self.dialect

    def without_measurements(self) -> Looked:
        """The same with only those columns that have few different values, such as labels: it takes little memory."""
        few = [name for name in self.columns if len(pc.unique(self.table.column(name))) <= _FEW]
        table = Table(self.table.name, self.table.data.select(few), self.dialect.entry(), self.table.clock)
        return Looked(self.path, self.dialect, self.columns, table, False, self.units, self.hertz)

    def read_as(self, dialect: Dialect) -> None:
        """Read cells in another way: with other marks of thousands, or texts for missing values."""
        self.dialect, self._numbers = dialect, {}
        self.table = Table(self.table.name, self.table.data, dialect.entry(), self.table.clock)

    def numbers(self, column: str) -> np.ndarray | None:
        """A column as float64 [rows]; None if it does not hold numbers, or nothing."""
        if column not in self.table.data.column_names:
            return None if self.long is None else self._item(self.long, column)
        if column not in self._numbers:
            try:
                found = self.table.numbers([column], Remarks())[:, 0]
                self._numbers[column] = None if np.isnan(found).all() else found
            except DataError:
                self._numbers[column] = None
        return self._numbers[column]

    def _item(self, long: LongColumns, name: str) -> np.ndarray | None:
        if name not in self._numbers:
            values = Table(self.path, pa.table({name: self.table.item(long, name)}), self.dialect.entry())
            try:
                found = values.numbers([name], Remarks())[:, 0]
                self._numbers[name] = None if np.isnan(found).all() else found
            except DataError:
                self._numbers[name] = None
        return self._numbers[name]

    def counts_rows(self, column: str) -> bool:
        """Whether a column has 0, 1, 2, ... or 1, 2, 3, ..."""
        values = self.numbers(column)
        return values is not None and len(values) > 0 and values[0] in (0, 1) and bool((np.diff(values) == 1).all())

    def labels(self, column: str) -> list[str | None]:
        """A column of labels as text; empty if it was not kept."""
        return self.table.labels([column]) if column in self.table.data.column_names else []

    @cached_property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.table)


def look_at(path: str, name: str, content: bytes) -> Looked:
    """Find out how a file is to be read, and read it.

    Raises:
        DataError: it is empty, damaged, or not a table.
    """
    if is_parquet(name):
        dialect, start = Dialect(), []
    else:
        content_of = plain_content(name, content)
        dialect = dialect_of(content_of)
        start = content_of[: 1 << 16].decode(dialect.encoding, errors="replace").splitlines()
    entry = dialect.entry()
    columns = column_names(name, content, entry)
    moment = next(
        (c for c in columns if dialect.header and _NUMBER.fullmatch(c) and 6e8 < float(c.replace(",", ".")) < 5e12),
        None,
    )
    if moment is not None and not is_parquet(name):
        raise DataError(f"{name}: its header has the time {moment} in the place of a name; put it into a column")
    texts = [column for column in columns if plain_name(column)[0] in TEXT_NAMES]
    table = parse_table(name, content, entry, set(columns), texts)
    kinds = {column: table.column(column).type for column in columns}
    clocks = [column for column in columns if pa.types.is_time(kinds[column])]
    days = [c for c in columns if pa.types.is_date(kinds[c])]
    if clocks and not is_parquet(name) and (days or any(pa.types.is_string(kind) for kind in kinds.values())):
        # a day and a time in two columns are joined as they are written
        table = parse_table(name, content, entry, set(columns), [*texts, *clocks, *days])
    hertz = next((float(of[1]) for line in start[: dialect.skip_rows] if (of := _HERTZ.search(line))), None)
    units: dict[str, str] = {}
    if dialect.units_row:
        lines = [line for line in start[dialect.skip_rows :] if line.strip()]
        units = dict(zip(columns, _cells(lines[1 + dialect.group_row], dialect.delimiter), strict=False))
    return Looked(path, dialect, tuple(columns), table, True, units, hertz)


def dialect_of(content: bytes) -> Dialect:
    """The dialect of text."""
    encoding = encoding_of(content)
    text = content[: 1 << 18].decode(encoding, errors="replace")
    lines = text.splitlines()[:_LINES]
    used = [line for line in lines if line.strip()]
    said = _SEPARATOR.fullmatch(used[0].strip("\ufeff \r\n")) if used else None
    used = used[1:] if said else used
    # rows are below what is said before them
    delimiter, columns = _delimiter(used[len(used) // 2 :], said[1] if said else "")
    fits = [bool(line.strip()) and len(_cells(line, delimiter)) == columns for line in lines]
    comment = [line.startswith("#") for line in lines]
    # the first line of some that all have the usual number of cells
    skip = next((n for n in range(len(lines)) if not comment[n] and all(fits[n : n + _TOGETHER])), len(lines))
    body = lines[skip:]
    rows = [_cells(line, delimiter) for line in body if line.strip()]
    cells = [cell for row in rows[1:] for cell in row]
    commas = any(_DECIMAL_COMMA.fullmatch(cell) for cell in cells)
    if commas and all(_GROUPS.fullmatch(cell) for cell in cells if "," in cell and _NUMBER.match(cell)):
        # 1,234 and 5.6; in quotes, 1,234 alone
        commas = delimiter != "," and not any(re.fullmatch(r"[-+]?\d*\.\d+", cell) for cell in cells)
    header = bool(rows) and not all(_NUMBER.fullmatch(c) or c.lower() in _EMPTY for c in rows[0])
    numbers = [cell for cell in rows[0] if _NUMBER.fullmatch(cell)] if header else []
    if header and 2 * len(numbers) > len(rows[0]) and not all(cell.isdigit() and len(cell) < 4 for cell in numbers):
        header = False  # a first row of values with some texts
    if header and len(rows) > 1 and not any(re.search(r"[^\W\d_]", cell) for cell in rows[0]):
        header = False  # dates and numbers only
    group_row = header and _has_groups(rows)
    return Dialect(
        delimiter, "," if commas else ".", encoding, skip if skip < len(lines) else 0, header,
        units_row=header and _has_units(rows[int(group_row) :]), group_row=group_row,
        footer=_footer(content, encoding, delimiter), start_and_rate=not header and _has_start_and_rate(rows),
    )  # fmt: skip


def _has_groups(rows: list[list[str]]) -> bool:
    """Whether names of columns are below names of groups, which occur again or are empty."""
    if len(rows) < 4:
        return False
    groups, names = rows[0], rows[1]
    inner = [cell for cell in groups[1:-1] if not cell]
    if not inner and len(set(groups)) == len(groups):
        return False
    if any(_NUMBER.fullmatch(cell) or cell.lower() in _EMPTY - {""} for cell in names) or not any(names[1:]):
        return False
    if any(sum(letter.isdigit() for letter in cell) >= _DIGITS_OF_DATE for cell in names):
        return False  # a row of values
    found = grouped(groups, names)
    return len(set(found)) == len(found) == len(groups)


def _footer(content: bytes, encoding: str, delimiter: str) -> str | None:
    """How the lines below the rows start: with words, where all rows before them start with digits."""
    if encoding == "utf-16":
        lines = content.decode(encoding, errors="replace").splitlines()
    else:
        lines = content[-_END:].decode(encoding, errors="replace").splitlines()[1:]
    used = [line for line in lines if line.strip(f' "{delimiter}')]
    first = [line.lstrip(' "') for line in used]
    start = len(first)
    while (
        start > 0 and first[start - 1][:1] not in _ROW and re.search(r"[^\W\d_]", first[start - 1].split(delimiter)[0])
    ):
        start -= 1
    body = first[max(0, start - 20) : start]
    if not 0 < len(first) - start <= _FOOTER_LINES or len(body) < _TOGETHER:
        return None
    if not all(line[:1].isdigit() or line[:1] in "+-" for line in body):
        return None
    words = re.match(r"[^\d\r\n]*", first[start])
    text = (words[0] if words else "").split(delimiter)[0].strip()
    return text or None


def _has_units(rows: list[list[str]]) -> bool:
    """Whether the row below the header is text in all columns of numbers."""
    if len(rows) < 4:
        return False
    body = rows[2:]
    numbers = [
        place
        for place in range(min(map(len, rows)))
        if all(_NUMBER.fullmatch(row[place]) or row[place].lower() in _EMPTY for row in body)
        and any(_NUMBER.fullmatch(row[place]) for row in body)
    ]
    if any(sum(letter.isdigit() for letter in cell) >= _DIGITS_OF_DATE for cell in rows[1]):
        return False  # a row with a date, whose values are missing
    above = [rows[1][place] for place in numbers]
    return any(text.lower() not in _EMPTY for text in above) and not any(_NUMBER.fullmatch(text) for text in above)


def _has_start_and_rate(rows: list[list[str]]) -> bool:
    """Whether the first row is a moment, and the second a rate, in each column."""
    if len(rows) < 3 or len(set(rows[0])) > 1 or len(set(rows[1])) > 1:
        return False
    try:
        start, rate = float(rows[0][0]), float(rows[1][0])
    except ValueError:
        return False
    return 6e8 < start < 5e9 and 0 < rate < _MOST_RATE


def encoding_of(content: bytes) -> str:
    """utf-8, utf-16 or latin-1."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _delimiter(lines: list[str], said: str = "") -> tuple[str, int]:
    """The delimiter that divides most lines into the same number of cells, and that number. `said`: by the file."""
    best = (0.0, 1, said or ",")
    for delimiter in (said,) if said else _DELIMITERS:
        divided = [_cells(line, delimiter) for line in lines]
        counts = [1 if len(row) == 2 and not row[1] else len(row) for row in divided]  # 1,2,3; is divided by commas
        usual = max(set(counts), key=lambda n: (counts.count(n), n), default=1)
        if usual > 1:
            share = counts.count(usual) / len(counts)
            if share > best[0] + 0.1:
                best = (share, usual, delimiter)
    return best[2], best[1]


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader(io.StringIO(line), delimiter=delimiter), [])]
