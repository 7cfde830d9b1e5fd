"""Arrow columns as the text that PostgreSQL's COPY reads, column by column, checked before they wait in a checkpoint.

A row that the server would refuse must be found before the commit point: afterwards it could neither be written nor
left out. What only the server can know (a constraint, a trigger) is left to it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from millstream.connectors.postgres_catalog import Column
from millstream.connectors.postgres_fit import is_list, is_string
from millstream.engine.errors import DataError

COPY_FORMAT: Final = "(FORMAT csv)"
"""Unquoted nothing is null, and texts are always quoted: pyarrow writes it so, and PostgreSQL reads it so."""

_WRITE: Final = pyarrow.csv.WriteOptions(include_header=False, batch_size=16_384, quoting_style="needed")
_FIRST_DAY: Final = dt.date(1, 1, 1)
_LAST_DAY: Final = dt.date(9999, 12, 31)
UUID: Final = "^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$"
_HEX: Final = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)


@dataclass(frozen=True, slots=True)
class TextRows:
    """Makes text of rows for the columns of one table."""

    name: str
    columns: tuple[Column, ...]

    def admit(self, rows: pa.Table) -> pa.Table:
        """Return rows with equal UUIDs as equal texts. Raises DataError if the server would refuse a value."""
        for position, column in enumerate(self.columns):
            array = rows.column(position).combine_chunks()
            if column.not_null and array.null_count:
                raise self._refusal(column, None, "the table takes no nulls there")
            for find, why in _checks(array.type, column):
                bad = find(array)
                if bad is not None:
                    raise self._refusal(column, bad, why)
            if column.type == "uuid":
                rows = rows.set_column(position, rows.schema.field(position), pc.utf8_lower(array))
        return rows

    def chunks(self, rows: pa.Table) -> Iterator[memoryview]:
        """Return rows as text for COPY, in pieces of modest size."""
        for batch in rows.to_batches(65_536):
            columns = [as_text(array) for array in batch.columns]
            buffer = pa.BufferOutputStream()
            pyarrow.csv.write_csv(pa.record_batch(columns, names=batch.schema.names), buffer, _WRITE)
            yield memoryview(buffer.getvalue())

    def _refusal(self, column: Column, value: object, why: str) -> DataError:
        shown = repr(value)
        return DataError(
            f"{self.name}: {shown if len(shown) <= 100 else shown[:100] + '…'} cannot be written to column "
            f"{column.name!r} ({column.declared}): {why}. Filter such rows out before, or mend them"
        )


_Find = Callable[[pa.Array], Any]
"""Returns a value that the server would refuse; None: there is none."""


def _checks(type_: pa.DataType, column: Column) -> Iterator[tuple[_Find, str]]:
    if is_list(type_):
        yield from ((partial(_in_lists, find), why) for find, why in _checks(type_.value_type, column))
    elif is_string(type_):
        yield _with_nul, "PostgreSQL's text holds no NUL"
        yield from _text_checks(column)
    elif pa.types.is_timestamp(type_):
        if type_.unit == "ns":
            yield _finer_than_micros, "PostgreSQL keeps microseconds, no nanoseconds"
        yield _beyond_years, "only the years 1 to 9999 are written"
    elif pa.types.is_date(type_):
        yield _beyond_years, "only the years 1 to 9999 are written"
    elif type_ == pa.time64("ns") or (pa.types.is_duration(type_) and type_.unit == "ns"):
        yield _finer_than_micros, "PostgreSQL keeps microseconds, no nanoseconds"


def _text_checks(column: Column) -> Iterator[tuple[_Find, str]]:
    match column.type:
        case "varchar" | "bpchar" if column.characters is not None:
            yield (lambda array: _first(array, pc.greater(pc.utf8_length(array), column.characters))), "it is too long"
        case "uuid":
            yield (lambda array: _first(array, pc.invert(pc.match_substring_regex(array, UUID)))), "it is no UUID"
        case "json" | "jsonb":
            yield _bad_json, "it is no JSON that PostgreSQL takes"
        case "enum":
            labels = pa.array(column.labels, pa.string())
            yield (lambda array: _first(array, pc.invert(pc.is_in(array, labels.cast(array.type))))), "it is no label"


def _in_lists(find: _Find, array: pa.Array) -> Any:
    return find(array.flatten())


def _first(array: pa.Array, bad: pa.Array) -> Any:
    chosen = array.filter(pc.and_(bad, array.is_valid()))
    return chosen[0].as_py() if len(chosen) else None


def _with_nul(array: pa.Array) -> Any:
    data = array.buffers()[2]
    # The buffer may hold more than this array; it is looked at in full only if there is one at all.
    if data is None or b"\0" not in memoryview(data).tobytes():
        return None
    return _first(array, pc.match_substring(array, "\0"))


def _finer_than_micros(array: pa.Array) -> Any:
    values = array.view(pa.int64())
    bad = _first(values, pc.not_equal(pc.multiply(pc.divide(values, 1000), 1000), values))
    return None if bad is None else f"{bad} ns"


def _beyond_years(array: pa.Array) -> Any:
    if array.null_count == len(array):
        return None
    days = pc.floor_temporal(array, unit="day").cast(pa.date32()) if pa.types.is_timestamp(array.type) else array
    days = days.cast(pa.date32())
    low, high = (pa.scalar(day, pa.date32()) for day in (_FIRST_DAY, _LAST_DAY))
    bad = pc.or_(pc.less(days, low), pc.greater(days, high))
    # Such a date has no Python value.
    return str(_first(days.cast(pa.int32()), bad)) + " days from 1970" if pc.any(bad).as_py() else None


def _bad_json(array: pa.Array) -> Any:
    # The server's own rules, row by row: no kernel checks JSON.
    for text in array.to_pylist():
        try:
            if text is not None and "\\u0000" in text.replace("\\\\", ""):
                return text
            if text is not None:
                msgspec.json.decode(text, type=msgspec.Raw)
        except (msgspec.DecodeError, UnicodeError):
            return text
    return None


def as_text(array: pa.Array) -> pa.Array:
    """Return a column as one that pyarrow's CSV writer renders as PostgreSQL reads it.

    >>> as_text(pa.array([b"\\x00\\xff", None])).to_pylist(), as_text(pa.array([[1, None], []])).to_pylist()
    (['\\\\x00ff', None], ['{1,NULL}', '{}'])
    """
    type_ = array.type
    if is_list(type_):
        return _array_literals(array)
    if pa.types.is_timestamp(type_):
        # Connections are set to UTC, and with a zone each value would cost twenty times as much to write.
        return array.cast(pa.timestamp("us"))
    if pa.types.is_date64(type_):
        return array.cast(pa.date32())
    if pa.types.is_time(type_):
        return array.cast(pa.time64("us"))
    if pa.types.is_duration(type_):
        return _joined(array.cast(pa.duration("us")).cast(pa.int64()).cast(pa.large_string()), " microseconds")
    if pa.types.is_float16(type_):
        return array.cast(pa.float32())
    if pa.types.is_fixed_size_binary(type_) and not pa.types.is_decimal(type_):
        array = array.cast(pa.binary())
    if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        return _hex(array.cast(pa.large_binary()))
    return array


def _hex(array: pa.LargeBinaryArray) -> pa.Array:
    offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, array.offset * 8)
    data = array.buffers()[2]
    raw = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if data is not None else np.empty(0, np.uint8)
    starts = 2 * (offsets - offsets[0])
    bitmap = pa.array(array.is_valid()).buffers()[1] if array.null_count else None
    digits = [bitmap, pa.py_buffer(starts), pa.py_buffer(_HEX[raw])]
    return _joined("\\x", pa.Array.from_buffers(pa.large_string(), len(array), digits))


def _joined(*parts: str | pa.Array) -> pa.Array:
    """Put large strings together, row by row; null where one is."""
    scalars = [pa.scalar(part, pa.large_string()) if isinstance(part, str) else part for part in (*parts, "")]
    return pc.binary_join_element_wise(*scalars)


def array_literal(array: pa.Array) -> str:
    """Return a whole array as PostgreSQL writes it.

    >>> array_literal(pa.array(['a"b', "c"]))
    '{"a\\\\"b","c"}'
    """
    text: str = as_text(pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), array))[0].as_py()
    return text


def _array_literals(array: pa.Array) -> pa.Array:
    """Return lists as PostgreSQL writes arrays: ``{1,2,NULL}``, texts in double quotes."""
    counts = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int64())
    items = as_text(array.flatten())
    texts = items.cast(pa.large_string())
    if is_string(items.type):
        for plain, escaped in (("\\", "\\\\"), ('"', '\\"')):
            texts = pc.replace_substring(texts, plain, escaped)
        texts = _joined('"', texts, '"')
    lists = pa.LargeListArray.from_arrays(offsets, pc.fill_null(texts, "NULL"))
    joined = pc.binary_join(lists, pa.scalar(",", pa.large_string()))
    return pc.if_else(array.is_valid(), _joined("{", joined, "}"), pa.scalar(None, pa.large_string()))
