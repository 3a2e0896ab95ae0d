"""The columns of a CSV or Parquet file."""

from __future__ import annotations

import csv
import gzip
import io
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
from maestro_dist.data.tables.layout import TableFile, joined_texts, label_text
from maestro_dist.errors import DataError

ENDINGS = (".csv", ".tsv", ".txt", ".parquet", ".pq", ".csv.gz", ".tsv.gz", ".txt.gz")
MISSING = ["", "NA", "N/A", "n/a", "NaN", "nan", "-nan", "NULL", "null", "None", "none", "#N/A", "?"]
_BLOCK = 1 << 20


def is_parquet(name: str) -> bool:
    """Whether a file of this name is read as Parquet."""
    return name.lower().endswith((".parquet", ".pq"))


class Table:
    """Some columns of a file, with the checks that each use needs; `name` is for messages."""

    def __init__(self, name: str, data: pa.Table, file: TableFile) -> None:
        self.name, self.data, self._file = name, data, file

    def __len__(self) -> int:
        return int(self.data.num_rows)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column as it is."""
        return self.data.column(name)

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
        column = self.data.column(name)
        if pa.types.is_null(column.type):
            return np.full(len(self), np.nan)
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        if pa.types.is_string(column.type):
            column = pc.if_else(pc.is_in(column, pa.array(MISSING)), pa.scalar(None, pa.string()), column)
        try:
            return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise DataError(f"{self.name}: column {name!r} has {self._odd(column)}, which is not a number") from None

    def _odd(self, column: pa.ChunkedArray) -> str:
        """The first value that is not a number, with its row."""
        for row, value in enumerate(column.to_pylist(), 1):
            try:
                float("nan" if value is None or value in MISSING else value)
            except (TypeError, ValueError):
                return f"{short_repr(value)} in row {row:,}"
        return f"values of type {column.type}"


def read_table(file: SourceFile, about: TableFile, wanted: Collection[str], remarks: Remarks) -> Table:
    """The wanted columns of a file.

    Raises:
        DataError: it is damaged, or lacks a column.
        StorageError: it cannot be read at present.
    """
    no_lines = is_binary(file.name) or about.encoding.lower().startswith("utf-16")
    content = file.read_binary() if no_lines else file.read(remarks)
    return parse_table(file.name, content, about, wanted, about.text_columns)


def is_binary(name: str) -> bool:
    """Whether a file of this name does not hold lines."""
    return is_parquet(name) or name.lower().endswith(".gz")


def parse_table(
    name: str, content: bytes, about: TableFile, wanted: Collection[str], texts: Collection[str] = ()
) -> Table:
    """See `read_table`. `content`: the bytes of the file; `texts`: columns that are text whatever they look like."""
    try:
        if is_parquet(name):
            return Table(name, _parquet(name, content, wanted), about)
        return Table(name, _csv(name, plain_content(name, content), about, wanted, texts), about)
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


def _header(name: str, content: bytes, about: TableFile) -> list[str]:
    lines = io.TextIOWrapper(io.BytesIO(content), encoding=_encoding(about), errors="strict", newline=None)
    try:
        rows = csv.reader(
            (line for number, line in enumerate(lines) if number >= about.skip_rows), delimiter=about.delimiter
        )
        first = next((row for row in rows if any(cell.strip() for cell in row)), None)
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
        raise DataError(f"{name}: two columns are named {again!r}; rename one of them")
    return [n or f"c{number}" for number, n in enumerate(names, 1)]


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
            skip_rows_after_names=int(about.header),
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
