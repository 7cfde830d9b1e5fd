"""One subtask's reading of a source: its open splits, their positions and their event time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.errors import DataError
from millstream.engine.graph import Markers, Node, Read
from millstream.engine.runtime.pace import Pacing, Slowest
from millstream.engine.runtime.splits import SplitQueue
from millstream.engine.source import Chunk, DeadLetter, ReadContext, SplitEnd, SplitOrder, SplitReader
from millstream.engine.store.types import NodeLetters, SplitPosition
from millstream.engine.time import END_OF_TIME, START_OF_TIME, Clock


@dataclass(slots=True)
class OpenSplit:
    """A split being read."""

    reader: SplitReader
    at: SplitPosition
    moved: bool
    moved_at: float
    quiet_since: float | None = None
    idle: bool = False
    ahead_since: float | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """What one read brought: a batch (possibly empty), and how many rows the source went through for it."""

    batch: pa.RecordBatch
    rows_read: int


class SourceReading:
    """Reads the splits of one subtask. Not thread-safe: only its subtask calls it."""

    def __init__(
        self, node: Node, read: Read, queue: SplitQueue, clock: Clock, subtask: int, pacing: Pacing | None = None
    ) -> None:
        self._pacing = pacing
        self._node = node
        self._subtask = subtask
        self._read = read
        self._queue = queue
        self._clock = clock
        self._open: list[OpenSplit] = []
        self._turn = 0
        self._finished: list[SplitPosition] = []
        self._ended_readers: dict[str, SplitReader] = {}
        self._dead_letters: list[DeadLetter] = []
        self._taken_letters = 0
        self._context = ReadContext(self._dead_letters.append, starts_anew=queue.starts_anew)
        self._without_splits_since = clock.monotonic()

    @property
    def exhausted(self) -> bool:
        """Whether this subtask will never read another row."""
        return not self._open and self._queue.exhausted()

    @property
    def idle(self) -> bool:
        """Whether every split of this subtask is idle, or it has had none to read for as long."""
        if not self._read.idle_timeout:
            return False
        return all(split.idle for split in self._open) if self._open else self._timed_out(self._without_splits_since)

    def next(self) -> Rows | None:
        """Return the next rows, or None if nothing is there right now."""
        while True:
            self._open_more()
            ended = False
            for split in self._not_ahead(self._in_turn()):
                got = split.reader.read()
                if got is SplitEnd.FINISHED:
                    self._finish(split)
                    ended = True
                    break
                if isinstance(got, SplitEnd):
                    self._note_nothing(split)
                    continue
                return self._note_rows(split, got)
            if not ended or self._queue.source.order is not SplitOrder.SEQUENTIAL:
                return None

    def watermark(self) -> int:
        """No row below this event time is still to come from this subtask, as far as its splits tell.

        Without a split it goes with the source's other subtasks.
        """
        exhausted, time = self.exhausted, self._time_of_splits()
        self._queue.note(self._subtask, time)
        self._note_pace(exhausted)
        if exhausted:
            return END_OF_TIME
        return self._queue.time_of_others() if time is None else time

    def _time_of_splits(self) -> int | None:
        if not self._open:
            return None
        active = [split.at.max_time for split in self._open if not split.idle]
        idle = [split.at.max_time for split in self._open if split.idle and split.at.max_time is not None]
        known = [time for time in active if time is not None]
        if len(known) < len(active) or not (known or idle):
            return START_OF_TIME
        return (min(known) if known else max(idle)) - self._read.max_delay

    def _note_pace(self, exhausted: bool) -> None:
        if self._pacing is None:
            return
        pace = self._pacing.pace
        if exhausted or self.idle:
            pace.note_uncounted(self._node.id, self._subtask)
        elif not self._open:
            pace.note_nothing(self._node.id, self._subtask)
        else:
            pace.note(self._node.id, self._subtask, min(_event_time(split) for split in self._open if not split.idle))

    def _not_ahead(self, splits: list[OpenSplit]) -> list[OpenSplit]:
        """Leave out those whose rows are too new beside those of others."""
        slowest = self.slowest
        if slowest is None or self._pacing is None:
            return splits
        ready = []
        for split in splits:
            if _event_time(split) <= slowest.time + self._pacing.max_ahead:
                split.ahead_since = None
                ready.append(split)
            elif split.ahead_since is None:
                # While nobody asks it is not quiet either.
                split.ahead_since, split.quiet_since = self._clock.monotonic(), None
        return ready

    @property
    def slowest(self) -> Slowest | None:
        """Whom this source waits for, if it is too far ahead; None: for nobody. May be asked from any thread."""
        if self._pacing is None or not self._pacing.others:
            return None
        return self._pacing.pace.slowest(self._pacing.others)

    @property
    def open_splits(self) -> tuple[OpenSplit, ...]:
        """The splits being read; may be asked for from any thread, only to look."""
        return tuple(self._open)

    def take_positions(self) -> list[SplitPosition]:
        """Return the splits that moved since the last call, as they stand."""
        if self._queue.source.order is not SplitOrder.SEQUENTIAL:
            self._open_more()  # so that the first checkpoint knows where each of them starts
        moved = self._finished
        self._finished = []
        for split in self._open:
            if split.moved:
                split.at = replace(split.at, position=split.reader.position())
                split.moved = False
                moved.append(split.at)
        return moved

    def committed(self, positions: Sequence[SplitPosition]) -> None:
        """A checkpoint with these positions, of any source's splits, is durable; called from the store's thread."""
        readers = {split.at.split.id: split.reader for split in self.open_splits} | self._ended_readers
        for at in positions:
            if at.source_id != self._node.id or at.split.id not in readers:
                continue
            readers[at.split.id].committed(at.position)
            if at.finished:
                del self._ended_readers[at.split.id]

    def take_dead_letters(self) -> list[NodeLetters]:
        """Return the dead letters since the last call."""
        letters = [NodeLetters(self._node.id, self._node.name, self._subtask, dead) for dead in self._dead_letters]
        self._dead_letters.clear()
        self._taken_letters += len(letters)
        return letters

    @property
    def dead_letters(self) -> int:
        """How many dead letters there have been so far."""
        return self._taken_letters + len(self._dead_letters)

    def close(self) -> None:
        """Close every reader."""
        for split in self._open:
            split.reader.close()
        self._open.clear()

    def _open_more(self) -> None:
        for taken in self._queue.take(self._subtask, len(self._open)):
            reader = self._queue.source.open(taken.split, taken.position, self._context)
            at = replace(taken, source_id=self._node.id)
            starts_somewhere = taken.position is None and reader.position() is not None
            self._open.append(OpenSplit(reader, at, moved=starts_somewhere, moved_at=self._clock.monotonic()))

    def _in_turn(self) -> list[OpenSplit]:
        if self._queue.source.order is SplitOrder.EVENT_TIME:
            return sorted(self._open, key=_event_time)
        self._turn += 1
        start = self._turn % len(self._open) if self._open else 0
        return self._open[start:] + self._open[:start]

    def _finish(self, split: OpenSplit) -> None:
        position = split.reader.position()
        split.reader.close()
        if type(split.reader).committed is not SplitReader.committed:
            self._ended_readers[split.at.split.id] = split.reader
        self._open.remove(split)
        self._without_splits_since = self._clock.monotonic()
        self._finished.append(replace(split.at, position=position, finished=True))

    def _note_nothing(self, split: OpenSplit) -> None:
        # From the first time it was asked in vain: while a consumer is slow nobody asks.
        if split.quiet_since is None:
            split.quiet_since = self._clock.monotonic()
        if self._read.idle_timeout and self._timed_out(split.quiet_since):
            split.idle = True

    def _timed_out(self, since: float) -> bool:
        return self._clock.monotonic() - since >= self._read.idle_timeout / 1_000_000

    def _note_rows(self, split: OpenSplit, got: pa.RecordBatch | Chunk) -> Rows:
        split.moved, split.idle, split.quiet_since, split.moved_at = True, False, None, self._clock.monotonic()
        chunk = got if isinstance(got, Chunk) else Chunk(got, got.num_rows, None)
        chunk = chunk if self._read.markers is None else self._heeding(chunk, self._read.markers)
        time = chunk.max_time
        if time is None and self._read.markers is None and self._read.event_time is not None and chunk.batch.num_rows:
            time = _max_time(chunk.batch, self._read.event_time, self._queue.source.name)
        if time is not None:
            known = split.at.max_time
            split.at = replace(split.at, max_time=time if known is None else max(known, time))
        return Rows(chunk.batch, chunk.rows_read)

    def _heeding(self, chunk: Chunk, markers: Markers) -> Chunk:
        """Take the time from the rows that tell it, and these out of the others."""
        marked = markers.rows.evaluate(chunk.batch).fill_null(False)
        time = None
        if self._read.event_time is not None:
            time = _max_time(chunk.batch.filter(marked), self._read.event_time, self._queue.source.name)
        rest = chunk.batch if markers.kept else chunk.batch.filter(pc.invert(marked))
        return Chunk(rest, chunk.rows_read, time)


def _event_time(split: OpenSplit) -> int:
    return START_OF_TIME if split.at.max_time is None else split.at.max_time


def _max_time(batch: pa.RecordBatch, column: str, source: str) -> int | None:
    values = batch.column(column)
    if not (pa.types.is_timestamp(values.type) or pa.types.is_date(values.type)):
        raise DataError(f"source {source!r}: event time {column!r} must be a timestamp, it is {values.type}")
    latest = pc.max(values)
    if not latest.is_valid:
        return None
    target = pa.timestamp("us", getattr(latest.type, "tz", None))
    return int(latest.cast(target, safe=False).value)
