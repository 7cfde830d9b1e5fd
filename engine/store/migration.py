"""From the columns a state table had to those it has: what may change, and what old rows become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from millstream.engine.errors import StateMismatch
from millstream.engine.state import StateTable
from millstream.engine.store.columns import row_schema

_WIDTHS = {
    pa.int8(): (8, True),
    pa.int16(): (16, True),
    pa.int32(): (32, True),
    pa.int64(): (64, True),
    pa.uint8(): (8, False),
    pa.uint16(): (16, False),
    pa.uint32(): (32, False),
    pa.uint64(): (64, False),
}
_LARGER = ((pa.string(), pa.large_string()), (pa.binary(), pa.large_binary()))
_FLOATS = (pa.float16(), pa.float32(), pa.float64())


def widens(old: pa.DataType, new: pa.DataType) -> bool:
    """Whether every value of ``old`` is a value of ``new``, and means the same.

    >>> widens(pa.int32(), pa.int64()), widens(pa.uint32(), pa.int64()), widens(pa.int64(), pa.float64())
    (True, True, False)
    >>> widens(pa.list_(pa.float32()), pa.list_(pa.float64())), widens(pa.decimal128(9, 2), pa.decimal128(12, 2))
    (True, True)
    """
    if old == new or pa.types.is_null(old):
        return True
    if old in _WIDTHS and new in _WIDTHS:
        (old_bits, old_signed), (new_bits, new_signed) = _WIDTHS[old], _WIDTHS[new]
        return new_bits >= old_bits if old_signed == new_signed else new_signed and new_bits > old_bits
    if old in _FLOATS and new in _FLOATS:
        return _FLOATS.index(new) > _FLOATS.index(old)
    if pa.types.is_decimal(old) and pa.types.is_decimal(new):
        return bool(new.scale >= old.scale and new.precision - new.scale >= old.precision - old.scale)
    if pa.types.is_list(old) and pa.types.is_list(new):
        return widens(old.value_type, new.value_type)
    return (old, new) in _LARGER


@dataclass(frozen=True, slots=True)
class TableChange:
    """How a state table differs from what it was.

    Attributes:
        migrated: what old rows are made fit for, a phrase each.
        refused: what they cannot be made fit for, a phrase each.
    """

    migrated: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def any(self) -> bool:
        """Whether there is a difference at all."""
        return bool(self.migrated or self.refused)


def compare_tables(old: StateTable, new: StateTable) -> TableChange:
    """Say how the declaration of a state table has changed.

    >>> before = StateTable("t", pa.schema({"k": pa.string(), "n": pa.int32()}), ("k",))
    >>> compare_tables(before, StateTable("t", pa.schema({"k": pa.string(), "n": pa.int64()}), ("k",))).migrated
    ['n: int32 is widened to int64']
    """
    change = TableChange()
    if old.kind is not new.kind:
        change.refused.append(f"its rows were {old.kind.value} and are {new.kind.value}")
    if old.keys != new.keys:
        change.refused.append(f"its key was {', '.join(old.keys) or 'nothing'} and is {', '.join(new.keys)}")
    for name in old.schema.names:
        if name not in new.schema.names:
            change.refused.append(f"{name}: {old.schema.field(name).type} in the checkpoint, no such column in the job")
    for column in new.schema:
        if column.name in old.schema.names:
            _compare_columns(old.schema.field(column.name), column, change)
        else:
            _compare_added(column, new, change)
    common = [name for name in new.schema.names if name in old.schema.names]
    if not change.any and common != old.schema.names:
        change.migrated.append("the columns stand in another order")
    return change


def _compare_columns(old: pa.Field, new: pa.Field, change: TableChange) -> None:
    if not widens(old.type, new.type):
        change.refused.append(f"{new.name}: {old.type} in the checkpoint, {new.type} in the job")
    elif old.nullable and not new.nullable:
        change.refused.append(f"{new.name}: may be null in the checkpoint, must not be in the job")
    elif old.type != new.type:
        change.migrated.append(f"{new.name}: {old.type} is widened to {new.type}")
    elif old.nullable != new.nullable:
        change.migrated.append(f"{new.name}: may be null from now on")


def _compare_added(column: pa.Field, table: StateTable, change: TableChange) -> None:
    if column.name in table.defaults:
        default = table.defaults[column.name]
        change.migrated.append(f"{column.name}: added, {default!r} in older rows")
    elif column.name in table.keys:
        change.refused.append(f"{column.name}: no such key in the checkpoint")
    elif column.nullable:
        change.migrated.append(f"{column.name}: added, null in older rows")
    else:
        change.refused.append(f"{column.name}: no such column in the checkpoint, and it has no default")


def migrated(batch: pa.RecordBatch, old: StateTable, new: StateTable) -> pa.RecordBatch:
    """Return rows that were written as ``old`` as rows of ``new``.

    Raises:
        StateMismatch: they cannot be.

    >>> before = StateTable("t", pa.schema({"k": pa.int32()}), ("k",))
    >>> after = StateTable("t", pa.schema({"k": pa.int64(), "n": pa.int64()}), ("k",), defaults={"n": 7})
    >>> rows = pa.record_batch({"k": pa.array([1], pa.int32()), "deleted": [False]})
    >>> migrated(rows, before, after).to_pylist()
    [{'k': 1, 'n': 7, 'deleted': False}]
    """
    if refused := compare_tables(old, new).refused:
        raise StateMismatch(f"state {new.name!r} does not fit the job: {'; '.join(refused)}")
    names = row_schema(old).names
    columns = [
        batch.column(names.index(column.name)).cast(column.type)
        if column.name in names
        else default_column(column, new, len(batch))
        for column in row_schema(new)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=row_schema(new))


def default_column(column: pa.Field, table: StateTable, rows: int) -> pa.Array:
    """Return what ``rows`` rows of an older checkpoint have in an added column."""
    return pa.repeat(pa.scalar(table.defaults.get(column.name), column.type), rows)


def pack_defaults(table: StateTable) -> bytes:
    """Return a state table's defaults as an Arrow IPC stream of one row."""
    fields = [f for f in table.schema if f.name in table.defaults]
    row = pa.RecordBatch.from_arrays([default_column(f, table, 1) for f in fields], schema=pa.schema(fields))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, row.schema) as writer:
        writer.write_batch(row)
    return bytes(sink.getvalue())


def unpack_defaults(data: bytes) -> dict[str, object]:
    """Return the defaults that ``pack_defaults`` was given.

    >>> table = StateTable("t", pa.schema({"k": pa.string(), "n": pa.int64()}), ("k",), defaults={"n": 7})
    >>> unpack_defaults(pack_defaults(table))
    {'n': 7}
    """
    with pa.ipc.open_stream(data) as reader:
        rows: Sequence[dict[str, object]] = reader.read_all().to_pylist()
    return dict(rows[0]) if rows else {}
