"""Avro to Arrow and back, many messages at a time, with fastavro."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

import pyarrow as pa
from millstream.connectors.avro_bounds import DECIMAL, AvroBounds, read_decimals
from millstream.connectors.avro_types import (
    WRAPPED,
    AvroSchema,
    arrow_fields,
    arrow_schema,
    arrow_type,
    as_record,
    bare,
    compact,
    counted,
    expanded,
)
from millstream.connectors.reading_plan import empty_batch, failing
from millstream.engine.errors import DataError, JobError, SchemaError

_SHARE_BYTES: Final = 4_000_000


def avro_driver() -> Any:
    """Import fastavro. Raises JobError if it is not installed."""
    try:
        import fastavro
    except ImportError as error:
        raise JobError(
            f"Avro needs fastavro, which cannot be loaded ({error}): pip install 'millstream[kafka-schemas]'"
        ) from None
    return fastavro


class AvroMessages:
    """Decodes values that were all written with one schema.

    A column is the field of its name. With a reader's schema, fields are resolved as Avro has it: by aliases, with
    defaults, numbers widened. Without one, columns that the writer does not have are null.

    Args:
        columns: the schema to decode into.
        writer: the schema that values were written with.
        reader: the schema to read them as; None: the writer's.
        references: the named types that the writer's schema is made of.

    Raises:
        SchemaError: values of the writer make no such columns.

    >>> schema = {"type": "record", "name": "N", "fields": [{"name": "n", "type": "int"}]}
    >>> rows, bad = AvroMessages(pa.schema({"n": pa.int64()}), schema).decode([b"\\x02", b"\\x01\\x01"])
    >>> rows.to_pylist(), bad
    ([{'n': 1}], {1: 'this is not Avro of its schema: 1 bytes are left over'})
    """

    def __init__(
        self,
        columns: pa.Schema,
        writer: AvroSchema,
        reader: AvroSchema | None = None,
        references: tuple[AvroSchema, ...] = (),
    ) -> None:
        self._schema = columns
        writer = as_record(writer)
        written = expanded(writer, references)
        read = written if reader is None else expanded(as_record(reader))
        names: dict[str, AvroSchema] = {}
        self._writer = _parsed(writer, references, names, DECIMAL)
        bounds = AvroBounds(self._writer, names)
        self._bounds = bounds if bounds.needed else None
        read_decimals()
        self._reader = None if reader is None and columns.names == list(arrow_fields(written)) else _part(read, columns)
        fields = arrow_fields(read)
        types = {name: _decoded_as(name, read, written) for name in columns.names if name in fields}
        if not types:
            raise SchemaError(f"it has none of the columns {', '.join(columns.names)}, but: {', '.join(fields)}")
        self._columns = [(itemgetter(field.name), types.get(field.name), field.type) for field in columns]
        self._try()

    def decode(self, values: Sequence[bytes]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """As ``MessageDecoder.decode``."""
        batches: list[pa.RecordBatch] = []
        bad: dict[int, str] = {}
        for start, end in _shares(values):
            unfit = self._decode(values[start:end], batches)
            bad |= {start + place: problem for place, problem in unfit.items()}
        return (pa.concat_batches(batches) if batches else empty_batch(self._schema)), bad

    def _decode(self, values: Sequence[bytes], batches: list[pa.RecordBatch]) -> dict[int, str]:
        """Add the rows of the good values to batches, and say what is wrong with the others."""
        read = avro_driver().schemaless_reader
        rows: list[Any] = []
        places: list[int] = []
        bad: dict[int, str] = {}
        for place, value in enumerate(values):
            stream = io.BytesIO(value)
            try:
                if self._bounds is not None:
                    self._bounds.check(value)
                row = read(stream, self._writer, self._reader)
            except Exception as error:
                bad[place] = f"this is not Avro of its schema: {type(error).__name__}: {error}"
                continue
            if stream.tell() != len(value):
                bad[place] = f"this is not Avro of its schema: {len(value) - stream.tell()} bytes are left over"
                continue
            rows.append(row)
            places.append(place)
        found, unfit = failing(len(rows), lambda start, end: self._batch(rows[start:end]))
        batches += found
        return bad | {places[index]: problem for index, problem in unfit.items()}

    def _batch(self, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
        arrays = []
        for getter, decoded, wanted in self._columns:
            if decoded is None:
                arrays.append(pa.nulls(len(rows), wanted))
                continue
            array = pa.array(list(map(getter, rows)), decoded)
            arrays.append(array if decoded == wanted else array.cast(wanted))
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _try(self) -> None:
        """Find out whether types can be cast at all."""
        for field, (_, decoded, wanted) in zip(self._schema, self._columns, strict=True):
            try:
                if decoded is not None:
                    pa.nulls(0, decoded).cast(wanted)
            except pa.ArrowException as error:
                raise SchemaError(
                    f"column {field.name!r} is declared {wanted}, and written as {decoded}: {error}"
                ) from None


class AvroValues:
    """Encodes rows, the bytes of equal rows being equal.

    Args:
        schema: what is written, a record.
        columns: of the rows. Each is the field of its name; other fields have defaults.
        references: the named types that it is made of.
        prefix: what all values begin with.

    Raises:
        SchemaError: rows do not make such records.

    >>> schema = {"type": "record", "name": "N", "fields": [{"name": "n", "type": "int"}]}
    >>> AvroValues(schema, pa.schema({"n": pa.int64()})).encode(pa.table({"n": [1, -1]})).to_pylist()
    [b'\\x02', b'\\x01']
    """

    def __init__(
        self, schema: AvroSchema, columns: pa.Schema, references: tuple[AvroSchema, ...] = (), prefix: bytes = b""
    ) -> None:
        self._prefix = prefix
        record = expanded(as_record(schema), references)
        fields = arrow_fields(record)
        unknown = [name for name in columns.names if name not in fields]
        if unknown:
            raise SchemaError(
                f"the Avro schema has no field {', '.join(map(repr, unknown))}, but: {', '.join(fields)}; drop such "
                "columns before, or rename them"
            )
        lacking = [f["name"] for f in record["fields"] if f["name"] not in columns.names and "default" not in f]
        if lacking:
            raise SchemaError(
                f"rows have no column {', '.join(map(repr, lacking))}, and the Avro schema no default for it"
            )
        wanted = arrow_schema({"fields": [f for f in record["fields"] if f["name"] in columns.names]})
        self._types = {field.name: field.type for field in wanted}
        self._parsed = _parsed(as_record(schema), references)

    def encode(self, rows: pa.Table) -> pa.Array:
        """Return the bytes of each row. Raises DataError if a row does not fit the schema."""
        fields = [(name, self._fit(name, rows[name])) for name in rows.column_names]
        write = avro_driver().schemaless_writer
        out: list[bytes] = []
        stream = io.BytesIO(self._prefix)
        start = len(self._prefix)
        for row in pa.table(dict(fields)).to_pylist(maps_as_pydicts="strict"):
            stream.seek(start)
            stream.truncate()
            try:
                write(stream, self._parsed, row)
            except (ValueError, TypeError, KeyError, OverflowError, AttributeError, IndexError) as error:
                raise DataError(f"a row does not fit the Avro schema: {error}; the row is {str(row)[:200]}") from None
            out.append(stream.getvalue())
        return pa.array(out, pa.binary())

    def _fit(self, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        type_ = self._types[name]
        try:
            fits = column.cast(type_)
            return fits if counted(type_) == type_ else fits.cast(counted(type_))
        except pa.ArrowException as error:
            raise DataError(f"column {name!r} does not fit the Avro schema, where it is {type_}: {error}") from None


class LoneAvroValues:
    """Encodes one column, whatever it is called, as a schema that is no record. Raises SchemaError if there are more.

    >>> LoneAvroValues("long", pa.schema({"n": pa.int64()})).encode(pa.table({"n": [1, -1]})).to_pylist()
    [b'\\x02', b'\\x01']
    """

    def __init__(
        self, schema: AvroSchema, columns: pa.Schema, references: tuple[AvroSchema, ...] = (), prefix: bytes = b""
    ) -> None:
        if len(columns) != 1:
            raise SchemaError(f"the Avro schema is no record, and takes one column, not {', '.join(columns.names)}")
        self._values = AvroValues(schema, pa.schema([columns.field(0).with_name(WRAPPED)]), references, prefix)

    def encode(self, rows: pa.Table) -> pa.Array:
        """As ``AvroValues.encode``."""
        return self._values.encode(rows.rename_columns([WRAPPED]))


def _shares(values: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Cut values into shares of some megabytes: as Python's objects they take many times that.

    >>> list(_shares([b"", bytes(5_000_000), b"", bytes(4_000_000), b"x"]))
    [(0, 2), (2, 4), (4, 5)]
    """
    start = size = 0
    for place, value in enumerate(values):
        size += len(value)
        if size >= _SHARE_BYTES:
            yield start, place + 1
            start, size = place + 1, 0
    if start < len(values):
        yield start, len(values)


