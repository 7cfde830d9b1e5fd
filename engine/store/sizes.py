"""How much state there is at an epoch, as plain SQL over the store's tables."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
from millstream.engine.state import StateTable
from millstream.engine.store.catalog import Catalog, Query
from millstream.engine.store.columns import column_names, quote, storage_type
from millstream.engine.store.encoding import TableKey
from millstream.engine.store.types import Manifest
from millstream.engine.store.versions import live_rows, pieces_of


@dataclass(frozen=True, slots=True)
class StateSize:
    """One state table at an epoch.

    Attributes:
        rows: live rows.
        bytes: of their values, as they are; DuckDB packs them on disk.
    """

    rows: int
    bytes: int


def state_size(query: Query, catalog: Catalog, manifest: Manifest, key: TableKey, table: StateTable) -> StateSize:
    """Count the live rows of one state table at an epoch that can be restored."""
    pieces = pieces_of(catalog, manifest.generation, key)
    live = live_rows(pieces, table, str(int(manifest.epoch)), str(int(manifest.tables[key].full_from)))
    columns = zip(column_names(table), table.schema.types, strict=False)
    widths = " + ".join(_width(quote(name), storage_type(type_)) for name, type_ in columns)
    found = query(f"SELECT count(*) AS n, coalesce(sum({widths}), 0)::BIGINT AS size FROM {live}").to_pylist()[0]  # noqa: S608
    return StateSize(found["n"], found["size"])


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
