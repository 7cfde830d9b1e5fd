"""Rows that wait in the checkpoint until their destination has taken them: what outbox sinks have in common.

A writer keeps the rows of an epoch and hands them over at the barrier as Arrow streams, which the store writes down
with the epoch. Behind the commit point the committer publishes them together with the epoch's number, the marker, in
one transaction of the destination. The marker tells, after any crash, whether that has happened.

An epoch without rows is not published, so the marker need not be the epoch before. Each committable says instead which
epoch with rows was the last one before it. A marker below that has lost something: an older copy of the destination has
been put back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from millstream.connectors.changes import last_per_key, net_rows
from millstream.engine.changelog import is_changelog
from millstream.engine.codes import has_form
from millstream.engine.errors import DataError, JobError, SchemaError
from millstream.engine.sink import Committable, SinkContext, SinkWriter
from millstream.engine.state import DELETED, StateDelta, StateTable

OUTBOX: Final = "outbox"
_COLUMNS: Final = pa.schema({"one": pa.int64(), "epoch": pa.int64()})
_CHUNK_BYTES: Final = 2 << 20
_FEW_ROWS: Final = 250_000
_IPC: Final = pa.ipc.IpcWriteOptions(compression="lz4")


def outbox_table() -> StateTable:
    """Declare what is kept between generations: the last epoch that had rows."""
    return StateTable(OUTBOX, _COLUMNS, ("one",))


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The schema with dictionaries decoded and nothing but names and types."""
    types = [f.type.value_type if pa.types.is_dictionary(f.type) else f.type for f in schema]
    return pa.schema([pa.field(name, type_) for name, type_ in zip(schema.names, types, strict=True)])


class Sent:
    """The last epochs of a sink with rows, as far as a generation knows; shared by its writers and committer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before, self._last = 0, 0

    @property
    def last(self) -> int:
        """The epoch; 0: none."""
        return self._last

    def before(self, epoch: int) -> int:
        """The last one with rows before an epoch that is being prepared: other writers may be further."""
        with self._lock:
            return self._last if self._last < epoch else self._before

    def note(self, epoch: int) -> None:
        """An epoch has rows."""
        with self._lock:
            if epoch > self._last:
                self._before, self._last = self._last, epoch


@dataclass(frozen=True, slots=True)
class Generations:
    """One ``Sent`` for each running generation of a sink."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    running: dict[tuple[str, str, int], Sent] = field(default_factory=dict)

    def of(self, context: SinkContext) -> Sent:
        """Return that of a generation; those before it are forgotten."""
        key = (context.job_id, context.sink_id, context.generation)
        with self.lock:
            for other in [k for k in self.running if k[:2] == key[:2] and k != key]:
                del self.running[other]
            return self.running.setdefault(key, Sent())


@dataclass(frozen=True, slots=True)
class Letter:
    """What an epoch brings to the destination.

    Attributes:
        rows: in the order in which they were written; of a changelog with a last column ``WEIGHT``.
        after: the last epoch with rows before the first of them; 0: none.
        digest: of the bytes that wait in the checkpoint. Another copy of the store has others, from its own writers.
    """

    rows: pa.Table
    after: int
    digest: str


