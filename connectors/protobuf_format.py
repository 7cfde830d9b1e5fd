"""Protobuf in Kafka: which message a value is, and with which schema it is decoded or encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from millstream.connectors.message_decoders import MessageDecoder
from millstream.connectors.protobuf_messages import ProtobufMessages, ProtobufValues, columns_of
from millstream.connectors.protobuf_schemas import (
    file_of,
    given_message,
    message_of,
    path_to,
    proto_of,
    registered_text,
)
from millstream.connectors.registered_messages import MixedMessages, RegisteredMessages
from millstream.connectors.schema_registry import Registered, Registry
from millstream.engine.errors import SchemaError

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor


@dataclass(frozen=True, slots=True)
class ProtobufFormat:
    """Protobuf.

    Attributes:
        registry: where writers' schemas are; None: values are not preceded by an id.
        reader: what messages are read as, by the numbers of fields; None: as they were written.
    """

    fields: pa.Schema
    registry: Registry | None
    reader: Descriptor | None

    def decoder(self, columns: pa.Schema) -> MessageDecoder:
        """As ``ValueFormat.decoder``."""
        registry, reader = self.registry, self.reader
        own = None if reader is None else ProtobufMessages(columns, reader)
        if registry is None:
            assert own is not None
            return own

        def of_id(id_: int) -> MessageDecoder:
            file = file_of(registry.get(id_, serialized=True))

            def of_path(path: tuple[int, ...]) -> MessageDecoder:
                written = message_of(file, path)
                if own is None or reader is None:
                    return ProtobufMessages(columns, written)
                if written.full_name != reader.full_name:
                    raise SchemaError(f"expected a message {reader.full_name}, got {written.full_name}")
                return own

            return MixedMessages(columns, path_and_rest, of_path)

        return RegisteredMessages(columns, of_id)


def protobuf_format(
    registry: Registry | None, message: Any, found: Registered | None, declared: pa.Schema | None
) -> ProtobufFormat:
    """Return how values are decoded, whose latest schema has been looked up if need be; see ``value_format``."""
    reader = None if message is None else given_message(message)
    if found is not None:
        reader = message_of(file_of(found), (0,))
    if declared is not None:
        return ProtobufFormat(declared, registry, reader)
    assert reader is not None
    return ProtobufFormat(columns_of(reader), registry, reader)


def own_message(columns: pa.Schema, subject: str, message: Any) -> Registered:
    """Return the schema of rows, made of the columns if none is given, as it is registered.

    Raises:
        SchemaError: there can be none.
        JobError: what is given is no message.
    """
    text = proto_of(columns, subject) if message is None else registered_text(given_message(message))
    return Registered(0, "PROTOBUF", text)


def message_encoder(schema: Registered, columns: pa.Schema, message: Any, prefix: bytes) -> ProtobufValues:
    """Return what encodes rows; ``prefix``: nothing, or how a message begins up to the schema's id.

    Raises:
        SchemaError: rows do not fit the schema.
    """
    found = message_of(file_of(schema), (0,)) if message is None else given_message(message)
    return ProtobufValues(found, columns, prefix + packed(path_to(found)) if prefix else b"")


def packed(path: Sequence[int]) -> bytes:
    r"""Return the place of a message in its file as it stands behind the id.

    >>> packed([0]), packed([1, 0])
    (b'\x00', b'\x04\x02\x00')
    """
    return b"\x00" if list(path) == [0] else b"".join(_varint(2 * number) for number in (len(path), *path))


def path_and_rest(value: bytes) -> tuple[tuple[int, ...], bytes]:
    r"""Undo ``packed``. Raises ValueError if it cannot be undone.

    >>> path_and_rest(b"\x04\x02\x00rest")
    ((1, 0), b'rest')
    """
    if value[:1] == b"\x00":
        return (0,), value[1:]
    count, place = _number(value, 0)
    if not 0 < count <= len(value):
        raise ValueError(f"expected the place of a message in its schema, got {value[:8]!r}")
    path: list[int] = []
    for _ in range(count):
        number, place = _number(value, place)
        path.append(number)
    return tuple(path), value[place:]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _number(value: bytes, place: int) -> tuple[int, int]:
    """Read a number in zigzag form: it, and where the next one stands."""
    number = shift = 0
    for byte in value[place : place + 10]:
        place += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number >> 1 ^ -(number & 1), place
    raise ValueError("expected the place of a message in its schema, and the value ends within it")
