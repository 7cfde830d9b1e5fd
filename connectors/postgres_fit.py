"""Which Arrow types go into which columns of PostgreSQL so that no value is lost, and what table is made for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa
from millstream.connectors.postgres_catalog import Column, TableFacts, named
from millstream.engine.errors import SchemaError
from millstream.engine.store.columns import quote

_INTEGER_DIGITS: Final = {8: 3, 16: 5, 32: 10, 64: 20}
_SIGNED: Final = {"int2": 16, "int4": 32, "int8": 64}
_TEXTS: Final = frozenset({"text", "varchar", "bpchar", "citext", "uuid", "json", "jsonb", "enum"})
_LOOSE: Final = frozenset({"bpchar", "citext", "json", "jsonb"})
_OWN: Final = {
    "int8": "bigint",
    "int4": "integer",
    "int2": "smallint",
    "float8": "double precision",
    "float4": "real",
    "bool": "boolean",
    "timestamptz": "timestamp with time zone",
    "timestamp": "timestamp",
}


def is_string(type_: pa.DataType) -> bool:
    """Whether values are text."""
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def is_list(type_: pa.DataType) -> bool:
    """Whether values are lists."""
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_))


def _is_binary(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_)
    ) and not pa.types.is_decimal(type_)


def best_type(type_: pa.DataType, column: str) -> str:
    """Return the type of a column made for values of an Arrow type, in SQL.

    Raises:
        SchemaError: there is none that keeps every value.

    >>> best_type(pa.uint32(), "n"), best_type(pa.list_(pa.string()), "tags")
    ('bigint', 'text[]')
    """
    if is_list(type_):
        return best_type(type_.value_type, column) + "[]"
    if pa.types.is_decimal(type_):
        return f"numeric({type_.precision},{type_.scale})" if type_.scale >= 0 else "numeric"
    for name in ("int2", "int4", "int8", "float4", "float8", "bool", "text", "bytea", "date", "time"):
        if fits_type(type_, Column(column, name, -1, name, False, True, False, ())):
            return _OWN.get(name, name)
    if pa.types.is_uint64(type_):
        return "numeric(20,0)"
    if pa.types.is_timestamp(type_):
        return _OWN["timestamp" if type_.tz is None else "timestamptz"]
    if pa.types.is_duration(type_):
        return "interval"
    raise SchemaError(
        f"column {column!r} is {type_}, for which PostgreSQL has no type: leave it out, or make a text, number or list "
        "of these of it before"
    )


def fits_type(type_: pa.DataType, column: Column) -> bool:
    """Whether every value of an Arrow type can be kept in a column, or one that cannot is found before it is sent.

    >>> fits_type(pa.int64(), Column("n", "int4", -1, "integer", False, True, False, ()))
    False
    """
    own = column.type
    if is_list(type_):
        item = Column(column.name, own[1:], column.modifier, column.declared, False, True, False, ())
        return own.startswith("_") and not is_list(type_.value_type) and fits_type(type_.value_type, item)
    if pa.types.is_integer(type_):
        return _integer_fits(type_, column)
    if pa.types.is_decimal(type_):
        return own == "numeric" and _digits_fit(type_.precision - type_.scale, type_.scale, column)
    if pa.types.is_floating(type_):
        return own == "float8" or (own == "float4" and type_.bit_width <= 32)
    if pa.types.is_timestamp(type_):
        return own == "timestamptz" or (own == "timestamp" and type_.tz is None)
    if pa.types.is_boolean(type_):
        return own == "bool"
    if is_string(type_):
        return own in _TEXTS
    if _is_binary(type_):
        return own == "bytea"
    if pa.types.is_date(type_):
        return own == "date"
    if pa.types.is_time(type_):
        return own == "time"
    return bool(pa.types.is_duration(type_)) and own == "interval"


def _integer_fits(type_: pa.DataType, column: Column) -> bool:
    if column.type == "numeric":
        return _digits_fit(_INTEGER_DIGITS[type_.bit_width], 0, column)
    width = _SIGNED.get(column.type, 0)
    return bool(type_.bit_width < width or (type_.bit_width == width and pa.types.is_signed_integer(type_)))


def _digits_fit(whole: int, scale: int, column: Column) -> bool:
    if column.digits is None:
        return True
    precision, kept = column.digits
    return precision - kept >= whole and kept >= scale


def check_fit(name: str, schema: pa.Schema, facts: TableFacts, keys: Sequence[str]) -> None:
    """Check a table before the first row is written to it.

    Raises:
        SchemaError: it lacks a column, a type does not fit, a column that must be given is not, or rows are not unique
            by their keys.
    """
    for field in schema:
        column = facts.column(field.name)
        if column is None:
            raise SchemaError(f"{name}: {facts.place} has no column {field.name!r}, but: {named(facts.columns)}")
        if column.computed:
            raise SchemaError(
                f"{name}: the server itself computes {field.name!r} of {facts.place}: leave it out before"
            )
        if not fits_type(field.type, column):
            raise SchemaError(
                f"{name}: column {field.name!r} is {field.type}, which does not go into {column.declared} of "
                f"{facts.place} without loss; cast it before, or make the column {best_type(field.type, field.name)}"
            )
    for key in keys:
        column = facts.column(key)
        if column is not None and column.type in _LOOSE:
            raise SchemaError(
                f"{name}: key {key!r} is {column.declared} in {facts.place}, where texts that differ may be equal; "
                "make it text or varchar"
            )
    missing = [c for c in facts.columns if c.not_null and not c.optional and c.name not in schema.names]
    if missing:
        raise SchemaError(f"{name}: {facts.place} cannot do without {named(missing)}, which these rows do not have")
    if keys and frozenset(keys) not in facts.unique:
        columns = ", ".join(quote(key) for key in keys)
        raise SchemaError(
            f"{name}: upserts need an index that makes rows of {facts.place} unique by exactly {', '.join(keys)}: "
            f"CREATE UNIQUE INDEX ON {facts.place} ({columns})"
        )


def create_statement(table: str, schema: pa.Schema, keys: Sequence[str]) -> bytes:
    """Return the SQL that makes a table for rows of a schema, if it is not there.

    >>> create_statement('"orders"', pa.schema({"id": pa.int64(), "at": pa.timestamp("us")}), ["id"]).decode()
    'CREATE TABLE IF NOT EXISTS "orders" ("id" bigint, "at" timestamp, PRIMARY KEY ("id"))'
    """
    parts = [f"{quote(field.name)} {best_type(field.type, field.name)}" for field in schema]
    if keys:
        parts.append(f"PRIMARY KEY ({', '.join(quote(key) for key in keys)})")
    return f"CREATE TABLE IF NOT EXISTS {table} ({', '.join(parts)})".encode()
