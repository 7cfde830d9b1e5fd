"""Avro schemas and Arrow types: which columns a schema has, and which schema rows have."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import pyarrow as pa
from millstream.engine.errors import JobError, SchemaError

AvroSchema: TypeAlias = Any
"""As ``json.loads`` returns it: a name, a list (a union) or a dict."""

WRAPPED: Final = "value"
"""The column of a schema that is no record."""

_PRIMITIVES: Final = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
    "enum": pa.string(),
    "fixed": pa.binary(),
}
_LOGICAL: Final = {
    ("int", "date"): pa.date32(),
    ("int", "time-millis"): pa.time32("ms"),
    ("long", "time-micros"): pa.time64("us"),
    ("long", "timestamp-millis"): pa.timestamp("ms", "UTC"),
    ("long", "timestamp-micros"): pa.timestamp("us", "UTC"),
    ("long", "timestamp-nanos"): pa.timestamp("ns", "UTC"),
    ("long", "local-timestamp-millis"): pa.timestamp("ms"),
    ("long", "local-timestamp-micros"): pa.timestamp("us"),
    ("long", "local-timestamp-nanos"): pa.timestamp("ns"),
}
_MOST_DIGITS: Final = 38
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def avro_schema(given: str | Mapping[str, Any]) -> AvroSchema:
    """Return a schema as it is written: JSON, or what JSON makes of it, or the name of a type without parts.

    Raises:
        JobError: it is none.

    >>> avro_schema("long"), avro_schema('{"type": "long"}')
    ('long', {'type': 'long'})
    """
    if isinstance(given, str) and given in _PRIMITIVES.keys() - {"enum", "fixed"}:
        return given
    try:
        schema = json.loads(given) if isinstance(given, str) else json.loads(json.dumps(given))
    except (ValueError, TypeError) as error:
        raise JobError(f"an Avro schema is a dict or JSON text; got {str(given)[:80]!r}: {error}") from None
    return schema


def is_record(schema: AvroSchema) -> bool:
    """Whether a schema has fields."""
    return isinstance(schema, dict) and schema.get("type") == "record"


def as_record(schema: AvroSchema) -> AvroSchema:
    """Return a schema that is a record: the binary form of a value is that of a record with no other field.

    >>> as_record("long")["fields"]
    [{'name': 'value', 'type': 'long'}]
    """
    if is_record(schema):
        return schema
    return {"type": "record", "name": "millstream.Wrapped", "fields": [{"name": WRAPPED, "type": schema}]}


def bare(schema: AvroSchema, decimal: str = "decimal") -> AvroSchema:
    """Return a schema without logical types other than decimals: Arrow takes the numbers themselves.

    Args:
        schema: any.
        decimal: what the logical type of decimals is called afterwards.

    >>> bare({"type": "long", "logicalType": "timestamp-millis"})
    {'type': 'long'}
    """
    if isinstance(schema, list):
        return [bare(branch, decimal) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    kept = schema.get("logicalType") == "decimal"
    out = {key: value for key, value in schema.items() if kept or key not in ("logicalType", "precision", "scale")}
    if kept:
        out["logicalType"] = decimal
    for key in ("type", "items", "values"):
        if key in out:
            out[key] = bare(out[key], decimal)
    if "fields" in out:
        out["fields"] = [{**field, "type": bare(field["type"], decimal)} for field in out["fields"]]
    return out


def expanded(schema: AvroSchema, references: tuple[AvroSchema, ...] = ()) -> AvroSchema:
    """Return a schema with its named types in full where they are referred to.

    Raises:
        SchemaError: it is no Avro schema.
    """
    import fastavro

    names: dict[str, Any] = {}
    try:
        for reference in references:
            fastavro.parse_schema(reference, named_schemas=names, expand=True, _write_hint=False)
        return fastavro.parse_schema(schema, named_schemas=names, expand=True, _write_hint=False)
    except (
        fastavro.schema.SchemaParseException,
        fastavro.schema.UnknownType,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise SchemaError(f"this is no Avro schema: {type(error).__name__}: {error}") from None


def compact(schema: AvroSchema, seen: set[str] | None = None) -> AvroSchema:
    """Undo ``expanded``: where a named type comes again, its name stands."""
    seen = set() if seen is None else seen
    if isinstance(schema, list):
        return [compact(branch, seen) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    if schema["type"] in ("record", "error", "enum", "fixed"):
        if schema["name"] in seen:
            return schema["name"]
        seen.add(schema["name"])
    out = dict(schema)
    for key in ("type", "items", "values"):
        if key in out:
            out[key] = compact(out[key], seen)
    if "fields" in out:
        out["fields"] = [{**field, "type": compact(field["type"], seen)} for field in out["fields"]]
    return out


def arrow_type(schema: AvroSchema) -> pa.DataType:
    """Return the type of a column with values of an expanded schema.

    Raises:
        SchemaError: it has none: it is a union of several types, or refers to itself.

    >>> arrow_type(["null", {"type": "array", "items": "string"}])
    ListType(list<item: string>)
    """
    if isinstance(schema, list):
        branches = [branch for branch in schema if branch != "null"]
        if len(branches) != 1:
            raise SchemaError(f"a union of {len(branches)} types has no column type")
        return arrow_type(branches[0])
    if isinstance(schema, str):
        if schema not in _PRIMITIVES:
            raise SchemaError(f"type {schema!r} contains itself, and so has no column type")
        return _PRIMITIVES[schema]
    kind = schema["type"]
    if not isinstance(kind, str):
        return arrow_type(kind)
    if kind == "array":
        return pa.list_(arrow_type(schema["items"]))
    if kind == "map":
        return pa.map_(pa.string(), arrow_type(schema["values"]))
    if kind in ("record", "error"):
        return pa.struct([pa.field(field["name"], arrow_type(field["type"])) for field in schema["fields"]])
    logical = schema.get("logicalType")
    if logical == "decimal" and kind in ("bytes", "fixed"):
        return _decimal(schema["precision"], schema.get("scale", 0))
    return _LOGICAL.get((kind, logical)) or arrow_type(kind)


def arrow_fields(schema: AvroSchema) -> dict[str, AvroSchema]:
    """Return the fields of an expanded record: name to type."""
    return {field["name"]: field["type"] for field in schema["fields"]}


def arrow_schema(schema: AvroSchema) -> pa.Schema:
    """Return the columns of an expanded record.

    Raises:
        SchemaError: a field, which it names, makes no column.
    """
    fields = []
    for name, type_ in arrow_fields(schema).items():
        try:
            fields.append(pa.field(name, arrow_type(type_)))
        except SchemaError as error:
            raise SchemaError(
                f"field {name!r} of the Avro schema: {error}; name the columns you need in schema=, without it"
            ) from None
    return pa.schema(fields)


def counted(type_: pa.DataType) -> pa.DataType:
    """Return a type with the numbers that times are made of.

    >>> counted(pa.list_(pa.date32()))
    ListType(list<item: int32>)
    """
    kind = pa.types
    if kind.is_date32(type_) or kind.is_time32(type_):
        return pa.int32()
    if kind.is_temporal(type_):
        return pa.int64()
    if kind.is_list(type_):
        return pa.list_(counted(type_.value_type))
    if kind.is_map(type_):
        return pa.map_(pa.string(), counted(type_.item_type))
    if kind.is_struct(type_):
        return pa.struct([pa.field(f.name, counted(f.type)) for f in type_])
    return type_


def avro_of(schema: pa.Schema, name: str) -> AvroSchema:
    """Return the schema of rows: a record whose fields may all be null.

    Args:
        schema: the columns.
        name: the record's name; what no name may contain becomes ``_``.

    Raises:
        SchemaError: a column, which it names, has no form in Avro.

    >>> avro_of(pa.schema({"id": pa.int64()}), "orders")["fields"]
    [{'name': 'id', 'type': ['null', 'long'], 'default': None}]
    """
    named = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return _record(list(schema), named if _NAME.fullmatch(named) else f"_{named}")


def avro_of_column(field: pa.Field, name: str) -> AvroSchema:
    """Return the schema of a column by itself, which is never null; see ``avro_of``.

    >>> avro_of_column(pa.field("id", pa.int64()), "orders")
    'long'
    """
    try:
        return _avro_type(field.type, re.sub(r"[^A-Za-z0-9_]", "_", name))
    except SchemaError as error:
        raise SchemaError(f"column {field.name!r}: {error}") from None


def _record(fields: list[pa.Field], name: str) -> AvroSchema:
    return {"type": "record", "name": name, "fields": [_field(field, name) for field in fields]}


def _field(field: pa.Field, within: str) -> AvroSchema:
    if not _NAME.fullmatch(field.name):
        raise SchemaError(
            f"Avro takes no field called {field.name!r}: names are letters, digits and _, and begin with no digit: "
            "rename the column before"
        )
    try:
        type_ = _avro_type(field.type, f"{within}_{field.name}")
    except SchemaError as error:
        raise SchemaError(f"column {field.name!r}: {error}") from None
    return {"name": field.name, "type": type_ if type_ == "null" else ["null", type_], "default": None}


def _avro_type(type_: pa.DataType, name: str) -> AvroSchema:
    kind = pa.types
    if kind.is_uint64(type_):
        return {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 0}
    if kind.is_integer(type_):
        return "long" if type_.bit_width + kind.is_unsigned_integer(type_) > 32 else "int"
    if kind.is_decimal(type_) and 0 <= type_.scale <= type_.precision <= _MOST_DIGITS:
        return {"type": "bytes", "logicalType": "decimal", "precision": type_.precision, "scale": type_.scale}
    if kind.is_timestamp(type_):
        unit = {"us": "micros", "ns": "nanos"}.get(type_.unit, "millis")
        return {"type": "long", "logicalType": f"{'' if type_.tz else 'local-'}timestamp-{unit}"}
    if kind.is_time32(type_):
        return {"type": "int", "logicalType": "time-millis"}
    if kind.is_time64(type_) and type_.unit == "us":
        return {"type": "long", "logicalType": "time-micros"}
    if kind.is_date(type_):
        return {"type": "int", "logicalType": "date"}
    if kind.is_list(type_) or kind.is_large_list(type_) or kind.is_fixed_size_list(type_):
        return {"type": "array", "items": ["null", _avro_type(type_.value_type, name)]}
    if kind.is_map(type_) and kind.is_string(type_.key_type):
        return {"type": "map", "values": ["null", _avro_type(type_.item_type, name)]}
    if kind.is_struct(type_) and type_.num_fields:
        return _record(list(type_), name)
    for is_kind, primitive in _SIMPLE:
        if is_kind(type_):
            return primitive
    raise SchemaError(f"Avro has no type for {type_}: cast it to another, or leave it out before")


_SIMPLE: Final = (
    (pa.types.is_boolean, "boolean"),
    (pa.types.is_float64, "double"),
    (pa.types.is_floating, "float"),
    (pa.types.is_string, "string"),
    (pa.types.is_large_string, "string"),
    (pa.types.is_binary, "bytes"),
    (pa.types.is_large_binary, "bytes"),
    (pa.types.is_fixed_size_binary, "bytes"),
    (pa.types.is_null, "null"),
)


def _decimal(precision: int, scale: int) -> pa.DataType:
    if precision <= _MOST_DIGITS:
        return pa.decimal128(precision, scale)
    if precision <= 2 * _MOST_DIGITS:
        return pa.decimal256(precision, scale)
    raise SchemaError(f"a decimal of {precision} digits has no column type")
