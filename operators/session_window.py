"""Windows that rows make themselves: ``session``."""

from __future__ import annotations

from dataclasses import dataclass

from millstream.engine.time import Duration, show_duration
from millstream.operators.windows import Ints, Window, check_range, lengths


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


def session(gap: Duration) -> SessionWindow:
    """Put rows of a key into one window while they follow each other in less than ``gap``.

    A session starts at its first row and ends ``gap`` after its last. It fires when event time has passed its end (and
    the lateness). A row is late when a session of that row alone would have ended.

    Raises:
        JobError: the gap is zero.

    >>> session("30m").describe()
    'in sessions with gaps of 30m'
    """
    return SessionWindow(lengths(f"session({gap!r})", gap)[0])
