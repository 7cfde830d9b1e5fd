"""Which DuckDB tables hold a state table: one more each time its columns change.

Rows stay as they were written, and so do their digests: a migration writes new rows to a new table, and those who read
put the old ones into the new form.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
from millstream.engine.errors import StateMismatch
from millstream.engine.state import StateKind, StateTable
from millstream.engine.store.catalog import Catalog
from millstream.engine.store.columns import column_names, literal, quote, sql_type, storage_type, stored
from millstream.engine.store.encoding import TableKey
from millstream.engine.store.migration import compare_tables, default_column
from millstream.engine.store.query import AT_EPOCH
from millstream.engine.store.schema import bucket_column, state_table_name
from millstream.engine.store.types import OperatorState, Origin


@dataclass(frozen=True, slots=True)
class Piece:
    """One DuckDB table with rows of a state table, and the columns it was made with."""

    name: str
    table: StateTable


@dataclass(frozen=True, slots=True)
class Pieces:
    """Everything that is kept of one state table, oldest first.

    Attributes:
        since: rows of this epoch or an earlier one are not part of it.
        held: not empty; the last is the one that is written to.
    """

    key: TableKey
    since: int
    held: tuple[Piece, ...]


def pieces_of(catalog: Catalog, generation: int, key: TableKey) -> Pieces:
    """Return where a generation finds one of its state tables."""
    origin = catalog.origins[generation][key]
    found: dict[int, StateTable] = {}
    for number, origins in sorted(catalog.origins.items()):
        other = origins.get(key)
        if other is not None and other.since == origin.since and other.version <= origin.version:
            found[other.version] = _table(catalog.operators[number][key[0]], key[1])
    held = tuple(Piece(state_table_name(key, version), found[version]) for version in sorted(found))
    return Pieces(key, origin.since, held)


def physical_names(catalog: Catalog, key: TableKey) -> list[str]:
    """Return every DuckDB table with rows of a state table, of whatever origin."""
    versions = {origins[key].version for origins in catalog.origins.values() if key in origins}
    return [state_table_name(key, version) for version in sorted(versions)]


def _table(operator: OperatorState, name: str) -> StateTable:
    return next(table for table in operator.tables if table.name == name)


def trace_origins(
    catalog: Catalog, operators: Sequence[OperatorState], dropped: Iterable[str]
) -> dict[TableKey, Origin]:
    """Say where everything comes from that a new generation keeps.

    Raises:
        StateMismatch: the last checkpoint has state that the declared columns cannot hold.
    """
    last = catalog.last
    now = last.epoch if last else 0
    before = {id_: o for id_, o in last.operators.items() if id_ not in dropped} if last else {}
    known = catalog.origins.get(last.generation, {}) if last else {}
    origins = {}
    for operator in operators:
        old = before.get(operator.id)
        whole = known.get((operator.id, "")) if old else None
        origins[(operator.id, "")] = whole or Origin(1, now)
        for table in operator.tables:
            key = (operator.id, table.name)
            found = known.get(key) if old else None
            if found is None or old is None:
                origins[key] = Origin(_unused(catalog, key), now)
            else:
                restorable = last is not None and key in last.tables
                origins[key] = _next(catalog, key, found, _table(old, table.name), table, now, restorable)
    return origins


def _next(
    catalog: Catalog, key: TableKey, found: Origin, old: StateTable, new: StateTable, now: int, restorable: bool
) -> Origin:
    change = compare_tables(old, new)
    if not change.any:
        return found
    if not restorable:
        return Origin(_unused(catalog, key), now)
    if change.refused:
        raise StateMismatch(
            f"state {key[1]!r} of operator {key[0]} does not fit the job: {'; '.join(change.refused)}. Change it back, "
            f"or give the job a new store"
        )
    return Origin(_unused(catalog, key), found.since)


def _unused(catalog: Catalog, key: TableKey) -> int:
    return 1 + max((origins[key].version for origins in catalog.origins.values() if key in origins), default=0)


# --- in SQL ---------------------------------------------------------------------------------------------------


def relation(pieces: Pieces, table: StateTable) -> str:
    """SQL for all rows, with ``epoch``, the columns of ``table`` and, if KEYED, ``deleted``; and ``written_at``."""
    wanted = ["epoch", *column_names(table)]
    selects = []
    for piece in pieces.held:
        there = dict(zip(piece.table.schema.names, column_names(piece.table), strict=False))
        columns = [quote("epoch")]
        for field, name in zip(table.schema, column_names(table), strict=False):
            kept = sql_type(storage_type(field.type))
            value = f"{quote(there[field.name])}::{kept}" if field.name in there else _default(field, table, kept)
            columns.append(f"{value} AS {quote(name)}")
        if table.kind is StateKind.KEYED:
            columns.append(quote(wanted[-1]))
        where = f" WHERE epoch > {int(pieces.since)}" if pieces.since else ""
        selects.append(f"SELECT {', '.join(columns)}, rowid AS written_at FROM main.{quote(piece.name)}{where}")  # noqa: S608
    return f"({' UNION ALL '.join(selects)})"


def _default(field: pa.Field, table: StateTable, type_: str) -> str:
    value = stored(default_column(field, table, 1), field.type)[0].as_py()
    return f"{_sql_value(value)}::{type_}"


def _sql_value(value: object) -> str:
    match value:
        case None:
            return "NULL"
        case bytes():
            return literal("".join(f"\\x{byte:02X}" for byte in value)) + "::BLOB"
        case list():
            return f"[{', '.join(map(_sql_value, value))}]"
        case dict():
            return "{" + ", ".join(f"{literal(k)}: {_sql_value(v)}" for k, v in value.items()) + "}"
        case _:
            return literal(str(value))


def live_rows(pieces: Pieces, table: StateTable, epoch: str, full_from: str) -> str:
    """SQL for the rows of a state table that are alive at an epoch; ``epoch`` and ``full_from`` are SQL."""
    rows = relation(pieces, table)
    if table.kind is StateKind.KEYED:
        by_name = dict(zip(table.schema.names, column_names(table), strict=False))
        keys = ", ".join(quote(by_name[name]) for name in table.keys)
        partition = f"PARTITION BY {keys} " if keys else ""
        return (
            f"(SELECT * FROM {rows} WHERE epoch BETWEEN {full_from} AND {epoch} "  # noqa: S608
            f"QUALIFY row_number() OVER ({partition}ORDER BY epoch DESC, written_at DESC) = 1) WHERE NOT deleted"
        )
    return (
        f"{rows} s WHERE s.epoch <= {epoch} AND NOT EXISTS (SELECT 1 FROM main.dropped d "  # noqa: S608
        f"WHERE d.operator = {literal(pieces.key[0])} AND d.state_table = {literal(pieces.key[1])} "
        f"AND d.bucket = s.{quote(bucket_column(table))} AND d.epoch BETWEEN s.epoch AND {epoch})"
    )


def create_view(pieces: Pieces, table: StateTable, name: str) -> str:
    """SQL of the view that shows the live rows of one state table, at the last epoch or at the one in AT_EPOCH."""
    columns = ", ".join(quote(c) for c in column_names(table)[: len(table.schema)])
    epoch = f"coalesce(getvariable('{AT_EPOCH}')::BIGINT, (SELECT max(epoch) FROM main.manifest))"  # noqa: S608
    path = literal('$."' + state_table_name(pieces.key) + '"')
    full_from = f"(SELECT (full_from ->> {path})::BIGINT FROM main.manifest WHERE epoch = {epoch})"  # noqa: S608
    return f"CREATE VIEW state.{quote(name)} AS SELECT {columns} FROM {live_rows(pieces, table, epoch, full_from)}"  # noqa: S608
