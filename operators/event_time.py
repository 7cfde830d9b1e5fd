"""Event time as operators use it: int64 microseconds since 1970-01-01 UTC, taken from a timestamp column."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints, fixed_codes, validity
from millstream.engine.errors import SchemaError

TIME_TYPE: Final = pa.timestamp("us")
"""What window starts and ends are in rows and in state."""

_PER_UNIT: Final = {"s": 1_000_000, "ms": 1_000, "us": 1}


def check_time_type(type: pa.DataType, what: str) -> None:
    """Raise SchemaError unless values of the type can be event times: timestamps, or int64 microseconds.

    Args:
        what: names the expression, for the error.
    """
    if not (pa.types.is_timestamp(type) or pa.types.is_int64(type)):
        raise SchemaError(f"event time {what} has type {type}; expected a timestamp, or int64 microseconds since 1970")


def event_times(array: pa.Array) -> tuple[Ints, Bools]:
    """Return event times as int64 microseconds, shape (n,), and which are not null (NO_MASK: all).

    Nanoseconds are rounded down, so that a row never moves into a later window. What stands at nulls is 0.

    >>> event_times(pa.array([-1, 1500], pa.timestamp("ns")))[0].tolist()
    [-1, 1]
    """
    times, valid = fixed_codes(array), validity(array)
    if pa.types.is_timestamp(array.type):
        unit = array.type.unit
        if unit == "ns":
            times = times // 1_000
        elif unit != "us":
            times = times * _PER_UNIT[unit]
    return (np.where(valid, times, 0) if len(valid) else times), valid


def time_array(times: Ints) -> pa.Array:
    """Return int64 microseconds as a timestamp column."""
    return pa.array(times, pa.int64()).view(TIME_TYPE)
