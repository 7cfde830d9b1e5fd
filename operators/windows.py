"""Windows: which stretch of event time a row belongs to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from millstream.engine.errors import DataError, JobError
from millstream.engine.time import END_OF_TIME, START_OF_TIME, Duration, micros, show_duration


class Window(ABC):
    """How event time is cut into windows. Immutable; equal windows have equal ``identity()``.

    A kind of window adds the methods its operators need: what a row's time alone decides (``TumblingWindow``) and
    what its neighbours decide has too little in common for one method here.
    """

    @abstractmethod
    def identity(self) -> str:
        """Text that changes exactly when it is another window."""

    @abstractmethod
    def describe(self) -> str:
        """A few words for the plan."""


@dataclass(frozen=True, slots=True)
class TumblingWindow(Window):
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

    def assign(self, times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the start of each row's window.

        Args:
            times: event times, int64 microseconds, shape (n,).

        Returns:
            int64 microseconds, shape (n,); also right for times before 1970.

        Raises:
            DataError: a time is so close to the end of what int64 can say that its window is beyond it.

        >>> TumblingWindow(10).assign(np.array([0, 9, 10, -1])).tolist()
        [0, 0, 10, -10]
        """
        if len(times):
            self._check_range(int(times.min()), int(times.max()))
        # In place: fresh memory would cost as much as the arithmetic.
        starts: npt.NDArray[np.int64] = (times - self.offset if self.offset else times) // self.size
        starts *= self.size
        if self.offset:
            starts += self.offset
        return starts

    def _check_range(self, low: int, high: int) -> None:
        margin = self.size + self.offset
        for time in (low, high):
            if not START_OF_TIME + margin <= time <= END_OF_TIME - margin:
                raise DataError(
                    f"event time {time} (microseconds since 1970) is too far away for windows of "
                    f"{show_duration(self.size)}: the input holds a nonsensical time. "
                    "Filter such rows out before the window"
                )


def tumbling(size: Duration, offset: Duration = "0s") -> TumblingWindow:
    """Cut event time into windows of one size that touch and never overlap.

    Args:
        size: the length of a window, such as ``"10s"``; at least a microsecond.
        offset: moves every window's start; ``tumbling("1d", offset="22h")`` is a day that begins at 22:00 UTC.

    Raises:
        JobError: size is zero, or the offset not smaller than the size.

    >>> tumbling("10s").describe()
    'every 10s'
    """
    length, shift = micros(size), micros(offset)
    if length == 0:
        raise JobError(f"tumbling({size!r}): a window needs a size, at least '1us'")
    if length > END_OF_TIME // 4:
        raise JobError(f"tumbling({size!r}): the window is longer than event time itself")
    if shift >= length:
        raise JobError(f"tumbling({size!r}, offset={offset!r}): the offset must be smaller than the size")
    return TumblingWindow(length, shift)
