"""Puts the deltas of all subtasks together, per state table, as they will be written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.element import Epoch
from millstream.engine.errors import InternalError
from millstream.engine.state import StateKind, StateTable
from millstream.engine.store.columns import row_schema, stored_table
from millstream.engine.store.digest import digest_of
from millstream.engine.store.encoding import TableKey, Written
from millstream.engine.store.schema import bucket_index
from millstream.engine.store.types import NamedDelta, OperatorState


@dataclass(frozen=True, slots=True)
class Gathered:
    """What one epoch writes to one state table.

    Attributes:
        rows: storage types, one chunk; ROWS: bucket by bucket.
        dropped: ROWS: the buckets dropped, ascending.
        written: one record per bucket (ROWS) or one in all (KEYED); none if there are no rows.
    """

    key: TableKey
    table: StateTable
    rows: pa.Table
    dropped: tuple[int, ...]
    written: tuple[Written, ...]


def gather(deltas: Sequence[NamedDelta], tables: Mapping[TableKey, StateTable], epoch: Epoch) -> list[Gathered]:
    """Put deltas together by state table.

    Raises:
        InternalError: a delta belongs to no declared table, is there twice, or has other columns than declared.
    """
    by_table: dict[TableKey, list[NamedDelta]] = {}
    for delta in deltas:
        by_table.setdefault((delta.operator_id, delta.table), []).append(delta)
    for key in by_table:
        if key not in tables:
            raise InternalError(f"operator {key[0]} handed over state {key[1]!r}, which it never declared")
    return [_gather_table(key, tables[key], group, epoch) for key, group in by_table.items()]


def _gather_table(key: TableKey, table: StateTable, deltas: Sequence[NamedDelta], epoch: Epoch) -> Gathered:
    if len({d.subtask for d in deltas}) < len(deltas):
        raise InternalError(f"operator {key[0]} handed over two deltas of state {key[1]!r} for one subtask")
    schema = row_schema(table)
    parts = [d.delta.rows for d in deltas]
    for part in parts:
        if part.schema.names != schema.names:
            raise InternalError(
                f"operator {key[0]} handed over state {key[1]!r} with columns {part.schema.names}, declared were "
                f"{schema.names}"
            )
    rows = pa.concat_tables([stored_table(part, schema) for part in parts if part.num_rows] or [_empty(schema)])
    rows = rows.combine_chunks()
    if table.kind is StateKind.KEYED:
        written = (Written(epoch, key, None, rows.num_rows, digest_of(rows)),) if rows.num_rows else ()
        return Gathered(key, table, rows, (), written)
    dropped = tuple(sorted({bucket for d in deltas for bucket in d.delta.dropped}))
    return _by_bucket(Gathered(key, table, rows, dropped, ()), epoch)


def _empty(schema: pa.Schema) -> pa.Table:
    return stored_table(schema.empty_table(), schema)


def _by_bucket(gathered: Gathered, epoch: Epoch) -> Gathered:
    """Order rows by bucket, so that each bucket has a digest of its own and outlives the others."""
    rows, column = gathered.rows, bucket_index(gathered.table)
    if rows.column(column).null_count:
        raise InternalError(f"operator {gathered.key[0]}, state {gathered.key[1]!r}: a row has no bucket")
    if gathered.dropped and rows.num_rows:
        rows = rows.filter(pc.invert(pc.is_in(rows.column(column), pa.array(gathered.dropped, pa.int64()))))
        rows = rows.combine_chunks()
    buckets = rows.column(column).to_numpy()
    if np.any(buckets[1:] < buckets[:-1]):
        order = np.argsort(buckets, kind="stable")
        rows, buckets = rows.take(pa.array(order)).combine_chunks(), buckets[order]
    starts = np.flatnonzero(np.r_[True, buckets[1:] != buckets[:-1]]) if len(buckets) else np.empty(0, np.int64)
    ends = np.r_[starts[1:], len(buckets)]
    written = tuple(
        Written(epoch, gathered.key, int(buckets[start]), int(end - start), digest_of(rows.slice(start, end - start)))
        for start, end in zip(starts, ends, strict=False)
    )
    return replace(gathered, rows=rows, written=written)


@dataclass(frozen=True, slots=True)
class FullFrom:
    """How far back a restore of one state table must read, given what each subtask has said in this generation.

    Attributes:
        owners: how many subtasks may hold restored rows.
        restored: what the restored manifest said; it holds until every owner has said something newer.
        said: by subtask, the latest word.
    """

    owners: int
    restored: int | None = None
    said: Mapping[int, int] = field(default_factory=dict)

    def heard(self, subtask: int, full_from: int) -> FullFrom:
        """Take note of a subtask's delta."""
        return replace(self, said={**self.said, subtask: full_from})

    @property
    def epoch(self) -> int | None:
        """The oldest epoch to read; None if no subtask has ever had any state.

        >>> FullFrom(owners=2, restored=3).heard(0, 9).epoch, FullFrom(2, 3).heard(0, 9).heard(1, 7).epoch
        (3, 7)
        """
        words = list(self.said.values())
        if self.restored is not None and any(subtask not in self.said for subtask in range(self.owners)):
            words.append(self.restored)
        return min(words, default=None)


def starting_full_from(
    operators: Sequence[OperatorState], restored: Mapping[TableKey, int]
) -> dict[TableKey, FullFrom]:
    """Return what holds for every declared state table before the first delta of a generation."""
    return {
        (operator.id, table.name): FullFrom(
            # Rows that are not routed by a key all go to subtask 0.
            owners=operator.parallelism if table.route_by else 1,
            restored=restored.get((operator.id, table.name)),
        )
        for operator in operators
        for table in operator.tables
    }


def heard_from(
    deltas: Sequence[NamedDelta], before: Mapping[TableKey, FullFrom], parallelism: Mapping[str, int]
) -> dict[TableKey, FullFrom]:
    """Return what holds after these deltas.

    Raises:
        InternalError: a delta comes from a subtask that the operator was not declared to have.
    """
    after = dict(before)
    for delta in deltas:
        if not 0 <= delta.subtask < parallelism[delta.operator_id]:
            raise InternalError(
                f"operator {delta.operator_id} handed over state {delta.table!r} of subtask {delta.subtask}, but was "
                f"declared with a parallelism of {parallelism[delta.operator_id]}"
            )
        key = (delta.operator_id, delta.table)
        after[key] = after[key].heard(delta.subtask, delta.delta.full_from)
    return after
