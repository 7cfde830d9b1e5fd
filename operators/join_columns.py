"""What the rows of a join are made of: which column comes from which side, under which name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from millstream.engine.codes import form_of, plain, plain_type
from millstream.engine.errors import SchemaError
from millstream.operators.event_time import TIME_TYPE

WINDOW: Final = ("window_start", "window_end")
"""The columns that a join of windows adds."""


@dataclass(frozen=True, slots=True)
class JoinedColumn:
    """One column of the joined rows.

    Attributes:
        name: in the output.
        left: the column of the left row; None if it is the right row's, or the window's.
        right: the column of the right row. With ``left`` it is a key that both have by that name: the left row's
            value is taken, and the right row's where there is no left row.
    """

    name: str
    left: str | None = None
    right: str | None = None


def join_columns(
    left: pa.Schema, right: pa.Schema, keys: Sequence[tuple[str, str]], suffix: str, window: bool
) -> tuple[JoinedColumn, ...]:
    """Return all columns of the joined rows: the left ones, the right ones, and those of the window.

    A key that has the same name on both sides is there once; a right column gets the suffix if its name is taken.

    Raises:
        SchemaError: a name is taken even with the suffix.

    >>> left, right = pa.schema({"id": pa.int64(), "at": pa.int64()}), pa.schema({"id": pa.int64(), "at": pa.int64()})
    >>> [column.name for column in join_columns(left, right, [("id", "id")], "_right", False)]
    ['id', 'at', 'at_right']
    """
    shared = {name for name, right_name in keys if name == right_name}
    columns = [JoinedColumn(name, name, name if name in shared else None) for name in left.names]
    taken = {*left.names, *(WINDOW if window else ())}
    for name in WINDOW if window else ():
        if name in left.names:
            raise SchemaError(
                f"join(): the left stream has a column {name!r} already, which is what a join of windows adds: rename "
                f"it first, as in left.rename({{{name!r}: 'left_{name}'}})"
            )
    for name in right.names:
        if name in shared:
            continue
        named = name + suffix if name in taken else name
        if named in taken:
            raise SchemaError(
                f"join(): the right column {name!r} would be called {named!r}, and that name is taken too: choose "
                f"another suffix=, or leave the column out of the right stream"
            )
        taken.add(named)
        columns.append(JoinedColumn(named, right=name))
    return (*columns, *(JoinedColumn(name) for name in (WINDOW if window else ())))


def check_keys(keys: Sequence[tuple[str, str]], left: pa.Schema, right: pa.Schema) -> None:
    """Raise SchemaError unless the keys are there and of the same types on both sides."""
    for left_name, right_name in keys:
        for name, schema, side in ((left_name, left, "left"), (right_name, right, "right")):
            if name not in schema.names:
                raise SchemaError(
                    f"join(): the {side} stream has no column {name!r}; it has {', '.join(schema.names)}. Where names "
                    "differ write on={'left_name': 'right_name'}"
                )
            form_of(schema.field(name).type, f"join(): the {side} key {name!r}")
        types = [plain_type(schema.field(n).type) for n, schema in ((left_name, left), (right_name, right))]
        if types[0] != types[1]:
            raise SchemaError(
                f"join(): the left key {left_name!r} is {types[0]}, the right key {right_name!r} is {types[1]}, and "
                f"values of two types are never equal: convert one first, as in "
                f"right.with_columns({right_name}=col({right_name!r}).cast({str(types[0])!r}))"
            )


def joined_schema(columns: Iterable[JoinedColumn], left: pa.Schema, right: pa.Schema) -> pa.Schema:
    """Return the schema of joined rows. Every column may be null; dictionaries become plain values."""
    fields = []
    for column in columns:
        if column.left is not None:
            type = left.field(column.left).type
        elif column.right is not None:
            type = right.field(column.right).type
        else:
            type = TIME_TYPE
        fields.append(pa.field(column.name, plain_type(type)))
    return pa.schema(fields)


def assembled(
    columns: Sequence[JoinedColumn],
    schema: pa.Schema,
    rows: int,
    sides: Sequence[pa.RecordBatch | None],
    window: Sequence[pa.Array],
) -> pa.RecordBatch:
    """Put rows of both sides together, row by row.

    Args:
        schema: of the columns.
        rows: how many.
        sides: the left and the right rows; None: nulls stand for them.
        window: starts and ends of the windows, if there are such columns.
    """
    left, right = sides
    bounds = dict(zip(WINDOW, window, strict=False))
    arrays = []
    for column, field in zip(columns, schema, strict=True):
        if left is not None and column.left is not None:
            arrays.append(plain(left.column(column.left)))
        elif right is not None and column.right is not None:
            arrays.append(plain(right.column(column.right)))
        elif column.left is None and column.right is None:
            arrays.append(bounds[column.name])
        else:
            arrays.append(pa.nulls(rows, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
