"""How a state table's Arrow columns are kept in DuckDB: every type either survives unchanged or is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import pyarrow as pa
from millstream.engine.errors import SchemaError
from millstream.engine.state import DELETED, StateKind, StateTable

EPOCH: Final = "epoch"
"""The first column of every state table: the checkpoint that wrote the row."""

_PLAIN: Final[tuple[tuple[Callable[[pa.DataType], bool], str], ...]] = (
    (pa.types.is_boolean, "BOOLEAN"),
    (pa.types.is_int8, "TINYINT"),
    (pa.types.is_int16, "SMALLINT"),
    (pa.types.is_int32, "INTEGER"),
    (pa.types.is_int64, "BIGINT"),
    (pa.types.is_uint8, "UTINYINT"),
    (pa.types.is_uint16, "USMALLINT"),
    (pa.types.is_uint32, "UINTEGER"),
    (pa.types.is_uint64, "UBIGINT"),
    (pa.types.is_float32, "FLOAT"),
    (pa.types.is_float64, "DOUBLE"),
    (pa.types.is_string, "VARCHAR"),
    (pa.types.is_large_string, "VARCHAR"),
    (pa.types.is_binary, "BLOB"),
    (pa.types.is_large_binary, "BLOB"),
    (pa.types.is_date32, "DATE"),
)
_TIMESTAMPS: Final = {"s": "TIMESTAMP_S", "ms": "TIMESTAMP_MS", "us": "TIMESTAMP", "ns": "TIMESTAMP_NS"}


def quote(identifier: str) -> str:
    """Return an SQL identifier that means exactly this name, whatever is in it.

    Raises:
        SchemaError: the name is empty or holds a NUL, which DuckDB cannot store.

    >>> quote('select'), quote('a "b"')
    ('"select"', '"a ""b""\"')
    """
    if not identifier or "\0" in identifier:
        raise SchemaError(f"{identifier!r} cannot be the name of a column or table: it is empty or holds a NUL")
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return an SQL string literal.

    >>> literal("it's")
    "'it''s'"
    """
    if "\0" in text:
        raise SchemaError(f"{text!r} cannot be written in SQL: it holds a NUL")
    return "'" + text.replace("'", "''") + "'"


def storage_type(type_: pa.DataType) -> pa.DataType:
    """Return the Arrow type in which values of ``type_`` go to DuckDB and come back, without loss.

    Time zones are metadata and are put back on reading: the instants are kept in UTC.

    Raises:
        SchemaError: DuckDB has no type that keeps every value.

    >>> storage_type(pa.timestamp("ns", "Europe/Zurich"))
    TimestampType(timestamp[ns])
    """
    if any(is_plain(type_) for is_plain, _ in _PLAIN):
        return type_
    if pa.types.is_timestamp(type_):
        return pa.timestamp(type_.unit)
    if pa.types.is_struct(type_):
        return pa.struct([pa.field(f.name, storage_type(f.type)) for f in _struct_fields(type_)])
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        return pa.list_(pa.field("item", storage_type(type_.value_type)))
    if pa.types.is_map(type_):
        return storage_type(_without_maps(type_))
    if pa.types.is_decimal(type_) and type_.precision <= 38:
        return pa.decimal128(type_.precision, type_.scale)
    return _substitute(type_)


