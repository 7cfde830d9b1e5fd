"""Rows as Kafka messages: key, value, partition, time and headers, a batch at a time.

They are made before the checkpoint and wait in it as they will be sent, so that what is sent after a crash is the
same to the byte, and that a row which makes no message is found before the commit point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.connectors.file_formats import JsonLines, json_lines
from millstream.connectors.outbox import plain_schema
from millstream.connectors.value_encoding import Encoding, ValueEncoder
from millstream.engine.changelog import WEIGHT, is_changelog, unweighted
from millstream.engine.codes import byte_strings, has_form, is_text
from millstream.engine.errors import DataError, SchemaError

KEY: Final = "key"
VALUE: Final = "value"
PARTITION: Final = "partition"
TIME: Final = "time"
HEADER: Final = "header "
"""What the names of columns with headers begin with."""

_OVERHEAD: Final = 512
"""Bytes that a message takes beside its parts, at most, and the batch it travels in."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How messages are made of rows: all of it column names.

    Attributes:
        keys: none: messages have no key; one: its bytes, or its value as text; more: a JSON object of them; or with
            ``key_encoding`` as that says.
        value: ``raw``: ``column``; otherwise all columns but those of ``headers`` and ``partition``, as a JSON object
            with ``json``, or else as ``encoding`` says.
        headers: from the header's name to the column.
    """

    keys: tuple[str, ...]
    value: str
    column: str
    headers: Mapping[str, str]
    timestamp: str | None
    partition: str | None
    encoding: Encoding | None = None
    key_encoding: Encoding | None = None

    def key_schema(self, schema: pa.Schema) -> pa.Schema:
        """The columns that a key is made of, with their types."""
        plain = plain_schema(unweighted(schema))
        return pa.schema([plain.field(name) for name in self.keys])

    def value_schema(self, schema: pa.Schema) -> pa.Schema:
        """The columns that a value is made of, with their types."""
        plain = plain_schema(unweighted(schema))
        return pa.schema([plain.field(name) for name in self.value_columns(schema)])

    def value_columns(self, schema: pa.Schema) -> list[str]:
        """The columns that a value is made of."""
        if self.value == "raw":
            return [self.column]
        elsewhere = {*self.headers.values(), self.partition}
        return [name for name in unweighted(schema).names if name not in elsewhere]

    def columns(self, schema: pa.Schema) -> frozenset[str]:
        """The columns that messages are made of."""
        named = {*self.keys, *self.headers.values(), self.timestamp, self.partition, *self.value_columns(schema)}
        return frozenset(name for name in named if name is not None)

    def check(self, schema: pa.Schema) -> None:
        """Raise SchemaError, naming the column, if no messages can be made of such rows."""
        plain = plain_schema(unweighted(schema))
        for name in sorted(self.columns(schema)):
            if name not in plain.names:
                raise SchemaError(f"there is no column {name!r}, but: {', '.join(plain.names)}")
        for name in self.keys:
            type_ = plain.field(name).type
            if pa.types.is_floating(type_) or not has_form(type_):
                raise SchemaError(
                    f"column {name!r} is {type_}, which makes no key that others would find again: make it a whole "
                    "number, text, bytes, a decimal, a date or a time"
                )
        for name in [*self.headers.values(), *([self.column] if self.value == "raw" else [])]:
            if not is_text(plain.field(name).type):
                raise SchemaError(f"column {name!r} is {plain.field(name).type}; it must be text or bytes: cast it")
        if self.timestamp is not None and not pa.types.is_timestamp(plain.field(self.timestamp).type):
            raise SchemaError(f"column {self.timestamp!r} is {plain.field(self.timestamp).type}, not a timestamp")
        if self.partition is not None and not pa.types.is_integer(plain.field(self.partition).type):
            raise SchemaError(f"column {self.partition!r} is {plain.field(self.partition).type}, not a whole number")
        if self.value == "json":
            if not self.value_columns(schema):
                raise SchemaError("no column is left for the value of messages")
            JsonLines().check(self.value_schema(schema))
        self._check_encodings(schema)

    def _check_encodings(self, schema: pa.Schema) -> None:
        if self.encoding is not None:
            self.encoding.check(self.value_schema(schema))
        if self.key_encoding is not None:
            try:
                self.key_encoding.check(self.key_schema(schema))
            except SchemaError as error:
                raise SchemaError(f"the key: {error}") from None

    def message_schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema of messages of such rows, with a weight if they have one."""
        fields = [(KEY, pa.binary()), (VALUE, pa.binary()), (PARTITION, pa.int32())]
        fields += [(TIME, pa.int64())] if self.timestamp else []
        fields += [(HEADER + name, pa.binary()) for name in self.headers]
        fields += [(WEIGHT, pa.int64())] if is_changelog(schema) else []
        return pa.schema(fields)


