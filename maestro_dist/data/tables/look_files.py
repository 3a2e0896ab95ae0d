"""What a table looks like: its dialect, its columns and their values. Part of `--infer`."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow.compute as pc

from maestro_dist.data.parts import Remarks
from maestro_dist.data.tables.layout import TableFile
from maestro_dist.data.tables.look_names import TEXT_NAMES, plain_name
from maestro_dist.data.tables.reading import MISSING, Table, column_names, is_parquet, parse_table, plain_content
from maestro_dist.errors import DataError

_DELIMITERS = ("\t", ";", "|", ",", " ")
_LINES, _FEW = 50, 200
_NUMBER = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
_EMPTY = {text.lower() for text in MISSING}


@dataclass(frozen=True)
class Dialect:
    """How text is divided into cells; as in `TableFile`."""

    delimiter: str = ","
    decimal: str = "."
    encoding: str = "utf-8"
    skip_rows: int = 0
    header: bool = True

    def entry(self) -> TableFile:
        """An entry of a layout that reads such a file."""
        return TableFile(path="x", facts=True, subject="x", **vars(self))

    def changes(self) -> dict[str, object]:
        """What differs from the usual one."""
        return {name: value for name, value in vars(self).items() if value != getattr(Dialect(), name)}


@dataclass
class Looked:
    """One file. `path`: below the source."""

    path: str
    dialect: Dialect
    columns: tuple[str, ...]
    table: Table
    complete: bool = True
    _numbers: dict[str, np.ndarray | None] = field(default_factory=dict)

    @property
    def signature(self) -> tuple[tuple[str, ...], Dialect]:
        """Files of one kind have the same."""
        return self.columns, self.dialect

    def without_measurements(self) -> Looked:
        """The same with only those columns that have few different values, such as labels: it takes little memory."""
        few = [name for name in self.columns if len(pc.unique(self.table.column(name))) <= _FEW]
        table = Table(self.table.name, self.table.data.select(few), self.dialect.entry())
        return Looked(self.path, self.dialect, self.columns, table, complete=False)

    def numbers(self, column: str) -> np.ndarray | None:
        """A column as float64 [rows]; None if it does not hold numbers, or nothing."""
        if column not in self.table.data.column_names:
            return None
        if column not in self._numbers:
            try:
                found = self.table.numbers([column], Remarks())[:, 0]
                self._numbers[column] = None if np.isnan(found).all() else found
            except DataError:
                self._numbers[column] = None
        return self._numbers[column]

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
    dialect = Dialect() if is_parquet(name) else dialect_of(plain_content(name, content))
    entry = dialect.entry()
    columns = column_names(name, content, entry)
    texts = [column for column in columns if plain_name(column)[0] in TEXT_NAMES]
    return Looked(path, dialect, tuple(columns), parse_table(name, content, entry, set(columns), texts))


def dialect_of(content: bytes) -> Dialect:
    """The dialect of text."""
    encoding = encoding_of(content)
    text = content[: 1 << 18].decode(encoding, errors="replace")
    lines = text.splitlines()[: _LINES + 20]
    used = [line for line in lines if line.strip()]
    delimiter, columns = _delimiter(used)
    skip = 0
    for line in lines:
        if line.strip() and not line.startswith("#") and len(_cells(line, delimiter)) == columns:
            break
        skip += 1
    body = lines[skip:]
    rows = [_cells(line, delimiter) for line in body if line.strip()]
    commas = delimiter != "," and any(_DECIMAL_COMMA.fullmatch(cell) for row in rows[1:] for cell in row)
    header = bool(rows) and not all(_NUMBER.fullmatch(c) or c.lower() in _EMPTY for c in rows[0])
    if header and len(rows) > 1 and not any(re.search(r"[^\W\d_]", cell) for cell in rows[0]):
        header = False  # dates and numbers only
    return Dialect(delimiter, "," if commas else ".", encoding, skip if skip < len(lines) else 0, header)


def encoding_of(content: bytes) -> str:
    """utf-8, utf-16 or latin-1."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _delimiter(lines: list[str]) -> tuple[str, int]:
    """The delimiter that divides most lines into the same number of cells, and that number."""
    best = (0.0, 1, ",")
    for delimiter in _DELIMITERS:
        counts = [len(_cells(line, delimiter)) for line in lines]
        usual = max(set(counts), key=lambda n: (counts.count(n), n), default=1)
        if usual > 1:
            share = counts.count(usual) / len(counts)
            if share > best[0] + 0.1:
                best = (share, usual, delimiter)
    return best[2], best[1]


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader(io.StringIO(line), delimiter=delimiter), [])]
