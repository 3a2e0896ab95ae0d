"""Large CSV tables, plain or compressed by gzip, read in blocks of some megabytes."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np

from maestro_dist.data.converters.files import SourceFile
from maestro_dist.data.converters.folder_options import formats_package
from maestro_dist.errors import DataError

ColumnKind = Literal["id", "number", "time", "text"]
NO_TIME = np.iinfo(np.int64).min
"""Stands for a time that is not given."""
_BLOCK = 16 << 20
_HEADER = 1 << 16
_GZIP = b"\x1f\x8b"


def csv_blocks(
    file: SourceFile, columns: Mapping[str, ColumnKind], optional: Mapping[str, ColumnKind] | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Some rows at a time, by column; names are compared in small letters.

    id      int64; a row without it is an error, except for `optional` columns
    number  float64, NaN where it is not given
    time    int64 seconds since 1970, NO_TIME where it is not given; a fraction of a second is cut
    text    object array, None where it is not given

    Raises:
        DataError: the file is damaged, lacks a column, or a value is of another kind.
    """
    pa, pc, csv_of = (formats_package(f"pyarrow{name}") for name in ("", ".compute", ".csv"))
    kinds = {**columns, **(optional or {})}
    types = {"id": pa.int64(), "number": pa.float64(), "time": pa.timestamp("us"), "text": pa.string()}
    try:
        names = _header(file)
        missing = [name for name in columns if name not in names]
        if missing:
            raise DataError(f"{file.name}: no column {missing[0]}; it has {', '.join(names)[:200]}")
        found = {names[name]: name for name in kinds if name in names}
        with ExitStack() as stack:
            reader = csv_of.open_csv(
                _stream(file, stack),
                read_options=csv_of.ReadOptions(block_size=_BLOCK),
                parse_options=csv_of.ParseOptions(newlines_in_values=True),
                convert_options=csv_of.ConvertOptions(
                    include_columns=list(found), column_types={given: types[kinds[n]] for given, n in found.items()}
                ),
            )
            for batch in reader:
                yield {
                    name: _array(pc, batch.column(batch.schema.get_field_index(given)), kinds[name], file.name, name)
                    for given, name in found.items()
                }
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{file.name}: not a readable CSV table ({text}); fetch it again") from error


def csv_table(
    file: SourceFile, columns: Mapping[str, ColumnKind], optional: Mapping[str, ColumnKind] | None = None
) -> dict[str, np.ndarray]:
    """All rows of a small table; see `csv_blocks`."""
    blocks = list(csv_blocks(file, columns, optional))
    if not blocks:
        raise DataError(f"{file.name}: it has no rows; fetch it again")
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _stream(file: SourceFile, stack: ExitStack) -> Any:
    pa = formats_package("pyarrow")
    opened = stack.enter_context(file.open())
    compressed = opened.read(len(_GZIP)) == _GZIP  # names are not to be trusted: `X.CSV.GZ`, or compressed as `X.csv`
    opened.seek(0)
    raw = stack.enter_context(pa.PythonFile(opened, mode="r"))
    return stack.enter_context(pa.CompressedInputStream(raw, "gzip")) if compressed else raw


def _header(file: SourceFile) -> dict[str, str]:
    """The names of the columns as they are written, by their small letters."""
    with ExitStack() as stack:
        start = _stream(file, stack).read(_HEADER).decode("utf-8-sig", errors="replace")
    names = next(csv.reader(start.splitlines()[:1]), [])
    lower = [name.strip().lower() for name in names]
    if len(set(lower)) < len(lower):
        raise DataError(f"{file.name}: two columns have one name; correct line 1")
    return dict(zip(lower, names, strict=True))


def _array(pc: Any, column: Any, kind: ColumnKind, where: str, name: str) -> np.ndarray:
    if kind == "id":
        if column.null_count:
            raise DataError(f"{where}: a row without {name}; fetch it again")
        return column.to_numpy(zero_copy_only=False)
    if kind == "number":
        return column.to_numpy(zero_copy_only=False).astype(np.float64)
    if kind == "text":
        return column.to_numpy(zero_copy_only=False)
    known = ~column.is_null().to_numpy(zero_copy_only=False)
    seconds = pc.fill_null(column.cast("int64"), 0).to_numpy(zero_copy_only=False) // 10**6
    return np.where(known, seconds, NO_TIME)
