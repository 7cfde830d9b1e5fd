"""When groups are forgotten: so long after their last row. Importing this module loads numba."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints
from millstream.engine.time import END_OF_TIME, START_OF_TIME
from millstream.operators.cells import resized
from millstream.operators.deadlines import Deadlines
from millstream.operators.event_time import event_times, time_array


class GroupLives:
    """Knows of each slot when its group was last touched. ``resize`` comes before a slot's first use.

    A group stands in the queue of deadlines once, and is put back when it has been touched since.

    Args:
        ttl: microseconds.
    """

    def __init__(self, ttl: int) -> None:
        self._ttl = ttl
        self._deadlines = Deadlines()
        self._last: Ints = np.empty(0, np.int64)
        self._waits: Bools = np.empty(0, np.bool_)  # whether it stands in the queue

    def resize(self, slots: int) -> None:
        """Have room for slots 0..slots-1."""
        self._last = resized(self._last, slots, fill=START_OF_TIME)
        self._waits = resized(self._waits, slots, fill=False)

    def touch(self, slots: Ints, times: Ints) -> None:
        """Groups, any number of times each, have rows of these times, int64 microseconds."""
        np.maximum.at(self._last, slots, times)
        self._wait(np.unique(slots[~self._waits[slots]]))

    def _wait(self, slots: Ints) -> None:
        self._waits[slots] = True
        # A queue gives up what is earlier than now: a group goes when its whole time is over.
        self._deadlines.add(self._ends(slots) - 1, slots)

    def _ends(self, slots: Ints) -> Ints:
        return np.minimum(self._last[slots], END_OF_TIME - 1 - self._ttl) + self._ttl

    def due(self, now: int, alive: Bools) -> Ints:
        """Take out the groups that have not been touched for so long, ascending.

        Args:
            alive: which slots hold a group, shape (slots in use,); the others are let go.
        """
        slots = self._deadlines.due(now)
        self._waits[slots] = False
        slots = slots[alive[slots]]
        over = self._ends(slots) <= now
        self._wait(slots[~over])
        return np.sort(slots[over])

    @property
    def next_due(self) -> int | None:
        """When to ask again; None: there is no group."""
        earliest = self._deadlines.earliest()
        return None if earliest is None else earliest + 1

    def state(self, slots: Ints) -> pa.Array:
        """Return when groups were last touched."""
        return time_array(self._last[slots])

    def load(self, slots: Ints, column: pa.Array) -> None:
        """Set slots, all different, to what ``state`` once returned; ``compact`` must follow."""
        self._last[slots] = event_times(column)[0]

    def compact(self, kept: Ints) -> None:
        """Keep the slots ``kept`` (ascending), which become 0..n-1."""
        self._last = self._last[kept]
        self._waits = np.zeros(len(kept), np.bool_)
        self._deadlines.clear()
        self._wait(np.arange(len(kept)))
