"""How a source decodes Avro and Protobuf: with schemas of a registry, or with one that is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
from millstream.connectors.avro_messages import AvroMessages, avro_driver
from millstream.connectors.avro_types import arrow_schema, as_record, avro_schema, expanded
from millstream.connectors.message_decoders import MessageDecoder
from millstream.connectors.registered_messages import RegisteredMessages
from millstream.connectors.schema_registry import Registered, Registry, UnknownSchema, registry_of
from millstream.engine.errors import JobError, SchemaError


class ValueFormat(Protocol):
    """What values are, and which columns they have."""

    def columns(self) -> pa.Schema:
        """Return the columns of the schema that is read. Raises SchemaError if it makes none."""
        ...

    def decoder(self, columns: pa.Schema) -> MessageDecoder:
        """Return what decodes values into these columns. Raises SchemaError if the schema has no such columns."""
        ...


@dataclass(frozen=True, slots=True)
class AvroFormat:
    """Avro.

    Attributes:
        registry: where writers' schemas are; None: values are not preceded by an id.
        reader: the schema to read as, or that of all values; None: as they were written.
        references: the named types it is made of.
    """

    registry: Registry | None
    reader: Any
    references: tuple[Any, ...] = ()

    def columns(self) -> pa.Schema:
        """As ``ValueFormat.columns``."""
        return arrow_schema(expanded(as_record(self.reader), self.references))

    def decoder(self, columns: pa.Schema) -> MessageDecoder:
        """As ``ValueFormat.decoder``."""
        registry = self.registry
        if registry is None:
            return AvroMessages(columns, self.reader)
        reader = self.reader and expanded(as_record(self.reader), self.references)

        def of_id(id_: int) -> MessageDecoder:
            found = registry.get(id_)
            return AvroMessages(columns, avro_text(found), reader, avro_references(found))

        return RegisteredMessages(columns, of_id)


def value_format(
    kind: str, registry: str | Mapping[str, Any] | None, message: Any, subject: str, *, declared: bool
) -> ValueFormat:
    """Return how values are decoded, of which the latest schema is looked up if nothing else says what columns are.

    Args:
        kind: "avro" or "protobuf".
        registry: as users name it.
        message: the schema of values, or to read them as.
        subject: what the registry calls the topic's values.
        declared: whether the columns are known.

    Raises:
        JobError: neither a registry nor a schema is given, or they are none.
        ExternalError: the registry is away.
    """
    if registry is None and message is None:
        raise JobError(
            f"value={kind!r} needs registry=, where the schemas of messages are, or message=, the one schema of all"
        )
    reached = None if registry is None else registry_of(registry)
    if kind == "protobuf":
        from millstream.connectors.protobuf_format import protobuf_format

        return protobuf_format(reached, message, subject, declared=declared)
    avro_driver()
    if message is not None or declared:
        return AvroFormat(reached, None if message is None else avro_schema(message))
    assert reached is not None
    try:
        found = reached.latest(subject)
    except UnknownSchema as error:
        raise JobError(
            f"{reached} has no subject {subject!r} to take the columns from ({error}): pass schema= or subject="
        ) from None
    return AvroFormat(reached, avro_text(found), avro_references(found))


def avro_text(found: Registered) -> Any:
    """Return a registered schema. Raises SchemaError if it is not Avro."""
    if found.kind != "AVRO":
        raise SchemaError(f"it is {found.kind}, not AVRO")
    return avro_schema(found.text)


def avro_references(found: Registered) -> tuple[Any, ...]:
    """Return the schemas it is made of, those they need first."""
    return tuple(avro_schema(one.text) for one in found.references.values())
