"""How much state there is at an epoch, as plain SQL over the store's tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
from millstream.engine.state import StateKind, StateTable
from millstream.engine.store.columns import column_names, literal, quote, storage_type
from millstream.engine.store.encoding import TableKey
from millstream.engine.store.schema import bucket_column, state_table_name
from millstream.engine.store.types import Manifest


@dataclass(frozen=True, slots=True)
class StateSize:
    """One state table at an epoch.

    Attributes:
        rows: live rows.
        bytes: of their values, as they are; DuckDB packs them on disk.
    """

    rows: int
    bytes: int


def state_size(query: Callable[[str], pa.Table], manifest: Manifest, key: TableKey, table: StateTable) -> StateSize:
    """Count the live rows of one state table at an epoch that can be restored."""
    live = _keyed(key, table, manifest) if table.kind is StateKind.KEYED else _rows(key, table, manifest)
    columns = zip(column_names(table), table.schema.types, strict=False)
    widths = " + ".join(_width(quote(name), storage_type(type_)) for name, type_ in columns)
    found = query(f"SELECT count(*) AS n, coalesce(sum({widths}), 0)::BIGINT AS size FROM {live}").to_pylist()[0]  # noqa: S608
    return StateSize(found["n"], found["size"])


def _keyed(key: TableKey, table: StateTable, manifest: Manifest) -> str:
    by_name = dict(zip(table.schema.names, column_names(table), strict=False))
    keys = ", ".join(quote(by_name[name]) for name in table.keys)
    partition = f"PARTITION BY {keys} " if keys else ""
    oldest = manifest.tables[key].full_from
    return (
        f"(SELECT *, rowid AS written_at FROM main.{quote(state_table_name(key))} "  # noqa: S608
        f"WHERE epoch BETWEEN {int(oldest)} AND {int(manifest.epoch)} "
        f"QUALIFY row_number() OVER ({partition}ORDER BY epoch DESC, written_at DESC) = 1) WHERE NOT deleted"
    )


def _rows(key: TableKey, table: StateTable, manifest: Manifest) -> str:
    epoch = int(manifest.epoch)
    return (
        f"main.{quote(state_table_name(key))} s WHERE s.epoch <= {epoch} AND NOT EXISTS (SELECT 1 "  # noqa: S608
        f"FROM main.dropped d WHERE d.operator = {literal(key[0])} AND d.state_table = {literal(key[1])} "
        f"AND d.bucket = s.{quote(bucket_column(table))} AND d.epoch BETWEEN s.epoch AND {epoch})"
    )


def _width(column: str, type_: pa.DataType) -> str:
    """SQL for the bytes of one value; a NULL has none."""
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        size = f"strlen({column})"
    elif pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        size = f"octet_length({column})"
    elif pa.types.is_nested(type_):
        size = f"strlen({column}::VARCHAR)"
    else:
        size = f"CASE WHEN {column} IS NULL THEN 0 ELSE {max(type_.bit_width // 8, 1)} END"
    return f"coalesce({size}, 0)"
