"""How values are written for people."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from millstream.engine.time import END_OF_TIME

_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - event time has no zone


def show_time(micros: int) -> str:
    """Return microseconds since 1970 as a date and time, whatever the number.

    >>> show_time(1_500_000), show_time(END_OF_TIME), show_time(-(2**62))
    ('1970-01-01 00:00:01.500000', 'end', '-4611686018427387904 us')
    """
    if micros == END_OF_TIME:
        return "end"
    try:
        return (_EPOCH + dt.timedelta(microseconds=micros)).isoformat(" ")
    except OverflowError:
        return f"{micros} us"


def show_bytes(size: int) -> str:
    """Return a size in the unit in which it is a small number.

    >>> show_bytes(999), show_bytes(2_048), show_bytes(5 * 2**30)
    ('999 B', '2.0 KiB', '5.0 GiB')
    """
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def counted(number: int, one: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "sink"), counted(2, "sink")
    ('1 sink', '2 sinks')
    """
    return f"{number:,} {one}" + ("" if number == 1 else "s")


def noteworthy(counters: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """What operators counted, without zeros.

    >>> noteworthy({"window": {"late_rows": 3, "null_time_rows": 0}, "top": {"late_rows": 0}})
    {'window': {'late_rows': 3}}
    """
    found = {name: {key: n for key, n in counts.items() if n} for name, counts in counters.items()}
    return {name: counts for name, counts in found.items() if counts}
