"""Which subtask reads which split: one queue per source, shared by its subtasks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from millstream.engine.source import Source, SplitOrder
from millstream.engine.store.types import SplitPosition
from millstream.engine.time import Clock

DISCOVER_EVERY = 1.0
"""Seconds between two looks for new splits of an unbounded source."""


class SplitQueue:
    """Hands every split of a source to exactly one subtask.

    SEQUENTIAL splits go to whoever is free, in order: what is unopened is then never earlier than what is open,
    which is what makes the watermark of the open splits hold for the source. The other orders need all splits open
    at once, so each subtask takes its share as soon as a split is known.
    """

    def __init__(self, source: Source, restored: Sequence[SplitPosition], parallelism: int, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._parallelism = parallelism
        self._lock = threading.Lock()
        self._known = {r.split.id for r in restored}
        self._waiting = deque(r for r in restored if not r.finished)
        self._next_discovery = 0.0
        self._first = True

    @property
    def source(self) -> Source:
        """The source, as planned."""
        return self._source

    def take(self, already_open: int) -> list[SplitPosition]:
        """Return the splits a subtask that has ``already_open`` others open should open now."""
        with self._lock:
            self._discover()
            if not self._waiting:
                return []
            if self._source.order is SplitOrder.SEQUENTIAL:
                return [] if already_open else [self._waiting.popleft()]
            # Splits still waiting are dealt out so that the subtasks hold about as many each.
            share = -(-len(self._waiting) // self._parallelism)
            return [self._waiting.popleft() for _ in range(share)]

    def exhausted(self) -> bool:
        """Whether no split is left to hand out and none will come."""
        with self._lock:
            return self._source.bounded and not self._first and not self._waiting

    def _discover(self) -> None:
        now = self._clock.monotonic()
        due = self._first or (not self._source.bounded and now >= self._next_discovery)
        if not due:
            return
        self._first = False
        self._next_discovery = now + DISCOVER_EVERY
        for split in self._source.discover():
            if split.id not in self._known:
                self._known.add(split.id)
                self._waiting.append(SplitPosition("", split, None, None, finished=False))
