"""What expressions compute on dates and times. Times without a zone are read as UTC."""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.codes import Bools
from millstream.engine.errors import JobError
from millstream.engine.expression_functions import Function, nulls_of, numbers, with_nulls
from millstream.engine.time import micros

_TICKS: Final = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_FIXED: Final = {"second": 1_000_000, "minute": 60_000_000, "hour": 3_600_000_000, "day": 86_400_000_000}
_CALENDAR: Final = ("week", "month", "quarter", "year")

# The finest part of a time that each letter of a strftime format shows.
_SHOWS: Final = {
    **dict.fromkeys("aAbBCdDeFgGhjmuUVwWxyY", "day"),
    **dict.fromkeys("HIp", "hour"),
    **dict.fromkeys("MR", "minute"),
    **dict.fromkeys("cSTXzZ", "second"),
    **dict.fromkeys("nt%", "day"),
}


def _epoch_us(array: pa.Array) -> pa.Array:
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("us"))
    if not pa.types.is_timestamp(array.type):
        raise pa.ArrowTypeError(f"expected a timestamp or date, got {array.type}")
    if array.type.unit == "ns":
        # Rounded down also before 1970, so that a time never moves into a later window.
        return with_nulls(np.floor_divide(numbers(array), 1_000), array, None, pa.int64())
    return array.cast(pa.timestamp("us", array.type.tz)).view(pa.int64())


def _date(array: pa.Array) -> pa.Array:
    if not (pa.types.is_timestamp(array.type) or pa.types.is_date(array.type)):
        raise pa.ArrowTypeError(f"expected a timestamp or date, got {array.type}")
    if pa.types.is_timestamp(array.type) and array.type.tz is not None:
        array = pc.local_timestamp(array)
    return array.cast(pa.date32(), safe=False) if pa.types.is_date(array.type) else _days(array)


def _days(array: pa.Array) -> pa.Array:
    days = np.floor_divide(numbers(array), 86_400 * _TICKS[array.type.unit])
    # The cast fails for days beyond 32 bits.
    return with_nulls(days, array, None, pa.int64()).cast(pa.int32()).view(pa.date32())


def _truncate(array: pa.Array, *, unit: str) -> pa.Array:
    if not pa.types.is_timestamp(array.type):
        if unit in _FIXED or unit in _CALENDAR:
            return pc.floor_temporal(array, unit=unit)
        raise pa.ArrowTypeError(f"expected a timestamp, got {array.type}")
    if array.type.tz not in {None, "UTC"} and (unit in _FIXED or unit in _CALENDAR):
        return _truncate_local(array, unit)
    if unit in _CALENDAR:
        return pc.floor_temporal(array, unit=unit)
    ticks, rest = divmod((_FIXED.get(unit) or micros(unit)) * _TICKS[array.type.unit], 1_000_000)
    if rest:
        raise pa.ArrowTypeError(f"{array.type} cannot be cut to {unit}: its unit is coarser")
    values = numbers(array)
    cut = np.floor_divide(values, ticks) * ticks
    if len(cut) and cut.max() > 0 > values.min() and _any_valid(cut > values, array):
        raise pa.ArrowInvalid(f"the {unit} in which it lies begins before time does")
    return with_nulls(cut, array, None, pa.int64()).view(array.type)


def _truncate_local(array: pa.Array, unit: str) -> pa.Array:
    """Round down what the zone's clocks show; Arrow's own rounding fails where they skipped midnight."""
    local = pc.local_timestamp(array)
    floor = _truncate(local, unit=unit)
    if unit in {"second", "minute", "hour"}:
        return with_nulls(numbers(array) - (numbers(local) - numbers(floor)), array, None, pa.int64()).view(array.type)
    return pc.assume_timezone(floor, array.type.tz, ambiguous="earliest", nonexistent="latest")


def _any_valid(wrong: Bools, array: pa.Array) -> bool:
    nulls = nulls_of(array)
    return bool((wrong if nulls is None else wrong & ~nulls).any())


def _strftime(array: pa.Array, *, format: str) -> pa.Array:
    """Format each distinct time once: a day has few of what the format shows, and formatting is slow."""
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("s"))
    if not pa.types.is_timestamp(array.type):
        raise pa.ArrowTypeError(f"expected a timestamp or date, got {array.type}")
    zone = array.type.tz
    letters = re.findall("%(.)", format)
    if zone is None and {"z", "Z"} & set(letters):
        raise pa.ArrowTypeError(f"{array.type} has no time zone to show")
    shown = {_SHOWS[letter] for letter in letters}
    # Days and hours of a zone need not begin where UTC's do; every zone's seconds do.
    finest = "second" if zone else min(shown, key=_FIXED.__getitem__, default="day")
    seconds = _FIXED[finest] // 1_000_000
    starts = np.floor_divide(numbers(array), seconds * _TICKS[array.type.unit]) * seconds
    distinct = with_nulls(starts, array, None, pa.int64()).view(pa.timestamp("s", zone)).dictionary_encode()
    return pc.strftime(distinct.dictionary, format=format).take(distinct.indices)


def check_unit(unit: str) -> None:
    """Raise JobError unless times can be truncated to the unit."""
    try:
        known = unit in _FIXED or unit in _CALENDAR or micros(unit) > 0
    except JobError:
        known = False
    if not known:
        raise JobError(f"truncate() takes {', '.join((*_FIXED, *_CALENDAR))} or a duration such as '10s', got {unit!r}")


def check_format(format: str) -> None:
    """Raise JobError unless ``strftime`` knows every letter after a % sign.

    >>> check_format("%Y-%m-%d")
    """
    for letter in re.findall("%(.?)", format, re.DOTALL):
        if letter not in _SHOWS:
            known = " ".join(f"%{known}" for known in sorted(_SHOWS))
            raise JobError(f"strftime({format!r}): %{letter} is not supported; known are {known}")


_TIMES: Final = "use .cast('timestamp[us]') on dates, text such as '2024-01-31 12:00:00' or int64 microseconds"


def _part(kernel: Any) -> Function:
    return Function(kernel, hint=_TIMES)


TIME_FUNCTIONS: Final[dict[str, Function]] = {
    "dt.year": _part(pc.year),
    "dt.month": _part(pc.month),
    "dt.day": _part(pc.day),
    "dt.hour": _part(pc.hour),
    "dt.minute": _part(pc.minute),
    "dt.second": _part(pc.second),
    "dt.weekday": _part(pc.day_of_week),
    "dt.epoch_us": _part(_epoch_us),
    "dt.date": _part(_date),
    "dt.truncate": _part(_truncate),
    "dt.strftime": _part(_strftime),
}
