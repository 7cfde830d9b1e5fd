"""Aggregates of every so many rows of a key, in order of arrival: ``count_window``."""

from __future__ import annotations

import math
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

MOST_PANES: Final = 1_000
"""No window is put together from more parts."""


@dataclass(frozen=True, slots=True)
class CountWindow:
    """Windows of so many rows of a key.

    Attributes:
        rows: how many, at least 1.
        slide: after how many rows the next one begins, at most as many as it has.
    """

    rows: int
    slide: int


def count_window(rows: int, *, slide: int | None = None) -> CountWindow:
    """Put every so many rows of a key, in order of arrival, into one window; it fires with the last of them.

    At the end of a bounded input the windows that are not full fire too. Event time plays no part.

    Args:
        rows: how many, at least 1.
        slide: after every so many rows a window with the last ``rows`` fires, or at first with those there are; without
            it windows do not overlap. The number of rows and the slide must have a common divisor that is not too small
            beside them. The last rows of every key are kept, in parts that windows share.

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
    step = rows if slide is None else slide
    if isinstance(step, bool) or not isinstance(step, int) or not 1 <= step <= rows:
        raise JobError(f"count_window({rows}, slide={slide!r}): a window begins after 1 to {rows:,} rows")
    if rows // math.gcd(rows, step) > MOST_PANES:
        raise JobError(
            f"count_window({rows}, slide={slide}): a window would be put together from "
            f"{rows // math.gcd(rows, step):,} parts, at most {MOST_PANES:,} are possible: choose a slide that has a "
            f"larger divisor in common with {rows}"
        )
    return CountWindow(rows, step)


@dataclass(frozen=True, eq=False)
class CountWindowAggregate(OperatorSpec):
    """Aggregates the rows of each key, so many at a time, in order of arrival.

    Output: the keys, then the aggregates; in the order in which windows become full. At the end of a bounded stream
    those follow that are not full, in the order in which they began. ``first`` and ``last`` go by arrival.

    Where windows overlap they share panes: as many rows as rows and slide have as their greatest common divisor.

    Attributes:
        keys: the columns that name a group; none: all rows are one group.
        rows: how many rows a window has.
        aggregates: (output column, aggregate), in order.
        slide: after how many rows of its key the next window begins; 0: after all of its rows.
    """

    keys: tuple[str, ...]
    rows: int
    aggregates: tuple[tuple[str, AggregateSpec], ...]
    slide: int = 0

    def __post_init__(self) -> None:
        for name, aggregate in self.aggregates if self.overlaps else ():
            if not aggregate.can_merge:
                raise JobError(
                    f"{name}={aggregate.function}(...) needs merge= in windows that overlap: these are put together "
                    "from parts. Give aggregate() a function merge=(state, later) -> state, or leave slide= out"
                )

    @property
    def overlaps(self) -> bool:
        """Whether a row is in several windows."""
        return self.slide not in {0, self.rows}

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "count_window"

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        made = [(name, aggregate.identity()) for name, aggregate in self.aggregates]
        slide = f", slide={self.slide}" if self.overlaps else ""
        return f"count_window(keys={self.keys!r}, rows={self.rows}, aggregates={made!r}{slide})"

    def describe(self) -> str:
        """One line for the plan."""
        made = ", ".join(f"{name}={aggregate.identity()}" for name, aggregate in self.aggregates)
        group = f" by {', '.join(self.keys)}" if self.keys else ""
        if self.overlaps:
            return f"{made}{group} over {self.rows:,} rows, every {self.slide:,}"
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

        The number tells windows of a key apart; it begins anew when the key has none that is open. Where windows
        overlap there is a row per pane that a window to come has, with the pane's number.
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
        if self.overlaps:
            from millstream.operators.sliding_count_operator import SlidingCountOperator

            return SlidingCountOperator(self, inputs[0])
        from millstream.operators.count_window_operator import CountWindowOperator

        return CountWindowOperator(self, inputs[0])
