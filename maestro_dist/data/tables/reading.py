"""The columns of a CSV or Parquet file."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from maestro_dist.data.converters.source_file import SourceFile
from maestro_dist.data.parts import Remarks, join_names
from maestro_dist.data.plain_values import short_repr
from maestro_dist.data.tables.layout import LongColumns, TableFile, joined_texts, label_text
from maestro_dist.errors import DataError

ENDINGS = (".csv", ".tsv", ".txt", ".psv", ".parquet", ".pq", ".csv.gz", ".tsv.gz", ".txt.gz", ".psv.gz")
MISSING = ["", "NA", "N/A", "n/a", "NaN", "nan", "-nan", "NULL", "null", "None", "none", "#N/A", "?"]
_BLOCK = 1 << 20
_FOOTER_LINES = 100


def is_parquet(name: str) -> bool:
    """Whether a file of this name is read as Parquet."""
    return name.lower().endswith((".parquet", ".pq"))


class Table:
    """Some columns of a file, with the checks that each use needs; `name` is for messages.

    clock  (start in s, rate in Hz) of a file whose first rows say them (`start_and_rate`)
    """

    def __init__(self, name: str, data: pa.Table, file: TableFile, clock: tuple[float, float] | None = None) -> None:
        self.name, self.data, self._file, self.clock = name, data, file, clock

    def __len__(self) -> int:
        return int(self.data.num_rows)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column as it is."""
        return self.data.column(name)

    def joined(self, names: Sequence[str]) -> pa.ChunkedArray:
        """A column as it is; several ones as text, joined with spaces (None where one of them is empty)."""
        if len(names) == 1:
            return self.data.column(names[0])
        texts = [self.data.column(name).cast(pa.string()) for name in names]
        return pc.binary_join_element_wise(*map(pc.utf8_trim_whitespace, texts), " ")

    def item(self, long: LongColumns, name: str) -> pa.ChunkedArray:
        """The values of rows with this name in a long table; empty in all other rows."""
        names, values = self.data.column(long.name), self.data.column(long.value)
        if pa.types.is_dictionary(names.type):
            names = names.cast(names.type.value_type)
        own = pc.equal(pc.utf8_trim_whitespace(names.cast(pa.string())), name)
        return pc.if_else(pc.fill_null(own, False), values, pa.scalar(None, values.type))

    def numbers(self, columns: Sequence[str], remarks: Remarks) -> np.ndarray:
        """Columns as float64 [rows, columns]; NaN is missing.

        Raises:
            DataError: a value is not a number; the message names its row.
        """
        found = np.empty((len(self), len(columns)))
        for place, name in enumerate(columns):
            found[:, place] = self._number(name)
        infinite = np.isinf(found)
        if infinite.any():
            remarks.count("infinite values that count as missing", int(infinite.sum()))
            found[infinite] = np.nan
        for code in self._file.missing:
            if isinstance(code, int | float):
                found[found == code] = np.nan
        return found

    def labels(self, names: Sequence[str]) -> list[str | None]:
        """A column of labels as text: 1, 1.0 and 01 are all "1". Several columns are joined, see `joined_texts`."""
        columns = [self._labels(name) for name in names]
        return columns[0] if len(columns) == 1 else [joined_texts(row) for row in zip(*columns, strict=True)]

    def _labels(self, name: str) -> list[str | None]:
        found = self.texts(name)
        plain = {text: label_text(text) for text in set(found) if text is not None}
        return [None if text is None else plain[text] for text in found]

    def texts(self, name: str) -> list[str | None]:
        """A column as text, None where it is empty."""
        column = self.data.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_floating(column.type):
            return [None if v is None or v != v else f"{v:.15g}" for v in column.to_pylist()]
        if pa.types.is_boolean(column.type):
            return [None if v is None else str(v).lower() for v in column.to_pylist()]
        return [None if v is None or not str(v).strip() else str(v).strip() for v in column.to_pylist()]

    def _number(self, name: str) -> np.ndarray:
        long = self._file.long
        column = self.item(long, name) if long is not None and name in self._file.items else self.data.column(name)
        if pa.types.is_null(column.type):
            return np.full(len(self), np.nan)
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        if pa.types.is_string(column.type):
            missing = pc.is_in(pc.utf8_trim_whitespace(column), pa.array(self._texts_for_missing()))
            column = pc.if_else(missing, pa.scalar(None, pa.string()), column)
            column = self._plain_digits(column)
        try:
            return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise DataError(f"{self.name}: column {name!r} has {self._odd(column)}, which is not a number") from None

    def _texts_for_missing(self) -> list[str]:
        return [*MISSING, *(code for code in self._file.missing if isinstance(code, str))]

    def _plain_digits(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Numbers as texts of another form: 1,234.5 or 1.234,5 as 1234.5."""
        if self._file.thousands:
            group = re.escape(self._file.thousands)
            mark = re.escape(self._file.decimal)
            whole = pc.match_substring_regex(column, rf"^\s*[-+]?\d{{1,3}}({group}\d{{3}})+({mark}\d*)?\s*$")
            column = pc.if_else(whole, pc.replace_substring(column, self._file.thousands, ""), column)
        if self._file.decimal != ".":
            number = pc.match_substring_regex(column, rf"^\s*[-+]?\d+{re.escape(self._file.decimal)}\d*\s*$")
            column = pc.if_else(number, pc.replace_substring(column, self._file.decimal, "."), column)
        return pc.utf8_trim_whitespace(column)

    def _odd(self, column: pa.ChunkedArray) -> str:
        """The first value that is not a number, with its row."""
        for row, value in enumerate(column.to_pylist(), 1):
            try:
                float("nan" if value is None or value in MISSING else value)
            except (TypeError, ValueError):
                return f"{short_repr(value)} in row {row:,}"
        return f"values of type {column.type}"


def read_table(file: SourceFile, about: TableFile, wanted: Collection[str], remarks: Remarks) -> Table | None:
    """The wanted columns of a file; None if it is empty.

    Raises:
        DataError: it is damaged, or lacks a column.
        StorageError: it cannot be read at present.
    """
    no_lines = is_binary(file.name) or about.encoding.lower().startswith("utf-16")
    content = file.read_binary() if no_lines else file.read(remarks)
    if not content.strip():
        return None
    return parse_table(file.name, content, about, wanted, about.text_columns)


def is_binary(name: str) -> bool:
    """Whether a file of this name does not hold lines."""
    return is_parquet(name) or name.lower().endswith(".gz")


def parse_table(
    name: str, content: bytes, about: TableFile, wanted: Collection[str], texts: Collection[str] = ()
) -> Table:
    """See `read_table`. `content`: the bytes of the file; `texts`: columns that are text whatever they look like."""
    wanted = {*wanted} - about.items | ({about.long.name, about.long.value} if about.long is not None else set())
    try:
        if is_parquet(name):
            return Table(name, _parquet(name, content, wanted), about)
        content = plain_content(name, content)
        content = without_footer(content, about)
        clock = _start_and_rate(name, content, about) if about.start_and_rate else None
        return Table(name, _csv(name, content, about, wanted, texts), about, clock)
    except (pa.ArrowInvalid, pa.ArrowException, UnicodeDecodeError, OSError) as error:
        text = " ".join(str(error).split())[:300]
        raise DataError(f"{name}: cannot be read as a table ({text}); correct the file, or the layout") from None


def column_names(name: str, content: bytes, about: TableFile) -> list[str]:
    """The names of the columns of a file, which are checked.

    Raises:
        DataError: it is empty or damaged, or two columns have one name.
    """
    try:
        if is_parquet(name):
            return list(pyarrow.parquet.read_schema(io.BytesIO(content)).names)
        return _header(name, plain_content(name, content), about)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{name}: not a Parquet file ({' '.join(str(error).split())[:200]}); fetch it again") from None


def plain_content(name: str, content: bytes) -> bytes:
    """The text of a file that may be compressed.

    Raises:
        DataError: it is damaged.
    """
    if not name.lower().endswith(".gz"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: damaged ({error}); fetch it again") from None


def without_footer(content: bytes, about: TableFile) -> bytes:
    """The text without its footer, and without rows at its end that have no value at all.

    Where rows follow each other without a time, an empty row is a missing value, and stays.
    """
    try:
        "".encode(about.encoding)
    except LookupError:  # the header is read next, which says what is wrong
        return content
    if about.encoding.lower().startswith("utf-16"):
        plain = about.model_copy(update={"encoding": "utf-8"})
        return without_footer(content.decode(about.encoding).encode(), plain).decode().encode(about.encoding)
    if about.footer is not None:
        start = about.footer.encode(about.encoding, errors="replace")
        place = len(content)
        found = -1
        for _ in range(_FOOTER_LINES):
            place = content.rfind(b"\n", 0, place)
            if place < 0:
                break  # the first line is no footer
            if content[place + 1 : place + 1 + len(start) + 16].lstrip(b' "').startswith(start):
                found = place + 1
        content = content if found < 0 else content[:found]
    if about.time is None and about.is_signal:
        return content
    nothing = b' "\r\n\t' + about.delimiter.encode(about.encoding, errors="replace")
    while True:
        end = len(content.rstrip(b"\r\n"))
        line = content.rfind(b"\n", 0, end) + 1
        if line == 0 or content[line:end].strip(nothing):
            return content
        content = content[:line]


def _start_and_rate(name: str, content: bytes, about: TableFile) -> tuple[float, float]:
    lines = content[: 1 << 16].decode(_encoding(about), errors="replace").splitlines()
    rows = [line.split(about.delimiter) for line in lines[about.skip_rows :] if line.strip()][int(about.header) :][:2]
    try:
        (start, *_), (rate, *_) = rows
        found = float(start), float(rate)
    except ValueError:
        found = 0.0, 0.0
    if not (found[1] > 0 and abs(found[0]) < 1e10):
        raise DataError(f"{name}: its first two rows are no start in s and no rate in Hz; correct start_and_rate")
    return found


def _header(name: str, content: bytes, about: TableFile) -> list[str]:
    lines = io.TextIOWrapper(io.BytesIO(content), encoding=_encoding(about), errors="strict", newline=None)
    try:
        rows = csv.reader(
            (line for number, line in enumerate(lines) if number >= about.skip_rows), delimiter=about.delimiter
        )
        used = (row for row in rows if any(cell.strip() for cell in row))
        first = next(used, None)
        if first is not None and about.group_row:
            first = grouped(first, next(used, []))
    except (UnicodeDecodeError, LookupError) as error:
        raise DataError(
            f"{name}: not text in {about.encoding} ({error}); name its encoding in the layout (encoding: latin-1, say)"
        ) from None
    except csv.Error as error:
        raise DataError(f"{name}: cannot be read as a table ({error})") from None
    if first is None:
        raise DataError(f"{name}: it is empty; fetch it again, or leave it out")
    if not about.header:
        return [f"c{number}" for number in range(1, len(first) + 1)]
    names = [cell.strip() for cell in first]
    while len(names) > 1 and not names[-1]:  # lines that end with a delimiter
        names[-1] = f"c{len(names)}"
    again = next((n for n in names if n and names.count(n) > 1), None)
    if again is not None:
        raise DataError(
            f"{name}: two columns are named {again!r}; rename one of them, or say that the names of columns are in the "
            "row below (group_row: true)"
        )
    return [n or f"c{number}" for number, n in enumerate(names, 1)]


def grouped(groups: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names of columns below names of groups; an empty group is that to the left of it."""
    found, group = [], ""
    for place, name in enumerate(names):
        group = (groups[place].strip() if place < len(groups) else "") or group
        found.append("_".join(part for part in (group, name.strip()) if part))
    return found


def _encoding(about: TableFile) -> str:
    return "utf-8-sig" if about.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else about.encoding


def _csv(name: str, content: bytes, about: TableFile, wanted: Collection[str], texts: Collection[str]) -> pa.Table:
    names = _header(name, content, about)
    _check_columns(name, names, wanted)
    codes = [code for code in about.missing if isinstance(code, str)]
    return pyarrow.csv.read_csv(
        pa.BufferReader(content),
        pyarrow.csv.ReadOptions(
            use_threads=False,
            block_size=max(_BLOCK, min(len(content), 64 * _BLOCK)),
            skip_rows=about.skip_rows,
            skip_rows_after_names=int(about.header)
            + int(about.group_row)
            + int(about.units_row)
            + 2 * int(about.start_and_rate),
            column_names=names,
            encoding="utf8" if _encoding(about) == "utf-8-sig" else about.encoding,
        ),
        pyarrow.csv.ParseOptions(delimiter=about.delimiter),
        pyarrow.csv.ConvertOptions(
            include_columns=sorted(wanted),
            column_types=dict.fromkeys(texts, pa.string()),
            null_values=[*MISSING, *codes],
            decimal_point=about.decimal,
        ),
    )


def _parquet(name: str, content: bytes, wanted: Collection[str]) -> pa.Table:
    file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
    _check_columns(name, list(file.schema_arrow.names), wanted)
    return file.read(columns=sorted(wanted), use_threads=False)


def _check_columns(name: str, names: Sequence[str], wanted: Collection[str]) -> None:
    missing = sorted(set(wanted) - set(names))
    if missing:
        raise DataError(
            f"{name}: there is no column {missing[0]!r}; there are {join_names([repr(n) for n in names])}; correct the "
            "file or the layout"
        )
