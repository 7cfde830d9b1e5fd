"""The tables of a store, in SQL. All are append-only and have no index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
from millstream.engine.errors import StoreCorrupt
from millstream.engine.state import StateKind, StateTable
from millstream.engine.store.columns import column_names, literal, quote, row_schema, sql_type, storage_type
from millstream.engine.store.encoding import TableKey
from millstream.engine.store.types import OperatorState

FORMAT: Final = 1
"""The number of this layout; a store with another one is refused."""

# operators: one row per state table; an operator without state has one row whose state_table is NULL. folders is JSON.
# manifest: the commit record; full_from is JSON by state table, for the views, and body is msgpack.
# positions, written: what manifests that have been pruned leave behind, and positions of many splits.
_COLUMNS: Final = {
    "job": "format INTEGER, job_id VARCHAR, created_at TIMESTAMP",
    "generations": "generation BIGINT, started_at TIMESTAMP",
    "operators": """generation BIGINT, operator VARCHAR, name VARCHAR, kind VARCHAR, parallelism INTEGER,
        state_table VARCHAR, state_kind VARCHAR, key_columns VARCHAR, route_by VARCHAR, arrow_schema BLOB,
        meaning VARCHAR, folders VARCHAR""",
    "manifest": """epoch BIGINT, generation BIGINT, kind VARCHAR, committed_at TIMESTAMP, rows BIGINT,
        full_from VARCHAR, body BLOB, checksum VARCHAR""",
    "positions": """epoch BIGINT, source VARCHAR, split VARCHAR, info BLOB, position BLOB, max_time BIGINT,
        finished BOOLEAN""",
    "written": "epoch BIGINT, operator VARCHAR, state_table VARCHAR, bucket BIGINT, rows BIGINT, digest VARCHAR",
    "dropped": "epoch BIGINT, operator VARCHAR, state_table VARCHAR, bucket BIGINT",
    "dead_letters": "epoch BIGINT, source VARCHAR, split VARCHAR, position VARCHAR, error VARCHAR, raw BLOB",
}
CREATE: Final = (*(f"CREATE TABLE {name} ({columns})" for name, columns in _COLUMNS.items()), "CREATE SCHEMA state")

POSITIONS: Final = pa.schema(
    {
        "epoch": pa.int64(),
        "source": pa.string(),
        "split": pa.string(),
        "info": pa.binary(),
        "position": pa.binary(),
        "max_time": pa.int64(),
        "finished": pa.bool_(),
    }
)
WRITTEN: Final = pa.schema(
    {
        "epoch": pa.int64(),
        "operator": pa.string(),
        "state_table": pa.string(),
        "bucket": pa.int64(),
        "rows": pa.int64(),
        "digest": pa.string(),
    }
)
DROPPED: Final = pa.schema(
    {"epoch": pa.int64(), "operator": pa.string(), "state_table": pa.string(), "bucket": pa.int64()}
)
DEAD_LETTERS: Final = pa.schema(
    {
        "epoch": pa.int64(),
        "source": pa.string(),
        "split": pa.string(),
        "position": pa.string(),
        "error": pa.string(),
        "raw": pa.binary(),
    }
)


def rows_to_arrow(rows: Iterable[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Return Python rows as an Arrow table of this schema."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(list(values), field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def state_table_name(key: TableKey) -> str:
    """The name, not yet quoted, of the DuckDB table that holds one state table.

    >>> state_table_name(("a1b2", "windows"))
    'st_a1b2_windows'
    """
    return f"st_{key[0]}_{key[1]}"


def state_columns(table: StateTable) -> list[tuple[str, str]]:
    """The (name, SQL type) of a state table's columns in DuckDB, ``epoch`` first."""
    types = [sql_type(storage_type(field.type)) for field in row_schema(table)]
    return [("epoch", "BIGINT"), *zip(column_names(table), types, strict=True)]


def create_state_table(key: TableKey, table: StateTable) -> str:
    """SQL that creates the table of one state table."""
    columns = ", ".join(f"{quote(name)} {type_}" for name, type_ in state_columns(table))
    return f"CREATE TABLE {quote(state_table_name(key))} ({columns})"


def view_names(operators: Sequence[OperatorState]) -> dict[TableKey, str]:
    """Name the view of each state table after its operator; add the id where two would be called the same.

    >>> table = StateTable("counts", pa.schema({"k": pa.int64()}), ("k",))
    >>> view_names([OperatorState("x1", "Count by shop", "aggregate", (table,))])
    {('x1', 'counts'): 'count_by_shop_counts'}
    """
    names: dict[TableKey, str] = {}
    for operator in operators:
        plain = "".join(c if c.isalnum() else "_" for c in operator.name.lower()).strip("_") or operator.id
        for table in operator.tables:
            name = f"{plain}_{table.name}"
            names[(operator.id, table.name)] = name if name not in names.values() else f"{name}_{operator.id}"
    return names


