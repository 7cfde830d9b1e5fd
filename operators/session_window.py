"""Windows that rows make themselves: ``session``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, overload

from millstream.engine.time import Duration, show_duration
from millstream.operators.windows import ClockWindow, Ints, Window, check_range, is_clock, lengths


@dataclass(frozen=True, slots=True)
class SessionWindow(Window):
    """Windows from the first of some rows to ``gap`` after the last, each less than ``gap`` after the one before.

    Attributes:
        gap: microseconds, positive.
    """

    gap: int

    def identity(self) -> str:
        """Text that changes exactly when it is another window."""
        return f"session(gap={self.gap})"

    def describe(self) -> str:
        """A few words for the plan."""
        return f"in sessions with gaps of {show_duration(self.gap)}"

    def assign(self, times: Ints) -> Ints:
        """As ``Window.assign``: a row begins a session that others may join."""
        check_range(times, 2 * self.gap, self.gap)
        return times

    def last_closed(self, time: int) -> int:
        """As ``Window.last_closed``."""
        return time - self.gap


@overload
def session(gap: Duration, *, time: Literal["event"] = "event") -> SessionWindow: ...


@overload
def session(gap: Duration, *, time: Literal["processing"]) -> ClockWindow: ...


def session(gap: Duration, *, time: str = "event") -> SessionWindow | ClockWindow:
    """Put rows of a key into one window while they follow each other in less than ``gap``.

    A session starts at its first row and ends ``gap`` after its last. It fires when time has passed its end (and
    the lateness). A row is late when a session of that row alone would have ended.

    Args:
        gap: a row that comes so long after the last one begins a session of its own.
        time: ``"event"`` or ``"processing"``, as for ``tumbling``.

    Raises:
        JobError: the gap is zero.

    >>> session("30m").describe()
    'in sessions with gaps of 30m'
    """
    window = SessionWindow(lengths(f"session({gap!r})", gap)[0])
    return ClockWindow(window) if is_clock(f"session({gap!r}", time) else window
