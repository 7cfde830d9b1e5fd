"""The tables of a store, in SQL. All are append-only and have no index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
from millstream.engine.errors import StoreCorrupt
from millstream.engine.state import StateKind, StateTable
from millstream.engine.store.columns import column_names, quote, row_schema, sql_type, storage_type
from millstream.engine.store.encoding import TableKey
from millstream.engine.store.migration import pack_defaults, unpack_defaults
from millstream.engine.store.types import OperatorState, Origin

FORMAT: Final = 4
"""The number of this layout; a store with another one is refused."""

# job: parent is JSON in a copy of another job's checkpoint.
# operators: one row per state table, and one whose state_table is NULL; version and since are the Origin.
# Its folders are JSON.
# forgotten: whose state was dropped, and at which epoch. published: the last epoch that is certain to be visible.
# manifest: the commit record; full_from is JSON by state table, for the views, and body is msgpack.
# outbox: committables, as msgpack, of the last epoch, where they are too big for its manifest.
# dead_letters: named by epoch and number. Those of a source have raw bytes, a split and a position; those of an
#   operator a row, as an Arrow IPC stream in raw and once more in row_json. replay: it is to be processed again.
# positions, written: what manifests that have been pruned leave behind, and positions of many splits.
_COLUMNS: Final = {
    "job": "format INTEGER, job_id VARCHAR, created_at TIMESTAMP, parent VARCHAR",
    "generations": "generation BIGINT, started_at TIMESTAMP",
    "operators": """generation BIGINT, operator VARCHAR, name VARCHAR, kind VARCHAR, parallelism INTEGER,
        state_table VARCHAR, state_kind VARCHAR, key_columns VARCHAR, route_by VARCHAR, arrow_schema BLOB,
        defaults BLOB, meaning VARCHAR, folders VARCHAR, version INTEGER, since BIGINT""",
    "forgotten": "generation BIGINT, operator VARCHAR, name VARCHAR, epoch BIGINT",
    "published": "epoch BIGINT",
    "manifest": """epoch BIGINT, generation BIGINT, kind VARCHAR, committed_at TIMESTAMP, rows BIGINT,
        full_from VARCHAR, body BLOB, checksum VARCHAR""",
    "positions": """epoch BIGINT, source VARCHAR, split VARCHAR, info BLOB, position BLOB, max_time BIGINT,
        finished BOOLEAN""",
    "written": "epoch BIGINT, operator VARCHAR, state_table VARCHAR, bucket BIGINT, rows BIGINT, digest VARCHAR",
    "outbox": "epoch BIGINT, number BIGINT, sink VARCHAR, payload BLOB",
    "dropped": "epoch BIGINT, operator VARCHAR, state_table VARCHAR, bucket BIGINT",
    "dead_letters": """epoch BIGINT, number BIGINT, source VARCHAR, operator VARCHAR, node VARCHAR, subtask INTEGER,
        split VARCHAR, position VARCHAR, event_time TIMESTAMP, error_type VARCHAR, error VARCHAR, attempts INTEGER,
        code VARCHAR, row_json VARCHAR, raw BLOB, replay BOOLEAN""",
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
OPERATORS: Final = pa.schema(
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
        "defaults": pa.binary(),
        "meaning": pa.string(),
        "folders": pa.string(),
        "version": pa.int32(),
        "since": pa.int64(),
    }
)
DROPPED: Final = pa.schema(
    {"epoch": pa.int64(), "operator": pa.string(), "state_table": pa.string(), "bucket": pa.int64()}
)
DEAD_LETTERS: Final = pa.schema(
    {
        "epoch": pa.int64(),
        "number": pa.int64(),
        "source": pa.string(),
        "operator": pa.string(),
        "node": pa.string(),
        "subtask": pa.int32(),
        "split": pa.string(),
        "position": pa.string(),
        "event_time": pa.timestamp("us"),
        "error_type": pa.string(),
        "error": pa.string(),
        "attempts": pa.int32(),
        "code": pa.string(),
        "row_json": pa.string(),
        "raw": pa.binary(),
        "replay": pa.bool_(),
    }
)


def rows_to_arrow(rows: Iterable[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Return Python rows as an Arrow table of this schema."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(list(values), field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def state_table_name(key: TableKey, version: int = 1) -> str:
    """The name, not yet quoted, of the DuckDB table that holds (a version of) one state table.

    >>> state_table_name(("a1b2", "windows")), state_table_name(("a1b2", "windows"), 2)
    ('st_a1b2_windows', 'st_a1b2_windows_2')
    """
    return f"st_{key[0]}_{key[1]}" + (f"_{version}" if version > 1 else "")


def state_columns(table: StateTable) -> list[tuple[str, str]]:
    """The (name, SQL type) of a state table's columns in DuckDB, ``epoch`` first."""
    types = [sql_type(storage_type(field.type)) for field in row_schema(table)]
    return [("epoch", "BIGINT"), *zip(column_names(table), types, strict=True)]


