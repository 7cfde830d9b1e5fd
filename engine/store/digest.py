"""A digest of rows that does not depend on how Arrow happens to lay them out.

Slicing, chunking, dictionary encoding, 32 or 64 bit offsets and bytes under nulls leave it alone; so does reading the
rows back from DuckDB. Any other change to any value, to a null, or to the order of rows alters it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DIGEST_BYTES: Final = 16


class Digest:
    """The digest of rows that arrive in any number of pieces.

    >>> whole, pieces = Digest(), Digest()
    >>> whole.update([pa.array(["a", None, "c"])])
    >>> pieces.update([pa.array(["a"])])
    >>> pieces.update([pa.array([None, "c"])])
    >>> whole.hexdigest() == pieces.hexdigest(), whole.rows
    (True, 3)
    """

    def __init__(self) -> None:
        self.rows = 0
        self._columns: list[_Column] = []

    def update(self, columns: Sequence[pa.Array]) -> None:
        """Take the next rows: one array per column, of storage types, of equal length."""
        if not self._columns:
            self._columns = [_Column() for _ in columns]
        for digest, column in zip(self._columns, columns, strict=True):
            digest.update(column)
        self.rows += len(columns[0]) if columns else 0

    def hexdigest(self) -> str:
        """The digest of all rows so far, as hex digits."""
        total = hashlib.blake2b(self.rows.to_bytes(8, "little"), digest_size=DIGEST_BYTES)
        for column in self._columns:
            total.update(column.digest())
        return total.hexdigest()


def digest_of(table: pa.Table) -> str:
    """Return the digest of a whole table.

    >>> digest_of(pa.table({"a": [1, 2]})) == digest_of(pa.table({"b": pa.chunked_array([[1], [2]])}))
    True
    """
    digest = Digest()
    for batch in table.to_batches():
        digest.update(batch.columns)
    return digest.hexdigest()


class _Column:
    """Nulls, lengths and values go into hashes of their own, so that pieces of rows add up to the whole."""

    def __init__(self) -> None:
        self._seen = 0
        self._nulls = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._lengths = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._values = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._children: list[_Column] = []

    def update(self, array: pa.Array) -> None:
        if array.null_count:
            where = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)) + self._seen
            self._nulls.update(where.astype("<i8").tobytes())
        self._seen += len(array)
        if pa.types.is_struct(array.type):
            self._update_children(array.flatten())
        elif pa.types.is_list(array.type):
            self._lengths.update(_int64(pc.list_value_length(array)))
            self._update_children([array.flatten()])
        elif _is_text_or_bytes(array.type):
            self._update_bytes(array)
        else:
            self._values.update(_fixed_width(array))

    def _update_children(self, arrays: Sequence[pa.Array]) -> None:
        if not self._children:
            self._children = [_Column() for _ in arrays]
        for child, array in zip(self._children, arrays, strict=True):
            child.update(array)

    def _update_bytes(self, array: pa.Array) -> None:
        wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
        as_bytes = array.cast(pa.large_binary() if wide else pa.binary())
        filled = as_bytes.fill_null(b"") if array.null_count else as_bytes
        _, offsets_buffer, data = filled.buffers()
        if offsets_buffer is None or not len(filled):
            return
        offsets = np.frombuffer(offsets_buffer, np.int64 if wide else np.int32)[filled.offset :][: len(filled) + 1]
        self._lengths.update(np.diff(offsets).astype("<i8").tobytes())
        if data is not None:
            self._values.update(memoryview(data)[int(offsets[0]) : int(offsets[-1])])

    def digest(self) -> bytes:
        total = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for part in (self._nulls, self._lengths, self._values):
            total.update(part.digest())
        for child in self._children:
            total.update(child.digest())
        return total.digest()


def _is_text_or_bytes(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_binary(type_)
        or pa.types.is_large_binary(type_)
    )


def _int64(array: pa.Array) -> bytes:
    return bytes(np.ascontiguousarray(array.fill_null(0).to_numpy(zero_copy_only=False), dtype="<i8").tobytes())


def _fixed_width(array: pa.Array) -> Any:
    """The values as contiguous bytes, zero under nulls."""
    if pa.types.is_boolean(array.type):
        return array.cast(pa.uint8()).fill_null(0).to_numpy().tobytes()
    if pa.types.is_floating(array.type):
        return _canonical_floats(array)
    width = array.type.bit_width // 8
    data = array.buffers()[1]
    if data is None:
        return b""
    values = np.frombuffer(data, np.uint8)[array.offset * width : (array.offset + len(array)) * width]
    if not array.null_count:
        return values
    values = values.reshape(len(array), width).copy()
    values[array.is_null().to_numpy(zero_copy_only=False)] = 0
    return values.tobytes()


def _canonical_floats(array: pa.Array) -> bytes:
    """DuckDB may turn one NaN into another and lose the sign of zero when it compresses: neither counts as a change."""
    values = array.fill_null(0.0).to_numpy(zero_copy_only=False) + 0.0
    values[np.isnan(values)] = np.nan
    return bytes(values.tobytes())
