"""Columns as machine words or byte strings, so that kernels can hash, compare and order them.

Two forms cover every type that may be a key or be ordered: FIXED values fit one int64 (numbers, booleans,
dates, times), BYTES values are byte strings (strings, binary, decimals). Equal values have equal codes: NaN
equals NaN and -0.0 equals 0.0. The codes of nulls mean nothing: look at ``validity`` first.
"""

from __future__ import annotations

import enum
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from millstream.engine.errors import SchemaError

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

NO_MASK: Final[Bools] = np.empty(0, np.bool_)
"""What kernels take for "every row is valid"."""

_SIGN: Final = np.int64(-(2**63))
_REST: Final = np.int64(2**63 - 1)


class Form(enum.Enum):
    """How the values of a type are held outside Arrow."""

    FIXED = "fixed"
    BYTES = "bytes"


def form_of(type: pa.DataType, what: str) -> Form:
    """Return the form of a type.

    Args:
        what: names the column and its use, for the error: ``"key column 'shop'"``.

    Raises:
        SchemaError: values of the type are neither hashed nor ordered (lists, structs, maps).

    >>> form_of(pa.timestamp("us"), "key"), form_of(pa.string(), "key")
    (<Form.FIXED: 'fixed'>, <Form.BYTES: 'bytes'>)
    """
    plain = plain_type(type)
    if pa.types.is_primitive(plain) and not pa.types.is_interval(plain):
        return Form.FIXED
    if is_text(plain) or pa.types.is_decimal(plain) or pa.types.is_fixed_size_binary(plain):
        return Form.BYTES
    raise SchemaError(
        f"{what} has type {type}; expected a number, boolean, date, time, string, binary or decimal. "
        "Make such a column first, for example from one field of it"
    )


def has_form(type: pa.DataType) -> bool:
    """Whether values of a type may be hashed and ordered.

    >>> has_form(pa.int8()), has_form(pa.list_(pa.int8()))
    (True, False)
    """
    try:
        form_of(type, "a value")
    except SchemaError:
        return False
    return True


def plain_type(type: pa.DataType) -> pa.DataType:
    """Return the type without its dictionary: state and results hold plain values."""
    return type.value_type if pa.types.is_dictionary(type) else type


def is_text(type: pa.DataType) -> bool:
    """Whether values are strings or binary of any length."""
    return bool(
        pa.types.is_string(type)
        or pa.types.is_large_string(type)
        or pa.types.is_string_view(type)
        or pa.types.is_binary(type)
        or pa.types.is_large_binary(type)
        or pa.types.is_binary_view(type)
    )


