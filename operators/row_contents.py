"""Finds the row of a buffer that equals another in every column. Importing this module loads numba."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.codes import NO_MASK, Form, Ints, byte_strings, fixed_codes, form_of, has_form, plain, validity
from millstream.engine.key_index import KeyIndex
from millstream.operators.cells import resized

_MIN_GARBAGE: Final = 4_096
_MOST_PLAIN: Final = 60
_EMPTY: Final = pa.scalar(b"", pa.large_binary())


class RowContents:
    """Names rows by what is in them: equal rows have equal numbers. Lists and structs may be among the columns.

    Attributes:
        row_of: int64, by number: the id of the buffered row; -1 if there is none.

    >>> contents = RowContents(pa.schema({"a": pa.list_(pa.int64()), "b": pa.string()}))
    >>> contents.numbers(pa.record_batch({"a": [[1], None, [1]], "b": ["x", "x", "x"]})).tolist()
    [0, 1, 0]
    """

    def __init__(self, schema: pa.Schema) -> None:
        plain_names = [field.name for field in schema if has_form(field.type)]
        self._plain: Final = plain_names[:_MOST_PLAIN]
        self._packed: Final = [name for name in schema.names if name not in set(self._plain)]
        types = [_told_apart_as(schema.field(name).type) for name in self._plain]
        self._index = KeyIndex([*types, *([pa.large_binary()] if self._packed else [])])
        self.row_of: Ints = np.empty(0, np.int64)

    def numbers(self, batch: pa.RecordBatch) -> Ints:
        """Return the number of each row, int64, shape (rows,)."""
        columns = [_told_apart(batch.column(name)) for name in self._plain]
        if self._packed:
            columns.append(_joined([packed(batch.column(name)) for name in self._packed]))
        numbers = self._index.slots(columns)
        if len(self._index) > len(self.row_of):
            self.row_of = resized(self.row_of, max(2 * len(self.row_of), len(self._index), 1_024), fill=-1)
        return numbers

    def compact(self, rows: int) -> Ints | None:
        """Forget numbers without a row once there are many more than ``rows``; return the new number of each."""
        if len(self._index) <= 2 * rows + _MIN_GARBAGE:
            return None
        used = self.row_of[: len(self._index)] >= 0
        moved = self._index.compact(used)
        self.row_of = self.row_of[: len(used)][used]
        return moved


def _told_apart_as(type: pa.DataType) -> pa.DataType:
    return pa.int64() if pa.types.is_floating(type) else type


def _told_apart(array: pa.Array) -> pa.Array:
    """Return floats by their bits: -0.0 equals 0.0, but they are not the same to look at. NaN is but one."""
    if not pa.types.is_floating(array.type):
        return array
    floats = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    bits = np.where(np.isnan(floats), np.nan, floats).view(np.int64)
    valid = validity(array)
    return pa.array(bits, mask=~valid if len(valid) else None)


def packed(array: pa.Array) -> pa.LargeBinaryArray:
    """Return each value, of any type, as bytes that differ where values do; none is null.

    >>> packed(pa.array([[None, "a"], None, []])).to_pylist()[1:]
    [b'\\x00', b'\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00']
    """
    array = plain(array)
    type = array.type
    valid = validity(array)
    if pa.types.is_struct(type):
        children = [packed(pc.struct_field(array, [number])) for number in range(type.num_fields)]
        parts = [_joined(children)] if children else []
    elif pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        parts = _packed_lists(array)
    elif form_of(type, "a value") is Form.FIXED:
        parts = [_words(fixed_codes(_told_apart(array)))]
    else:
        offsets, data = byte_strings(array)
        texts = pa.Array.from_buffers(
            pa.large_binary(), len(array), [None, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(data)]
        )
        parts = [_words(np.diff(offsets)), texts]
    there = pa.repeat(pa.scalar(b"\x01", pa.large_binary()), len(array))
    whole = _joined([there, *parts])
    return whole if valid is NO_MASK else pc.if_else(pa.array(valid), whole, pa.scalar(b"\x00", pa.large_binary()))


def _packed_lists(array: pa.Array) -> list[pa.LargeBinaryArray]:
    lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
    values = packed(pc.list_flatten(array))
    ends = np.zeros(len(array) + 1, np.int32)
    np.cumsum(lengths.to_numpy(), out=ends[1:])
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(ends), values), _EMPTY)
    return [_words(lengths.to_numpy()), joined]


def _words(numbers: Ints) -> pa.LargeBinaryArray:
    data = pa.py_buffer(np.ascontiguousarray(numbers, np.int64))
    return pa.Array.from_buffers(pa.binary(8), len(numbers), [None, data]).cast(pa.large_binary())


def _joined(parts: list[pa.LargeBinaryArray]) -> pa.LargeBinaryArray:
    return pc.binary_join_element_wise(*parts, _EMPTY)
