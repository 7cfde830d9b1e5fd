"""A model of the checkpoint store: what a restore of the last epoch would read, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
from millstream.engine.hashing import exchange_hash, partition
from millstream.engine.state import DELETED, StateDelta, StateKind, StateTable
from millstream.engine.store.gather import FullFrom


class Restorable(Protocol):
    """An operator or a sink's writer."""

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """Take back rows of one state table."""
        ...


@dataclass(frozen=True, slots=True)
class _Written:
    """A delta: the rows as they were when handed over, and those rows themselves."""

    epoch: int
    rows: pa.Table
    as_handed_over: bytes
    own: pa.Table


class StateModel:
    """The state tables of one operator or sink.

    Args:
        tables: as declared.
        what: names the operator or sink, for errors.
    """

    def __init__(self, tables: Sequence[StateTable], what: str) -> None:
        self._what = what
        self._tables = {table.name: table for table in tables}
        self._written: dict[str, list[_Written]] = {name: [] for name in self._tables}
        self._dropped: dict[str, set[int]] = {name: set() for name in self._tables}
        self._full_from: dict[str, FullFrom] = {}
        assert len(self._tables) == len(tables), f"{what} declares two state tables of one name"
        for table in tables:
            self._check(table)

    def _check(self, table: StateTable) -> None:
        where = f"{self._what}, state table {table.name!r}"
        assert re.fullmatch("[a-z_]+", table.name), f"{where}: the name must be of the form [a-z_]+"
        unknown = [name for name in (*table.keys, *table.route_by) if name not in table.schema.names]
        assert not unknown, f"{where}: {unknown} are not among its columns {table.schema.names}"
        if table.kind is StateKind.ROWS:
            keys = [table.schema.field(name).type for name in table.keys]
            assert keys == [pa.int64()], f"{where}: ROWS need exactly one key, an int64 bucket, not {keys}"
        else:
            assert table.keys, f"{where}: KEYED rows need keys"
            assert not table.broadcast, f"{where}: only ROWS can be broadcast"

    def begin(self, parallelism: int) -> None:
        """A generation starts."""
        for name, table in self._tables.items():
            before = self._full_from.get(name)
            self._full_from[name] = FullFrom(parallelism if table.route_by else 1, before.epoch if before else None)

    def commit(self, epoch: int, subtasks: Sequence[Mapping[str, StateDelta]]) -> None:
        """Take what every subtask handed over at a barrier."""
        for number, deltas in enumerate(subtasks):
            for name, delta in deltas.items():
                assert name in self._tables, (
                    f"{self._what} hands over the state table {name!r}, which it never declared"
                )
                self._take(epoch, self._tables[name], delta, number)

    def _take(self, epoch: int, table: StateTable, delta: StateDelta, subtask: int) -> None:
        expected = table.schema
        assert not (table.broadcast and subtask), (
            f"{self._what}, {table.name!r}: subtask 0 hands over what is broadcast"
        )
        if table.kind is StateKind.KEYED:
            expected = expected.append(pa.field(DELETED, pa.bool_()))
            assert delta.full_from <= epoch, f"{self._what}, {table.name!r}: {delta.full_from=} lies in the future"
            self._full_from[table.name] = self._full_from[table.name].heard(subtask, delta.full_from)
        got = [(field.name, field.type) for field in delta.rows.schema]
        wanted = [(field.name, field.type) for field in expected]
        assert got == wanted, f"{self._what}, state table {table.name!r}: declared {wanted}, handed over {got}"
        packed = _pack(delta.rows)
        rows = pa.ipc.open_stream(packed).read_all()
        self._written[table.name].append(_Written(epoch, rows, packed, delta.rows))
        self._dropped[table.name].update(delta.dropped)

    def restore(self, copies: Sequence[Restorable]) -> None:
        """Hand the state back to new subtasks, routed as the engine does."""
        for name, table in self._tables.items():
            oldest = self._full_from[name].restored
            if not self._written[name]:
                continue
            if table.broadcast:
                for copy in copies:
                    copy.restore(name, iter(list(self._rows(table, oldest or 0))), oldest or 0)
                continue
            routed: list[list[pa.RecordBatch]] = [[] for _ in copies]
            for batch in self._rows(table, oldest or 0):
                if table.route_by and len(copies) > 1:
                    hashes = exchange_hash([batch.column(key) for key in table.route_by])
                    parts = partition(batch, hashes, len(copies))
                else:
                    parts = [batch]
                for rows, part in zip(routed, parts, strict=False):
                    if part.num_rows:
                        rows.append(part)
            for copy, rows in zip(copies if table.route_by else copies[:1], routed, strict=False):
                copy.restore(name, iter(rows), oldest or 0)

    def _rows(self, table: StateTable, oldest: int) -> Iterable[pa.RecordBatch]:
        for written in self._written[table.name]:
            rows = written.rows
            if table.kind is StateKind.ROWS:
                dropped = self._dropped[table.name]
                rows = rows.filter(pa.array([v not in dropped for v in rows[table.keys[0]].to_pylist()], pa.bool_()))
            elif written.epoch < oldest:
                continue
            yield from rows.to_batches()

    def check_untouched(self) -> None:
        """Raise AssertionError if rows changed after they were handed over: the store writes them later."""
        for name, deltas in self._written.items():
            for delta in deltas:
                assert _pack(delta.own) == delta.as_handed_over, (
                    f"{self._what}, state table {name!r}: rows handed over at epoch {delta.epoch} changed afterwards; "
                    "hand over a copy of what is changed in place"
                )


def _pack(rows: pa.Table) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, rows.schema) as stream:
        stream.write_table(rows)
    return bytes(buffer.getvalue().to_pybytes())
