"""Rows of PostgreSQL as Arrow columns: which type each column becomes, how it is asked for, and how its text is read.

COPY writes CSV in which only nulls are unquoted and empty; pyarrow reads it column by column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from millstream.connectors.postgres_catalog import Column
from millstream.engine.errors import DataError
from millstream.engine.store.columns import quote

SESSION: Final = b"""
    SELECT set_config('TimeZone', 'UTC', false), set_config('DateStyle', 'ISO', false),
           set_config('IntervalStyle', 'postgres', false), set_config('bytea_output', 'hex', false),
           set_config('extra_float_digits', '1', false), set_config('statement_timeout', '0', false)"""
"""What a connection must be told once for its texts to be read here."""

_TYPES: Final = {
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "oid": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
    "bytea": pa.binary(),
}
_ITEMS: Final[dict[str, tuple[pa.DataType, Any]]] = {
    "_int2": (pa.int16(), int),
    "_int4": (pa.int32(), int),
    "_int8": (pa.int64(), int),
    "_float4": (pa.float32(), float),
    "_float8": (pa.float64(), float),
    "_bool": (pa.bool_(), bool),
    "_text": (pa.string(), str),
    "_varchar": (pa.string(), str),
    "_uuid": (pa.string(), str),
}
_NIBBLES: Final = np.zeros(256, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def arrow_type(column: Column) -> pa.DataType:
    """Return the type of a column's values in Arrow; what Arrow has no type for comes as text.

    >>> arrow_type(Column("price", "numeric", (12 << 16 | 2) + 4, "numeric(12,2)", False, True, False, ()))
    Decimal128Type(decimal128(12, 2))
    """
    if column.type == "numeric" and column.digits is not None:
        precision, scale = column.digits
        if 0 <= scale <= precision <= 76:
            return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)
    if column.type in _ITEMS:
        return pa.list_(_ITEMS[column.type][0])
    return _TYPES.get(column.type, pa.string())


def schema_of(columns: Iterable[Column]) -> pa.Schema:
    """Return the schema in which rows of these columns come."""
    return pa.schema([pa.field(column.name, arrow_type(column)) for column in columns])


@dataclass(frozen=True, slots=True)
class TableReader:
    """Reads rows of some columns of a table; ``name`` is for errors."""

    name: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """The columns, in order."""
        return schema_of(self.columns)

    def selected(self, alias: str = "") -> str:
        """Return what stands between SELECT and FROM."""
        return ", ".join(_expression(column, f"{alias}{quote(column.name)}") for column in self.columns)

    def rows(self, text: bytes, more: Sequence[str] = ()) -> pa.Table:
        """Return what COPY has written: the columns, then ``more`` columns of text.

        Raises:
            DataError: a value does not fit its type, as ``infinity`` among timestamps.
        """
        names = [*(f"c{index}" for index in range(len(self.columns))), *more]
        types = {name: _read_as(column) for name, column in zip(names, self.columns, strict=False)}
        types |= dict.fromkeys(more, pa.string())
        if not text:
            return pa.schema([*self.schema, *(pa.field(name, pa.string()) for name in more)]).empty_table()
        try:
            table = pyarrow.csv.read_csv(
                pa.py_buffer(text),
                pyarrow.csv.ReadOptions(use_threads=False, column_names=names, block_size=len(text) + 1),
                pyarrow.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
                pyarrow.csv.ConvertOptions(
                    column_types=types,
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                    true_values=["t"],
                    false_values=["f"],
                ),
            )
            own = [_finished(column, table.column(index).combine_chunks()) for index, column in enumerate(self.columns)]
        except (pa.ArrowInvalid, msgspec.DecodeError) as error:
            raise DataError(
                f"{self.name}: a value does not fit its type: {error} (columns {self.schema.names}). Leave the column "
                "out, read a view that casts it, or mend the rows"
            ) from error
        rest = [table.column(name) for name in more]
        return pa.table([*own, *rest], names=[*self.schema.names, *more])


def _expression(column: Column, name: str) -> str:
    if column.type in _ITEMS:
        return f"array_to_json({name})::text"
    return name


def _read_as(column: Column) -> pa.DataType:
    type_ = arrow_type(column)
    return pa.string() if pa.types.is_list(type_) or pa.types.is_binary(type_) else type_


def _finished(column: Column, array: pa.Array) -> pa.Array:
    if column.type == "bytea":
        return _from_hex(array)
    if column.type in _ITEMS:
        type_, item = _ITEMS[column.type]
        whole = b"[" + b",".join(b"null" if text is None else text.encode() for text in array.to_pylist()) + b"]"
        lists = msgspec.json.decode(whole, type=list[list[item | None] | None])  # type: ignore[valid-type]
        return pa.array(lists, pa.list_(type_))
    return array


def _from_hex(array: pa.Array) -> pa.Array:
    """Undo ``\\x…``.

    >>> _from_hex(pa.array(["\\\\x00ff", None, "\\\\x"])).to_pylist()
    [b'\\x00\\xff', None, b'']
    """
    # Without an end it raises where nothing is left of several values (pyarrow 26).
    digits = pc.binary_slice(array.cast(pa.binary()), 2, 2**31 - 1).cast(pa.large_binary())
    offsets = np.frombuffer(digits.buffers()[1], np.int64, len(digits) + 1, digits.offset * 8)
    data = digits.buffers()[2]
    raw = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if data is not None else np.empty(0, np.uint8)
    nibbles = _NIBBLES[raw]
    packed = nibbles[0::2] << 4 | nibbles[1::2]
    starts = (offsets - offsets[0]) // 2
    bitmap = pa.array(array.is_valid()).buffers()[1] if array.null_count else None
    made = pa.Array.from_buffers(
        pa.large_binary(), len(digits), [bitmap, pa.py_buffer(starts), pa.py_buffer(np.ascontiguousarray(packed))]
    )
    return made.cast(pa.binary())
