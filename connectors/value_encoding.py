"""How a sink encodes values as Avro, Protobuf or CSV; what a registry has to say of it is settled at the start."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
from millstream.connectors.avro_messages import AvroValues
from millstream.connectors.avro_types import AvroSchema, avro_of, avro_schema
from millstream.connectors.csv_decoder import CsvDialect
from millstream.connectors.file_formats import Csv
from millstream.connectors.registered_messages import header
from millstream.connectors.schema_registry import Registered, Registry, UnknownSchema
from millstream.connectors.value_format import avro_references, avro_text
from millstream.engine.errors import DataError, JobError, SchemaError

ENCODED: Final = ("csv", "avro", "protobuf")
"""What values may be, of those that are made here."""

_DIALECT: Final = CsvDialect(header=False)


class ValueEncoder(Protocol):
    """Makes bytes of rows, those of equal rows being equal."""

    def encode(self, rows: pa.Table) -> pa.Array:
        """Return the bytes of each row. Raises DataError if a row has none."""
        ...


@dataclass(frozen=True, slots=True)
class Encoding:
    """What values are, and where their schema is.

    Attributes:
        kind: "csv", "avro" or "protobuf".
        registry: where it is registered; None: values are not preceded by an id.
        message: the schema; None: one is made of the columns.
        subject: what the registry calls it.
        auto_register: it is registered if it is not; otherwise it must be, and without ``message`` the latest is taken.
    """

    kind: str
    registry: Registry | None = None
    message: Any = None
    subject: str = ""
    auto_register: bool = True

    def check(self, columns: pa.Schema) -> None:
        """Raise SchemaError if rows make no such values, as far as can be said without the registry."""
        if not len(columns):
            raise SchemaError("no column is left for the value of messages")
        if self.kind == "csv":
            Csv().check(columns)
        elif not self._latest:
            self._encoder(columns, self._own(columns), b"")

    def start(self, columns: pa.Schema) -> ValueEncoder:
        """Return what encodes rows, its schema registered.

        Raises:
            SchemaError: rows make no such values.
            JobError: the registry has no such schema, or refuses it.
            ExternalError: the registry is away.
        """
        if self.kind == "csv":
            return CsvValues()
        if self.registry is None:
            return self._encoder(columns, self._own(columns), b"")
        try:
            if self._latest:
                found = self._of_latest(self.registry)
                return self._encoder(columns, found, header(found.id))
            own = self._own(columns)
            ask = self.registry.register if self.auto_register else self.registry.look_up
            return self._encoder(columns, own, header(ask(self.subject, own.kind, own.text)))
        except UnknownSchema as error:
            raise JobError(
                f"{self.registry} does not have the schema under subject {self.subject!r} ({error}): register it, or "
                "pass auto_register=True"
            ) from None

    @property
    def _latest(self) -> bool:
        return self.registry is not None and self.message is None and not self.auto_register

    def _of_latest(self, registry: Registry) -> Registered:
        return registry.latest(self.subject, serialized=self.kind == "protobuf")

    def _own(self, columns: pa.Schema) -> Registered:
        if self.kind == "avro":
            schema = avro_of(columns, self.subject) if self.message is None else avro_schema(self.message)
            return Registered(0, "AVRO", _text(schema))
        from millstream.connectors.protobuf_format import own_message

        return own_message(columns, self.subject, self.message)

    def _encoder(self, columns: pa.Schema, schema: Registered, prefix: bytes) -> ValueEncoder:
        if self.kind == "avro":
            return AvroValues(avro_text(schema), columns, avro_references(schema), prefix)
        from millstream.connectors.protobuf_format import message_encoder

        return message_encoder(schema, columns, self.message, prefix)


class CsvValues:
    """A CSV record of each row, without the newline; NULL is nothing, an empty text ``""``.

    >>> CsvValues().encode(pa.table({"item": ["tea", "a,b"], "n": [1, None]})).to_pylist()
    [b'"tea",1', b'"a,b",']
    """

    def encode(self, rows: pa.Table) -> pa.Array:
        """As ``ValueEncoder.encode``."""
        if rows.num_columns == 1 and rows.column(0).null_count:
            raise DataError(
                f"a row has no value in {rows.column_names[0]!r}, its only column, and CSV has no record for that: "
                "filter such rows out before"
            )
        buffer = pa.BufferOutputStream()
        arrow_csv.write_csv(rows, buffer, arrow_csv.WriteOptions(include_header=False))
        text = np.frombuffer(buffer.getvalue(), np.uint8)
        ends, _ = _DIALECT.find_ends(text)
        offsets = np.zeros(len(ends) + 1, np.int32)
        offsets[1:] = ends - np.arange(1, len(ends) + 1)
        data = np.delete(text, ends - 1)
        return pa.Array.from_buffers(pa.binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _text(schema: AvroSchema) -> str:
    return json.dumps(schema, separators=(",", ":"))
