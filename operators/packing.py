"""Python values as bytes and back, exactly or not at all: strict msgpack, with times and decimals as extensions.

What comes back equals what went in and has its type, whatever it is nested in. Tuples, sets, subclasses and objects of
other classes are refused, for they would come back as something else.
"""

from __future__ import annotations

import datetime as dt
import re
import threading
import zoneinfo
from decimal import Decimal
from types import NoneType
from typing import Any, Final

import msgpack

_DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL = range(1, 6)
_ZERO: Final = dt.timedelta(0)

_BINARY: Final = re.compile(rb"[\xc4-\xc6]")  # marks of byte strings

ATOMS: Final = frozenset([NoneType, bool, int, float, str, bytes, dt.datetime, dt.date, dt.time, dt.timedelta, Decimal])
"""The types of values that cannot be changed in place."""


class Unpackable(TypeError):
    """A value that cannot be kept; the message says which and why."""


def pack(value: Any) -> bytes:
    """Return a value as bytes.

    Args:
        value: None, bool, int (64 bits), float, str, bytes, datetime, date, time, timedelta, Decimal, and lists and
            dicts of such.

    Raises:
        Unpackable: it is, or holds, something else.

    >>> unpack(pack({"a": [1, Decimal("1.50"), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)]}))
    {'a': [1, Decimal('1.50'), datetime.datetime(2026, 1, 1, 0, 0, tzinfo=datetime.timezone.utc)]}
    """
    try:
        data: bytes = _packers.outer.pack(value)
    except Unpackable:
        raise
    except ValueError as error:  # too deep, too long, text that is no Unicode
        raise Unpackable(f"it cannot be kept: {error}") from None
    if _BINARY.search(data):
        _demand_bytes(value)
    return data


def _demand_bytes(value: Any) -> None:
    """Refuse what msgpack takes for bytes."""
    if isinstance(value, (bytearray, memoryview)):
        raise Unpackable(_why_not(value))
    if isinstance(value, list):
        for item in value:
            _demand_bytes(item)
    elif isinstance(value, dict):
        for item in value.values():
            _demand_bytes(item)


def unpack(data: bytes) -> Any:
    """Return the value that ``pack`` made the bytes of.

    >>> unpack(pack(dt.timedelta(days=-1, microseconds=1)))
    datetime.timedelta(days=-1, microseconds=1)
    """
    return msgpack.unpackb(data, ext_hook=_from_extension, strict_map_key=False)


def _to_extension(value: Any) -> msgpack.ExtType:
    kind = value.__class__
    if kind is dt.datetime:
        return msgpack.ExtType(_DATETIME, _packers.inner.pack([_wall(value), value.fold, _zone(value.tzinfo)]))
    if kind is dt.date:
        return msgpack.ExtType(_DATE, _packers.inner.pack(value.toordinal()))
    if kind is dt.time:
        parts = [value.hour, value.minute, value.second, value.microsecond, value.fold, _zone(value.tzinfo)]
        return msgpack.ExtType(_TIME, _packers.inner.pack(parts))
    if kind is dt.timedelta:
        return msgpack.ExtType(_TIMEDELTA, _packers.inner.pack(_micros(value)))
    if kind is Decimal:
        return msgpack.ExtType(_DECIMAL, str(value).encode())
    raise Unpackable(_why_not(value))


def _why_not(value: Any) -> str:
    if value.__class__ is int:
        return f"{value} has more than 64 bits and cannot be kept: use a str or a Decimal"
    shown = repr(value)
    start = f"{shown if len(shown) <= 80 else shown[:80] + '...'} is of type {type(value).__name__}"
    if isinstance(value, tuple):
        return f"{start}, which would come back as a list: use a list"
    if isinstance(value, (set, frozenset)):
        return f"{start}, which cannot be kept: use a sorted list, or a map state with None as values"
    if isinstance(value, (bytearray, memoryview)):
        return f"{start}, which would come back as bytes: write bytes(...)"
    bases = [base for base in (bool, int, float, str, bytes, dict, list, dt.datetime) if isinstance(value, base)]
    if bases:
        return f"{start}, which would come back as a plain {bases[0].__name__}: write {bases[0].__name__}(...)"
    return (
        f"{start}, which cannot be kept: state is made of None, bool, int, float, str, bytes, datetime, date, time, "
        "timedelta, Decimal, lists and dicts"
    )


_EPOCH: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - as the clock on the wall shows it


def _wall(value: dt.datetime) -> int:
    return _micros(value.replace(tzinfo=None) - _EPOCH)


def _micros(value: dt.timedelta) -> int:
    return value // dt.timedelta(microseconds=1)


def _zone(zone: dt.tzinfo | None) -> Any:
    """None; the name of a zone; or microseconds east of Greenwich."""
    if zone is None:
        return None
    if isinstance(zone, zoneinfo.ZoneInfo) and zone.key is not None:
        return zone.key
    offset = zone.utcoffset(None)
    if zone.__class__ is dt.timezone and offset is not None and zone.tzname(None) == dt.timezone(offset).tzname(None):
        return _micros(offset)
    raise Unpackable(f"the time zone {zone!r} cannot be kept: use zoneinfo.ZoneInfo(...) or datetime.UTC")


def _from_zone(zone: Any) -> dt.tzinfo | None:
    if isinstance(zone, str):
        return zoneinfo.ZoneInfo(zone)
    if zone == 0 and zone is not None:
        return dt.UTC
    return None if zone is None else dt.timezone(dt.timedelta(microseconds=zone))


def _from_extension(code: int, data: bytes) -> Any:
    if code == _DECIMAL:
        return Decimal(data.decode())
    parts = msgpack.unpackb(data)
    match code:
        case 1:
            wall, fold, zone = parts
            moment = _EPOCH + dt.timedelta(microseconds=wall)
            return moment.replace(fold=fold, tzinfo=_from_zone(zone))
        case 2:
            return dt.date.fromordinal(parts)
        case 3:
            hour, minute, second, microsecond, fold, zone = parts
            return dt.time(hour, minute, second, microsecond, _from_zone(zone), fold=fold)
        case 4:
            return dt.timedelta(microseconds=parts)
    raise ValueError(f"unknown extension {code}: written by a newer Millstream?")


class _Packers(threading.local):
    """A packer must not be used by two threads, nor for the parts of what it is packing."""

    def __init__(self) -> None:
        self.outer = msgpack.Packer(strict_types=True, default=_to_extension)
        self.inner = msgpack.Packer(strict_types=True)


_packers: Final = _Packers()
