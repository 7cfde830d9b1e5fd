"""Rows that are held back over several epochs, until there are enough for a file of decent size, or they are old.

They wait in the checkpointed state of the sink. When it is time, all subtasks hand over all they hold in one epoch,
which is then published as any other of an outbox. To the destination, the epochs before it were empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from millstream.connectors.byte_size import byte_size
from millstream.connectors.held_rows import HELD, HeldSchema, own_memory
from millstream.connectors.outbox import OutboxWriter, Sent
from millstream.connectors.roll_agreement import RollAgreement
from millstream.engine.changelog import is_changelog
from millstream.engine.sink import Committable, SinkContext
from millstream.engine.state import StateDelta, StateTable
from millstream.engine.time import Clock, Duration, SystemClock, micros


@dataclass(frozen=True, slots=True)
class HoldRule:
    """How long rows are held back.

    Attributes:
        bytes: until all subtasks together hold so many, of Arrow in memory; 0: not at all.
        age: until the oldest is so many microseconds old.
    """

    bytes: int
    age: int
    clock: Clock

    @staticmethod
    def of(hold_bytes: int | str, roll_age: Duration, clock: Clock | None) -> HoldRule:
        """Read what a user has written. Raises JobError if it makes no sense."""
        return HoldRule(byte_size(hold_bytes), micros(roll_age), clock or SystemClock())


def held_schema(rows: pa.Schema) -> HeldSchema:
    """Return how such rows are kept in state. The bucket of a row says at which barrier it came, and to which writer.

    >>> held_schema(pa.schema({"a": pa.int64()})).schema.names
    ['barrier', 'since', 'a']
    """
    return HeldSchema.of(rows, "barrier")


def held_table(rows: pa.Schema) -> StateTable:
    """Declare the state."""
    return held_schema(rows).table()


@dataclass(frozen=True, slots=True)
class Holding:
    """How the writers of a generation hold rows back.

    Attributes:
        rows: the schema in which they do.
        admit: returns rows in that schema; raises DataError if the destination does not take them.
        publish: returns such rows as they are to be published; raises DataError likewise: the destination may have
            changed since.
    """

    rule: HoldRule
    agreement: RollAgreement
    rows: pa.Schema
    admit: Callable[[pa.Table], pa.Table]
    publish: Callable[[pa.Table], pa.Table]


class HoldingWriter(OutboxWriter):
    """Holds rows back, of each epoch and key the last one if there are keys."""

    def __init__(
        self, name: str, schema: pa.Schema, keys: Sequence[str], context: SinkContext, sent: Sent, holding: Holding
    ) -> None:
        super().__init__(name, schema, keys, context, sent, holding.admit)
        self._rule = holding.rule
        self._agreement = holding.agreement
        self._publish = holding.publish
        self._columns = held_schema(holding.rows)
        # The order counts where a later row replaces an earlier one; what remains of a changelog has none.
        self._ordered = bool(keys) and not is_changelog(schema)
        self._subtask = context.subtask
        self._kept: list[pa.Table] = []  # of ended epochs, in the columns of the state
        self._fresh: list[pa.Table] = []  # those of them that no snapshot has yet
        self._in_state: set[int] = set()  # the buckets that snapshots have
        self._dropped: list[int] = []
        self._since: int | None = None  # when the first row of this epoch came
        self._noted = 0  # bytes of this epoch that the agreement counts
        self._epoch = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Keep a batch. Raises DataError if a row of it cannot be written."""
        super().write(batch)
        if self._since is None:
            self._since = self._rule.clock.wall()
            self._agreement.note_oldest(self._since)
        if not self._keys:  # how little is left of those with keys is known at the barrier
            self._note(batch.nbytes)

    def prepare(self, epoch: int, final: bool) -> Sequence[Committable]:
        """Hand over all rows if it is time; keep them otherwise."""
        rows = self._take()
        fresh = [] if rows is None else [self._stamped(rows, epoch)]
        due = self._agreement.decide(epoch, final or not self._rule.bytes, self._rule.clock.wall(), self._rule.age)
        if not due:
            self._note(sum(table.nbytes for table in fresh) - self._noted)
            self._fresh = fresh
        self._kept += fresh
        self._epoch, self._since, self._noted = epoch, None, 0
        return self._release(epoch) if due else []

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """Hand over the rows that were kept at the last barrier, and which are kept no more."""
        deltas = dict(super().snapshot(epoch))
        if self._fresh or self._dropped:
            rows = pa.concat_tables(self._fresh) if self._fresh else self._columns.schema.empty_table()
            deltas[HELD] = StateDelta(rows, dropped=tuple(self._dropped))
            self._in_state.update(pc.unique(rows[self._columns.bucket]).to_pylist())
            self._fresh, self._dropped = [], []
        return deltas

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """Take held rows back; they stay as old as they were."""
        if table != HELD:
            super().restore(table, batches, full_from)
            return
        for batch in batches:
            rows = pa.Table.from_batches([batch.select(self._columns.schema.names)])
            self._kept.append(rows)
            self._in_state.update(pc.unique(rows[self._columns.bucket]).to_pylist())
            self._agreement.note_oldest(pc.min(rows[self._columns.since]).as_py())
            self._agreement.note_bytes(self._epoch, rows.nbytes, self._rule.bytes)

    def _note(self, more: int) -> None:
        self._noted += more
        self._agreement.note_bytes(self._epoch, more, self._rule.bytes)

    def _stamped(self, rows: pa.Table, epoch: int) -> pa.Table:
        """Return rows of an epoch as the state has them, in memory of their own."""
        assert self._subtask < 2**12, f"{self._subtask=}"
        assert self._since is not None, "rows came without being written"
        return self._columns.rows(own_memory(rows.to_batches()), epoch << 12 | self._subtask, self._since)

    def _release(self, epoch: int) -> Sequence[Committable]:
        """Hand over all rows that are kept, as few as they amount to."""
        if not self._kept:
            return []
        held, self._kept = pa.concat_tables(self._kept), []
        self._dropped, self._in_state = sorted(self._in_state), set()
        if self._keys:
            held = held.sort_by(self._columns.bucket)
        rows = self._publish(held.drop_columns([self._columns.bucket, self._columns.since]))
        if self._ordered:
            rows = rows.append_column(held.schema.field(self._columns.bucket), held[self._columns.bucket])
        rows = self._shrunk([rows])
        return self._sent_off(rows, epoch, ordered=self._ordered) if rows.num_rows else []
