"""What one checkpoint becomes in the store: prepared without a transaction, then written within one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import duckdb
from millstream.engine.failpoints import hit
from millstream.engine.state import StateTable
from millstream.engine.store.catalog import Catalog, Entry
from millstream.engine.store.columns import quote
from millstream.engine.store.encoding import Body, TableKey, checksum, pack_body
from millstream.engine.store.gather import FullFrom, Gathered, gather, heard_from
from millstream.engine.store.instance import insert_arrow
from millstream.engine.store.letters import delete_letters, write_letters
from millstream.engine.store.outbox import Staged, stage, write_outbox
from millstream.engine.store.pruning import position_row
from millstream.engine.store.schema import (
    DROPPED,
    POSITIONS,
    full_from_json,
    rows_to_arrow,
    state_table_name,
)
from millstream.engine.store.types import CheckpointData, Manifest, SplitPosition, TableManifest

_FEW_POSITIONS: Final = 64
"""So many fit into the manifest's row, which saves a statement (2 of 4 ms)."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything about a checkpoint that can be known before its transaction.

    Attributes:
        body: the manifest's body as it is stored.
        many_positions: positions that go into ``positions``, being too many for the manifest.
        new_splits: (source id, split id) never seen before.
        names: the DuckDB table that each state table is written to.
        staged: committables that go into ``outbox``, being too big for the manifest.
        outdated: whether ``outbox`` holds what the epoch before handed over.
        full_from: what holds for every state table once this is committed.
    """

    entry: Entry
    body: bytes
    gathered: Sequence[Gathered]
    many_positions: Sequence[SplitPosition]
    new_splits: frozenset[tuple[str, str]]
    names: Mapping[TableKey, str]
    staged: Staged | None
    outdated: bool
    full_from: dict[TableKey, FullFrom]


def prepare(
    data: CheckpointData,
    catalog: Catalog,
    tables: Mapping[TableKey, StateTable],
    before: Mapping[TableKey, FullFrom],
    now: int,
) -> Prepared:
    """Work out what a checkpoint writes.

    Raises:
        InternalError: the data contradict what was declared, or hold values that cannot be stored.
    """
    operators = catalog.operators.get(data.generation, {})
    gathered = gather(data.deltas, tables, data.epoch)
    full_from = heard_from(data.deltas, before, {id_: o.parallelism for id_, o in operators.items()})
    new_splits = frozenset((p.source_id, p.split.id) for p in data.positions) - catalog.splits
    few = len(data.positions) <= _FEW_POSITIONS
    staged = stage(data.committables)
    body = Body(
        tables=_table_manifests(gathered, full_from),
        watermarks=dict(data.watermarks),
        positions=tuple(data.positions) if few else (),
        splits=len(catalog.splits) + len(new_splits),
        committables=tuple(data.committables) if staged is None else (),
        written=tuple(w for g in gathered for w in g.written),
        memory=data.memory,
        ended=data.ended,
        outbox=None if staged is None else staged.described,
    )
    manifest = Manifest(
        epoch=data.epoch,
        generation=data.generation,
        kind=data.kind,
        committed_at=now,
        tables=body.tables,
        watermarks=body.watermarks,
        operators=operators,
        memory=data.memory,
        ended=data.ended,
    )
    many = () if few else data.positions
    origins = catalog.origins.get(data.generation, {})
    names = {g.key: state_table_name(g.key, origins[g.key].version) for g in gathered}
    before_it = next(reversed(catalog.entries.values()), None)
    outdated = before_it is not None and before_it.body.outbox is not None
    return Prepared(
        Entry(manifest, body), pack_body(body), gathered, many, new_splits, names, staged, outdated, full_from
    )


def _table_manifests(
    gathered: Sequence[Gathered], full_from: Mapping[TableKey, FullFrom]
) -> dict[TableKey, TableManifest]:
    by_key = {g.key: g for g in gathered}
    manifests = {}
    for key, oldest in full_from.items():
        if oldest.epoch is None:
            continue
        new = by_key.get(key)
        rows = new.rows.num_rows if new else 0
        digest = checksum("".join(w.digest for w in new.written).encode()) if new and rows else ""
        manifests[key] = TableManifest(oldest.epoch, rows, digest)
    return manifests


def write(connection: duckdb.DuckDBPyConnection, data: CheckpointData, prepared: Prepared) -> None:
    """Write a checkpoint, inside a transaction; the manifest's row comes last."""
    epoch = int(data.epoch)
    for gathered in prepared.gathered:
        if gathered.rows.num_rows:
            insert_arrow(connection, quote(prepared.names[gathered.key]), gathered.rows, f"{epoch},")
    dropped = [[epoch, *g.key, bucket] for g in prepared.gathered for bucket in g.dropped]
    if dropped:
        insert_arrow(connection, "dropped", rows_to_arrow(dropped, DROPPED))
    if prepared.many_positions:
        rows = [position_row(epoch, p) for p in prepared.many_positions]
        insert_arrow(connection, "positions", rows_to_arrow(rows, POSITIONS))
    write_outbox(connection, data.epoch, prepared.staged, prepared.outdated)
    delete_letters(connection, data.replayed)
    write_letters(connection, epoch, data.dead_letters)
    hit("store.state")
    _write_manifest(connection, prepared)
    hit("store.before_commit")


def _write_manifest(connection: duckdb.DuckDBPyConnection, prepared: Prepared) -> None:
    manifest = prepared.entry.manifest
    connection.execute(
        "INSERT INTO manifest VALUES (?, ?, ?, make_timestamp(?), ?, ?, ?, ?)",
        [
            manifest.epoch,
            manifest.generation,
            manifest.kind.value,
            manifest.committed_at,
            sum(g.rows.num_rows for g in prepared.gathered),
            full_from_json({key: table.full_from for key, table in manifest.tables.items()}),
            prepared.body,
            checksum(prepared.body),
        ],
    )
