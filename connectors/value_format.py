"""How a source decodes values: JSON, CSV, texts and bytes by themselves, Avro and Protobuf with their schemas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
from millstream.connectors.avro_messages import AvroMessages
from millstream.connectors.avro_types import arrow_schema, as_record, avro_schema, expanded, is_record
from millstream.connectors.csv_decoder import CsvDialect
from millstream.connectors.message_decoders import CsvMessages, JsonMessages, MessageDecoder, RawMessages
from millstream.connectors.registered_messages import RegisteredMessages
from millstream.connectors.schema_registry import Registered, Registry, UnknownSchema
from millstream.connectors.schema_values import SchemaValues
from millstream.engine.errors import JobError, SchemaError


class ValueFormat(Protocol):
    """What values are, and which columns they have."""

    @property
    def fields(self) -> pa.Schema:
        """The columns of values."""
        ...

    def decoder(self, columns: pa.Schema) -> MessageDecoder:
        """Return what decodes values into some of these columns. Raises SchemaError if they do not have them."""
        ...


@dataclass(frozen=True, slots=True)
class PlainFormat:
    """Values that say everything themselves: "json", "csv", "string" or "raw".

    Attributes:
        dialect: of CSV.
    """

    value: str
    fields: pa.Schema
    dialect: CsvDialect

    def decoder(self, columns: pa.Schema) -> MessageDecoder:
        """As ``ValueFormat.decoder``."""
        if self.value == "json":
            return JsonMessages(columns)
        if self.value == "csv":
            return CsvMessages(columns, self.fields.names, self.dialect)
        return RawMessages(columns.field(0).type)


@dataclass(frozen=True, slots=True)
class AvroFormat:
    """Avro.

    Attributes:
        registry: where writers' schemas are; None: values are not preceded by an id.
        reader: the schema to read as, or that of all values; None: as they were written.
        references: the named types it is made of.
    """

    fields: pa.Schema
    registry: Registry | None
    reader: Any
    references: tuple[Any, ...] = ()

    @property
    def lone(self) -> bool:
        """Whether what it is read as is no record, and so has no fields."""
        return self.reader is not None and not is_record(self.reader)

    def decoder(self, columns: pa.Schema) -> MessageDecoder:
        """As ``ValueFormat.decoder``."""
        registry = self.registry
        if registry is None:
            return AvroMessages(columns, self.reader)
        reader = None if self.reader is None else expanded(as_record(self.reader), self.references)

        def of_id(id_: int) -> MessageDecoder:
            found = registry.get(id_)
            return AvroMessages(columns, avro_text(found), reader, avro_references(found))

        return RegisteredMessages(columns, of_id)


def value_format(values: SchemaValues, subject: str, declared: pa.Schema | None) -> ValueFormat:
    """Return how Avro and Protobuf are decoded; if nothing else says what columns are, the latest schema is looked up.

    Args:
        values: as users ask for it.
        subject: what the registry calls the schema.
        declared: the columns, if they are known.

    Raises:
        JobError: neither a registry nor a schema is given, or a schema is none.
        SchemaError: it makes no columns, or not these.
        ExternalError: the registry is away.
    """
    message, registry = values.message, values.registry
    if registry is None and message is None:
        raise JobError(f"{values.kind}_values() needs a registry, where the schemas of messages are, or message=")
    found = None
    if registry is not None and message is None and declared is None:
        found = _latest(registry, subject, serialized=values.kind == "protobuf")
    made: ValueFormat
    if values.kind == "protobuf":
        from millstream.connectors.protobuf_format import protobuf_format

        made = protobuf_format(registry, message, found, declared)
    else:
        made = _avro_format(registry, message, found, declared)
    made.decoder(made.fields)
    return made


def _avro_format(
    registry: Registry | None, message: Any, found: Registered | None, declared: pa.Schema | None
) -> AvroFormat:
    references: tuple[Any, ...] = ()
    schema = None if message is None else avro_schema(message)
    if found is not None:
        schema, references = avro_text(found), avro_references(found)
    fields = declared or arrow_schema(expanded(as_record(schema), references))
    return AvroFormat(fields, registry, schema, references)


def _latest(registry: Registry, subject: str, *, serialized: bool) -> Registered:
    try:
        return registry.latest(subject, serialized=serialized)
    except UnknownSchema as error:
        raise JobError(
            f"{registry} has no subject {subject!r} to take the columns from ({error}): pass schema= or subject="
        ) from None


def avro_text(found: Registered) -> Any:
    """Return a registered schema. Raises SchemaError if it is not Avro."""
    if found.kind != "AVRO":
        raise SchemaError(f"it is {found.kind}, not AVRO")
    return avro_schema(found.text)


def avro_references(found: Registered) -> tuple[Any, ...]:
    """Return the schemas it is made of, those they need first."""
    return tuple(avro_schema(one.text) for one in found.references.values())
