"""The values of messages to Arrow, many at a time: JSON objects, CSV records, texts and raw bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
from millstream.connectors.csv_decoder import CsvDecoder, CsvDialect
from millstream.connectors.json_decoder import JsonDecoder
from millstream.connectors.reading_plan import empty_batch, failing
from millstream.connectors.record_blocks import Block

RAW_COLUMN: Final = "value"
"""What the column of values that are not decoded further is called."""


class MessageDecoder(Protocol):
    """Decodes values into rows, one each."""

    def decode(self, values: Sequence[bytes]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """Return the rows of the good values, and per bad one (its place among them) what is wrong with it."""
        ...


class JsonMessages(MessageDecoder):
    """Values that are a JSON object each. Raises JobError where a column's type has no form in JSON."""

    def __init__(self, schema: pa.Schema) -> None:
        self._decoder = JsonDecoder(schema)

    def decode(self, values: Sequence[bytes]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """As ``MessageDecoder.decode``."""
        return self._decoder.decode_messages(values)


class CsvMessages(MessageDecoder):
    r"""Values that are a CSV record each, without a header; a newline at their end does no harm.

    Args:
        schema: the columns to decode, in this order.
        names: the names of all fields of a record, in order.
        dialect: how they are written.

    >>> schema = pa.schema({"item": pa.string(), "n": pa.int64()})
    >>> rows, bad = CsvMessages(schema, schema.names, CsvDialect()).decode([b"tea,1", b'"a\nb",2\r\n', b"x,1\ny,2"])
    >>> rows.to_pylist()
    [{'item': 'tea', 'n': 1}, {'item': 'a\nb', 'n': 2}]
    >>> bad
    {2: 'expected one CSV record, got several'}
    """

    def __init__(self, schema: pa.Schema, names: Sequence[str], dialect: CsvDialect) -> None:
        self._schema = schema
        self._decoder = CsvDecoder(schema, names, dialect)
        self._dialect = dialect

    def decode(self, values: Sequence[bytes]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """As ``MessageDecoder.decode``."""
        records = [value.rstrip(b"\r\n") + b"\n" for value in values]
        block = _block(records)
        bad: dict[int, str] = {}
        if not self._are_records(block, records):
            # What one message has too much another may have too little: each must be a record by itself.
            bad = {i: problem for i, record in enumerate(records) if (problem := self._problem(record))}
            block = _block([record for i, record in enumerate(records) if i not in bad])
        if not len(block.ends):
            return empty_batch(self._schema), bad
        good = [i for i in range(len(records)) if i not in bad] if bad else range(len(records))
        batch, unfit = self._decoder.decode(block)
        return batch, bad | {good[i]: problem for i, problem in unfit.items()}

    def _are_records(self, block: Block, records: Sequence[bytes]) -> bool:
        ends, in_quotes = self._dialect.find_ends(np.frombuffer(block.text, np.uint8))
        return not in_quotes and np.array_equal(ends, block.ends) and b"\n" not in records

    def _problem(self, record: bytes) -> str | None:
        ends, in_quotes = self._dialect.find_ends(np.frombuffer(record, np.uint8))
        if record == b"\n":
            return "expected a CSV record, got nothing"
        if in_quotes:
            return "a quote is opened and never closed"
        return "expected one CSV record, got several" if len(ends) != 1 else None


class RawMessages(MessageDecoder):
    """Values as they are, or as texts in UTF-8, in the column ``value``.

    >>> rows, bad = RawMessages(pa.string()).decode([b"tea", b"\\xff"])
    >>> rows.to_pylist(), bad
    ([{'value': 'tea'}], {1: 'Invalid UTF8 payload'})
    """

    def __init__(self, type_: pa.DataType) -> None:
        self._type = type_

    def decode(self, values: Sequence[bytes]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """As ``MessageDecoder.decode``."""
        column, bad = decode_scalars(values, self._type)
        return pa.RecordBatch.from_arrays([column], names=[RAW_COLUMN]), bad


def _block(records: Sequence[bytes]) -> Block:
    return Block(b"".join(records), np.cumsum(np.fromiter(map(len, records), np.int64, len(records))), 0, 1)


def decode_scalars(values: Sequence[bytes | None], type_: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    r"""Return the good values as a column, and per bad one what is wrong with it.

    Bytes are taken as they are, texts are UTF-8, and int32 and int64 are what Kafka's serializers write: 4 or 8 bytes,
    the highest first.

    >>> decode_scalars([b"\x00\x00\x00\x07", None, b"7"], pa.int32())[1]
    {2: 'expected 4 bytes, got 1'}
    """

    def attempt(start: int, end: int) -> pa.Array:
        return _scalars(values[start:end], type_)

    columns, bad = failing(len(values), attempt)
    return (pa.concat_arrays(columns) if columns else pa.nulls(0, type_)), bad


def _scalars(values: Sequence[bytes | None], type_: pa.DataType) -> pa.Array:
    if not pa.types.is_integer(type_):
        return pa.array(values, pa.binary()).cast(type_)
    width = type_.bit_width // 8
    lengths = {len(value) for value in values if value is not None} - {width}
    if lengths:
        raise ValueError(f"expected {width} bytes, got {min(lengths)}")
    present = np.fromiter((value is not None for value in values), bool, len(values))
    numbers = np.zeros(len(values), f"i{width}")
    numbers[present] = np.frombuffer(b"".join(value for value in values if value is not None), f">i{width}")
    return pa.array(numbers, type_, mask=~present)