@dataclass(frozen=True, slots=True)
class Encoders:
    """Encode values and keys; None: the shape says it all."""

    values: ValueEncoder | None
    keys: ValueEncoder | None


class Messages:
    """Makes messages for a topic.

    Args:
        name: what errors call the sink.
        partitions: how many the topic has.
        most_bytes: that a message may have.
        needs_key: the topic refuses messages without a key.
        first: the partition of the first batch without keys; each batch goes to the next one.
        encoders: of what the shape does not say by itself.
    """

    def __init__(
        self,
        name: str,
        shape: Shape,
        partitions: int,
        most_bytes: int,
        *,
        needs_key: bool,
        first: int,
        encoders: Encoders,
    ) -> None:
        self._encoders = encoders
        self._name = name
        self._shape = shape
        self._partitions = partitions
        self._most_bytes = most_bytes
        self._needs_key = needs_key
        self._next = first

    def of(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return a message for each row. Raises DataError if one cannot be sent."""
        shape = self._shape
        schema = shape.message_schema(batch.schema)
        plain = pa.Table.from_batches([batch]).cast(plain_schema(batch.schema)).combine_chunks()
        key = self._key(plain)
        columns = [key, self._value(plain), self._partition(plain, key)]
        columns += [self._time(plain[shape.timestamp])] if shape.timestamp else []
        columns += [_one(plain[column]).cast(pa.binary()) for column in shape.headers.values()]
        columns += [_one(plain[WEIGHT])] if is_changelog(batch.schema) else []
        messages = pa.record_batch(columns, schema=schema)
        self._check_sizes(messages)
        return messages

    def _key(self, rows: pa.Table) -> pa.Array:
        names = self._shape.keys
        if not names:
            return pa.nulls(rows.num_rows, pa.binary())
        if self._needs_key:
            for name in names:
                if rows[name].null_count:
                    raise DataError(
                        f"{self._name}: a row has no value in its key {name!r}, and a message without a key cannot "
                        "replace another. Filter such rows out before, or give them a value"
                    )
        if self._encoders.keys is not None:
            return self._encoded_key(self._encoders.keys, rows.select(list(names)))
        return as_json(rows.select(list(names))) if len(names) > 1 else as_bytes(_one(rows[names[0]]))

    def _encoded_key(self, encoder: ValueEncoder, keys: pa.Table) -> pa.Array:
        """Return the keys; where the only column is null there is none."""
        column = _one(keys.column(0))
        lacking = keys.num_columns == 1 and column.null_count > 0
        try:
            encoded = encoder.encode(keys.filter(column.is_valid()) if lacking else keys)
        except DataError as error:
            raise DataError(f"{self._name}: the key: {error}") from None
        if not lacking:
            return encoded
        places = pc.subtract(pc.cumulative_sum(column.is_valid().cast(pa.int64())), 1)
        return encoded.take(pc.if_else(column.is_valid(), places, None))

    def _value(self, rows: pa.Table) -> pa.Array:
        names = self._shape.value_columns(rows.schema)
        if self._encoders.values is not None:
            try:
                return self._encoders.values.encode(rows.select(names))
            except DataError as error:
                raise DataError(f"{self._name}: {error}") from None
        return as_json(rows.select(names)) if self._shape.value == "json" else as_bytes(_one(rows[names[0]]))

    def _partition(self, rows: pa.Table, key: pa.Array) -> pa.Array:
        if self._shape.partition is not None:
            return self._given(_one(rows[self._shape.partition]))
        self._next = (self._next + 1) % self._partitions
        out = np.full(len(key), self._next, np.int32)
        if self._shape.keys:
            from millstream.connectors.kafka_hash import partitions_of

            hashed = np.empty(len(key), np.int32)
            partitions_of(*byte_strings(key), self._partitions, hashed)
            out = np.where(key.is_valid().to_numpy(zero_copy_only=False), hashed, out)
        return pa.array(out, pa.int32())

    def _given(self, wanted: pa.Array) -> pa.Array:
        bad = pc.or_kleene(pc.less(wanted, 0), pc.greater_equal(wanted, self._partitions))
        first = pc.index(pc.fill_null(bad, fill_value=True), True).as_py()
        if first >= 0:
            raise DataError(
                f"{self._name}: {wanted[first].as_py()} in column {self._shape.partition!r} is no partition: the topic "
                f"has 0 to {self._partitions - 1}"
            )
        return wanted.cast(pa.int32())

    def _time(self, times: pa.ChunkedArray) -> pa.Array:
        moments = _one(times).cast(pa.timestamp("ms", times.type.tz), safe=False).cast(pa.int64())
        early = pc.index(pc.less(moments, 1), True).as_py()
        if early >= 0:
            raise DataError(
                f"{self._name}: {_one(times)[early]} in column {self._shape.timestamp!r} is not after the beginning of "
                "1970, before which Kafka has no times"
            )
        return moments

    def _check_sizes(self, messages: pa.RecordBatch) -> None:
        sizes = np.full(messages.num_rows, _OVERHEAD, np.int64)
        for name, column in zip(messages.schema.names, messages.columns, strict=True):
            if pa.types.is_binary(column.type):
                lengths = pc.fill_null(pc.binary_length(column), 0)
                sizes += lengths.to_numpy(zero_copy_only=False) + (len(name.encode()) if name.startswith(HEADER) else 0)
        largest = int(sizes.argmax()) if len(sizes) else 0
        if len(sizes) and sizes[largest] > self._most_bytes:
            key = messages[KEY][largest].as_py()
            raise DataError(
                f"{self._name}: a message takes {int(sizes[largest]):,} bytes (key {key!r:.80}), and "
                f"{self._most_bytes:,} are allowed. Leave columns out, or raise max.message.bytes of the topic and "
                "message.max.bytes in settings="
            )


def as_bytes(column: pa.Array) -> pa.Array:
    """Return texts and bytes as they are, other values as texts.

    >>> as_bytes(pa.array([12, None])).to_pylist()
    [b'12', None]
    """
    if is_text(column.type) or pa.types.is_fixed_size_binary(column.type):
        return column.cast(pa.binary())
    if pa.types.is_temporal(column.type):
        texts = [None if line == b"null" else line.strip(b'"') for line in as_json_values(column)]
        return pa.array(texts, pa.binary())
    return column.cast(pa.string()).cast(pa.binary())


def as_json_values(column: pa.Array) -> list[bytes]:
    """Return values as JSON, for keys of times: the same texts as in JSON lines."""
    lines = b"".join(json_lines(pa.table({"v": column}))).splitlines()
    return [line[5:-1] for line in lines]


def as_json(rows: pa.Table) -> pa.Array:
    """Return each row as a JSON object, as in a JSON lines file.

    >>> as_json(pa.table({"a": [1, 2], "b": ["x", None]})).to_pylist()
    [b'{"a":1,"b":"x"}', b'{"a":2,"b":null}']
    """
    lines = np.frombuffer(b"".join(json_lines(rows)), np.uint8)
    ends = np.flatnonzero(lines == ord("\n"))  # there is none within a line: JSON escapes it
    offsets = np.zeros(len(ends) + 1, np.int32)
    offsets[1:] = ends - np.arange(len(ends))
    data = np.delete(lines, ends)
    return pa.Array.from_buffers(pa.binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _one(column: pa.ChunkedArray) -> Any:
    array = column.combine_chunks()
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
