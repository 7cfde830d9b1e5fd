"""Which rows are due: a queue by time that gives up the earliest. Importing this module loads numba."""

from __future__ import annotations

import numpy as np
from millstream.engine.codes import Ints
from millstream.engine.kernels import counting_sort
from millstream.engine.time import END_OF_TIME, START_OF_TIME
from millstream.operators import join_kernels as kernels

_LEVELS = 65


class Deadlines:
    """A radix heap (Ahuja, Mehlhorn, Orlin and Tarjan 1990): event time never goes back.

    Ids lie on levels by the highest bit in which their time differs from now. When time moves on, only the levels up
    to the highest bit that changes are looked at, so that an id is moved a few times in its life, however many wait.

    >>> waiting = Deadlines()
    >>> waiting.add(np.array([30, 10, 20]), np.array([1, 2, 3]))
    >>> waiting.due(20).tolist(), waiting.due(21).tolist()
    ([2], [3])
    """

    def __init__(self) -> None:
        self._now = START_OF_TIME
        self._levels: list[list[tuple[Ints, Ints]]] = [[] for _ in range(_LEVELS)]
        self.count = 0

    def add(self, times: Ints, ids: Ints) -> None:
        """Ids are due once time has passed theirs, int64 microseconds; at the end of time all are."""
        self.count += len(ids)
        self._place(np.minimum(times, END_OF_TIME - 1), ids)

    def _place(self, times: Ints, ids: Ints) -> None:
        if not len(ids):
            return
        found = np.empty(len(ids), np.int64)
        kernels.levels(times, self._now, found)
        order, ends = np.empty(len(ids), np.int64), np.empty(_LEVELS, np.int64)
        counting_sort(found.view(np.uint64), _LEVELS, order, ends)
        times, ids = times[order], ids[order]
        start = 0
        for level, end in enumerate(ends.tolist()):
            if end > start:
                self._levels[level].append((times[start:end], ids[start:end]))
            start = end

    def due(self, now: int) -> Ints:
        """Take out the ids whose time is earlier than ``now``, which never goes back."""
        if now > self._now:
            highest = (now ^ self._now if (now < 0) == (self._now < 0) else 1 << 63).bit_length()
            self._now = now
            moving = [piece for level in self._levels[: highest + 1] for piece in level]
            for level in self._levels[: highest + 1]:
                level.clear()
            if moving:
                self._place(*(np.concatenate(parts) for parts in zip(*moving, strict=True)))
        due = [ids for _, ids in self._levels[0]]
        self._levels[0].clear()
        taken = np.concatenate(due) if due else np.empty(0, np.int64)
        self.count -= len(taken)
        return taken

    def earliest(self) -> int | None:
        """Return the earliest time of any id; None if there is none."""
        for level in self._levels:
            if level:
                return min(int(times.min()) for times, _ in level)
        return None

    def clear(self) -> None:
        """Forget all ids."""
        for level in self._levels:
            level.clear()
        self.count = 0