def _parsed(
    schema: AvroSchema,
    references: tuple[AvroSchema, ...],
    names: dict[str, AvroSchema] | None = None,
    decimal: str = "decimal",
) -> AvroSchema:
    """Parse a schema, and add the named types that it is made of."""
    fastavro = avro_driver()
    names = {} if names is None else names
    for reference in references:
        fastavro.parse_schema(bare(reference, decimal), named_schemas=names)
    return fastavro.parse_schema(bare(schema, decimal), named_schemas=names)


def _part(record: AvroSchema, columns: pa.Schema) -> AvroSchema:
    """Return an expanded record with only these fields: others are passed over, not decoded."""
    fields = [field for field in record["fields"] if field["name"] in columns.names]
    return avro_driver().parse_schema(bare(compact({**record, "fields": fields}), DECIMAL))


def _decoded_as(name: str, read: AvroSchema, written: AvroSchema) -> pa.DataType:
    """Return the type of the values of a field.

    Values keep the writer's unit where both schemas have the same numbers and say different things of them.
    """
    type_ = arrow_fields(read)[name]
    names = {name, *next(field.get("aliases", ()) for field in read["fields"] if field["name"] == name)}
    for other, of_writer in arrow_fields(written).items():
        if other in names:
            try:
                found = arrow_type(of_writer)
            except SchemaError:
                break
            return found if counted(found) == counted(arrow_type(type_)) else arrow_type(type_)
    return arrow_type(type_)
