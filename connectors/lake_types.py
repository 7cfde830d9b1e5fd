"""Which Arrow types tables of a data lake keep, and whether rows go into a table without loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from millstream.connectors.outbox import plain_schema
from millstream.engine.changelog import WEIGHT, is_changelog, unweighted
from millstream.engine.errors import DataError, SchemaError

_MOST_DIGITS: Final = 38
_DIGITS: Final = {8: 3, 16: 5, 32: 10, 64: 19}


@dataclass(frozen=True, slots=True)
class Format:
    """A table format, and where its types differ from those of the others.

    Attributes:
        smallest: the width of its narrowest integer, in bits.
        times: whether it has a time of day.
        forbidden: characters that a column's name must not contain.
    """

    name: str
    smallest: int
    times: bool
    forbidden: str = ""


DELTA: Final = Format("Delta Lake", 8, times=False, forbidden=" ,;{}()\n\t=")
ICEBERG: Final = Format("Iceberg", 32, times=True)


def stored_as(type_: pa.DataType, format_: Format) -> pa.DataType:
    """Return the type in which a format keeps every value of a type; nanoseconds are tried value by value.

    Raises:
        SchemaError: it has none.

    >>> stored_as(pa.uint32(), DELTA), stored_as(pa.int8(), ICEBERG)
    (DataType(int64), DataType(int32))
    >>> stored_as(pa.uint64(), DELTA), stored_as(pa.timestamp("ms", "Asia/Tokyo"), DELTA)
    (Decimal128Type(decimal128(20, 0)), TimestampType(timestamp[us, tz=UTC]))
    """
    kind = pa.types
    if kind.is_integer(type_):
        return _stored_integer(type_, format_)
    if kind.is_decimal(type_) and type_.precision <= _MOST_DIGITS and type_.scale >= 0:
        return pa.decimal128(type_.precision, type_.scale)
    if kind.is_timestamp(type_):
        return pa.timestamp("us", type_.tz and "UTC")
    if kind.is_time(type_) and format_.times:
        return pa.time64("us")
    if _is_list(type_):
        return pa.list_(stored_as(type_.value_type, format_))
    if kind.is_map(type_):
        return pa.map_(stored_as(type_.key_type, format_), stored_as(type_.item_type, format_))
    if kind.is_struct(type_) and type_.num_fields:
        return pa.struct([pa.field(f.name, stored_as(f.type, format_)) for f in type_])
    for is_kind, stored in _SIMPLE:
        if is_kind(type_):
            return stored
    raise SchemaError(f"{format_.name} has no type for {type_}")


_SIMPLE: Final[tuple[tuple[Callable[[pa.DataType], bool], pa.DataType], ...]] = (
    (pa.types.is_boolean, pa.bool_()),
    (pa.types.is_float64, pa.float64()),
    (pa.types.is_floating, pa.float32()),
    (pa.types.is_string, pa.string()),
    (pa.types.is_large_string, pa.string()),
    (pa.types.is_string_view, pa.string()),
    (pa.types.is_binary, pa.binary()),
    (pa.types.is_large_binary, pa.binary()),
    (pa.types.is_binary_view, pa.binary()),
    (pa.types.is_fixed_size_binary, pa.binary()),
    (pa.types.is_date, pa.date32()),
)


def _stored_integer(type_: pa.DataType, format_: Format) -> pa.DataType:
    width = type_.bit_width if pa.types.is_signed_integer(type_) else 2 * type_.bit_width
    if width > 64:
        return pa.decimal128(20, 0)
    return {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[max(width, format_.smallest)]


def _is_list(type_: pa.DataType) -> bool:
    kind = pa.types
    return bool(
        kind.is_list(type_)
        or kind.is_large_list(type_)
        or kind.is_fixed_size_list(type_)
        or kind.is_list_view(type_)
        or kind.is_large_list_view(type_)
    )


def stored_schema(name: str, schema: pa.Schema, format_: Format) -> pa.Schema:
    """Return the schema of a table for such rows.

    Raises:
        SchemaError: there can be none; ``name`` is the sink's.
    """
    fields: list[pa.Field] = []
    for field in plain_schema(unweighted(schema)):
        bad = sorted(set(field.name) & set(format_.forbidden))
        if bad or not field.name:
            raise SchemaError(
                f"{name}: {format_.name} does not take {field.name!r} as the name of a column"
                f"{f' because of {bad[0]!r}' if bad else ''}: rename it before"
            )
        if field.name.lower() in {other.name.lower() for other in fields}:
            raise SchemaError(
                f"{name}: many readers of {format_.name} take no difference between upper and lower case, and two "
                f"columns are called {field.name.lower()!r}: rename one of them before"
            )
        try:
            fields.append(pa.field(field.name, stored_as(field.type, format_)))
        except SchemaError as error:
            raise SchemaError(
                f"{name}: column {field.name!r}: {error}: leave it out before, or make another type of it"
            ) from None
    return pa.schema(fields)


def keeps(into: pa.DataType, type_: pa.DataType) -> bool:
    """Whether a table's column keeps every value of a type that its format has.

    >>> keeps(pa.int64(), pa.int32()), keeps(pa.int32(), pa.int64()), keeps(pa.float64(), pa.float32())
    (True, False, True)
    >>> keeps(pa.decimal128(19, 0), pa.int64()), keeps(pa.decimal128(20, 4), pa.decimal128(18, 2))
    (True, True)
    """
    kind = pa.types
    if kind.is_decimal(into) and (kind.is_decimal(type_) or kind.is_signed_integer(type_)):
        whole, scale = (
            (type_.precision - type_.scale, type_.scale) if kind.is_decimal(type_) else (_DIGITS[type_.bit_width], 0)
        )
        return bool(into.scale >= scale and into.precision - into.scale >= whole)
    if kind.is_signed_integer(into) and kind.is_signed_integer(type_):
        return bool(into.bit_width >= type_.bit_width)
    if kind.is_floating(into) and kind.is_floating(type_):
        return bool(into.bit_width >= type_.bit_width)
    if _is_list(into) and _is_list(type_):
        return keeps(into.value_type, type_.value_type)
    if kind.is_map(into) and kind.is_map(type_):
        return keeps(into.key_type, type_.key_type) and keeps(into.item_type, type_.item_type)
    if kind.is_struct(into) and kind.is_struct(type_):
        return [f.name for f in into] == [f.name for f in type_] and all(
            keeps(a.type, b.type) for a, b in zip(into, type_, strict=True)
        )
    if kind.is_timestamp(into) and kind.is_timestamp(type_):
        return (into.tz is None) == (type_.tz is None)
    return any(is_kind(into) and is_kind(type_) for is_kind in _SAME)


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _is_bytes(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_))


_SAME: Final[tuple[Callable[[pa.DataType], bool], ...]] = (
    pa.types.is_boolean,
    _is_text,
    _is_bytes,
    pa.types.is_date32,
    pa.types.is_time64,
)


@dataclass(frozen=True, slots=True)
class Fit:
    """How rows go into a table; made by ``fit``.

    Attributes:
        columns: the table's columns that rows have, in the rows' order, with the table's types.
    """

    name: str
    columns: pa.Schema

    def admit(self, rows: pa.Table) -> pa.Table:
        """Return rows as the table takes them. Raises DataError if a value would be changed or must not be missing."""
        for column in self.columns:
            if not column.nullable and rows[column.name].null_count:
                raise DataError(f"{self.name}: a row has no value in {column.name!r}, which the table demands")
        return self.cast(rows)

    def cast(self, rows: pa.Table) -> pa.Table:
        """Return rows in the table's types. Raises DataError if a value would be changed."""
        fields = [field.with_nullable(True) for field in self.columns]
        if is_changelog(rows.schema):
            fields.append(rows.schema.field(WEIGHT))
        columns = []
        for field in fields:
            try:
                columns.append(rows[field.name].cast(field.type))
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"{self.name}: a value of column {field.name!r} does not go into {field.type} without loss "
                    f"({error}); make it fit before"
                ) from None
        return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def fit(name: str, rows: pa.Schema, table: pa.Schema, place: str) -> Fit:
    """Compare what rows are stored as with the schema of a table.

    Args:
        rows: from ``stored_schema``.

    Raises:
        SchemaError: the table lacks a column, a type does not fit, a column that must be given is not.
    """
    for field in rows:
        if field.name not in table.names:
            raise SchemaError(f"{name}: {place} has no column {field.name!r}, but: {', '.join(table.names)}")
        into = table.field(field.name).type
        if not keeps(into, field.type):
            raise SchemaError(
                f"{name}: column {field.name!r} is stored as {field.type}, which does not go into {into} of {place} "
                "without loss; cast it before, or change the table"
            )
    missing = [field.name for field in table if not field.nullable and field.name not in rows.names]
    if missing:
        raise SchemaError(f"{name}: {place} cannot do without {', '.join(missing)}, which these rows do not have")
    return Fit(name, pa.schema([table.field(field.name) for field in rows]))


def check_still(known: Fit, table: pa.Schema, place: str) -> None:
    """Compare a table with what it was when the job started: others may have changed it.

    Raises:
        SchemaError: rows would not go into it any more, or not whole.
    """
    try:
        fit(known.name, known.columns, table, place)
    except SchemaError as error:
        raise SchemaError(
            f"{error}; the table was changed since the job started. What was to be written waits in the checkpoint: "
            "change the table back, and start the job again"
        ) from None
