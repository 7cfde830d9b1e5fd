"""Python values as a column of a type they fit: pyarrow alone would make 1 of 1.5 and a day of a moment."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from types import NoneType
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
from millstream.engine.codes import plain_type

_FINE: Final = frozenset({"us", "ns"})
_Class: TypeAlias = type[Any]


def typed_array(values: Sequence[Any], type: pa.DataType) -> pa.Array:
    """Return values as an array.

    Raises:
        pa.ArrowException, TypeError, ValueError or OverflowError: a value does not fit, or would be another one.

    >>> typed_array([1, None, 2.0], pa.int64()).to_pylist()
    [1, None, 2]
    >>> typed_array([1.5], pa.int64())
    Traceback (most recent call last):
    ...
    pyarrow.lib.ArrowInvalid: it would become 1
    """
    array = pa.array(values, type)
    if not {value.__class__ for value in values} <= _own_types(plain_type(type)):
        for value, stored in zip(values, array.to_pylist(), strict=True):
            if not _is_kept(value, stored):
                raise pa.ArrowInvalid(f"it would become {stored!r}")
    return array


def _own_types(type: pa.DataType) -> frozenset[_Class]:
    """The Python types whose values pyarrow either keeps or refuses; others must be looked at one by one."""
    kinds = pa.types
    own: tuple[_Class, ...] = ()
    if kinds.is_boolean(type):
        own = (bool,)
    elif kinds.is_integer(type):
        own = (int,)
    elif kinds.is_floating(type):
        own = (float, int, bool, np.float64, np.float32, np.int64)
    elif kinds.is_string(type) or kinds.is_large_string(type):
        own = (str,)
    elif kinds.is_binary(type) or kinds.is_large_binary(type):
        own = (bytes,)
    elif kinds.is_decimal(type):
        own = (Decimal, int)
    elif kinds.is_timestamp(type) and type.unit in _FINE:
        own = (dt.datetime,)
    elif kinds.is_date(type):
        own = (dt.date,)
    elif kinds.is_duration(type) and type.unit in _FINE:
        own = (dt.timedelta,)
    elif kinds.is_time64(type):
        own = (dt.time,)
    return frozenset((NoneType, *own))


def _is_kept(value: Any, stored: Any) -> bool:
    """Whether what is in the array is the value that was put there."""
    if isinstance(stored, float) and isinstance(value, (float, np.floating)) and math.isnan(stored):
        return math.isnan(value)
    if isinstance(stored, list) and not isinstance(value, (bytes, Mapping)):
        items = list(value)
        return len(items) == len(stored) and all(map(_is_kept, items, stored))
    if isinstance(stored, dict) and isinstance(value, Mapping):
        return value.keys() <= stored.keys() and all(_is_kept(value.get(key), item) for key, item in stored.items())
    if isinstance(stored, list):  # a map, as pyarrow shows it
        return isinstance(value, Mapping)
    if isinstance(value, dt.datetime) and isinstance(stored, dt.datetime) and value.tzinfo and not stored.tzinfo:
        value = value.astimezone(dt.UTC).replace(tzinfo=None)
    return value is None if stored is None else bool(value == stored)