def pack(rows: pa.Table, after: int, *, ordered: bool = False) -> list[Committable]:
    """Return rows as committables of modest size.

    Args:
        ordered: the last column is no column of the rows: those that have less in it come before others, of whatever
            writer.

    >>> letter = unpack(pack(pa.table({"n": [1, 2]}), 7))
    >>> letter.after, letter.rows["n"].to_pylist()
    (7, [1, 2])
    """
    if not rows.num_rows:
        return []
    step = max(1, rows.num_rows * _CHUNK_BYTES // max(1, rows.nbytes))
    committables = []
    for start in range(0, rows.num_rows, step):
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_stream(buffer, rows.schema, options=_IPC) as stream:
            stream.write_table(rows.slice(start, step))
        payload = {"arrow": buffer.getvalue().to_pybytes(), "after": after}
        committables.append(Committable(payload | ({"ordered": True} if ordered else {})))
    return committables


def unpack(committables: Sequence[Committable]) -> Letter:
    """Undo ``pack``, for those of all writers together."""
    tables = [pa.ipc.open_stream(c.payload["arrow"]).read_all() for c in committables]
    digest = blake2b(digest_size=16)
    for committable in committables:
        digest.update(committable.payload["arrow"])
    rows = pa.concat_tables(tables)
    if any(c.payload.get("ordered") for c in committables):
        last = rows.num_columns - 1
        rows = rows.take(pc.sort_indices(rows.column(last))).remove_column(last)
    return Letter(rows, min(int(c.payload["after"]) for c in committables), digest.hexdigest())


def settle(rows: pa.Table, keys: Sequence[str]) -> pa.Table:
    """Return what the rows of all writers amount to: one row per key, in order of keys; all of them, without keys.

    The order spares an index most of its work: half of what a server needed for random keys was measured.
    """
    if not keys:
        return rows
    last = last_per_key(net_rows(rows) if is_changelog(rows.schema) else rows, keys)
    return last.sort_by([(key, "ascending") for key in keys])


def read_keys(who: str, key: str | Sequence[str] | None, mode: str | None) -> tuple[str, ...]:
    """Return the key of upserts as users give it; empty: appends.

    >>> read_keys("sink()", "id", None), read_keys("sink()", None, "append")
    (('id',), ())

    Raises:
        JobError: key and mode contradict each other.
    """
    keys = (key,) if isinstance(key, str) else tuple(key or ())
    wanted = mode or ("upsert" if keys else "append")
    if wanted not in ("upsert", "append") or (wanted == "upsert") != bool(keys):
        raise JobError(
            f"{who}: mode is 'upsert', which needs a key, as in key='id', or 'append', which has none; "
            f"got mode={mode!r} and key={key!r}"
        )
    return keys


def check_keys(name: str, schema: pa.Schema, keys: Sequence[str]) -> None:
    """Raise SchemaError if rows cannot be told apart by these columns; called when the job is built."""
    for key in keys:
        if key not in schema.names:
            raise SchemaError(f"{name}: there is no column {key!r} for its key, but: {', '.join(schema.names)}")
        type_ = plain_schema(schema).field(key).type
        if pa.types.is_floating(type_) or not has_form(type_):
            raise SchemaError(
                f"{name}: column {key!r} is {type_}, by which rows are not told apart reliably: make it a whole "
                "number, text, bytes, a decimal, a date or a time"
            )
    if not is_changelog(schema):
        return
    for column in plain_schema(schema):
        if not has_form(column.type):
            raise SchemaError(
                f"{name} compares whole rows of a changelog, and column {column.name!r} is {column.type}, of which "
                "equal values cannot be told: leave it out before, or make another type of it"
            )


class OutboxWriter(SinkWriter):
    """Keeps the rows of an epoch, of each key the last one if there are keys.

    Args:
        admit: returns rows as they are to be published, or raises DataError.
    """

    def __init__(
        self,
        name: str,
        schema: pa.Schema,
        keys: Sequence[str],
        context: SinkContext,
        sent: Sent,
        admit: Callable[[pa.Table], pa.Table],
    ) -> None:
        self._name = name
        self._schema = plain_schema(schema)
        self._keys = tuple(keys)
        self._context = context
        self._sent = sent
        self._admit = admit
        self._held: list[pa.Table] = []
        self._rows = 0
        self._limit = _FEW_ROWS
        self._handed_over = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Keep a batch. Raises DataError if a row of it cannot be written."""
        plain = pa.Table.from_batches([batch]).cast(self._schema)
        for key in self._keys:
            if plain[key].null_count:
                raise DataError(
                    f"{self._name}: a row has no value in its key {key!r}. Filter such rows out before, or give them a "
                    "value"
                )
        self._held.append(self._admit(plain))
        self._rows += plain.num_rows
        if self._keys and self._rows > self._limit:
            self._held = [self._shrunk(self._held)]
            self._rows = self._held[0].num_rows
            self._limit = max(_FEW_ROWS, 2 * self._rows)

    def prepare(self, epoch: int, final: bool) -> Sequence[Committable]:
        """Hand over the rows of the epoch."""
        del final
        rows = self._take()
        return [] if rows is None else self._sent_off(rows, epoch)

    def _take(self) -> pa.Table | None:
        """Return the rows of the epoch, as few as they amount to; None if there are none."""
        if not self._held:
            return None
        rows, self._held, self._rows, self._limit = self._shrunk(self._held), [], 0, _FEW_ROWS
        return rows if rows.num_rows else None  # what came has been taken back

    def _sent_off(self, rows: pa.Table, epoch: int, *, ordered: bool = False) -> Sequence[Committable]:
        """Return rows as they are handed over; see ``pack``."""
        after = self._sent.before(epoch)
        self._sent.note(epoch)
        return pack(rows, after, ordered=ordered)

    def _shrunk(self, tables: Sequence[pa.Table]) -> pa.Table:
        rows = pa.concat_tables(tables)
        if not self._keys:
            return rows
        # By whole rows only: what another writer takes back must still be found.
        return net_rows(rows) if is_changelog(self._schema) else last_per_key(rows, self._keys)

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """Hand over the last epoch with rows. Later parts of the same epoch are known when it is committed again."""
        last = self._sent.last
        if self._context.subtask or last == self._handed_over:
            return {}
        self._handed_over = last
        rows = pa.table({"one": [0], "epoch": [last], DELETED: [False]}, pa.schema([*_COLUMNS, (DELETED, pa.bool_())]))
        return {OUTBOX: StateDelta(rows, epoch)}

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """Take back the last epoch with rows, unless it is that of the job this one was forked from."""
        del table, full_from
        for batch in batches:
            if self._context.restored:
                self._sent.note(pc.max(batch["epoch"]).as_py())
