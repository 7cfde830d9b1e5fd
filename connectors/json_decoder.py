"""JSON to Arrow with msgspec: a block of lines or many messages at a time, one by one only where one is bad."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final, TypedDict

import msgspec
import numpy as np
import pyarrow as pa
from millstream.connectors.reading_plan import failing
from millstream.connectors.record_blocks import Block
from millstream.connectors.timestamp_text import parse_timestamps
from millstream.engine.errors import JobError

_PYTHON_TYPES: Final = (
    (pa.types.is_boolean, bool),
    (pa.types.is_integer, int),
    (pa.types.is_floating, float),
    (pa.types.is_decimal, decimal.Decimal),
    (pa.types.is_string, str),
    (pa.types.is_large_string, str),
    (pa.types.is_binary, bytes),
    (pa.types.is_large_binary, bytes),
    (pa.types.is_timestamp, datetime.datetime),
    (pa.types.is_date, datetime.date),
    (pa.types.is_time, datetime.time),
    (pa.types.is_duration, datetime.timedelta),
)
_REFUSALS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError)


class JsonDecoder:
    """Decodes blocks of JSON lines, or messages that are a JSON object each, into batches of one schema.

    A field that is missing is null, one that the schema lacks is passed over. A line or message is bad if it is not
    one JSON object, or a field does not hold what its type says: whole numbers (``1``, not ``1.0``) for integers, any
    number for floats, ISO 8601 texts for times, numbers or texts for decimals, base64 for bytes.

    Raises:
        JobError: there is no way to write a column's type in JSON.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        fields = [f"f{i}" for i in range(len(schema))]
        types = [str | None if pa.types.is_timestamp(f.type) else _python_type(f.type, f.name) | None for f in schema]
        try:
            row = msgspec.defstruct(
                "Row",
                [(field, type_, None) for field, type_ in zip(fields, types, strict=True)],
                rename=dict(zip(fields, schema.names, strict=True)),
                gc=False,
            )
        except ValueError as error:
            raise JobError(f"a column's name cannot be read from JSON: {error}; leave it out of the schema") from error
        self._decoder = msgspec.json.Decoder(row)
        self._getters = [attrgetter(field) for field in fields]

    def decode(self, block: Block) -> tuple[pa.RecordBatch, dict[int, str]]:
        """Return the rows of the good lines, and per bad line (its index in the block) what is wrong with it."""
        rows = self._decode_at_once(block)
        if rows is not None:
            try:
                columns = [self._column(i, rows) for i in range(len(self._getters))]
            except (ValueError, TypeError, OverflowError):
                rows = None
            else:
                if not any(bad for _, bad in columns):
                    return self._batch([values for values, _ in columns], len(rows)), {}
        return self._decode_line_by_line(block)

    def _decode_at_once(self, block: Block) -> list[Any] | None:
        """Return a row for each line, or None if a line is bad, or blank, or only looks as if it could be bad."""
        text = np.frombuffer(block.text, np.uint8)
        starts = np.concatenate(([0], block.ends[:-1]))
        last = block.ends - 1
        last = last - (text[last] == 10)
        last = last - (text[last] == 13)
        # msgspec takes newlines for spaces: without these checks an object over two lines would make up for
        # a line of two objects.
        if not ((text[starts] == ord("{")).all() and (text[last] == ord("}")).all()):
            return None
        try:
            rows = self._decoder.decode_lines(block.text)
        except _REFUSALS:
            return None
        return rows if len(rows) == len(block.ends) else None

    def _decode_line_by_line(self, block: Block) -> tuple[pa.RecordBatch, dict[int, str]]:
        lines = {i: line for i in range(len(block.ends)) if not (line := block.record(i)).isspace()}
        batch, bad = self.decode_messages(lines.values())
        numbers = list(lines)
        return batch, {numbers[index]: problem for index, problem in bad.items()}

    def decode_messages(self, messages: Iterable[bytes]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """Return the rows of the good messages, and per bad one (its place among them) what is wrong with it.

        >>> decoder = JsonDecoder(pa.schema({"n": pa.int64()}))
        >>> rows, bad = decoder.decode_messages([b'{"n": 1}', b'{"n": "x"}', b'{}'])
        >>> rows.to_pylist(), bad
        ([{'n': 1}, {'n': None}], {1: 'Expected `int | null`, got `str` - at `$.n`'})
        """
        rows: list[Any] = []
        bad: dict[int, str] = {}
        decoding = map(self._decoder.decode, messages)
        while True:
            try:
                rows.extend(decoding)  # what came before an error stays in the list
                break
            except _REFUSALS as error:
                bad[len(rows) + len(bad)] = str(error)
        try:
            columns = [self._column(i, rows) for i in range(len(self._getters))]
        except (ValueError, TypeError, OverflowError):
            columns = []
        if not columns or any(unfit for _, unfit in columns):
            indices = [i for i in range(len(rows) + len(bad)) if i not in bad]
            return self._columns_row_by_row(rows, indices, bad)
        return self._batch([values for values, _ in columns], len(rows)), bad

    def _columns_row_by_row(
        self, rows: list[Any], indices: list[int], bad: dict[int, str]
    ) -> tuple[pa.RecordBatch, dict[int, str]]:
        """Make columns of rows, some of which may not fit: they are left out and added to ``bad``."""
        unfit: dict[int, str] = {}
        for i, field in enumerate(self._schema):
            _, problems = failing(len(rows), self._must_fit_in(i, rows))
            unfit |= {row: f"column {field.name!r} ({field.type}): {problem}" for row, problem in problems.items()}
        kept = [row for i, row in enumerate(rows) if i not in unfit]
        bad |= {indices[row]: problem for row, problem in unfit.items()}
        return self._batch([self._column(i, kept)[0] for i in range(len(self._getters))], len(kept)), bad

    def _must_fit_in(self, column: int, rows: Sequence[Any]) -> Callable[[int, int], None]:
        def attempt(start: int, end: int) -> None:
            _, bad = self._column(column, rows[start:end])
            if bad:
                raise ValueError(next(iter(bad.values())))

        return attempt

    def _column(self, column: int, rows: Sequence[Any]) -> tuple[pa.Array, dict[int, str]]:
        type_ = self._schema.field(column).type
        values = list(map(self._getters[column], rows))
        if pa.types.is_timestamp(type_):
            return parse_timestamps(pa.array(values, pa.string()), type_)
        return pa.array(values, type_), {}

    def _batch(self, columns: list[pa.Array], rows: int) -> pa.RecordBatch:
        assert all(len(column) == rows for column in columns), f"{rows=} {[len(c) for c in columns]=}"
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)


def _python_type(type_: pa.DataType, column: str) -> Any:
    for matches, python_type in _PYTHON_TYPES:
        if matches(type_):
            return python_type
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        item = _python_type(type_.value_type, column)
        return list[item | None]  # type: ignore[valid-type]
    if pa.types.is_struct(type_):
        fields = {f.name: _python_type(f.type, column) | None for f in type_.fields}
        return TypedDict("Fields", fields, total=False)  # type: ignore[operator]
    raise JobError(f"column {column!r}: {type_} cannot be read from JSON lines; read it as a string, or leave it out")
