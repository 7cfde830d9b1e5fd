"""What a new generation does to the store's tables: the only place where tables are created or dropped."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import duckdb
from millstream.engine.element import Generation
from millstream.engine.state import StateTable
from millstream.engine.store.catalog import Catalog
from millstream.engine.store.columns import quote
from millstream.engine.store.encoding import TableKey
from millstream.engine.store.instance import insert_arrow
from millstream.engine.store.schema import (
    OPERATORS,
    create_state_table,
    operator_rows,
    rows_to_arrow,
    state_table_name,
    view_names,
)
from millstream.engine.store.types import OperatorState, Origin
from millstream.engine.store.versions import create_view, pieces_of, trace_origins


def declare_generation(
    connection: duckdb.DuckDBPyConnection,
    catalog: Catalog,
    generation: int,
    operators: Sequence[OperatorState],
    dropped: Mapping[str, str],
) -> Catalog:
    """Make tables and views fit the job's operators and write the generation down, inside a transaction.

    Args:
        dropped: (id, name) of operators, sources and sinks whose state is given up.

    Returns:
        The catalog with this generation; of a store with epochs, what else changes with it must be read again.

    Raises:
        StateMismatch: the last checkpoint has state that the declared columns cannot hold.
    """
    existing = _existing_tables(connection)
    kept = _generations_needed(connection, catalog, existing)
    for old in catalog.operators.keys() - kept:
        connection.execute(f"DELETE FROM operators WHERE generation = {int(old)}")  # noqa: S608
    known = _only(catalog, kept)
    origins = trace_origins(known, operators, dropped)
    _fit_tables(connection, known, existing, {(o.id, t.name): t for o in operators for t in o.tables}, origins)
    _forget_records(connection, {key for found in (*known.origins.values(), origins) for key in found})
    declared = replace(
        known,
        generation=Generation(generation),
        operators={**known.operators, generation: {o.id: o for o in operators}},
        origins={**known.origins, generation: origins},
    )
    views = connection.execute("SELECT view_name FROM duckdb_views() WHERE schema_name = 'state'").fetchall()
    for (view,) in views:
        connection.execute(f"DROP VIEW state.{quote(view)}")
    create_views(connection, declared, generation)
    rows = operator_rows(generation, operators, origins)
    if rows:
        insert_arrow(connection, "operators", rows_to_arrow(rows, OPERATORS))
    last = catalog.last.epoch if catalog.last else 0
    for id_, name in dropped.items():
        connection.execute("INSERT INTO forgotten VALUES (?, ?, ?, ?)", [generation, id_, name, last])
    connection.execute("INSERT INTO generations VALUES (?, now()::TIMESTAMP)", [generation])
    return declared


def _existing_tables(connection: duckdb.DuckDBPyConnection) -> set[str]:
    sql = "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main' AND starts_with(table_name, 'st_')"
    return {name for (name,) in connection.execute(sql).fetchall()}


def _generations_needed(connection: duckdb.DuckDBPyConnection, catalog: Catalog, existing: Collection[str]) -> set[int]:
    """The generations that committed what can be restored, and those that declared older tables it is partly in."""
    needed = {int(entry.manifest.generation) for entry in catalog.entries.values()} & catalog.origins.keys()
    for generation in sorted(needed):
        for key, origin in catalog.origins[generation].items():
            if key[1]:
                needed |= _declarers(connection, catalog, key, origin, existing)
    return needed


def _declarers(
    connection: duckdb.DuckDBPyConnection, catalog: Catalog, key: TableKey, newest: Origin, existing: Collection[str]
) -> set[int]:
    by_version: dict[int, int] = {}
    for generation, origins in sorted(catalog.origins.items()):
        origin = origins.get(key)
        if origin is not None and origin.since == newest.since and origin.version < newest.version:
            by_version[origin.version] = generation
    found = set()
    for version, generation in by_version.items():
        name = state_table_name(key, version)
        if name in existing and connection.execute(f"SELECT 1 FROM {quote(name)} LIMIT 1").fetchone():  # noqa: S608
            found.add(generation)
    return found


def _only(catalog: Catalog, generations: Collection[int]) -> Catalog:
    return replace(
        catalog,
        operators={g: o for g, o in catalog.operators.items() if g in generations},
        origins={g: o for g, o in catalog.origins.items() if g in generations},
    )


def _fit_tables(
    connection: duckdb.DuckDBPyConnection,
    known: Catalog,
    existing: Collection[str],
    declared: Mapping[TableKey, StateTable],
    origins: Mapping[TableKey, Origin],
) -> None:
    """Create the tables that are new; drop those that nothing which can be restored is in."""
    wanted = {state_table_name(key, origins[key].version): table for key, table in declared.items()}
    needed = {state_table_name(k, o.version) for found in known.origins.values() for k, o in found.items() if k[1]}
    for name in sorted(set(existing) - needed):
        connection.execute(f"DROP TABLE {quote(name)}")
    for name, table in wanted.items():
        if name not in needed:
            connection.execute(create_state_table(name, table))


def _forget_records(connection: duckdb.DuckDBPyConnection, known: Collection[TableKey]) -> None:
    """Delete what is written down of rows in tables that are gone."""
    for records in ("written", "dropped"):
        for key in connection.execute(f"SELECT DISTINCT operator, state_table FROM {records}").fetchall():  # noqa: S608
            if key not in known:
                connection.execute(f"DELETE FROM {records} WHERE operator = ? AND state_table = ?", list(key))  # noqa: S608


def create_views(connection: duckdb.DuckDBPyConnection, catalog: Catalog, generation: int) -> None:
    """Create the views of everything that the operators of a generation keep."""
    operators = catalog.operators[generation]
    for key, name in view_names(list(operators.values())).items():
        table = next(t for t in operators[key[0]].tables if t.name == key[1])
        connection.execute(create_view(pieces_of(catalog, generation, key), table, name))
