"""The values that go into the checkpoint store and come out of it. Each names the table it is a row of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import pyarrow as pa
from millstream.engine.element import BarrierKind, Epoch, Generation
from millstream.engine.operator import Fault
from millstream.engine.sink import Committable
from millstream.engine.source import DeadLetter, Position, Split
from millstream.engine.state import StateDelta, StateTable

Memory: TypeAlias = Mapping[str, Mapping[str, int]]
"""Bytes, by operator or sink id and by part of it."""
_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class OperatorState:
    """What one operator will keep; a row of ``operators`` per state table, and one typed table each.

    Attributes:
        id: the operator's stable id, ``[a-z0-9]+``.
        name: what people call it; names the views.
        kind: its kind, for messages.
        parallelism: how many subtasks it has in this generation: a restored table is read from where the slowest
            of them says.
        meaning: what an operator with state does, as text: the state of another meaning is refused. It matters where
            the user has given a name; other operators are found by all they do.
        folders: where a source or sink reads and writes, see ``Source.folders``.
    """

    id: str
    name: str
    kind: str
    tables: tuple[StateTable, ...]
    parallelism: int = 1
    meaning: str = ""
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where what an operator keeps comes from: part of its rows of ``operators``.

    Attributes:
        version: which DuckDB table a state table is written to; another one after each migration.
        since: nothing of this epoch or an earlier one is the operator's: it began after it.
    """

    version: int
    since: int


@dataclass(frozen=True, slots=True)
class Parent:
    """Which checkpoint of which job a copy was made of; JSON in the column ``job.parent``.

    Attributes:
        taken_from: what the copy was asked for by, as ``/path/job.duckdb@name``.
        name: of a savepoint; None in the store of a second job.
    """

    job_id: str
    epoch: int
    taken_from: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class SplitPosition:
    """How far one split has been read; a row of ``positions``.

    Attributes:
        max_time: the highest event time seen in it, microseconds; None if none.
        finished: it has been read to its end and will not be opened again.
    """

    source_id: str
    split: Split
    position: Position
    max_time: int | None
    finished: bool


@dataclass(frozen=True, slots=True)
class NamedDelta:
    """One subtask's delta of one state table; at most one of each in a checkpoint."""

    operator_id: str
    table: str
    delta: StateDelta
    subtask: int = 0


@dataclass(frozen=True, slots=True)
class DeadRows:
    """Rows that an operator put aside in one go; each becomes a row of ``dead_letters``.

    Attributes:
        times: their event times, timestamp[us]; None if they have none.
        code: the version of the function that could not take them.
        attempts: how often they have been tried by now.
    """

    rows: pa.RecordBatch
    faults: Sequence[Fault]
    times: pa.Array | None = None
    code: str = ""
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class NodeLetters:
    """What one subtask of a source (a DeadLetter) or of an operator (DeadRows) put aside."""

    node_id: str
    name: str
    subtask: int
    dead: DeadLetter | DeadRows

    def __str__(self) -> str:
        """Who it is of, and what was wrong with the last."""
        if isinstance(self.dead, DeadLetter):
            return f"source {self.name!r}: {self.dead.split}, {self.dead.position}: {self.dead.error[:_SHOWN]}"
        fault = self.dead.faults[-1]
        return f"{self.name!r}: {fault.type}: {fault.message[:_SHOWN]}"


@dataclass(frozen=True, slots=True, order=True)
class LetterId:
    """Names a dead letter for ever: the epoch it became durable with, and its number within that, from 1."""

    epoch: int
    number: int


@dataclass(frozen=True, slots=True)
class MarkedLetter:
    """A dead letter of an operator or sink that is to be replayed.

    Attributes:
        name: the operator's or sink's name when it put the row or message aside.
        letter: that row, a batch of one; or the message, as the sink put it aside.
    """

    id: LetterId
    node_id: str
    name: str
    attempts: int
    letter: pa.RecordBatch | DeadLetter


@dataclass(frozen=True, slots=True)
class CheckpointData:
    """All snapshots of an epoch: what one COMMIT makes durable.

    Attributes:
        kind: what the barrier was; FINAL means the job has finished.
        positions: splits that moved since the last checkpoint.
        committables: (sink id, handle), in the order they were prepared.
        watermarks: the watermark of each operator when its barrier passed.
        memory: bytes that each operator and sink held then, by part.
        ended: every source had ended when it passed on the barrier.
        replayed: dead letters of earlier epochs whose rows were processed again in this one.
    """

    epoch: Epoch
    generation: Generation
    kind: BarrierKind = BarrierKind.CHECKPOINT
    deltas: Sequence[NamedDelta] = ()
    positions: Sequence[SplitPosition] = ()
    committables: Sequence[tuple[str, Committable]] = ()
    dead_letters: Sequence[NodeLetters] = ()
    replayed: Sequence[LetterId] = ()
    watermarks: Mapping[str, int] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)
    ended: bool = False


@dataclass(frozen=True, slots=True)
class TableManifest:
    """What a manifest says of one state table: enough to read it back and to notice if it is not the same.

    Attributes:
        full_from: the oldest epoch a restore of this epoch must read (KEYED).
        rows: rows this epoch wrote.
        digest: hex digest over the rows this epoch wrote.
    """

    full_from: int
    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The commit record of an epoch; a row of ``manifest``.

    Attributes:
        tables: by (operator id, table name): every table with state at this epoch.
        operators: the operators (id to name) of the job that wrote it.
        memory: bytes that each operator and sink held, by part.
        ended: every source had ended, and will not be read on, whatever it has become since. A job that had finished
            and processes dead letters again has not finished then, but its sources have.
    """

    epoch: Epoch
    generation: Generation
    kind: BarrierKind
    committed_at: int
    tables: Mapping[tuple[str, str], TableManifest]
    watermarks: Mapping[str, int]
    operators: Mapping[str, OperatorState]
    memory: Memory = field(default_factory=dict)
    ended: bool = False

    @property
    def finished(self) -> bool:
        """Whether the job had come to its end."""
        return self.kind is BarrierKind.FINAL


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What recovery reads before it decides.

    Attributes:
        last: the newest committed epoch, without what has been dropped since; None in a new store.
        witness: the last epoch the witness file has seen acknowledged; None if there is no such file.
        generation: the last generation that started on this store; 0 in a new one.
        folders: by operator id, where that generation's sources and sinks read and wrote.
        read: the ids of sources of which something has been read.
        unpublished: by sink id, how many committables of the last epoch nobody knows to be visible.
        dropped: by id, the name of every operator, source or sink whose state was ever dropped.
        dead_letters: by id of an operator or source, how many there are.
        replays: how many of them are to be replayed.
    """

    job_id: str
    last: Manifest | None
    witness: Epoch | None
    generation: Generation
    folders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    read: frozenset[str] = frozenset()
    unpublished: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    replays: int = 0
