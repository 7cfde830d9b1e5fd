"""Windows that overlap and share panes: ``sliding``, ``cumulating``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, overload

from millstream.engine.errors import JobError
from millstream.engine.time import Duration, micros, show_duration
from millstream.operators.windows import ClockWindow, Ints, PanedWindow, check_range, floored, is_clock, lengths

MAX_PANES: Final = 1_000
"""A window is merged from no more panes: each of them is a row of state per key."""


@dataclass(frozen=True, slots=True)
class SlidingWindow(PanedWindow):
    """Windows ``[start, start + size)``, one every ``slide``, of which the panes are as long as divides both.

    Attributes:
        size: microseconds, positive.
        slide: microseconds, positive, not more than ``size``.
        offset: microseconds; every start is ``offset`` plus a multiple of ``slide`` since 1970-01-01 UTC.
    """

    size: int
    slide: int
    offset: int = 0

    @property
    def pane(self) -> int:
        """The length of a pane."""
        return math.gcd(self.size, self.slide)

    def identity(self) -> str:
        """Text that changes exactly when it is another window."""
        return f"sliding(size={self.size}, slide={self.slide}, offset={self.offset})"

    def describe(self) -> str:
        """A few words for the plan."""
        shift = f" from {show_duration(self.offset)}" if self.offset else ""
        panes = f"in panes of {show_duration(self.pane)}"
        return f"over {show_duration(self.size)} every {show_duration(self.slide)}{shift} {panes}"

    def assign(self, times: Ints) -> Ints:
        """As ``Window.assign``.

        >>> import numpy as np
        >>> SlidingWindow(10, 4).assign(np.array([0, 1, 9, -1])).tolist()
        [0, 0, 8, -2]
        """
        check_range(times, 2 * self.size, self.size)
        return floored(times, self.pane, self.offset)

    def windows_of(self, pane: int, after: int, through: int) -> Iterable[int]:
        """As ``PanedWindow.windows_of``.

        >>> list(SlidingWindow(10, 4).windows_of(6, 8, 100))
        [10, 14]
        """
        return range(self.last_end(max(after, pane)) + self.slide, min(through, pane + self.size) + 1, self.slide)

    def start_of(self, end: int) -> int:
        """As ``PanedWindow.start_of``."""
        return end - self.size

    def last_end(self, time: int) -> int:
        """As ``PanedWindow.last_end``."""
        return time - (time - self.offset - self.size) % self.slide

    def last_closed(self, time: int) -> int:
        """As ``Window.last_closed``."""
        return self.last_end(time) - self.size + self.slide - 1


@dataclass(frozen=True, slots=True)
class CumulatingWindow(PanedWindow):
    """Windows that start together every ``size`` and end one ``step`` after the other; the last is ``size`` long.

    Attributes:
        size: microseconds, positive.
        step: microseconds, positive, not more than ``size``; the last step is shorter if it does not divide it.
        offset: microseconds; every start is ``offset`` plus a multiple of ``size`` since 1970-01-01 UTC.
    """

    size: int
    step: int
    offset: int = 0

    def identity(self) -> str:
        """Text that changes exactly when it is another window."""
        return f"cumulating(size={self.size}, step={self.step}, offset={self.offset})"

    def describe(self) -> str:
        """A few words for the plan."""
        shift = f" from {show_duration(self.offset)}" if self.offset else ""
        return f"over up to {show_duration(self.size)}{shift}, growing every {show_duration(self.step)}"

    def assign(self, times: Ints) -> Ints:
        """As ``Window.assign``.

        >>> import numpy as np
        >>> CumulatingWindow(10, 4).assign(np.array([0, 5, 9, -1])).tolist()
        [0, 4, 8, -2]
        """
        check_range(times, 2 * self.size, self.size)
        starts = floored(times, self.size, self.offset)
        return starts + floored(times - starts, self.step, 0)

    def windows_of(self, pane: int, after: int, through: int) -> Iterable[int]:
        """As ``PanedWindow.windows_of``.

        >>> list(CumulatingWindow(10, 4).windows_of(4, 3, 100))
        [8, 10]
        """
        start = pane - (pane - self.offset) % self.size
        after, last = max(after, pane), start + self.size
        first = start + ((after - start) // self.step + 1) * self.step
        ends = range(first, min(through, last - 1) + 1, self.step)
        return [*ends, last] if after < last <= through else ends

    def start_of(self, end: int) -> int:
        """As ``PanedWindow.start_of``."""
        return end - 1 - (end - 1 - self.offset) % self.size

    def last_end(self, time: int) -> int:
        """As ``PanedWindow.last_end``."""
        return time - (time - self.offset) % self.size % self.step

    def last_closed(self, time: int) -> int:
        """As ``Window.last_closed``."""
        return time - (time - self.offset) % self.size - 1


@overload
def sliding(
    size: Duration, slide: Duration, offset: Duration = "0s", *, time: Literal["event"] = "event"
) -> SlidingWindow: ...


@overload
def sliding(
    size: Duration, slide: Duration, offset: Duration = "0s", *, time: Literal["processing"]
) -> ClockWindow: ...


def sliding(
    size: Duration, slide: Duration, offset: Duration = "0s", *, time: str = "event"
) -> SlidingWindow | ClockWindow:
    """Cut time into windows of one size, one every ``slide``: a row is in about ``size / slide`` of them.

    A row costs the same however many these are: it is kept once, in a pane, and a window is put together from its panes
    when it fires. Panes are as long as the greatest time that divides both size and slide.

    Args:
        size: the length of a window.
        slide: the time from one window's start to the next one's; not longer than the size.
        offset: moves every window's start; smaller than the slide.
        time: ``"event"`` or ``"processing"``, as for ``tumbling``.

    Raises:
        JobError: one of these makes no sense, or a window has more than 1,000 panes.

    >>> sliding("1h", "5m").describe()
    'over 1h every 5m in panes of 5m'
    """
    call = f"sliding({size!r}, {slide!r})"
    length, every = lengths(call, size, slide)
    if not 0 < every <= length:
        raise JobError(
            f"{call}: the slide must be at least '1us' and not longer than the size, or rows between two windows "
            "would be in none"
        )
    window = SlidingWindow(length, every, _offset(f"sliding({size!r}, {slide!r}", offset, every, "slide"))
    _check_panes(call, length, window.pane, "a slide of which the size is a small multiple")
    return ClockWindow(window) if is_clock(call[:-1], time) else window


@overload
def cumulating(
    size: Duration, step: Duration, offset: Duration = "0s", *, time: Literal["event"] = "event"
) -> CumulatingWindow: ...


@overload
def cumulating(
    size: Duration, step: Duration, offset: Duration = "0s", *, time: Literal["processing"]
) -> ClockWindow: ...


def cumulating(
    size: Duration, step: Duration, offset: Duration = "0s", *, time: str = "event"
) -> CumulatingWindow | ClockWindow:
    """Cut time into windows that grow: they start together every ``size``, and end after each ``step``.

    ``cumulating("1d", "1h")`` gives at every full hour what there has been since midnight (UTC).

    Args:
        size: the length of the last and longest window.
        step: the time from one window's end to the next one's; not longer than the size.
        offset: moves every window's start; smaller than the size.
        time: ``"event"`` or ``"processing"``, as for ``tumbling``.

    Raises:
        JobError: one of these makes no sense, or a window has more than 1,000 steps.

    >>> cumulating("1d", "1h").describe()
    'over up to 1d, growing every 1h'
    """
    call = f"cumulating({size!r}, {step!r})"
    length, every = lengths(call, size, step)
    if not 0 < every <= length:
        raise JobError(f"{call}: the step must be at least '1us' and not longer than the size")
    _check_panes(call, length, every, "a longer step")
    window = CumulatingWindow(length, every, _offset(f"cumulating({size!r}, {step!r}", offset, length, "size"))
    return ClockWindow(window) if is_clock(call[:-1], time) else window


def _offset(call: str, offset: Duration, below: int, what: str) -> int:
    shift = micros(offset)
    if shift >= below:
        raise JobError(f"{call}, offset={offset!r}): the offset must be smaller than the {what}")
    return shift


def _check_panes(call: str, size: int, pane: int, choose: str) -> None:
    panes = -(-size // pane)
    if panes > MAX_PANES:
        raise JobError(
            f"{call}: a window would have {panes:,} panes of {show_duration(pane)}, and a key as many rows of state; "
            f"at most {MAX_PANES:,} are allowed. Choose {choose}, such as {show_duration(-(-size // 100))}"
        )
