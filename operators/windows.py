"""Windows: which stretch of time a row belongs to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
import numpy.typing as npt
from millstream.engine.errors import DataError, JobError
from millstream.engine.time import END_OF_TIME, START_OF_TIME, Duration, micros, show_duration

Ints = npt.NDArray[np.int64]


class Window(ABC):
    """How time is cut into windows. Immutable; equal windows have equal ``identity()``.

    Every row belongs to one piece of time, named by its start: a window (``OneWindow``), or a pane that several
    windows share (``PanedWindow``).
    """

    @abstractmethod
    def identity(self) -> str:
        """Text that changes exactly when it is another window."""

    @abstractmethod
    def describe(self) -> str:
        """A few words for the plan."""

    @abstractmethod
    def assign(self, times: Ints) -> Ints:
        """Return the start of each row's piece of time.

        Args:
            times: event times, int64 microseconds, shape (n,).

        Returns:
            int64 microseconds, shape (n,); also right for times before 1970.

        Raises:
            DataError: a time is so far away that its windows cannot be told.
        """

    @abstractmethod
    def last_closed(self, time: int) -> int:
        """Pieces that start here or earlier are in no window that ends after ``time``."""


class OneWindow(Window):
    """Windows that touch and never overlap: each row is in exactly one."""

    @abstractmethod
    def ends(self, starts: Ints) -> Ints:
        """Return the ends of the windows with these starts; an end is not part of its window."""


class PanedWindow(Window):
    """Windows that overlap: made of panes, which touch and do not. No two windows have the same end."""

    @abstractmethod
    def windows_of(self, pane: int, after: int, through: int) -> Iterable[int]:
        """Return the ends of the windows that hold a pane and end later than ``after``, but not than ``through``."""

    @abstractmethod
    def start_of(self, end: int) -> int:
        """Return where the window with this end starts."""

    @abstractmethod
    def last_end(self, time: int) -> int:
        """Return the latest end of a window that is not later than ``time``."""


@dataclass(frozen=True, slots=True)
class ClockWindow:
    """Windows of processing time: a row is in the windows of the moment at which it is processed.

    Attributes:
        window: how that time is cut.
    """

    window: Window


@dataclass(frozen=True, slots=True)
class TumblingWindow(OneWindow):
    """Windows ``[start, start + size)`` that touch and never overlap; each row is in exactly one.

    Attributes:
        size: microseconds, positive.
        offset: microseconds; every start is ``offset`` plus a multiple of ``size`` since 1970-01-01 UTC.
    """

    size: int
    offset: int = 0

    def identity(self) -> str:
        """Text that changes exactly when it is another window."""
        return f"tumbling(size={self.size}, offset={self.offset})"

    def describe(self) -> str:
        """A few words for the plan."""
        shift = f" from {show_duration(self.offset)}" if self.offset else ""
        return f"every {show_duration(self.size)}{shift}"

    def assign(self, times: Ints) -> Ints:
        """As ``Window.assign``.

        >>> TumblingWindow(10).assign(np.array([0, 9, 10, -1])).tolist()
        [0, 0, 10, -10]
        """
        check_range(times, self.size + self.offset, self.size)
        if len(times):
            # Mostly a batch is of one or two windows: comparing is half the work of dividing.
            first, last = floored(np.array([times.min(), times.max()]), self.size, self.offset)
            if last - first <= self.size:
                starts: Ints = np.where(times < last, first, last)
                return starts
        return floored(times, self.size, self.offset)

    def ends(self, starts: Ints) -> Ints:
        """As ``OneWindow.ends``."""
        return starts + self.size

    def last_closed(self, time: int) -> int:
        """As ``Window.last_closed``."""
        return time - self.size


def floored(times: Ints, size: int, offset: int) -> Ints:
    """Return the latest ``offset`` plus a multiple of ``size`` that is not later than each time."""
    # In place: fresh memory would cost as much as the arithmetic.
    starts: Ints = (times - offset if offset else times) // size
    starts *= size
    if offset:
        starts += offset
    return starts


def check_range(times: Ints, margin: int, size: int) -> None:
    """Raise DataError if a time is so close to the end of what int64 can say that its windows are beyond it."""
    if not len(times):
        return
    for time in (int(times.min()), int(times.max())):
        if not START_OF_TIME + margin <= time <= END_OF_TIME - margin:
            raise DataError(
                f"event time {time} (microseconds since 1970) is too far away for windows of "
                f"{show_duration(size)}: the input holds a nonsensical time. "
                "Filter such rows out before the window"
            )


def lengths(call: str, size: Duration, other: Duration = 0) -> tuple[int, int]:
    """Return the size of a window and another duration as microseconds. Raises JobError if the size makes no sense."""
    length = micros(size)
    if length == 0:
        raise JobError(f"{call}: a window needs a size, at least '1us'")
    if length > END_OF_TIME // 4:
        raise JobError(f"{call}: the window is longer than event time itself")
    return length, micros(other)


def is_clock(call: str, time: str) -> bool:
    """Return whether ``time=`` asks for processing time. Raises JobError if it is neither of the two."""
    if time not in {"event", "processing"}:
        raise JobError(f"{call}, time={time!r}): time is 'event' or 'processing'")
    return time == "processing"


@overload
def tumbling(
    size: Duration, offset: Duration = "0s", *, zone: str | None = None, time: Literal["event"] = "event"
) -> OneWindow: ...


@overload
def tumbling(
    size: Duration, offset: Duration = "0s", *, zone: str | None = None, time: Literal["processing"]
) -> ClockWindow: ...


def tumbling(
    size: Duration, offset: Duration = "0s", *, zone: str | None = None, time: str = "event"
) -> OneWindow | ClockWindow:
    """Cut time into windows of one size that touch and never overlap.

    Args:
        size: the length of a window, such as ``"10s"``; at least a microsecond.
        offset: moves every window's start; ``tumbling("1d", offset="22h")`` is a day that begins at 22:00 UTC.
        time: ``"event"``: when a row happened; ``"processing"``: when it is processed, by the clock of the machine.
        zone: a time zone such as ``"Europe/Paris"``, for windows of whole days from midnight to midnight there: of 23
            or 25 hours where clocks change. They are counted from 1970-01-01, a Thursday: ``tumbling("7d",
            offset="4d", zone=...)`` is a week that begins on Monday.

    Raises:
        JobError: size is zero, the offset not smaller than the size, the zone unknown, or time another word.

    >>> tumbling("10s").describe()
    'every 10s'
    """
    clock = is_clock(f"tumbling({size!r}", time)
    if zone is not None:
        from millstream.operators.calendar_window import calendar

        days = calendar(size, offset, zone)
        return ClockWindow(days) if clock else days
    length, shift = lengths(f"tumbling({size!r})", size, offset)
    if shift >= length:
        raise JobError(f"tumbling({size!r}, offset={offset!r}): the offset must be smaller than the size")
    window = TumblingWindow(length, shift)
    return ClockWindow(window) if clock else window
