"""The contract between the engine and a sink: writers on the data path, one committer behind the commit point."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from millstream.engine.errors import InternalError
from millstream.engine.memory import bytes_by_part
from millstream.engine.source import DeadLetter
from millstream.engine.state import StateDelta, StateTable


class SinkKind(enum.Enum):
    """The ways to have an effect once, and the honest fourth."""

    IDEMPOTENT = "idempotent"  # upserts by key: doing it again changes nothing
    TWO_PHASE = "two-phase"  # written where nobody looks, made visible after the commit point
    OUTBOX = "outbox"  # the bytes wait in the checkpoint and are published after the commit point
    AT_LEAST_ONCE = "at-least-once"  # visible at once; repeated after a crash


EXACTLY_ONCE_KINDS = frozenset({SinkKind.IDEMPOTENT, SinkKind.TWO_PHASE, SinkKind.OUTBOX})


def _nowhere(epoch: int, letters: Sequence[DeadLetter]) -> None:
    raise InternalError(f"dead letters of epoch {epoch} outside a generation: {letters}")


@dataclass(frozen=True, slots=True)
class SinkContext:
    """What a running sink may know of its place in the job.

    Attributes:
        job_id: made once per store; names what belongs to this job in the outside world.
        sink_id: the sink's stable operator id.
        generation: the start of the job this is.
        restored: the epoch it goes on from; 0: it starts anew, or as a fork that has shown nothing of its own yet.
        store: where its checkpoints are; None: they go with the run, so nobody comes back for what it leaves.
        put_aside: for the committer: makes dead letters of messages durable that the destination refuses for good.
            It takes their epoch; those that it has had before, with the same split and position, change nothing.
    """

    job: str
    job_id: str
    sink_id: str
    generation: int
    subtask: int
    parallelism: int
    restored: int = 0
    store: Path | None = None
    put_aside: Callable[[int, Sequence[DeadLetter]], None] = _nowhere


@dataclass(frozen=True, slots=True)
class Committable:
    """What a writer hands over at a barrier so that the committer can make it visible.

    Attributes:
        payload: msgpack values only; it is stored with the epoch and comes back after a crash.
    """

    payload: Mapping[str, Any] = field(default_factory=dict)


class SinkWriter(ABC):
    """One running copy, on the data path. Calls come from one thread at a time."""

    @abstractmethod
    def write(self, batch: pa.RecordBatch) -> None:
        """Take one batch (never empty)."""

    @abstractmethod
    def prepare(self, epoch: int, final: bool) -> Sequence[Committable]:
        """Make everything written so far durable but invisible, or keep it in state; return the handles.

        With ``final`` the stream has ended: nothing may be held back in state.
        """

    def replay(self, messages: Sequence[DeadLetter]) -> None:
        """Take messages again that were put aside, to be part of the next epoch; see ``Sink.replays``.

        Args:
            messages: as the committer gave them to ``SinkContext.put_aside``, oldest first.
        """
        del messages
        raise AssertionError(f"{type(self).__name__} is of a sink that takes no messages again")

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """As ``Operator.snapshot``; called right after ``prepare``."""
        del epoch
        return {}

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """As ``Operator.restore``."""
        del batches, full_from
        raise AssertionError(f"{type(self).__name__} declares state table {table!r} but cannot restore it")

    def memory(self) -> Mapping[str, int]:
        """As ``Operator.memory``."""
        return bytes_by_part(self)

    def close(self) -> None:
        """Called once, after the last batch; after a crash it is not called."""


class Committer(ABC):
    """One per sink and generation; called after the commit point, never concurrently."""

    @abstractmethod
    def commit(self, epoch: int, committables: Sequence[Committable]) -> None:
        """Make an epoch visible. Doing it again must change nothing: recovery always repeats the last one."""

    def discard_uncommitted(self) -> None:
        """Remove what a dead generation prepared but never committed. Called once, at start, after ``commit``."""

    def close(self) -> None:
        """Let go of connections."""


class NothingToCommit(Committer):
    """For sinks whose writers have done everything before the barrier."""

    def commit(self, epoch: int, committables: Sequence[Committable]) -> None:
        """Do nothing."""


class Sink(ABC):
    """Where data goes. Immutable."""

    @property
    @abstractmethod
    def name(self) -> str:
        """How plans, logs and errors call it; unique within a job."""

    @abstractmethod
    def identity(self) -> str:
        """Text that changes exactly when it is another destination."""

    @property
    @abstractmethod
    def kind(self) -> SinkKind:
        """How it has its effect once."""

    @property
    def takes_changelog(self) -> bool:
        """Whether it takes rows back: what it is then handed has a last column ``WEIGHT`` of +1 and -1."""
        return False

    @property
    def replays(self) -> bool:
        """Whether its writers take messages again that its committer has put aside."""
        return False

    def check(self, schema: pa.Schema) -> None:
        """Raise SchemaError when rows of this schema cannot be written. Called when the job is built."""

    def running(self, context: SinkContext) -> AbstractContextManager[None]:
        """Return what is entered before the first generation of a run and left after its last, as for a lock.

        Nothing is known yet of the generation in ``context``. A run that is refused enters and leaves it too.
        """
        del context
        return nullcontext()

    @abstractmethod
    def writer(self, schema: pa.Schema, context: SinkContext) -> SinkWriter:
        """Make one running copy."""

    def committer(self, schema: pa.Schema, context: SinkContext) -> Committer:
        """Make the committer (``context.subtask`` is 0)."""
        del schema, context
        return NothingToCommit()

    def state_tables(self, schema: pa.Schema) -> tuple[StateTable, ...]:
        """Declare the writers' state."""
        del schema
        return ()

    def folders(self) -> tuple[str, ...]:
        """Return the local folders it writes to, resolved, in an order of its own; none: nothing local.

        They are kept with each start of the job, and where it would write to others it is refused; see ``Source``.
        """
        return ()

    def columns_needed(self, schema: pa.Schema) -> frozenset[str]:
        """The columns it writes: all, normally."""
        return frozenset(schema.names)

    def guarantee(self) -> str:
        """One sentence for the plan: what holds, and why."""
        return self.kind.value