def create_state_table(name: str, table: StateTable) -> str:
    """SQL that creates a table for rows of a state table."""
    columns = ", ".join(f"{quote(column)} {type_}" for column, type_ in state_columns(table))
    return f"CREATE TABLE {quote(name)} ({columns})"


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


def bucket_column(table: StateTable) -> str:
    """The name in DuckDB of the bucket column of a ROWS table."""
    return column_names(table)[bucket_index(table)]


def bucket_index(table: StateTable) -> int:
    """Which column of a ROWS table is the bucket."""
    return int(table.schema.get_field_index(table.keys[0]))


def full_from_json(full_from: Mapping[TableKey, int]) -> str:
    """The ``full_from`` column of a manifest row."""
    return json.dumps({state_table_name(key): epoch for key, epoch in full_from.items()})


def operator_rows(
    generation: int, operators: Sequence[OperatorState], origins: Mapping[TableKey, Origin]
) -> list[list[Any]]:
    """The rows of ``operators`` for one generation."""
    rows: list[list[Any]] = []
    for operator in operators:
        head = [generation, operator.id, operator.name, operator.kind, operator.parallelism]
        tail = [operator.meaning, json.dumps(operator.folders)]
        whole = origins[(operator.id, "")]
        rows.append([*head, None, None, None, None, None, None, *tail, whole.version, whole.since])
        for table in operator.tables:
            keys, route = json.dumps(table.keys), json.dumps(table.route_by)
            declared = [table.name, table.kind.value, keys, route, table.schema.serialize().to_pybytes()]
            origin = origins[(operator.id, table.name)]
            rows.append([*head, *declared, pack_defaults(table), *tail, origin.version, origin.since])
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


def origins_from_rows(rows: Iterable[Mapping[str, Any]]) -> dict[int, dict[TableKey, Origin]]:
    """Where everything comes from, by generation and (operator id, state table name or "")."""
    generations: dict[int, dict[TableKey, Origin]] = {}
    for row in rows:
        key = (row["operator"], row["state_table"] or "")
        generations.setdefault(row["generation"], {})[key] = Origin(row["version"], row["since"])
    return generations


def _state_table(row: Mapping[str, Any]) -> StateTable:
    try:
        return StateTable(
            name=row["state_table"],
            schema=pa.ipc.read_schema(pa.py_buffer(row["arrow_schema"])),
            keys=tuple(json.loads(row["key_columns"])),
            route_by=tuple(json.loads(row["route_by"])),
            kind=StateKind(row["state_kind"]),
            defaults=unpack_defaults(row["defaults"]),
        )
    except (pa.ArrowInvalid, ValueError, TypeError) as error:
        raise StoreCorrupt(
            f"the declaration of state {row['state_table']!r} of {row['name']!r} cannot be read ({error}): restore "
            f"the store from a backup"
        ) from error
