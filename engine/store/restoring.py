"""Hands state back: rows in the order they were written, checked against the digests kept when they were."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.element import Epoch
from millstream.engine.errors import StoreCorrupt
from millstream.engine.state import StateKind, StateTable
from millstream.engine.store.columns import declared_batch, quote, row_schema, storage_type
from millstream.engine.store.digest import Digest
from millstream.engine.store.encoding import TableKey, Written
from millstream.engine.store.migration import migrated
from millstream.engine.store.schema import bucket_index
from millstream.engine.store.versions import Piece, Pieces

_BATCH_ROWS: Final = 131_072

_Part = tuple[int, int | None]
"""(epoch, bucket): what has one digest."""


def restore_keyed(
    cursor: duckdb.DuckDBPyConnection,
    pieces: Pieces,
    table: StateTable,
    epochs: tuple[Epoch, Epoch],
    written: Sequence[Written],
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the epochs from the first to the last of ``epochs``, oldest first, as rows of ``table``.

    Raises:
        StoreCorrupt: rows are missing, changed, or out of order; raised after the last batch at the latest.
    """
    oldest, newest = max(epochs[0], pieces.since + 1), epochs[1]
    expected: dict[_Part, Written] = {(w.epoch, None): w for w in written if w.epoch >= oldest}
    checks = _Checks(pieces.key, expected)
    latest = oldest
    for piece in pieces.held:
        for batch in _scan(cursor, piece, f"epoch BETWEEN {int(oldest)} AND {int(newest)}"):
            at = batch.column(0).to_numpy()
            if len(at) and (at[0] < latest or np.any(at[1:] < at[:-1])):
                raise StoreCorrupt(f"{_name(pieces.key)}: rows are not in the order in which they were written")
            latest = int(at[-1]) if len(at) else latest
            columns = _storage_columns(batch, piece.table)
            checks.update(at, None, columns)
            yield _as_rows_of(table, piece, columns)
    checks.finish()


def restore_rows(
    cursor: duckdb.DuckDBPyConnection,
    pieces: Pieces,
    table: StateTable,
    epoch: Epoch,
    written: Sequence[Written],
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of every bucket that had not been dropped at ``epoch``, oldest first, as rows of ``table``.

    Raises:
        StoreCorrupt: rows are missing or changed; raised after the last batch at the latest.
    """
    assert table.kind is StateKind.ROWS
    drops = _last_drops(cursor, pieces.key, epoch)
    alive: dict[_Part, Written] = {
        (w.epoch, w.bucket): w for w in written if w.epoch > max(drops.get(w.bucket or 0, -1), pieces.since)
    }
    checks = _Checks(pieces.key, alive)
    for piece in pieces.held:
        bucket = bucket_index(piece.table)
        for batch in _scan(cursor, piece, f"epoch > {int(pieces.since)} AND epoch <= {int(epoch)}"):
            kept = _without_dropped(batch, 1 + bucket, drops)
            if kept.num_rows == 0:
                continue
            columns = _storage_columns(kept, piece.table)
            checks.update(kept.column(0).to_numpy(), columns[bucket].to_numpy(), columns)
            yield _as_rows_of(table, piece, columns)
    checks.finish()


def _name(key: TableKey) -> str:
    return f"state {key[1]!r} of operator {key[0]}"


def _as_rows_of(table: StateTable, piece: Piece, columns: Sequence[pa.Array]) -> pa.RecordBatch:
    batch = declared_batch(columns, row_schema(piece.table))
    same = piece.table.schema.equals(table.schema)
    return batch if same else migrated(batch, piece.table, table)


def _scan(cursor: duckdb.DuckDBPyConnection, piece: Piece, where: str) -> Iterator[pa.RecordBatch]:
    # Without ORDER BY DuckDB yields rows in the order they were inserted; sorting would not be stable.
    sql = f"SELECT * FROM {quote(piece.name)} WHERE {where}"  # noqa: S608
    yield from cursor.sql(sql).to_arrow_reader(_BATCH_ROWS)


def _storage_columns(batch: pa.RecordBatch, table: StateTable) -> list[pa.Array]:
    types = [storage_type(field.type) for field in row_schema(table)]
    return [
        column if column.type == type_ else column.cast(type_)
        for column, type_ in zip(batch.columns[1:], types, strict=True)
    ]


def _last_drops(cursor: duckdb.DuckDBPyConnection, key: TableKey, epoch: Epoch) -> dict[int, int]:
    rows = cursor.execute(
        "SELECT bucket, max(epoch) FROM dropped WHERE operator = ? AND state_table = ? AND epoch <= ? GROUP BY bucket",
        [*key, epoch],
    ).fetchall()
    return dict(rows)


def _without_dropped(batch: pa.RecordBatch, column: int, drops: Mapping[int, int]) -> pa.RecordBatch:
    """Leave out rows whose bucket was dropped in their own epoch or later."""
    if not drops:
        return batch
    which = pc.index_in(batch.column(column), pa.array(list(drops), pa.int64()))
    dropped_at = pa.array(list(drops.values()), pa.int64()).take(which)
    return batch.filter(pc.fill_null(pc.less(dropped_at, batch.column(0)), True))


class _Checks:
    """Adds rows up by (epoch, bucket) and compares with what was written."""

    def __init__(self, key: TableKey, expected: Mapping[_Part, Written]) -> None:
        self._key = key
        self._expected = expected
        self._found: dict[_Part, Digest] = {}

    def update(self, epochs: np.ndarray, buckets: np.ndarray | None, columns: Sequence[pa.Array]) -> None:
        """Take the next rows."""
        change = epochs[1:] != epochs[:-1]
        if buckets is not None:
            change |= buckets[1:] != buckets[:-1]
        edges = [0, *(np.flatnonzero(change) + 1).tolist(), len(epochs)] if len(epochs) else []
        for start, end in itertools.pairwise(edges):
            part = (int(epochs[start]), None if buckets is None else int(buckets[start]))
            self._found.setdefault(part, Digest()).update([c.slice(start, end - start) for c in columns])

    def finish(self) -> None:
        """Raise StoreCorrupt, naming table and epoch, if anything differs."""
        for part in sorted(self._expected.keys() | self._found.keys(), key=lambda p: (p[0], p[1] or 0)):
            expected, found = self._expected.get(part), self._found.get(part)
            rows_expected, rows_found = expected.rows if expected else 0, found.rows if found else 0
            if rows_expected == rows_found and expected and found and expected.digest == found.hexdigest():
                continue
            what = (
                f"{rows_expected} rows were written, {rows_found} are there"
                if rows_expected != rows_found
                else f"its {rows_found} rows are not those that were written"
            )
            bucket = "" if part[1] is None else f", bucket {part[1]}"
            raise StoreCorrupt(
                f"{_name(self._key)}, epoch {part[0]}{bucket}: {what}. The store was altered or damaged: restore it "
                f"and its .wal from a backup"
            )
