"""Removes what no restorable epoch needs, in one transaction, so that the file stays in proportion to the live state.

Epochs that are no longer retained leave behind what later ones still build on: the positions of splits that have not
moved since, and the digests of rows that are still live. These move from the manifests into tables of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import duckdb
from millstream.engine.element import Epoch
from millstream.engine.state import StateKind, StateTable
from millstream.engine.store.catalog import Catalog, Entry
from millstream.engine.store.columns import literal, quote
from millstream.engine.store.encoding import TableKey, Written, latest_positions, pack_info, pack_position
from millstream.engine.store.instance import insert_arrow
from millstream.engine.store.schema import POSITIONS, WRITTEN, bucket_column, rows_to_arrow
from millstream.engine.store.types import Manifest, SplitPosition
from millstream.engine.store.versions import physical_names

RETAINED_EPOCHS: Final = 3
"""At least so many of the newest epochs can be restored."""

PRUNE_EVERY: Final = 5
"""Pruning waits until so many epochs can go at once."""

_SPARE_POSITIONS: Final = 256


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What one pruning removes.

    Attributes:
        going: epochs that will no longer be restorable.
        oldest: the oldest epoch that still will be.
        cuts: rows of older epochs than this are not needed; None: none are.
        drops: ROWS tables some of whose dropped buckets can go.
    """

    going: tuple[Epoch, ...]
    oldest: Epoch
    cuts: Mapping[TableKey, int | None]
    drops: tuple[TableKey, ...]


def plan_pruning(catalog: Catalog, done: Mapping[TableKey, int | None]) -> PrunePlan | None:
    """Decide what can go; None if it is not worth a transaction yet. ``done`` are the cuts made before."""
    epochs = list(catalog.entries)
    if len(epochs) < RETAINED_EPOCHS + PRUNE_EVERY:
        return None
    going, staying = epochs[:-RETAINED_EPOCHS], epochs[-RETAINED_EPOCHS:]
    retained = [catalog.entries[epoch].manifest for epoch in staying]
    cuts: dict[TableKey, int | None] = {}
    for key, table in known_tables(catalog).items():
        cut = min((_oldest_needed(catalog, m, key, table) for m in retained if key in m.tables), default=None)
        if key not in done or done[key] != cut:
            cuts[key] = cut
    drops = tuple(key for key, oldest in catalog.drops.items() if oldest <= staying[0])
    return PrunePlan(tuple(going), staying[0], cuts, drops)


def _oldest_needed(catalog: Catalog, manifest: Manifest, key: TableKey, table: StateTable) -> int:
    if table.kind is StateKind.KEYED:
        return manifest.tables[key].full_from
    origin = catalog.origins.get(manifest.generation, {}).get(key)
    return origin.since + 1 if origin else 0


def known_tables(catalog: Catalog) -> dict[TableKey, StateTable]:
    """Every state table of any generation the store still knows, as the newest one declared it."""
    return {
        (operator.id, table.name): table
        for _, operators in sorted(catalog.operators.items())
        for operator in operators.values()
        for table in operator.tables
    }


def execute_pruning(connection: duckdb.DuckDBPyConnection, catalog: Catalog, plan: PrunePlan) -> int:
    """Carry a plan out, inside a transaction; return how many state rows were deleted."""
    entries = [catalog.entries[epoch] for epoch in plan.going]
    tables = known_tables(catalog)
    _keep_positions(connection, entries, catalog, plan.oldest)
    _keep_written(connection, entries)
    connection.execute(f"DELETE FROM manifest WHERE epoch < {int(plan.oldest)}")  # noqa: S608
    deleted = 0
    for key, cut in plan.cuts.items():
        if cut is None or cut > 1:
            deleted += _delete_older(connection, key, physical_names(catalog, key), cut)
    for key in plan.drops:
        deleted += _delete_dropped(connection, catalog, key, tables[key], plan.oldest)
    return deleted


def _keep_positions(
    connection: duckdb.DuckDBPyConnection, entries: Sequence[Entry], catalog: Catalog, oldest: Epoch
) -> None:
    epochs: dict[tuple[str, str], int] = {}
    found: list[tuple[int, SplitPosition]] = []
    for entry in entries:
        for position in entry.body.positions:
            epochs[(position.source_id, position.split.id)] = entry.manifest.epoch
            found.append((entry.manifest.epoch, position))
    rows = [position_row(epochs[(p.source_id, p.split.id)], p) for p in latest_positions(found)]
    if rows:
        insert_arrow(connection, "positions", rows_to_arrow(rows, POSITIONS))
    if catalog.position_rows + len(rows) > 2 * len(catalog.splits) + _SPARE_POSITIONS:
        connection.execute(
            f"DELETE FROM positions USING (SELECT source, split, max(epoch) AS newest FROM positions "  # noqa: S608
            f"WHERE epoch <= {int(oldest)} GROUP BY source, split) AS latest WHERE positions.source = latest.source "
            f"AND positions.split = latest.split AND positions.epoch < latest.newest"
        )


def position_row(epoch: int, position: SplitPosition) -> list[object]:
    """One row of ``positions``."""
    info, at = pack_info(position), pack_position(position)
    return [epoch, position.source_id, position.split.id, info, at, position.max_time, position.finished]


def _keep_written(connection: duckdb.DuckDBPyConnection, entries: Sequence[Entry]) -> None:
    written: list[Written] = [w for entry in entries for w in entry.body.written]
    if written:
        rows = [[w.epoch, *w.table, w.bucket, w.rows, w.digest] for w in written]
        insert_arrow(connection, "written", rows_to_arrow(rows, WRITTEN))


def _delete_older(connection: duckdb.DuckDBPyConnection, key: TableKey, names: Sequence[str], cut: int | None) -> int:
    older = "true" if cut is None else f"epoch < {int(cut)}"
    deleted = 0
    for name in names:
        ((rows,),) = connection.execute(f"DELETE FROM {quote(name)} WHERE {older}").fetchall()  # noqa: S608
        deleted += int(rows)
    connection.execute(f"DELETE FROM written WHERE {_is(key)} AND {older}")  # noqa: S608
    return deleted


def _delete_dropped(
    connection: duckdb.DuckDBPyConnection, catalog: Catalog, key: TableKey, table: StateTable, oldest: Epoch
) -> int:
    gone = (
        f"(SELECT bucket, max(epoch) AS at FROM dropped WHERE {_is(key)} AND epoch <= {int(oldest)} "  # noqa: S608
        f"GROUP BY bucket) AS gone"
    )
    deleted = 0
    for name in map(quote, physical_names(catalog, key)):
        bucket = f"{name}.{quote(bucket_column(table))}"
        ((rows,),) = connection.execute(
            f"DELETE FROM {name} USING {gone} WHERE {bucket} = gone.bucket AND {name}.epoch <= gone.at"  # noqa: S608
        ).fetchall()
        deleted += int(rows)
    connection.execute(
        f"DELETE FROM written USING {gone} WHERE {_is(key)} AND written.bucket = gone.bucket "  # noqa: S608
        f"AND written.epoch <= gone.at"
    )
    connection.execute(f"DELETE FROM dropped WHERE {_is(key)} AND epoch <= {int(oldest)}")  # noqa: S608
    return deleted


def _is(key: TableKey) -> str:
    return f"operator = {literal(key[0])} AND state_table = {literal(key[1])}"
