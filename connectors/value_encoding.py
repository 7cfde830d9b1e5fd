"""How a sink encodes values and keys: Avro, Protobuf, CSV. What a registry says of them is settled at the start."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
from millstream.connectors.avro_messages import AvroValues, LoneAvroValues
from millstream.connectors.avro_types import AvroSchema, avro_of, avro_of_column, avro_schema, is_record
from millstream.connectors.csv_decoder import CsvDialect
from millstream.connectors.file_formats import Csv
from millstream.connectors.registered_messages import header
from millstream.connectors.schema_registry import Registered, UnknownSchema
from millstream.connectors.schema_values import SchemaValues
from millstream.connectors.value_format import avro_references, avro_text
from millstream.engine.errors import DataError, JobError, SchemaError

_DIALECT: Final = CsvDialect(header=False)


class ValueEncoder(Protocol):
    """Makes bytes of rows, those of equal rows being equal."""

    def encode(self, rows: pa.Table) -> pa.Array:
        """Return the bytes of each row. Raises DataError if a row has none."""
        ...


@dataclass(frozen=True, slots=True)
class Encoding:
    """What values are, or keys, and where their schema is.

    Attributes:
        values: as users ask for it; None: CSV.
        subject: what the registry calls the schema.
        lone: a single column needs no record around it, as in keys.
    """

    values: SchemaValues | None = None
    subject: str = ""
    lone: bool = False

    def check(self, columns: pa.Schema) -> None:
        """Raise SchemaError if rows make no such values, as far as can be said without the registry."""
        if not len(columns):
            raise SchemaError("no column is left for the value of messages")
        if self.values is None:
            Csv().check(columns)
        elif not _takes_latest(self.values):
            self._encoder(self.values, columns, self._own(self.values, columns), b"")

    def start(self, columns: pa.Schema) -> ValueEncoder:
        """Return what encodes rows, its schema registered.

        Raises:
            SchemaError: rows make no such values.
            JobError: the registry has no such schema, or refuses it.
            ExternalError: the registry is away.
        """
        values = self.values
        if values is None:
            return CsvValues()
        registry = values.registry
        if registry is None:
            return self._encoder(values, columns, self._own(values, columns), b"")
        try:
            if _takes_latest(values):
                found = registry.latest(self.subject, serialized=values.kind == "protobuf")
                return self._encoder(values, columns, found, header(found.id))
            own = self._own(values, columns)
            ask = registry.register if values.auto_register else registry.look_up
            return self._encoder(values, columns, own, header(ask(self.subject, own.kind, own.text)))
        except UnknownSchema as error:
            raise JobError(
                f"{registry} does not have the schema under subject {self.subject!r} ({error}): register it, or "
                "pass auto_register=True"
            ) from None

    def _own(self, values: SchemaValues, columns: pa.Schema) -> Registered:
        if values.kind == "avro":
            return Registered(0, "AVRO", json.dumps(self._own_avro(values.message, columns), separators=(",", ":")))
        from millstream.connectors.protobuf_format import own_message

        return own_message(columns, self.subject, values.message)

    def _own_avro(self, message: Any, columns: pa.Schema) -> AvroSchema:
        if message is not None:
            return avro_schema(message)
        if self.lone and len(columns) == 1:
            return avro_of_column(columns.field(0), self.subject)
        return avro_of(columns, self.subject)

    def _encoder(self, values: SchemaValues, columns: pa.Schema, schema: Registered, prefix: bytes) -> ValueEncoder:
        if values.kind == "avro":
            text = avro_text(schema)
            made = LoneAvroValues if self.lone and not is_record(text) else AvroValues
            return made(text, columns, avro_references(schema), prefix)
        from millstream.connectors.protobuf_format import message_encoder

        return message_encoder(schema, columns, values.message, prefix)


def _takes_latest(values: SchemaValues) -> bool:
    return values.registry is not None and values.message is None and not values.auto_register


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
