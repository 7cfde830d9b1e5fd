"""Rows with what came before and after them in their key: numbers, neighbours, running and sliding aggregates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import pyarrow as pa
from millstream.engine.codes import form_of, plain_type
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Operator, OperatorSpec
from millstream.engine.state import DELETED, StateTable
from millstream.engine.time import END_OF_TIME, show_duration
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.aggregates import Count, Extreme, Mean, Sum
from millstream.operators.over_functions import OverFunction, RowNumber, Shift
from millstream.operators.windowed import LATE, check_columns, check_time, distinct_names

STATE: Final = "rows"
"""The name of the state table: rows that wait for event time or for another row, and rows that later ones look at."""

MOST_ROWS: Final = 1_000_000

Function: TypeAlias = OverFunction | AggregateSpec


@dataclass(frozen=True, eq=False)
class Over(OperatorSpec):
    """Adds columns to every row that are computed from the rows of its key before it, and with ``lead`` after it.

    Rows of a key are ordered by event time, those of one time by arrival. A row waits until the watermark has passed
    its time, so that nothing can come between it and its neighbours any more, and then goes on once, for good. Rows go
    on in the order of event time. Rows behind the watermark when they come, and rows without a time, go to ``late``.

    The frame of aggregates is that of SQL: ``rows between n - 1 preceding and current row``, ``range between d
    preceding and current row`` (both ends are in it, and with the row all of its own time), or, with neither, ``rows
    between unbounded preceding and current row``.

    Attributes:
        keys: the columns that name a group; none means that all rows are one.
        functions: (column to add, what it holds).
        time: the event time of a row: a timestamp, or int64 microseconds.
        rows: how many rows a frame has at most, the row itself among them.
        range: how far back in event time a frame reaches, microseconds.
        keep: the columns wanted of each port, since nobody wants the others; None: all.
    """

    keys: tuple[str, ...]
    functions: tuple[tuple[str, Function], ...]
    time: Expr
    rows: int | None = None
    range: int | None = None
    keep: Mapping[str, frozenset[str]] | None = None

    def __post_init__(self) -> None:
        if not self.functions:
            raise JobError("over() needs at least one function, as in over(n=ms.row_number())")
        if self.rows is not None and self.range is not None:
            raise JobError("over(): a frame is rows= or range=, not both")
        if self.rows is not None and not 1 <= self.rows <= MOST_ROWS:
            raise JobError(f"over(rows={self.rows}): a frame has 1 to {MOST_ROWS:,} rows")
        if self.range is not None and not 0 <= self.range <= END_OF_TIME // 64:
            days = END_OF_TIME // 64 // 86_400_000_000
            raise JobError(f"over(range={self.range} microseconds): a frame reaches back at most {days} days")

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "over"

    @property
    def running(self) -> bool:
        """Whether frames have no beginning."""
        return self.rows is None and self.range is None

    @property
    def before(self) -> int:
        """How many rows before it a row needs at most."""
        shifts = [function.by for _, function in self.functions if isinstance(function, Shift)]
        numbered = any(isinstance(function, RowNumber) for _, function in self.functions)
        framed = any(isinstance(function, AggregateSpec) for _, function in self.functions)
        carried = numbered or (framed and self.running)
        return max([0, *shifts, int(carried), (self.rows or 1) - 1 if framed else 0])

    @property
    def after(self) -> int:
        """How many rows after it a row needs."""
        return max([0, *(-function.by for _, function in self.functions if isinstance(function, Shift))])

    @property
    def reach(self) -> int | None:
        """How far back in time rows are needed, whatever their number; None: they are not."""
        return self.range if any(isinstance(function, AggregateSpec) for _, function in self.functions) else None

    def carried(self, function: Function, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """What a function must know of all rows of the key so far; the last of them carries it."""
        if isinstance(function, RowNumber):
            return (pa.field("number", pa.int64()),)
        return function.state_fields(schema) if self.running and isinstance(function, AggregateSpec) else ()

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        functions = ", ".join(f"{name}={function.identity()}" for name, function in self.functions)
        return f"over(keys={self.keys!r}, {functions}, time={self.time}, rows={self.rows}, range={self.range})"

    def describe(self) -> str:
        """One line for the plan."""
        names = ", ".join(f"{name}={function.identity()}" for name, function in self.functions)
        frame = f" over {self.rows} rows" if self.rows else ""
        frame = f" over {show_duration(self.range)}" if self.range is not None else frame
        return f"{names}{frame} by {self.time}" + (f" of each {', '.join(self.keys)}" if self.keys else "")

    def exchange(self) -> Exchange:
        """By hash of the keys; without keys one subtask has it all."""
        return Exchange(ExchangeKind.HASH, self.keys) if self.keys else Exchange(ExchangeKind.SINGLE)

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The input's columns and those added; late rows as they came. Raises SchemaError if they do not fit."""
        (schema,) = inputs
        check_columns(self.keys, schema, "key")
        for key in self.keys:
            form_of(schema.field(key).type, f"key column {key!r}")
        check_time(self.time, schema)
        fields = [pa.field(field.name, plain_type(field.type)) for field in schema]
        for name, function in self.functions:
            if name in schema.names:
                raise SchemaError(f"there is a column {name!r} already: give what is added another name")
            _check_function(function, schema)
            fields.append(pa.field(name, function.type_in(schema)))
        main = pa.schema([field for field in fields if self.makes(MAIN, field.name)])
        late = pa.schema([field for field in schema if self.makes(LATE, field.name)], schema.metadata)
        return {MAIN: main, LATE: late}

    def makes(self, port: str, column: str) -> bool:
        """Whether somebody wants the column."""
        return self.keep is None or column in self.keep.get(port, frozenset())

    def kept(self, schema: pa.Schema) -> pa.Schema:
        """The columns of a row that must be kept: what is put out, and what is read."""
        needed = self._needed(schema)
        return pa.schema([pa.field(f.name, plain_type(f.type)) for f in schema if f.name in needed])

    def _needed(self, schema: pa.Schema) -> frozenset[str]:
        made = [name for name in schema.names if self.makes(MAIN, name)]
        return frozenset(made).union(self.keys, self.time.columns(), self.columns_read())

    def columns_read(self) -> frozenset[str]:
        """What the functions read."""
        return frozenset().union(*(function.columns() for _, function in self.functions))

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """One row per row kept: its columns, what running functions carry on, whether it has gone on, its arrival."""
        (schema,) = inputs
        carried = [
            pa.field(f"{name}_{field.name}", field.type)
            for name, function in self.functions
            for field in self.carried(function, schema)
        ]
        fields = [*self.kept(schema), *carried, pa.field("emitted", pa.bool_()), pa.field("arrival", pa.int64())]
        names = distinct_names([field.name for field in fields], {DELETED})
        columns = pa.schema([pa.field(n, f.type) for n, f in zip(names, fields, strict=True)])
        kept = self.kept(schema)
        routed = tuple(names[kept.get_field_index(key)] for key in self.keys)
        return (StateTable(STATE, columns, keys=(*routed, names[-1]), route_by=routed),)

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """What is kept, and what is wanted of late rows."""
        return [self.pruned(wanted)._needed(inputs[0]) | wanted.get(LATE, frozenset())]

    def pruned(self, wanted: Mapping[str, frozenset[str]]) -> Over:
        """Return one that puts out no more than is wanted, and computes no more."""
        keep = {port: wanted.get(port, frozenset()) for port in (MAIN, LATE)}
        functions = tuple((name, function) for name, function in self.functions if name in keep[MAIN])
        return replace(self, functions=functions or self.functions[:1], keep=keep)

    @property
    def uses_event_time(self) -> bool:
        """Rows go on by watermark."""
        return True

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.over_operator import OverOperator

        return OverOperator(self, inputs[0])


def _check_function(function: Function, schema: pa.Schema) -> None:
    if not isinstance(function, AggregateSpec):
        return
    if not isinstance(function, (Count, Sum, Mean, Extreme)):
        raise SchemaError(
            f"{function.identity()} cannot be computed row by row; over() takes row_number, lag, lead, count, sum, "
            "mean, min and max"
        )
    function.check(schema)
    if isinstance(function, (Sum, Mean)) and pa.types.is_decimal(function.number_type(schema)):
        raise SchemaError(
            f"{function.identity()}: over() adds integers and floats, not decimals; cast the argument to float64, or "
            "to a whole number of its smallest unit"
        )
