"""The timers of a running ``Process``: by key, in the order of their times."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TypeAlias

from millstream.engine.codes import Ints
from millstream.engine.time import START_OF_TIME

TimerId: TypeAlias = str | int
"""The name of a timer; or its time, if it has no name."""

Timer: TypeAlias = tuple[int, int, str]
"""Time, slot, name."""

Row = tuple[int, bool, str, str, int, int | None]
"""A row of the state table: slot, whether it says that the timer is gone, clock, name, at, time."""


class Timers:
    """Timers of one clock.

    A timer without a name is set once per key and time; one with a name once per key: setting it again moves it.
    """

    def __init__(self, clock: str) -> None:
        self.clock = clock
        self.count = 0
        self._pending: list[dict[TimerId, int] | None] = []
        # A timer may stand here with an earlier time than it has now: moving it on costs nothing then.
        self._heap: list[Timer] = []
        self._dirty: dict[int, dict[TimerId, bool]] = {}  # whether the store may know it

    def grow(self, slots: int) -> None:
        """Have room for slots 0..slots-1."""
        self._pending += [None] * (slots - len(self._pending))

    @property
    def pending(self) -> int:
        """How many timers are set, roughly."""
        return len(self._heap)

    def start(self, slot: int, time: int, name: str) -> None:
        """Set a timer."""
        mine = self._pending[slot]
        if mine is None:
            mine = self._pending[slot] = {}
        id = name or time
        before = mine.get(id)
        if before == time:
            return
        mine[id] = time
        self._mark(slot, id, known=before is not None)
        if before is None or time < before:
            heapq.heappush(self._heap, (time, slot, name))

    def cancel(self, slot: int, id: TimerId) -> None:
        """Take a timer back, if it is set."""
        mine = self._pending[slot]
        if mine is not None and id in mine:
            self._forget(slot, mine, id)

    def due(self) -> int | None:
        """The earliest time of a timer."""
        heap = self._heap
        while heap:
            time, slot, name = heap[0]
            now = (self._pending[slot] or {}).get(name or time)
            if now == time:
                return time
            heapq.heappop(heap)
            if now is not None:
                heapq.heappush(heap, (now, slot, name))
        return None

    def take(self, until: int, most: int) -> list[Timer]:
        """Return the first timers that are due, all of a time or none; ``claim`` them one by one, or put them back."""
        taken: set[Timer] = set()
        last = START_OF_TIME
        while (time := self.due()) is not None and time <= until and (len(taken) < most or time == last):
            taken.add(heapq.heappop(self._heap))
            last = time
        return list(taken)

    def put_back(self, timers: Iterable[Timer]) -> None:
        """Timers that were taken are not to fire yet."""
        for timer in timers:
            heapq.heappush(self._heap, timer)

    def claim(self, slot: int, time: int, name: str) -> bool:
        """Take a timer that fires; False: it has been cancelled or moved."""
        mine = self._pending[slot] or {}
        id = name or time
        now = mine.get(id)
        if now == time:
            self._forget(slot, mine, id)
        elif now is not None:  # moved on by another timer of the same time, after take()
            heapq.heappush(self._heap, (now, slot, name))
        return now == time

    def _forget(self, slot: int, mine: dict[TimerId, int], id: TimerId) -> None:
        del mine[id]
        if not mine:
            self._pending[slot] = None
        marks = self._dirty.setdefault(slot, {})
        if marks.get(id, True):
            marks[id] = True
        else:
            del marks[id]

    def _mark(self, slot: int, id: TimerId, *, known: bool) -> None:
        self._dirty.setdefault(slot, {}).setdefault(id, known)

    # -- what checkpoints use ----------------------------------------------------------------------------------

    def changes(self, into: list[Row]) -> set[int]:
        """Add a row for each timer that was set, moved or taken out since the last call; no slot is written whole."""
        for slot, marks in self._dirty.items():
            mine = self._pending[slot] or {}
            for id, known in marks.items():
                self.count += (id in mine) - known
                into.append(self._row(slot, id, mine.get(id)))
        self._dirty.clear()
        return set()

    def carry(self, slots: Iterable[int], without: set[int], into: list[Row]) -> None:
        """Add a row for each timer of these slots."""
        del without
        for slot in slots:
            mine = self._pending[slot]
            if mine is not None:
                into += [self._row(slot, id, time) for id, time in mine.items()]

    def _row(self, slot: int, id: TimerId, time: int | None) -> Row:
        name, at = (id, 0) if isinstance(id, str) else ("", id)
        return slot, time is None, self.clock, name, at, time

    def restore(self, slot: int, name: str, at: int, time: int | None) -> None:
        """Take a timer back; None: it is gone."""
        mine = self._pending[slot] or {}
        self._pending[slot] = mine
        id = name or at
        if time is not None:
            self.count += id not in mine
            mine[id] = time
        elif mine.pop(id, None) is not None:
            self.count -= 1

    def settle(self) -> None:
        """Everything has been restored, or has other slots now."""
        self._pending = [mine or None for mine in self._pending]
        self._heap = [
            (time, slot, id if isinstance(id, str) else "")
            for slot, mine in enumerate(self._pending)
            for id, time in (mine or {}).items()
        ]
        heapq.heapify(self._heap)

    def holds(self, slot: int) -> bool:
        """Whether a key has a timer."""
        return self._pending[slot] is not None

    def compact(self, kept: list[int], moved: Ints) -> None:
        """Keep the slots ``kept`` (ascending), which become 0..n-1; nothing is unwritten."""
        del moved
        self._pending = [self._pending[slot] for slot in kept]
        self.settle()
