"""What every operator over windows does alike: tell late rows from others, and know which windows are due.

A window is open until the watermark has reached its end plus the allowed lateness; then it fires, once, and rows
that still come for it are late.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints
from millstream.engine.errors import SchemaError
from millstream.engine.expression import Expr
from millstream.engine.operator import Output
from millstream.engine.time import START_OF_TIME
from millstream.operators.event_time import check_time_type, event_times
from millstream.operators.windows import Window

LATE: Final = "late"
"""The port of rows that came too late, or have no event time."""

MAX_ROWS: Final = 65_536
"""No batch of results is longer."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The rows of a batch that are on time.

    Attributes:
        times: int64 microseconds, one per row.
        starts: the starts of their windows or panes, likewise.
    """

    batch: pa.RecordBatch
    times: Ints
    starts: Ints


class Gate:
    """Sends late rows away and says which windows are closed.

    Args:
        time: the event time of a row; None: rows are in the windows of the time at which they come, and none is late.
        lateness: how long a window stays open after its end, microseconds.
    """

    def __init__(self, window: Window, time: Expr | None, lateness: int) -> None:
        self._window = window
        self._time = time
        self._lateness = lateness
        self._watermark = START_OF_TIME
        self.late_rows = 0
        self.null_time_rows = 0

    def advance(self, time: int) -> None:
        """The watermark, or the clock, has reached ``time``; it never goes back."""
        self._watermark = max(self._watermark, time)

    @property
    def passed(self) -> int:
        """Windows that end here or earlier have had to fire."""
        return max(self._watermark - self._lateness, START_OF_TIME)

    @property
    def last_ended(self) -> int:
        """Windows that start here or earlier have ended, though they may still wait for late rows."""
        return max(self._window.last_closed(self._watermark), START_OF_TIME)

    @property
    def last_closed(self) -> int:
        """Windows (or panes) that start here or earlier are closed."""
        return max(self._window.last_closed(self.passed), START_OF_TIME)

    def admit(self, batch: pa.RecordBatch, out: Output) -> Admitted | None:
        """Return the rows that are on time (None if there are none) and emit the others to the port ``late``."""
        if self._time is None:
            now = np.full(batch.num_rows, self._watermark)
            return Admitted(batch, now, self._window.assign(now))
        times, valid = event_times(self._time.evaluate(batch))
        starts = self._window.assign(times)
        refused = self._refused(starts, valid)
        if refused is None:
            return Admitted(batch, times, starts)
        out.emit(batch.filter(pa.array(refused)), LATE)
        admitted = ~refused
        if not bool(admitted.any()):
            return None
        return Admitted(batch.filter(pa.array(admitted)), times[admitted], starts[admitted])

    def _refused(self, starts: Ints, valid: Bools) -> Bools | None:
        last_closed = self.last_closed
        if not len(valid) and int(starts.min()) > last_closed:
            return None
        late = starts <= last_closed
        if len(valid):
            late &= valid
            self.null_time_rows += len(valid) - int(valid.sum())
        self.late_rows += int(late.sum())
        refused = late | ~valid if len(valid) else late
        return refused if bool(refused.any()) else None

    def counters(self) -> dict[str, int]:
        """As ``Operator.counters``."""
        if self._time is None:
            return {}
        return {"late_rows": self.late_rows, "null_time_rows": self.null_time_rows}


class OpenWindows:
    """The slots of each window (or pane) that is not closed, in the order in which they came."""

    def __init__(self) -> None:
        self._slots: dict[int, list[Ints]] = {}
        self.count = 0

    def add(self, first: int, starts: Ints) -> None:
        """Slots ``first``, ``first + 1`` … are new and belong to the windows with these starts."""
        if not len(starts):
            return
        self.count += len(starts)
        if len(starts) == 1:
            self._slots.setdefault(int(starts[0]), []).append(np.array([first]))
            return
        order = np.argsort(starts, kind="stable")
        edges = np.flatnonzero(np.diff(starts[order])) + 1
        for slots in np.split(order, edges):
            self._slots.setdefault(int(starts[slots[0]]), []).append(slots + first)

    def starts(self) -> list[int]:
        """Return the starts of all of them, in order."""
        return sorted(self._slots)

    def earliest(self) -> int | None:
        """Return the start of the first of them."""
        return min(self._slots, default=None)

    def of(self, start: int) -> Ints:
        """Return the slots of one."""
        return np.concatenate(self._slots[start])

    def close(self, last_closed: int) -> Ints:
        """Take out the windows that start at ``last_closed`` or earlier; return their slots, window by window."""
        due = sorted(start for start in self._slots if start <= last_closed)
        if not due:
            return np.empty(0, np.int64)
        slots = np.concatenate([piece for start in due for piece in self._slots.pop(start)])
        self.count -= len(slots)
        return slots

    def alive(self, slots: int) -> Bools:
        """Return which of the slots 0..slots-1 belong to an open window."""
        mask = np.zeros(slots, np.bool_)
        for pieces in self._slots.values():
            for piece in pieces:
                mask[piece] = True
        return mask

    def move(self, moved: Ints) -> None:
        """Slots have new numbers: ``moved[old]``."""
        for start, pieces in self._slots.items():
            self._slots[start] = [moved[np.concatenate(pieces)]]


def check_time(time: Expr, schema: pa.Schema) -> None:
    """Raise SchemaError unless the expression gives event times over rows of the schema."""
    check_time_type(time.type_in(schema), str(time))


def check_columns(names: tuple[str, ...], schema: pa.Schema, what: str) -> None:
    """Raise SchemaError if a column is not in the schema."""
    for name in names:
        if name not in schema.names:
            raise SchemaError(f"{what} {name!r} is not a column of the input; there are: {', '.join(schema.names)}")


def distinct_names(names: list[str], taken: set[str]) -> list[str]:
    """Return names for columns of a state table, made different from each other and from ``taken``.

    SQL does not tell upper from lower case, users' columns may, and the store has column names of its own.

    >>> distinct_names(["a", "A", "deleted"], {"deleted"})
    ['a', 'A_', 'deleted_']
    """
    used = {name.lower() for name in taken}
    result = []
    for name in names:
        chosen = name
        while chosen.lower() in used:
            chosen += "_"
        used.add(chosen.lower())
        result.append(chosen)
    return result
