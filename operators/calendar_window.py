"""Windows of whole days in a time zone, of 23 or 25 hours where clocks change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.codes import fixed_codes
from millstream.engine.errors import DataError, JobError
from millstream.engine.time import END_OF_TIME, START_OF_TIME, Duration, micros, show_duration
from millstream.operators.windows import Ints, OneWindow, lengths

DAY: Final = 86_400_000_000
_YEAR_1: Final = -719_162 * DAY
_YEAR_9999: Final = 2_932_532 * DAY
_SPREAD: Final = 10_000  # windows in a row that are cheaper to list than to look for


@dataclass(frozen=True, slots=True)
class CalendarWindow(OneWindow):
    """Windows of so many days by the clocks of a time zone: from one midnight to another, or ``offset`` after it.

    A time that clocks show twice begins a window when they show it first; one that they skip, right after the gap.

    Attributes:
        days: the length of a window, counted from 1970-01-01.
        zone: a name such as ``Europe/Paris``.
        offset: microseconds by the clock of the zone; every start is ``offset`` later than a multiple of ``days``.
    """

    days: int
    zone: str
    offset: int = 0

    def identity(self) -> str:
        """Text that changes exactly when it is another window."""
        return f"calendar(days={self.days}, zone={self.zone!r}, offset={self.offset})"

    def describe(self) -> str:
        """A few words for the plan."""
        shift = f" from {show_duration(self.offset)}" if self.offset else ""
        return f"every {show_duration(self.days * DAY)}{shift} in {self.zone}"

    def assign(self, times: Ints) -> Ints:
        """As ``Window.assign``.

        >>> noon = DAY * 20 + DAY // 2
        >>> (CalendarWindow(1, "Asia/Tokyo").assign(np.array([noon])) - DAY * 20).tolist() == [-9 * DAY // 24]
        True
        """
        if not len(times):
            return times
        edges = self._edges(times)
        return edges[np.searchsorted(edges, times, side="right") - 1]

    def ends(self, starts: Ints) -> Ints:
        """As ``OneWindow.ends``."""
        if not len(starts):
            return starts
        edges = self._edges(starts)
        return edges[np.searchsorted(edges, starts, side="right")]

    def last_closed(self, time: int) -> int:
        """As ``Window.last_closed``."""
        if time < _YEAR_1 + 3 * self.days * DAY:
            return START_OF_TIME
        if time > _YEAR_9999 - 3 * self.days * DAY:
            return END_OF_TIME
        return int(self.assign(np.array([time]))[0]) - 1

    def _edges(self, times: Ints) -> Ints:
        """Return starts of windows, in order: of those around some times none is missing."""
        size = self.days * DAY
        low, high = int(times.min()), int(times.max())
        for time in (low, high):
            if not _YEAR_1 + 3 * size <= time <= _YEAR_9999 - 3 * size:
                raise DataError(
                    f"event time {time} (microseconds since 1970) is too far away for days in {self.zone}: the input "
                    "holds a nonsensical time. Filter such rows out before the window"
                )
        # No zone is further than a day from UTC, so the window by UTC or one beside it is the right one.
        first, last = (low - self.offset) // size - 2, (high - self.offset) // size + 2
        if last - first <= _SPREAD:
            windows = np.arange(first, last + 1)
        else:
            windows = np.unique(np.unique((times - self.offset) // size)[:, None] + np.arange(-2, 3))
        local = pa.array(windows * size + self.offset).view(pa.timestamp("us"))
        return fixed_codes(pc.assume_timezone(local, self.zone, ambiguous="earliest", nonexistent="latest"))


def calendar(size: Duration, offset: Duration, zone: str) -> CalendarWindow:
    """Return windows of whole days in a zone, as ``tumbling(size, offset, zone=zone)`` asks for them."""
    call = f"tumbling({size!r}, zone={zone!r})"
    length, shift = lengths(call, size, offset)
    if length % DAY:
        raise JobError(
            f"{call}: in a time zone a window is so many days, such as '1d' or '7d'; parts of a day leave zone= out"
        )
    if length > 1_000 * DAY:
        raise JobError(f"{call}: a window is at most 1000 days long")
    if shift >= length:
        raise JobError(
            f"tumbling({size!r}, offset={offset!r}, zone={zone!r}): the offset must be smaller than the size"
        )
    try:
        pc.assume_timezone(pa.array([micros(0)], pa.timestamp("us")), zone)
    except (pa.ArrowException, TypeError) as error:
        raise JobError(
            f"{call}: {zone!r} is no time zone that is known here, such as 'Europe/Paris': {error}"
        ) from None
    return CalendarWindow(length // DAY, zone, shift)
