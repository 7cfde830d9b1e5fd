"""How far the sources of a job have come in event time, for those that must not run ahead of the others."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from millstream.engine.graph import OperatorId
from millstream.engine.time import START_OF_TIME


@dataclass(frozen=True, slots=True)
class Slowest:
    """The source that is furthest behind of some.

    Attributes:
        time: the newest event time (microseconds) of its slowest split; START_OF_TIME if that has brought no row.
    """

    source: OperatorId
    time: int


@dataclass(slots=True)
class _Source:
    subtasks: int
    times: dict[int, int | None] = field(default_factory=dict)
    highest: int = START_OF_TIME

    @property
    def time(self) -> int | None:
        """None: it holds nobody back."""
        known = [time for time in self.times.values() if time is not None]
        if known:
            return min(known)
        return None if len(self.times) == self.subtasks else self.highest


class Pace:
    """Who is how far; subtasks on any thread tell and ask.

    What counts is the newest event time of the rows that a split has brought, not its watermark: a source whose rows
    may come in great disorder is not behind for that. As with watermarks, a split that is idle or has ended holds
    nobody back, and one that has not brought a row yet holds everybody.

    >>> a, b = OperatorId("a"), OperatorId("b")
    >>> pace = Pace({a: 1, b: 1})
    >>> pace.note(a, 0, 7)
    >>> pace.slowest([a, b]).source
    'b'
    >>> pace.note_uncounted(b, 0)
    >>> pace.slowest([a, b])
    Slowest(source='a', time=7)
    """

    def __init__(self, subtasks: Mapping[OperatorId, int]) -> None:
        self._lock = threading.Lock()
        self._sources = {id_: _Source(count) for id_, count in subtasks.items()}

    def note(self, source: OperatorId, subtask: int, time: int) -> None:
        """The slowest split that a subtask reads has come so far."""
        with self._lock:
            of = self._sources[source]
            of.times[subtask] = time
            of.highest = max(of.highest, time)

    def note_nothing(self, source: OperatorId, subtask: int) -> None:
        """A subtask has no split to read; if no other has, the source stands where it was."""
        with self._lock:
            self._sources[source].times.pop(subtask, None)

    def note_uncounted(self, source: OperatorId, subtask: int) -> None:
        """A subtask is idle, or will never read another row."""
        with self._lock:
            self._sources[source].times[subtask] = None

    def slowest(self, sources: Iterable[OperatorId]) -> Slowest | None:
        """Return the one of these that is furthest behind; None if none of them counts."""
        with self._lock:
            times = ((self._sources[id_].time, id_) for id_ in sources)
            found = [Slowest(id_, time) for time, id_ in times if time is not None]
        return min(found, key=lambda slowest: (slowest.time, slowest.source), default=None)


@dataclass(frozen=True, slots=True)
class Pacing:
    """What one source waits by.

    Attributes:
        pace: of the job.
        others: the sources it waits for, itself included; empty: it does not wait, others wait for it.
        max_ahead: microseconds.
    """

    pace: Pace
    others: frozenset[OperatorId] = frozenset()
    max_ahead: int = 0
