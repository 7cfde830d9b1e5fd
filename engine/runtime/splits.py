"""Which subtask reads which split: one queue per source, shared by its subtasks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from millstream.engine.errors import DataError
from millstream.engine.source import Source, Split, SplitOrder
from millstream.engine.store.types import SplitPosition
from millstream.engine.time import START_OF_TIME, Clock

DISCOVER_EVERY = 1.0
"""Seconds between two looks for new splits of an unbounded source."""


class SplitQueue:
    """Hands every split of a source to exactly one subtask, and knows how far each subtask is in event time.

    SEQUENTIAL splits go to whoever is free, in order: what is unopened is then never earlier than what is open,
    which is what makes the watermark of the open splits hold for the source. Of the other orders all splits are open
    at once: whose a split is, is settled as soon as it is known, since until it is read it must hold back its owner.
    """

    def __init__(
        self, source: Source, restored: Sequence[SplitPosition], parallelism: int, clock: Clock, *, ended: bool = False
    ) -> None:
        self._source = source
        self._clock = clock
        self._parallelism = parallelism
        self._lock = threading.Lock()
        self._known = {r.split.id: r.split for r in restored}
        self._starts_anew = not restored
        self._waiting = deque(r for r in restored if not r.finished)
        self._next_discovery = 0.0
        self._ended = ended  # and stays there, whatever the source has become or found since
        self._first = not ended
        self._dealt: list[deque[SplitPosition]] = [deque() for _ in range(parallelism)]
        self._next_owner = 0
        self._times: dict[int, int] = {}
        self._highest = START_OF_TIME

    @property
    def source(self) -> Source:
        """The source, as planned."""
        return self._source

    @property
    def starts_anew(self) -> bool:
        """Whether no position of the source is in a checkpoint."""
        return self._starts_anew

    def take(self, subtask: int, already_open: int) -> list[SplitPosition]:
        """Return the splits a subtask that has ``already_open`` others open should open now."""
        with self._lock:
            self._discover()
            if self._source.order is SplitOrder.SEQUENTIAL:
                return [] if already_open or not self._waiting else [self._waiting.popleft()]
            while self._waiting:
                self._dealt[self._next_owner].append(self._waiting.popleft())
                self._next_owner = (self._next_owner + 1) % self._parallelism
            mine, self._dealt[subtask] = self._dealt[subtask], deque()
            return list(mine)

    def note(self, subtask: int, time: int | None) -> None:
        """A subtask's watermark; None: it has no split open."""
        with self._lock:
            if time is None:
                self._times.pop(subtask, None)
            else:
                self._times[subtask] = time
                self._highest = max(self._highest, time)

    def time_of_others(self) -> int:
        """Return the watermark for a subtask that has no split: the source's, as its other subtasks know it."""
        with self._lock:
            return min(self._times.values(), default=self._highest)

    def exhausted(self) -> bool:
        """Whether no split is left to hand out and none will come."""
        with self._lock:
            more = self._first or self._waiting or any(self._dealt)
            return not more and (self._source.bounded or self._ended)

    def _discover(self) -> None:
        now = self._clock.monotonic()
        due = self._first or (not self._source.bounded and not self._ended and now >= self._next_discovery)
        if not due:
            return
        self._first = False
        self._next_discovery = now + DISCOVER_EVERY
        found = self._source.discover()
        for split in found:
            if split.id not in self._known:
                self._known[split.id] = split
                self._waiting.append(SplitPosition("", split, None, None, finished=False))
            elif dict(split.info) != dict(self._known[split.id].info):
                raise DataError(self._changed(split))
        # Restored splits come in no order; those that are there no more go first, and say so.
        place = {split.id: number for number, split in enumerate(found)}
        self._waiting = deque(sorted(self._waiting, key=lambda waiting: place.get(waiting.split.id, -1)))

    def _changed(self, split: Split) -> str:
        return (
            f"source {self._source.name!r}: {split.id} was {dict(self._known[split.id].info)} when it was found and is "
            f"{dict(split.info)} now, so no position in it can be trusted; put the old one back, and write new data "
            "under new names"
        )