def _substitute(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_null(type_):
        return pa.int8()
    if pa.types.is_float16(type_):
        return pa.float32()
    if pa.types.is_string_view(type_):
        return pa.large_string()
    if pa.types.is_binary_view(type_) or pa.types.is_fixed_size_binary(type_):
        return pa.large_binary()
    if pa.types.is_date64(type_):
        return pa.timestamp("ms")
    if pa.types.is_time(type_):
        return pa.int64() if type_ == pa.time64("ns") else pa.time64("us")
    if pa.types.is_duration(type_):
        return pa.int64()
    raise SchemaError(
        f"state cannot hold values of type {type_}: use numbers, text, bytes, dates, times, decimals of at most "
        f"38 digits, and lists, structs and maps of these"
    )


def _without_maps(type_: pa.DataType) -> pa.DataType:
    """Return the type with maps as lists of keys and values, of which memory looks the same; equal if it has none."""
    if pa.types.is_map(type_):
        entry = [pa.field("key", _without_maps(type_.key_type)), pa.field("value", _without_maps(type_.item_type))]
        return pa.list_(pa.struct(entry))
    if pa.types.is_struct(type_):
        fields = [type_.field(i) for i in range(type_.num_fields)]
        return pa.struct([field.with_type(_without_maps(field.type)) for field in fields])
    if pa.types.is_list(type_):
        return pa.list_(type_.value_field.with_type(_without_maps(type_.value_type)))
    if pa.types.is_large_list(type_):
        return pa.large_list(type_.value_field.with_type(_without_maps(type_.value_type)))
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(type_.value_field.with_type(_without_maps(type_.value_type)), type_.list_size)
    return type_


def _struct_fields(type_: pa.DataType) -> list[pa.Field]:
    fields = [type_.field(i) for i in range(type_.num_fields)]
    names = [field.name.lower() for field in fields]
    if not fields or "" in names or len(set(names)) < len(names):
        raise SchemaError(
            f"state cannot hold {type_}: a struct needs fields whose names differ in more than upper and lower case"
        )
    return fields


def sql_type(type_: pa.DataType) -> str:
    """Return DuckDB's name for a storage type.

    >>> sql_type(pa.list_(pa.int64()))
    'BIGINT[]'
    """
    for is_plain, name in _PLAIN:
        if is_plain(type_):
            return name
    if pa.types.is_timestamp(type_):
        return _TIMESTAMPS[type_.unit]
    if pa.types.is_time64(type_):
        return "TIME"
    if pa.types.is_decimal128(type_):
        return f"DECIMAL({type_.precision},{type_.scale})"
    if pa.types.is_list(type_):
        return sql_type(type_.value_type) + "[]"
    assert pa.types.is_struct(type_), f"{type_} is not a storage type"
    fields = [type_.field(i) for i in range(type_.num_fields)]
    return "STRUCT(" + ", ".join(f"{quote(f.name)} {sql_type(f.type)}" for f in fields) + ")"


def row_schema(table: StateTable) -> pa.Schema:
    """The schema of a delta's rows: the table's own, and ``deleted`` if it is KEYED."""
    if table.kind is StateKind.KEYED:
        return pa.schema([*table.schema, pa.field(DELETED, pa.bool_())])
    return table.schema


def column_names(table: StateTable) -> list[str]:
    """Return the names of a state table's columns in DuckDB, in order, without ``epoch``.

    DuckDB knows no upper and lower case and two names are taken, so a name may get a number.

    >>> columns = pa.schema({"Epoch": pa.int64(), "a": pa.int64(), "A": pa.int64()})
    >>> column_names(StateTable("t", columns, ("a",)))
    ['Epoch_1', 'a', 'A_1', 'deleted']
    """
    keyed = table.kind is StateKind.KEYED
    taken = {EPOCH, DELETED} if keyed else {EPOCH}
    names = []
    for wanted in table.schema.names:
        name, n = wanted, 0
        while name.lower() in taken:
            n += 1
            name = f"{wanted}_{n}"
        taken.add(name.lower())
        names.append(name)
    return [*names, DELETED] if keyed else names


def stored(column: pa.ChunkedArray | pa.Array, type_: pa.DataType) -> pa.ChunkedArray | pa.Array:
    """Return a column as it is kept: cast to its declared type (dictionaries decoded), then to the storage type."""
    declared = column if column.type == type_ else column.cast(type_)
    kept = storage_type(type_)
    return declared if declared.type == kept else declared.cast(kept)


def declared(column: pa.Array, type_: pa.DataType) -> pa.Array:
    """Return a column read from DuckDB as its declared type: the inverse of ``stored``."""
    if column.type == type_:
        return column
    if pa.types.is_null(type_):
        return pa.nulls(len(column))
    plain = _without_maps(type_)
    if plain == type_:
        return column.cast(type_, safe=False)
    return column.cast(plain, safe=False).view(type_)  # arrow casts maps to lists, and not back


def stored_table(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows by position in storage types, one chunk per column, named ``c0``, ``c1``, …

    Names are given by position since DuckDB would rename those that differ only in case.
    """
    columns = [stored(rows.column(i), field.type) for i, field in enumerate(schema)]
    return pa.Table.from_arrays(columns, names=[f"c{i}" for i in range(len(columns))]).combine_chunks()


def declared_batch(columns: Sequence[pa.Array], schema: pa.Schema) -> pa.RecordBatch:
    """Return columns read from DuckDB as a batch of the declared schema."""
    arrays = [declared(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
