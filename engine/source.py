"""The contract between the engine and a source: splits that have a position and can be read again from it."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import pyarrow as pa
from millstream.engine.expression import Expr

Position: TypeAlias = Any
"""Where a split is to be read on from: any msgpack value (int, str, bytes, list, dict); None is the start."""


class SplitOrder(enum.Enum):
    """How a subtask goes through the splits that are its own."""

    SEQUENTIAL = "sequential"  # one after the other, in discovery order, handed out to whoever is free
    EVENT_TIME = "event_time"  # all open; always the one whose event time is furthest behind
    CONCURRENT = "concurrent"  # all open, in turn (partitions of a log)


@dataclass(frozen=True, slots=True)
class Split:
    """A piece of a source that has a position: a file, a row group, a partition.

    Attributes:
        id: names the split for ever; the same piece has the same id after a restart.
        info: what ``open`` needs besides, as msgpack values; it is kept with the position. A split that comes with
            another info than before has changed, and is refused.
    """

    id: str
    info: Mapping[str, Any] = field(default_factory=dict)


class SplitEnd(enum.Enum):
    """What a reader answers when it has no batch."""

    PENDING = "pending"  # nothing now, maybe later: ask again
    FINISHED = "finished"  # nothing ever again


@dataclass(frozen=True, slots=True)
class Chunk:
    """A batch of which the source has already left rows out (push-down).

    Attributes:
        batch: the rows that remain; may be empty.
        rows_read: how many rows there were before.
        max_time: the highest event time (microseconds) among all rows read; None if not asked for or unknown.
    """

    batch: pa.RecordBatch
    rows_read: int
    max_time: int | None = None


LONGEST_TEXT: Final = 4_000
"""So many characters of each text of a dead letter are kept; one that is longer is cut, and ends in three dots."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Bad input, or a message that a sink could not deliver: what it was, where it stood, why it was refused.

    Attributes:
        source: the name of the source, or of the sink.
        attempts: how often it has been tried.
    """

    source: str
    split: str
    position: str
    error: str
    raw: bytes
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class ReadContext:
    """What a split reader may use of the engine.

    Attributes:
        dead_letter: call it with a DeadLetter; it becomes durable with the epoch in which it was read.
        batch_rows: the batch size to aim at when there is a backlog.
        starts_anew: no position of the source is in a checkpoint. If there are some, a split that is opened without
            one was not there when the job began.
    """

    dead_letter: Callable[[DeadLetter], None]
    batch_rows: int = 65_536
    starts_anew: bool = True


class SplitReader(ABC):
    """Reads one split. Calls come from one thread at a time, and must not block for long."""

    @abstractmethod
    def read(self) -> pa.RecordBatch | Chunk | SplitEnd:
        """Return the next rows, or say that there are none."""

    @abstractmethod
    def position(self) -> Position:
        """Where to read on from so that every row after the last one returned comes once.

        The classic mistake is off by one: it is the position *after* the last row returned.
        """

    def committed(self, position: Position) -> None:
        """A checkpoint with this position is durable, and every sink shows what it covers: tell the outside of it.

        Here a message is acknowledged to its sender, a log is told what it may forget. The engine itself does not
        need it: what is read again after a crash depends on the checkpoint alone.

        Called from the store's thread while another may be in ``read``; of a split that has ended also after
        ``close``. The same position may come twice; the one the split was opened at, and what was
        committed before a crash, need not come.

        Raises:
            ExternalError: it cannot be told; the job restarts from this checkpoint, as when a sink cannot commit.
        """
        del position

    def close(self) -> None:
        """Let go of files and connections. Not called after a crash."""


class Source(ABC):
    """Where data comes from. Immutable; the engine calls it from several threads."""

    @property
    @abstractmethod
    def name(self) -> str:
        """How plans, logs and errors call it."""

    @abstractmethod
    def identity(self) -> str:
        """Text that changes exactly when it is another source: positions are kept under it."""

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns it yields."""

    @property
    def bounded(self) -> bool:
        """Whether it ends by itself."""
        return True

    @property
    def replayable(self) -> bool:
        """Whether a position can be read again after a crash. If not, nothing behind it is exactly-once."""
        return True

    @property
    def order(self) -> SplitOrder:
        """How its splits are gone through."""
        return SplitOrder.SEQUENTIAL

    @abstractmethod
    def discover(self) -> Sequence[Split]:
        """Return every split known now, in order. Asked again regularly if the source is unbounded."""

    @abstractmethod
    def open(self, split: Split, position: Position, context: ReadContext) -> SplitReader:
        """Open a split at a position (None: at its start).

        A reader that is opened at None and has a position at once, before it has returned anything, has it kept with
        the next checkpoint: where "the end as it was when the job began" is, cannot be found out again.
        """

    def pushed_down(self, columns: frozenset[str], predicate: Expr | None, event_time: str | None) -> Source:
        """Return a source that reads only ``columns`` (and may leave out rows for which ``predicate`` is not true).

        Called once, by the planner. A source that leaves rows out answers ``read`` with Chunks, whose
        ``max_time`` is that of the column ``event_time`` (if given) over all rows read. The engine applies the
        predicate again, so ignoring it is always right; so is yielding more columns than asked for.
        """
        del columns, predicate, event_time
        return self

    def folders(self) -> tuple[str, ...]:
        """Return the local folders or files it reads from, resolved, in an order of its own; none: nothing local.

        They are kept with each start of the job. Where the same job would read from others it is refused: a relative
        path that is started elsewhere would take other files for those that positions are of.
        """
        return ()

    @property
    def filters_by(self) -> Expr | None:
        """The predicate, given to ``pushed_down``, by which it leaves rows out; None: it yields every row."""
        return None

    def guarantee(self) -> str:
        """One sentence for the plan: what is read again after a crash, and why."""
        return "replayable: positions are in the checkpoint" if self.replayable else "not replayable"


class MessageSource(Source):
    """A source of messages that are sent again until their sender knows that they were taken in.

    A message that is sent again comes as one more row. ``job.read`` puts an operator behind such a source that drops
    it, so nobody can forget to.
    """

    @property
    @abstractmethod
    def message_id(self) -> str:
        """The column that names a message, always the same way."""

    @property
    def within(self) -> int | None:
        """How long an id is remembered: microseconds of event time; None: for ever."""
        return None
