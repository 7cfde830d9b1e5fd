"""Kafka messages to rows: the value's columns, and those of what comes with it (key, timestamp, headers, place)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message
from millstream.connectors.kafka_keys import KeyDecoder, spread
from millstream.connectors.kafka_metadata import METADATA_TYPES
from millstream.connectors.message_decoders import MessageDecoder
from millstream.connectors.reading_plan import empty_batch

_VALUE: Final = Message.value
_KEY: Final = Message.key
_OFFSET: Final = Message.offset


@dataclass(frozen=True, slots=True)
class Columns:
    """What columns the rows have.

    Attributes:
        schema: all of them, those of the value first.
        metadata: what the others are, by column: "key", "timestamp", "headers", "topic", "partition" or "offset".
        keep_tombstones: a message without a value is a row, whose columns of the value are null.
    """

    schema: pa.Schema
    metadata: Mapping[str, str]
    keep_tombstones: bool = True

    @property
    def of_value(self) -> pa.Schema:
        """The columns that are decoded out of the value."""
        return pa.schema([field for field in self.schema if field.name not in self.metadata])


class RowDecoder:
    """Makes rows of messages of one partition; ``keys``: None: no column has them."""

    def __init__(
        self, columns: Columns, values: MessageDecoder, keys: KeyDecoder | None, topic: str, partition: int
    ) -> None:
        self._columns = columns
        self._values = values
        self._keys = keys
        self._of_value = columns.of_value
        self._place = {"topic": topic, "partition": partition}

    @property
    def schema(self) -> pa.Schema:
        """The columns of the rows."""
        return self._columns.schema

    def decode(self, messages: Sequence[Message]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """Return the rows of the good messages, and per bad one (its place among them) what is wrong with it."""
        values = list(map(_VALUE, messages))
        rows, bad = self._decode_values(values)
        dropped = set(bad)
        if not self._columns.keep_tombstones:
            dropped |= {i for i, value in enumerate(values) if value is None}
        kept = [message for i, message in enumerate(messages) if i not in dropped] if dropped else messages
        columns = {name: rows.column(name) for name in rows.schema.names}
        unfit: dict[int, str] = {}
        for name, kind in self._columns.metadata.items():
            columns[name], problems = self._metadata(kind, self._columns.schema.field(name).type, kept)
            unfit |= {i: f"column {name!r}: {problem}" for i, problem in problems.items()}
        if unfit:
            return self._without(messages, dropped, bad, unfit)
        arrays = [columns[field.name] for field in self._columns.schema]
        return pa.RecordBatch.from_arrays(arrays, schema=self._columns.schema), bad

    def _without(
        self, messages: Sequence[Message], dropped: set[int], bad: dict[int, str], unfit: dict[int, str]
    ) -> tuple[pa.RecordBatch, dict[int, str]]:
        """Decode again without messages of which the value is good and something else is not."""
        kept = [i for i in range(len(messages)) if i not in dropped]
        bad = bad | {kept[place]: problem for place, problem in unfit.items()}
        rows, _ = self.decode([message for i, message in enumerate(messages) if i not in bad])
        return rows, bad

    def _decode_values(self, values: Sequence[bytes | None]) -> tuple[pa.RecordBatch, dict[int, str]]:
        if None not in values:
            return self._values.decode(values)  # type: ignore[arg-type]
        present = [i for i, value in enumerate(values) if value is not None]
        texts = [value for value in values if value is not None]
        rows, bad = self._values.decode(texts) if texts else (empty_batch(self._of_value), {})
        bad = {present[place]: problem for place, problem in bad.items()}
        return (self._with_tombstones(rows, values, bad) if self._columns.keep_tombstones else rows), bad

    def _with_tombstones(
        self, rows: pa.RecordBatch, values: Sequence[bytes | None], bad: Mapping[int, str]
    ) -> pa.RecordBatch:
        """Put a row of nulls where a value is null."""
        return spread(rows, np.array([value is not None for i, value in enumerate(values) if i not in bad], bool))

    def _metadata(self, kind: str, type_: pa.DataType, messages: Sequence[Message]) -> tuple[pa.Array, dict[int, str]]:
        if kind == "key":
            assert self._keys is not None
            keys = list(map(_KEY, messages))
            column, bad = self._keys.decode(keys)
            return column, {place: f"{problem}; the key is {keys[place]!r:.200}" for place, problem in bad.items()}
        if kind in self._place:
            return pa.repeat(pa.scalar(self._place[kind], type_), len(messages)), {}
        return _METADATA[kind](messages), {}


def _offsets(messages: Sequence[Message]) -> pa.Array:
    return pa.array(np.fromiter(map(_OFFSET, messages), np.int64, len(messages)))


def _timestamps(messages: Sequence[Message]) -> pa.Array:
    milliseconds = [None if kind == TIMESTAMP_NOT_AVAILABLE else at for kind, at in map(Message.timestamp, messages)]
    return pa.array(milliseconds, pa.timestamp("ms")).cast(METADATA_TYPES["timestamp"])


def _headers(messages: Sequence[Message]) -> pa.Array:
    pairs: list[list[dict[str, Any]]] = []
    for message in messages:
        pairs.append([{"key": key, "value": _as_bytes(value)} for key, value in message.headers() or ()])
    return pa.array(pairs, METADATA_TYPES["headers"])


def _as_bytes(value: Any) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


_METADATA: Final[Mapping[str, Callable[[Sequence[Message]], pa.Array]]] = {
    "timestamp": _timestamps,
    "headers": _headers,
    "offset": _offsets,
}
