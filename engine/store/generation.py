"""What a new generation does to the store's tables: the only place where tables are created or dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import duckdb
import pyarrow as pa
from millstream.engine.errors import StateMismatch
from millstream.engine.state import StateTable
from millstream.engine.store.catalog import Catalog
from millstream.engine.store.columns import literal, quote
from millstream.engine.store.encoding import TableKey
from millstream.engine.store.instance import insert_arrow
from millstream.engine.store.pruning import known_tables
from millstream.engine.store.schema import (
    create_state_table,
    create_view,
    operator_rows,
    rows_to_arrow,
    state_columns,
    state_table_name,
    view_names,
)
from millstream.engine.store.types import OperatorState

_OPERATORS: Final = pa.schema(
    {
        "generation": pa.int64(),
        "operator": pa.string(),
        "name": pa.string(),
        "kind": pa.string(),
        "parallelism": pa.int32(),
        "state_table": pa.string(),
        "state_kind": pa.string(),
        "key_columns": pa.string(),
        "route_by": pa.string(),
        "arrow_schema": pa.binary(),
        "meaning": pa.string(),
        "folders": pa.string(),
    }
)


def declare_generation(
    connection: duckdb.DuckDBPyConnection, catalog: Catalog, generation: int, operators: Sequence[OperatorState]
) -> None:
    """Make tables and views fit the job's operators and write the generation down, inside a transaction.

    Raises:
        StateMismatch: the last checkpoint has state that the declared columns cannot hold.
    """
    declared = {(o.id, t.name): t for o in operators for t in o.tables}
    for key, table in declared.items():
        _fit_table(connection, catalog, key, table)
    _drop_unreachable(connection, catalog, declared)
    _replace_views(connection, operators, declared)
    used = {e.manifest.generation for e in catalog.entries.values()}
    for old in catalog.operators.keys() - used:
        connection.execute(f"DELETE FROM operators WHERE generation = {int(old)}")  # noqa: S608
    rows = operator_rows(generation, operators)
    if rows:
        insert_arrow(connection, "operators", rows_to_arrow(rows, _OPERATORS))
    connection.execute("INSERT INTO generations VALUES (?, now()::TIMESTAMP)", [generation])


def _fit_table(connection: duckdb.DuckDBPyConnection, catalog: Catalog, key: TableKey, table: StateTable) -> None:
    have = _existing_columns(connection, key)
    want = _as_shown(connection, state_columns(table))
    restorable = catalog.last is not None and key in catalog.last.tables
    if have and restorable and have != want:
        raise StateMismatch(
            f"state {key[1]!r} of operator {key[0]} has columns {_show(have)} in the checkpoint, the job declares "
            f"{_show(want)}: give the job a new store, or change it back"
        )
    if have and not restorable:
        # Rows left by an operator that was taken out of the job must not come back to life with it.
        _drop_table(connection, key)
        have = []
    if not have:
        connection.execute(create_state_table(key, table))


def _existing_columns(connection: duckdb.DuckDBPyConnection, key: TableKey) -> list[tuple[str, str]]:
    rows = connection.execute(
        "SELECT column_name, data_type FROM duckdb_columns() WHERE schema_name = 'main' AND table_name = ? "
        "ORDER BY column_index",
        [state_table_name(key)],
    ).fetchall()
    return [(name, type_) for name, type_ in rows]


def _as_shown(connection: duckdb.DuckDBPyConnection, columns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return columns with their types as DuckDB shows them: fields of a STRUCT are quoted only where they must be."""
    shown = connection.execute(f"SELECT {', '.join(f'typeof(NULL::{type_})' for _, type_ in columns)}").fetchone()
    assert shown is not None
    return [(name, type_) for (name, _), type_ in zip(columns, shown, strict=True)]


def _show(columns: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {type_}" for name, type_ in columns[1:])


def _drop_table(connection: duckdb.DuckDBPyConnection, key: TableKey) -> None:
    connection.execute(f"DROP TABLE {quote(state_table_name(key))}")
    its_rows = f"operator = {literal(key[0])} AND state_table = {literal(key[1])}"
    connection.execute(f"DELETE FROM written WHERE {its_rows}")  # noqa: S608
    connection.execute(f"DELETE FROM dropped WHERE {its_rows}")  # noqa: S608


def _drop_unreachable(
    connection: duckdb.DuckDBPyConnection, catalog: Catalog, declared: Mapping[TableKey, StateTable]
) -> None:
    reachable = {key for entry in catalog.entries.values() for key in entry.manifest.tables}
    for key in known_tables(catalog).keys() - reachable - declared.keys():
        if _existing_columns(connection, key):
            _drop_table(connection, key)


def _replace_views(
    connection: duckdb.DuckDBPyConnection, operators: Sequence[OperatorState], declared: Mapping[TableKey, StateTable]
) -> None:
    old = connection.execute("SELECT view_name FROM duckdb_views() WHERE schema_name = 'state'").fetchall()
    for (view,) in old:
        connection.execute(f"DROP VIEW state.{quote(view)}")
    for key, name in view_names(operators).items():
        connection.execute(create_view(key, declared[key], name))
