"""Splits batches by the values of columns and names each part's folder, Hive style: ``day=2026-01-31/shop=7``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.errors import DataError

NULL_NAME: Final = "__HIVE_DEFAULT_PARTITION__"
"""The folder name every Hive reader takes for NULL."""

LONGEST_NAME: Final = 255
"""Bytes that common file systems allow for one name."""

_UNSAFE: Final = re.compile(rb"[^A-Za-z0-9._-]")


def escape(text: str) -> str:
    """Percent-encode everything outside ``A-Z a-z 0-9 . _ -``, and names that would mean something to a path.

    >>> escape("a/b"), escape(".."), escape("Zürich"), escape("2026-01-31")
    ('a%2Fb', '%2E%2E', 'Z%C3%BCrich', '2026-01-31')
    """
    if text in (".", ".."):
        return text.replace(".", "%2E")
    if text == NULL_NAME or text.upper() == "NULL":
        # Readers take these two for NULL: DuckDB only as they stand, pyarrow (the first) even when encoded.
        return f"%{ord(text[0]):02X}{text[1:]}"
    return _UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], text.encode()).decode("ascii")


def folder_name(column: str, value: str | None) -> str:
    """Return the name of the folder that holds the rows with this value.

    Raises:
        DataError: the name would be longer than file systems allow. Cutting it short would change the data,
            since the value is kept nowhere else.

    >>> folder_name("shop", "7"), folder_name("shop", ""), folder_name("shop", None)
    ('shop=7', 'shop=', 'shop=__HIVE_DEFAULT_PARTITION__')
    """
    name = f"{escape(column)}={NULL_NAME if value is None else escape(value)}"
    if len(name) > LONGEST_NAME:
        raise DataError(
            f"column {column!r}: the value {value!r:.40}… makes a folder name of {len(name)} bytes, at "
            f"most {LONGEST_NAME} are possible; partition by a shorter column, or shorten or filter it before the sink"
        )
    return name


def can_partition(type_: pa.DataType) -> bool:
    """Whether values of this type can be folder names and be read back."""
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_integer(type_)
        or pa.types.is_boolean(type_)
        or pa.types.is_date(type_)
        or pa.types.is_timestamp(type_)
        or pa.types.is_decimal(type_)
    )


def split_by_folder(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield ``(folder, rows)`` for each combination of values; the order of rows within a folder is kept.

    Args:
        batch: not empty.
        columns: the columns to split by, outermost folder first; none: everything goes to folder ``""``.
    """
    if not columns:
        yield "", batch
        return
    names, codes = zip(*(_encode(batch, column) for column in columns), strict=True)
    group = np.zeros(batch.num_rows, dtype=np.int64)
    for column_codes, column_names in zip(codes, names, strict=True):
        # Numbered anew after each column, so that the product of the columns' sizes cannot overflow.
        group = np.unique(group * len(column_names) + column_codes, return_inverse=True)[1]
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    ends = np.append(starts[1:], batch.num_rows)
    sorted_rows = batch if len(starts) == 1 else batch.take(pa.array(order))
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        row = order[start]
        path = "/".join(n[c[row]] for n, c in zip(names, codes, strict=True))
        yield path, sorted_rows.slice(start, end - start)


def _encode(batch: pa.RecordBatch, column: str) -> tuple[list[str], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Return the distinct folder names of a column, and for each row which of them is its own."""
    encoded = pc.cast(batch.column(column), pa.string()).dictionary_encode(null_encoding="encode")
    names = [folder_name(column, value) for value in encoded.dictionary.to_pylist()]
    return names, encoded.indices.to_numpy().astype(np.int64)