def create_view(key: TableKey, table: StateTable, name: str) -> str:
    """SQL of the view that shows the live rows of one state table at the last epoch."""
    columns = ", ".join(quote(c) for c in column_names(table)[: len(table.schema)])
    rows = _live_keyed(key, table) if table.kind is StateKind.KEYED else _live_rows(key, table)
    return f"CREATE VIEW state.{quote(name)} AS SELECT {columns} FROM {rows}"  # noqa: S608


def _live_keyed(key: TableKey, table: StateTable) -> str:
    name = state_table_name(key)
    path = literal('$."' + name + '"')
    oldest = f"(SELECT (full_from ->> {path})::BIGINT FROM main.manifest ORDER BY epoch DESC LIMIT 1)"  # noqa: S608
    by_name = dict(zip(table.schema.names, column_names(table), strict=False))
    keys = ", ".join(quote(by_name[k]) for k in table.keys)
    partition = f"PARTITION BY {keys} " if keys else ""
    return (
        f"(SELECT *, rowid AS written_at FROM main.{quote(name)} WHERE epoch >= {oldest} "  # noqa: S608
        f"QUALIFY row_number() OVER ({partition}ORDER BY epoch DESC, written_at DESC) = 1) WHERE NOT deleted"
    )


def _live_rows(key: TableKey, table: StateTable) -> str:
    name = quote(state_table_name(key))
    bucket = quote(bucket_column(table))
    return (
        f"main.{name} s WHERE NOT EXISTS (SELECT 1 FROM main.dropped d WHERE d.operator = {literal(key[0])} "  # noqa: S608
        f"AND d.state_table = {literal(key[1])} AND d.bucket = s.{bucket} AND d.epoch >= s.epoch)"
    )


def bucket_column(table: StateTable) -> str:
    """The name in DuckDB of the bucket column of a ROWS table."""
    return column_names(table)[bucket_index(table)]


def bucket_index(table: StateTable) -> int:
    """Which column of a ROWS table is the bucket."""
    return int(table.schema.get_field_index(table.keys[0]))


def full_from_json(full_from: Mapping[TableKey, int]) -> str:
    """The ``full_from`` column of a manifest row."""
    return json.dumps({state_table_name(key): epoch for key, epoch in full_from.items()})


def operator_rows(generation: int, operators: Sequence[OperatorState]) -> list[list[Any]]:
    """The rows of ``operators`` for one generation."""
    rows: list[list[Any]] = []
    for operator in operators:
        head = [generation, operator.id, operator.name, operator.kind, operator.parallelism]
        tail = [operator.meaning, json.dumps(operator.folders)]
        for table in operator.tables:
            keys, route = json.dumps(table.keys), json.dumps(table.route_by)
            schema = table.schema.serialize().to_pybytes()
            rows.append([*head, table.name, table.kind.value, keys, route, schema, *tail])
        if not operator.tables:
            rows.append([*head, None, None, None, None, None, *tail])
    return rows


def operators_from_rows(rows: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, OperatorState]]:
    """The operators of each generation, by id, from the rows of ``operators`` in order."""
    generations: dict[int, dict[str, OperatorState]] = {}
    for row in rows:
        operators = generations.setdefault(row["generation"], {})
        before = operators.get(row["operator"])
        tables = before.tables if before else ()
        if row["state_table"] is not None:
            tables = (*tables, _state_table(row))
        operators[row["operator"]] = OperatorState(
            id=row["operator"],
            name=row["name"],
            kind=row["kind"],
            tables=tables,
            parallelism=row["parallelism"],
            meaning=row["meaning"],
            folders=tuple(json.loads(row["folders"])),
        )
    return generations


def _state_table(row: Mapping[str, Any]) -> StateTable:
    try:
        return StateTable(
            name=row["state_table"],
            schema=pa.ipc.read_schema(pa.py_buffer(row["arrow_schema"])),
            keys=tuple(json.loads(row["key_columns"])),
            route_by=tuple(json.loads(row["route_by"])),
            kind=StateKind(row["state_kind"]),
        )
    except (pa.ArrowInvalid, ValueError, TypeError) as error:
        raise StoreCorrupt(
            f"the declaration of state {row['state_table']!r} of {row['name']!r} cannot be read ({error}): restore "
            f"the store from a backup"
        ) from error