def plain(array: pa.Array) -> pa.Array:
    """Return the array without its dictionary."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def validity(array: pa.Array) -> Bools:
    """Return which rows are not null; NO_MASK if all are.

    >>> validity(pa.array([1, None])).tolist(), len(validity(pa.array([1])))
    ([True, False], 0)
    """
    if pa.types.is_dictionary(array.type):
        array = plain(array)
    if array.null_count == 0:
        return NO_MASK
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=np.bool_)


def fixed_codes(array: pa.Array) -> Ints:
    """Return one int64 per value of a FIXED array, shape (n,): equal values, equal codes.

    >>> fixed_codes(pa.array([0.0, -0.0])).tolist(), fixed_codes(pa.array([True, False])).tolist()
    ([0, 0], [1, 0])
    """
    array = plain(array)
    if pa.types.is_floating(array.type):
        floats = _numpy(array, np.float64)
        # Adding 0.0 turns -0.0 into 0.0; there are many NaNs, one stands for all.
        floats = np.where(np.isnan(floats), np.nan, floats) + 0.0
        return floats.view(np.int64)
    if pa.types.is_boolean(array.type):
        return _numpy(array.cast(pa.uint8()), np.int64)
    if array.type.bit_width == 64:
        return _numpy(array.view(pa.int64()), np.int64)
    if pa.types.is_integer(array.type):
        return _numpy(array, np.int64)
    return _numpy(array.view(pa.int32()), np.int64)


def _numpy(array: pa.Array, dtype: type[Any]) -> npt.NDArray[Any]:
    """Read the values buffer itself: what stands under a null does not matter, and nothing is copied."""
    own = np.dtype(array.type.to_pandas_dtype())
    data = array.buffers()[1]
    if data is None or len(array) == 0:
        return np.zeros(len(array), dtype)
    values = np.frombuffer(data, own, count=len(array), offset=array.offset * own.itemsize)
    return values if own == dtype else values.astype(dtype)


def fixed_array(codes: Ints, valid: Bools, type: pa.DataType) -> pa.Array:
    """Undo ``fixed_codes``: an array of ``type``, null where ``valid`` (or NO_MASK) is false.

    >>> fixed_array(fixed_codes(pa.array([1.5, -2.0])), NO_MASK, pa.float64()).to_pylist()
    [1.5, -2.0]
    """
    target = plain_type(type)
    mask = ~valid if len(valid) else None
    if pa.types.is_floating(target):
        values = pa.array(codes.view(np.float64).astype(target.to_pandas_dtype()), target, mask=mask)
    elif pa.types.is_boolean(target):
        values = pa.array(codes != 0, mask=mask)
    elif pa.types.is_integer(target):
        values = pa.array(codes.astype(target.to_pandas_dtype()), target, mask=mask)
    elif target.bit_width == 64:
        values = pa.array(codes, pa.int64(), mask=mask).view(target)
    else:
        values = pa.array(codes.astype(np.int32), pa.int32(), mask=mask).view(target)
    return values.dictionary_encode().cast(type) if pa.types.is_dictionary(type) else values


def byte_strings(array: pa.Array) -> tuple[Ints, Bytes]:
    """Return the values of a BYTES array as offsets, shape (n + 1,), and data.

    Value i is ``data[offsets[i]:offsets[i + 1]]``.

    >>> offsets, data = byte_strings(pa.array(["ab", "", "c"]))
    >>> offsets.tolist(), bytes(data)
    ([0, 2, 2, 3], b'abc')
    """
    array = plain(array)
    count = len(array)
    if is_text(array.type):
        array = array.cast(pa.large_binary())
        offsets, data = array.buffers()[1:3]
        if offsets is None or count == 0:
            return np.zeros(count + 1, np.int64), np.empty(0, np.uint8)
        starts = np.frombuffer(offsets, np.int64, count=count + 1, offset=array.offset * 8)
        return starts, np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    width = _byte_width(array.type)
    starts = np.arange(array.offset, array.offset + count + 1, dtype=np.int64) * width
    data = array.buffers()[1]
    return starts, np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)


def bytes_array(values: pa.LargeBinaryArray, type: pa.DataType) -> pa.Array:
    """Undo ``byte_strings``: turn a large_binary array of raw values into one of ``type``."""
    target = plain_type(type)
    if is_text(target):
        plain_values = values.cast(target)
    else:
        width = _byte_width(target)
        offsets, data = byte_strings(values)
        raw = np.zeros((len(values), width), np.uint8)
        valid = validity(values)
        raw[valid if len(valid) else slice(None)] = data[offsets[0] : offsets[-1]].reshape(-1, width)
        bitmap = pa.array(valid).buffers()[1] if len(valid) else None
        plain_values = pa.Array.from_buffers(target, len(values), [bitmap, pa.py_buffer(raw)])
    return plain_values.dictionary_encode().cast(type) if pa.types.is_dictionary(type) else plain_values


def _byte_width(type: pa.DataType) -> int:
    return int(type.bit_width) // 8


def order_codes(array: pa.Array) -> Ints:
    """Return one int64 per value of a FIXED array such that codes order as values do; NaN is the greatest.

    >>> codes = order_codes(pa.array([-1.0, float("nan"), 2.0, -3.0]))
    >>> np.argsort(codes).tolist()
    [3, 0, 2, 1]
    """
    codes = fixed_codes(array)
    return _reorder(codes, plain_type(array.type))


def order_array(codes: Ints, valid: Bools, type: pa.DataType) -> pa.Array:
    """Undo ``order_codes``."""
    return fixed_array(_reorder(codes, plain_type(type)), valid, type)


def _reorder(codes: Ints, type: pa.DataType) -> Ints:
    """Turn bits into order and back again; it is its own inverse."""
    if pa.types.is_floating(type):
        return codes ^ ((codes >> 63) & _REST)
    return codes ^ _SIGN if pa.types.is_uint64(type) else codes


def order_bytes(array: pa.Array) -> pa.LargeBinaryArray:
    """Return a BYTES array as byte strings that order (byte by byte) as the values do.

    >>> from decimal import Decimal
    >>> low, high = order_bytes(pa.array([Decimal("-1.5"), Decimal("2.0")])).to_pylist()
    >>> low < high
    True
    """
    array = plain(array)
    if is_text(array.type):
        return array.cast(pa.large_binary())
    offsets, data = byte_strings(array)
    width = _byte_width(array.type)
    raw = data[offsets[0] : offsets[-1]].reshape(-1, width)
    if pa.types.is_decimal(array.type):
        raw = np.ascontiguousarray(raw[:, ::-1])
        raw[:, 0] ^= 0x80
    valid = validity(array)
    bitmap = pa.array(valid).buffers()[1] if len(valid) else None
    starts = np.arange(len(array) + 1, dtype=np.int64) * width
    parts = [bitmap, pa.py_buffer(starts), pa.py_buffer(np.ascontiguousarray(raw))]
    return pa.Array.from_buffers(pa.large_binary(), len(array), parts)


def ordered_bytes_array(values: pa.LargeBinaryArray, type: pa.DataType) -> pa.Array:
    """Undo ``order_bytes``."""
    target = plain_type(type)
    if not pa.types.is_decimal(target):
        return bytes_array(values, type)
    width = _byte_width(target)
    valid = validity(values)
    offsets, data = byte_strings(values)
    raw = np.zeros((len(values), width), np.uint8)
    raw[valid if len(valid) else slice(None)] = data[offsets[0] : offsets[-1]].reshape(-1, width)
    raw[:, 0] ^= 0x80
    bitmap = pa.array(valid).buffers()[1] if len(valid) else None
    return pa.Array.from_buffers(target, len(values), [bitmap, pa.py_buffer(np.ascontiguousarray(raw[:, ::-1]))])
