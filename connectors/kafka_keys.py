"""As what the keys of Kafka messages are decoded: plain bytes, texts and numbers, or Avro and Protobuf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
from millstream.connectors.message_decoders import MessageDecoder, decode_scalars
from millstream.connectors.reading_plan import empty_batch
from millstream.connectors.schema_values import SchemaValues
from millstream.connectors.value_format import AvroFormat, ValueFormat, value_format

Rows = TypeVar("Rows", pa.RecordBatch, pa.Array)


class KeyDecoder(Protocol):
    """Decodes keys into a column."""

    def decode(self, keys: Sequence[bytes | None]) -> tuple[pa.Array, dict[int, str]]:
        """Return the good keys, null where there is none, and per bad one (its place) what is wrong with it."""
        ...


class KeyFormat(Protocol):
    """What keys are."""

    @property
    def type(self) -> pa.DataType:
        """That of their column."""
        ...

    def decoder(self) -> KeyDecoder:
        """Return what decodes those of one partition."""
        ...


@dataclass(frozen=True, slots=True)
class PlainKeys:
    """Keys that are bytes, texts or whole numbers; both format and decoder.

    >>> PlainKeys(pa.string()).decode([b"tea", None])[0].to_pylist()
    ['tea', None]
    """

    type: pa.DataType

    def decoder(self) -> KeyDecoder:
        """Return itself: it keeps nothing."""
        return self

    def decode(self, keys: Sequence[bytes | None]) -> tuple[pa.Array, dict[int, str]]:
        """As ``KeyDecoder.decode``."""
        return decode_scalars(keys, self.type)


@dataclass(frozen=True, slots=True)
class SchemaKeys:
    """Keys with a schema: what is no record is its own value, fields make a struct.

    Attributes:
        format: decodes fields.
        lone: there are none: the only column is the key.
    """

    format: ValueFormat
    lone: bool

    @property
    def type(self) -> pa.DataType:
        """That of their column."""
        return self.format.fields.field(0).type if self.lone else pa.struct(list(self.format.fields))

    def decoder(self) -> KeyDecoder:
        """As ``KeyFormat.decoder``."""
        return _SchemaKeyDecoder(self.format.decoder(self.format.fields), self.format.fields, self.lone)


class _SchemaKeyDecoder:
    def __init__(self, fields: MessageDecoder, columns: pa.Schema, lone: bool) -> None:
        self._fields = fields
        self._columns = columns
        self._lone = lone

    def decode(self, keys: Sequence[bytes | None]) -> tuple[pa.Array, dict[int, str]]:
        """As ``KeyDecoder.decode``. Raises ExternalError if the registry is away."""
        present = [place for place, key in enumerate(keys) if key is not None]
        texts = [key for key in keys if key is not None]
        rows, unfit = self._fields.decode(texts) if texts else (empty_batch(self._columns), {})
        bad = {present[index]: problem for index, problem in unfit.items()}
        column = rows.column(0) if self._lone else rows.to_struct_array()
        if len(present) < len(keys):
            column = spread(column, np.array([key is not None for i, key in enumerate(keys) if i not in bad], bool))
        return column, bad


def key_format(keys: SchemaValues, topic: str) -> SchemaKeys:
    """Return how Avro and Protobuf keys are decoded; without ``message``, as the latest schema is. Raises as it does.

    Args:
        keys: as users ask for it.
        topic: the subject is called after it.
    """
    found = value_format(keys, keys.subject_of(topic, "key"), None)
    return SchemaKeys(found, isinstance(found, AvroFormat) and found.lone)


def spread(rows: Rows, there: np.ndarray) -> Rows:
    """Put a null where nothing is.

    >>> spread(pa.array([7, 8]), np.array([False, True, False, True])).to_pylist()
    [None, 7, None, 8]
    """
    return rows.take(pa.array(np.cumsum(there) - 1, pa.int64(), mask=~there))
