"""When rows of a timed join may match and how long they wait. Importing this module loads numba."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints
from millstream.engine.expression import Expr
from millstream.engine.time import END_OF_TIME, START_OF_TIME
from millstream.operators.event_time import event_times
from millstream.operators.timed_join import Between, SameWindow
from millstream.operators.windows import OneWindow, PanedWindow, Window

if TYPE_CHECKING:
    from millstream.operators.timed_join import TimedJoin

_NEVER: Final = END_OF_TIME - 1


@dataclass(frozen=True, slots=True)
class Spans:
    """The rows of a batch that are on time; a row stands here once for each window that it is in.

    Attributes:
        low, high: the span of time in which the other side's row must be, both ends included; of a row that can
            match nothing ``low`` is later. In windows: from the first to the last instant of it. int64 microseconds.
        until: when the watermark has passed this, no row can come any more that matches.
        rows: where each stands in the batch; None: they are all of its rows, once.
    """

    low: Ints
    high: Ints
    until: Ints
    rows: Ints | None = None

    def pick(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows, one for each span."""
        return batch if self.rows is None else batch.take(pa.array(self.rows))

    def of(self, chosen: Ints) -> Spans:
        """Return some of them, without saying where they stand in the batch."""
        return Spans(self.low[chosen], self.high[chosen], self.until[chosen])


@dataclass(frozen=True, slots=True)
class Refused:
    """The rows of a batch that are late or have no event time.

    Attributes:
        mask: bool, shape (rows,).
        timeless: how many of them have no event time.
    """

    mask: Bools
    timeless: int


class SpanRule(ABC):
    """How spans are found.

    Attributes:
        windows: whether a span is a window, so that only equal ones overlap.
    """

    windows: bool

    @abstractmethod
    def of(self, side: int, batch: pa.RecordBatch, now: int) -> tuple[Spans, Refused | None]:
        """Return the spans of the rows on time at the watermark ``now``, and which rows are not."""

    @abstractmethod
    def until(self, side: int, low: Ints, high: Ints) -> Ints:
        """Return how long rows with these spans wait."""


def span_rule(spec: TimedJoin) -> SpanRule:
    """Return the rule of a join."""
    times = (spec.left_time, spec.right_time)
    match spec.nearness:
        case Between() as between:
            return _Intervals(times, between)
        case SameWindow(window):
            return _Windows(times, window)
    raise AssertionError(f"{spec.nearness} is neither")


class _Intervals(SpanRule):
    windows = False

    def __init__(self, times: tuple[Expr, Expr], between: Between) -> None:
        self._times = times
        self._between = between
        self._reach = between.reach(times[0])

    def of(self, side: int, batch: pa.RecordBatch, now: int) -> tuple[Spans, Refused | None]:
        times, valid = event_times(self._times[side].evaluate(batch))
        refused = _refused(times < now, valid)
        rows = None
        if refused is not None:
            rows = np.flatnonzero(~refused.mask)
            batch, times = batch.take(pa.array(rows)), times[rows]
        low, high = (times, times) if side else self._bounds(batch)
        return Spans(low, high, self.until(side, low, high), rows), refused

    def _bounds(self, batch: pa.RecordBatch) -> tuple[Ints, Ints]:
        low, low_valid = event_times(self._between.low.evaluate(batch))
        high, high_valid = event_times(self._between.high.evaluate(batch))
        for valid in (low_valid, high_valid):
            if len(valid):
                low, high = np.where(valid, low, END_OF_TIME), np.where(valid, high, START_OF_TIME)
        return low, high

    def until(self, side: int, low: Ints, high: Ints) -> Ints:
        if side == 0:
            return high
        if self._reach is None:
            return np.full(len(low), _NEVER)
        return _shifted(low, -self._reach)


def _shifted(times: Ints, by: int) -> Ints:
    """Add, but not beyond the ends of time."""
    if by >= 0:
        return np.minimum(times, END_OF_TIME - by) + by
    return np.maximum(times, START_OF_TIME - by) + by


class _Windows(SpanRule):
    windows = True

    def __init__(self, times: tuple[Expr, Expr], window: Window) -> None:
        self._times = times
        self._window = window

    def of(self, side: int, batch: pa.RecordBatch, now: int) -> tuple[Spans, Refused | None]:
        times, valid = event_times(self._times[side].evaluate(batch))
        starts = self._window.assign(times)
        refused = _refused(starts <= max(self._window.last_closed(now), START_OF_TIME), valid)
        rows = None
        if refused is not None:
            rows = np.flatnonzero(~refused.mask)
            starts = starts[rows]
        match self._window:
            case OneWindow() as window:
                ends = window.ends(starts)
            case PanedWindow() as paned:
                starts, ends, rows = _windows_of(paned, starts, rows, now)
        return Spans(starts, ends - 1, ends - 1, rows), refused

    def until(self, side: int, low: Ints, high: Ints) -> Ints:
        del side, low
        return high


def _windows_of(window: PanedWindow, panes: Ints, rows: Ints | None, now: int) -> tuple[Ints, Ints, Ints]:
    """Return the starts and ends of the windows that panes are in and that have not ended, and the rows in each."""
    distinct, inverse = np.unique(panes, return_inverse=True)
    ends = [np.array([*window.windows_of(pane, now, END_OF_TIME)], np.int64) for pane in distinct.tolist()]
    counts = np.array([len(some) for some in ends], np.int64)[inverse]
    starts_of = [np.array([window.start_of(end) for end in some.tolist()], np.int64) for some in ends]
    at = np.repeat(np.arange(len(panes)) if rows is None else rows, counts)
    if not len(panes):
        return panes, panes, at
    return (
        np.concatenate([starts_of[i] for i in inverse.tolist()]),
        np.concatenate([ends[i] for i in inverse.tolist()]),
        at,
    )


def _refused(late: Bools, valid: Bools) -> Refused | None:
    refused = late | ~valid if len(valid) else late
    timeless = len(valid) - int(valid.sum()) if len(valid) else 0
    return Refused(refused, timeless) if bool(refused.any()) else None
