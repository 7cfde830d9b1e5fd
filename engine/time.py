"""Event time is an int64 count of microseconds since 1970-01-01 UTC; durations are microseconds too."""

from __future__ import annotations

import math
import re
import time
from datetime import timedelta
from typing import Final, Protocol

from millstream.engine.errors import JobError

END_OF_TIME: Final = 2**63 - 1
"""The watermark of a stream that has ended: every window fires."""

START_OF_TIME: Final = -(2**63) + 1
"""The watermark of a stream of which nothing is known yet."""

_UNITS: Final = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m|h|d)")

Duration = str | int | float | timedelta
"""What users write for a duration: ``"1m30s"``, ``timedelta(minutes=1)``, or a number of seconds."""


def micros(duration: Duration) -> int:
    """Return a duration as whole microseconds.

    Args:
        duration: ``"5s"``, ``"1m30s"``, ``"100ms"`` (units us, ms, s, m, h, d), a timedelta, or seconds.

    Raises:
        JobError: the text is not a duration, or the duration is negative.

    >>> micros("1m30s"), micros("100ms"), micros(2)
    (90000000, 100000, 2000000)
    """
    if isinstance(duration, timedelta):
        value = duration // timedelta(microseconds=1)
    elif isinstance(duration, str):
        value = _parse(duration)
    elif isinstance(duration, (int, float)) and math.isfinite(duration):
        value = round(duration * 1_000_000)
    else:
        raise JobError(f"{duration!r} is not a duration: write '1m30s', a timedelta or a number of seconds")
    if value < 0:
        raise JobError(f"a duration cannot be negative, got {duration!r}")
    return value


def _parse(text: str) -> int:
    stripped = text.strip()
    parts = list(_PART.finditer(stripped))
    if not parts or "".join(p.group(0) for p in parts).replace(" ", "") != stripped.replace(" ", ""):
        raise JobError(f"{text!r} is not a duration: write a number and a unit (us, ms, s, m, h, d), as in '1m30s'")
    return round(sum(float(p.group(1)) * _UNITS[p.group(2)] for p in parts))


def show_duration(value: int) -> str:
    """Return microseconds as people write them.

    >>> show_duration(90_000_000), show_duration(0)
    ('1m30s', '0s')
    """
    if value == 0:
        return "0s"
    text = ""
    for unit in ("d", "h", "m", "s", "ms", "us"):
        count, value = divmod(value, _UNITS[unit])
        text += f"{count}{unit}" if count else ""
    return text


class Clock(Protocol):
    """Where the engine reads the time, so that a test can move it by hand."""

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean something."""
        ...

    def wall(self) -> int:
        """Microseconds since 1970-01-01 UTC."""
        ...


class SystemClock:
    """The real clock."""

    def monotonic(self) -> float:
        """Seconds of the machine's monotonic clock."""
        return time.monotonic()

    def wall(self) -> int:
        """Microseconds of the machine's wall clock."""
        return time.time_ns() // 1_000


class ManualClock:
    """A clock that moves only when told to, for tests and simulation.

    >>> clock = ManualClock()
    >>> clock.advance(1.5)
    >>> clock.monotonic(), clock.wall()
    (1.5, 1500000)
    """

    def __init__(self) -> None:
        self._now = 0

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self._now += round(seconds * 1_000_000)

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._now / 1_000_000

    def wall(self) -> int:
        """Microseconds since the clock was made."""
        return self._now
