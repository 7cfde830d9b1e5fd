"""Which rows are equal, whatever their types: lists and structs too. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.codes import Bools, Form, Ints, byte_strings, fixed_codes, form_of, has_form, plain, validity
from millstream.engine.key_index import KeyIndex

_MOST_COLUMNS: Final = 32


def is_comparable(type: pa.DataType) -> bool:
    """Whether ``row_numbers`` takes columns of a type.

    >>> is_comparable(pa.list_(pa.struct({"a": pa.int8()}))), is_comparable(pa.map_(pa.int8(), pa.int8()))
    (True, False)
    """
    if has_form(type):
        return True
    if pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        return is_comparable(type.value_type)
    if pa.types.is_struct(type):
        return all(is_comparable(type.field(number).type) for number in range(type.num_fields))
    return False


def row_numbers(columns: Sequence[pa.Array], rows: int) -> Ints:
    """Number rows, 0.. in the order in which they come: equal rows get equal numbers.

    Nulls are equal, NaN equals NaN and -0.0 equals 0.0.

    Args:
        columns: of the rows, each of shape (rows,) and of a type that ``is_comparable``.

    Returns:
        int64, shape (rows,).

    >>> row_numbers([pa.array([[1, None], [], [1, None], None]), pa.array([5, 5, 5, 5])], 4).tolist()
    [0, 1, 0, 2]
    """
    flat = [_flat(column) for column in columns]
    while len(flat) > _MOST_COLUMNS:
        flat = [*flat[_MOST_COLUMNS:], pa.array(row_numbers(flat[:_MOST_COLUMNS], rows))]
    return KeyIndex([column.type for column in flat]).slots(flat, rows)


def _flat(column: pa.Array) -> pa.Array:
    """Return a column of which equal values are equal too, and that may be a key."""
    if has_form(column.type):
        return column
    if pa.types.is_struct(column.type):
        return pa.array(row_numbers([*column.flatten(), column.is_valid()], len(column)))
    values = column.flatten()
    numbers = row_numbers([values], len(values))
    sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    ends = np.zeros(len(column) + 1, np.int64)
    np.cumsum(sizes, out=ends[1:])
    bitmap = column.is_valid().buffers()[1] if column.null_count else None
    parts = [bitmap, pa.py_buffer(8 * ends), pa.py_buffer(numbers)]
    return pa.Array.from_buffers(pa.large_binary(), len(column), parts)


def same_values(left: pa.Array, right: pa.Array) -> Bools:
    """Return where two columns of one type hold equal values, as ``row_numbers`` has it.

    Values of a type that is not comparable are never the same.

    >>> nan = float("nan")
    >>> same_values(pa.array([1.0, nan, None, 2.0]), pa.array([1.0, nan, None, None])).tolist()
    [True, True, True, False]
    """
    if not is_comparable(left.type):
        return np.zeros(len(left), np.bool_)
    if not has_form(left.type):
        numbers = row_numbers([pa.concat_arrays([left, right])], 2 * len(left))
        return np.equal(numbers[: len(left)], numbers[len(left) :])
    left, right = plain(left), plain(right)
    if form_of(left.type, "a value") is Form.FIXED:
        equal: Bools = fixed_codes(left) == fixed_codes(right)
    else:
        # Raw bytes: some types of them Arrow cannot compare.
        equal = pc.equal(_raw(left), _raw(right)).to_numpy(zero_copy_only=False)
    ours, theirs = (valid if len(valid := validity(side)) else np.ones(len(side), np.bool_) for side in (left, right))
    return (equal & ours & theirs) | ~(ours | theirs)


def _raw(values: pa.Array) -> pa.Array:
    offsets, data = byte_strings(values)
    return pa.Array.from_buffers(pa.large_binary(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
