"""Aggregates of every so many rows of a key, in order of arrival: ``count_window``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from millstream.engine.codes import form_of, plain_type
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Operator, OperatorSpec
from millstream.engine.state import StateTable
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.aggregate_state import aggregate_tables
from millstream.operators.windowed import check_columns

STATE: Final = "windows"
"""The name of the state table: one row per key with an open window."""

MOST_ROWS: Final = 2**31
"""No window has more rows."""


@dataclass(frozen=True, slots=True)
class CountWindow:
    """Windows of so many rows of a key; each row is in one.

    Attributes:
        rows: how many, at least 1.
    """

    rows: int


def count_window(rows: int) -> CountWindow:
    """Put every so many rows of a key, in order of arrival, into one window; it fires with the last of them.

    At the end of a bounded input the windows that are not full fire too. Event time plays no part.

    Args:
        rows: how many, at least 1.

    Raises:
        JobError: that is no such number.

    >>> import millstream as ms
    >>> job, out = ms.Job("j"), ms.memory_sink()
    >>> numbers = job.read(ms.memory_source([{"n": n} for n in range(5)]))
    >>> numbers.window(ms.count_window(2)).agg(n=ms.collect("n")).write(out)
    >>> _ = job.run()
    >>> out.rows()
    [{'n': [0, 1]}, {'n': [2, 3]}, {'n': [4]}]
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or not 1 <= rows <= MOST_ROWS:
        raise JobError(f"count_window({rows!r}): a window has a whole number of rows, from 1 to {MOST_ROWS:,}")
    return CountWindow(rows)


@dataclass(frozen=True, eq=False)
class CountWindowAggregate(OperatorSpec):
    """Aggregates the rows of each key, so many at a time, in order of arrival.

    Output: the keys, then the aggregates; in the order in which windows become full. At the end of a bounded stream
    those follow that are not full, in the order in which they began. ``first`` and ``last`` go by arrival.

    Attributes:
        keys: the columns that name a group; none: all rows are one group.
        rows: how many rows a window has.
        aggregates: (output column, aggregate), in order.
    """

    keys: tuple[str, ...]
    rows: int
    aggregates: tuple[tuple[str, AggregateSpec], ...]

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "count_window"

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        made = [(name, aggregate.identity()) for name, aggregate in self.aggregates]
        return f"count_window(keys={self.keys!r}, rows={self.rows}, aggregates={made!r})"

    def describe(self) -> str:
        """One line for the plan."""
        made = ", ".join(f"{name}={aggregate.identity()}" for name, aggregate in self.aggregates)
        group = f" by {', '.join(self.keys)}" if self.keys else ""
        return f"{made}{group} every {self.rows:,} rows"

    def exchange(self) -> Exchange:
        """By hash of the keys; without keys one subtask has it all."""
        return Exchange(ExchangeKind.HASH, self.keys) if self.keys else Exchange(ExchangeKind.SINGLE)

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The results. Raises SchemaError when the input does not fit."""
        (schema,) = inputs
        check_columns(self.keys, schema, "key")
        for key in self.keys:
            form_of(schema.field(key).type, f"key column {key!r}")
        for name, aggregate in self.aggregates:
            aggregate.check(schema)
            if name in self.keys:
                raise SchemaError(
                    f"{self.kind} would make two columns called {name}: keys and aggregates must differ from each "
                    "other; rename the column first"
                )
        fields = [pa.field(key, plain_type(schema.field(key).type)) for key in self.keys]
        return {MAIN: pa.schema([*fields, *(pa.field(name, made.type_in(schema)) for name, made in self.aggregates)])}

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """One row per key with an open window: keys, the window's number, what aggregates keep, how many rows it has.

        The number tells windows of a key apart; it begins anew when the key has none that is open.
        An aggregate that keeps items has a table for them, named after its column.
        """
        (schema,) = inputs
        keys = [pa.field(key, plain_type(schema.field(key).type)) for key in self.keys]
        group, more = [*keys, pa.field("number", pa.int64())], [pa.field("rows", pa.int64())]
        return aggregate_tables(STATE, group, len(self.keys), self.aggregates, schema, more)

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """Keys, and what the aggregates read."""
        del wanted, inputs
        return [frozenset(self.keys).union(*(aggregate.columns() for _, aggregate in self.aggregates))]

    @property
    def uses_event_time(self) -> bool:
        """The end of a bounded input is the end of event time."""
        return True

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.count_window_operator import CountWindowOperator

        return CountWindowOperator(self, inputs[0])
