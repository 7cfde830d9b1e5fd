"""Protobuf to Arrow and back, many messages at a time, with Google's library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from millstream.connectors.protobuf_types import Form, form_of, getter, has_default, protobuf_driver
from millstream.connectors.reading_plan import empty_batch, failing
from millstream.engine.errors import DataError, SchemaError

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor


def columns_of(message: Descriptor) -> pa.Schema:
    """Return the columns of a message.

    Raises:
        SchemaError: a field, which it names, makes no column.
    """
    fields = []
    for field in message.fields:
        try:
            fields.append(pa.field(field.name, form_of(field, (message.full_name,)).type))
        except SchemaError as error:
            raise SchemaError(
                f"field {field.name!r} of {message.full_name}: {error}; name the columns you need in schema=, "
                "without it"
            ) from None
    return pa.schema(fields)


class ProtobufMessages:
    """Decodes values that are a message of one type each. A column is the field of its name; others are null.

    A field that is absent is null, unless its absence is a value, as that of a number of proto3 is 0.

    Args:
        columns: the schema to decode into.
        message: the type.

    Raises:
        SchemaError: such messages make no such columns.

    >>> from google.protobuf.wrappers_pb2 import Int64Value
    >>> decoder = ProtobufMessages(pa.schema({"value": pa.int64()}), Int64Value.DESCRIPTOR)
    >>> rows, bad = decoder.decode([Int64Value(value=7).SerializeToString(), b"\\xff"])
    >>> rows.to_pylist(), list(bad)
    ([{'value': 7}], [1])
    """

    def __init__(self, columns: pa.Schema, message: Descriptor) -> None:
        self._schema = columns
        self._parse = _class_of(message).FromString
        fields = message.fields_by_name
        if not set(columns.names) & set(fields):
            raise SchemaError(
                f"{message.full_name} has none of the columns {', '.join(columns.names)}, but: {', '.join(fields)}"
            )
        self._columns: list[tuple[Any, pa.DataType | None, pa.DataType]] = []
        for column in columns:
            if column.name not in fields:
                self._columns.append((None, None, column.type))
                continue
            form = form_of(fields[column.name], (message.full_name,))
            _must_cast(column, form.type)
            self._columns.append((getter(fields[column.name], form), form.type, column.type))

    def decode(self, values: Sequence[bytes]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """As ``MessageDecoder.decode``."""
        from google.protobuf.message import DecodeError

        messages: list[Any] = []
        places: list[int] = []
        bad: dict[int, str] = {}
        for place, value in enumerate(values):
            try:
                messages.append(self._parse(value))
                places.append(place)
            except (DecodeError, ValueError, RecursionError) as error:
                bad[place] = f"this is not Protobuf of its schema: {error}"
        batches, unfit = failing(len(messages), lambda start, end: self._batch(messages[start:end]))
        bad |= {places[index]: problem for index, problem in unfit.items()}
        return (pa.concat_batches(batches) if batches else empty_batch(self._schema)), bad

    def _batch(self, messages: Sequence[Any]) -> pa.RecordBatch:
        arrays = []
        for get, decoded, wanted in self._columns:
            if decoded is None:
                arrays.append(pa.nulls(len(messages), wanted))
                continue
            array = pa.array(list(map(get, messages)), decoded)
            arrays.append(array if decoded == wanted else array.cast(wanted))
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)


class ProtobufValues:
    """Encodes rows as messages of one type, the bytes of equal rows being equal.

    Args:
        message: the type.
        columns: of the rows; each is the field of its name.
        prefix: what all values begin with.

    Raises:
        SchemaError: rows make no such messages.
    """

    def __init__(self, message: Descriptor, columns: pa.Schema, prefix: bytes = b"") -> None:
        fields = message.fields_by_name
        unknown = [name for name in columns.names if name not in fields]
        if unknown:
            raise SchemaError(
                f"{message.full_name} has no field {', '.join(map(repr, unknown))}, but: {', '.join(fields)}; drop "
                "such columns before, or rename them"
            )
        self._class = _class_of(message)
        self._prefix = prefix
        self._forms: dict[str, Form] = {name: form_of(fields[name], (message.full_name,)) for name in columns.names}
        self._never_null = {name for name in columns.names if has_default(fields[name])}

    def encode(self, rows: pa.Table) -> pa.Array:
        """Return the bytes of each row. Raises DataError if a row does not fit the type."""
        from google.protobuf.message import EncodeError

        names = rows.column_names
        columns = [self._values(name, rows[name]) for name in names]
        out: list[bytes] = []
        for values in zip(*columns, strict=True):
            row = {name: value for name, value in zip(names, values, strict=True) if value is not None}
            try:
                out.append(self._prefix + self._class(**row).SerializeToString(deterministic=True))
            except (ValueError, TypeError, EncodeError) as error:
                text = str(row)[:200]
                raise DataError(f"a row does not fit the Protobuf schema: {error}; the row is {text}") from None
        return pa.array(out, pa.binary())

    def _values(self, name: str, column: pa.ChunkedArray) -> list[Any]:
        form = self._forms[name]
        if column.null_count and name in self._never_null:
            raise DataError(
                f"column {name!r} has nulls, and in the Protobuf schema its absence is a value: make the field "
                "optional, or fill the nulls before"
            )
        try:
            fits = column.cast(form.type)
            values = (fits if form.counted == form.type else fits.cast(form.counted)).to_pylist()
            write = form.write
            return values if write is None else [value if value is None else write(value) for value in values]
        except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
            raise DataError(f"column {name!r} does not fit the Protobuf schema, as {form.type}: {error}") from None


def _class_of(message: Descriptor) -> Any:
    protobuf_driver()
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(message)


def _must_cast(column: pa.Field, decoded: pa.DataType) -> None:
    try:
        pa.nulls(0, decoded).cast(column.type)
    except pa.ArrowException as error:
        raise SchemaError(
            f"column {column.name!r} is declared {column.type}, and written as {decoded}: {error}"
        ) from None
