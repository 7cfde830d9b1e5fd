"""Aggregates per key and window: one row for each, when the window closes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from millstream.engine.changelog import is_changelog, weighted
from millstream.engine.codes import form_of, plain_type
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Operator, OperatorSpec
from millstream.engine.state import StateTable
from millstream.engine.store.columns import storage_type
from millstream.engine.time import show_duration
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.aggregate_state import aggregate_tables
from millstream.operators.event_time import TIME_TYPE
from millstream.operators.session_window import SessionWindow
from millstream.operators.window_updates import Updates
from millstream.operators.windowed import LATE, check_columns, check_time
from millstream.operators.windows import OneWindow, PanedWindow, Window

WINDOW_START: Final = "window_start"
WINDOW_END: Final = "window_end"

STATE: Final = "windows"
"""The name of the state table: one row per key and open window."""


@dataclass(frozen=True, eq=False)
class WindowAggregate(OperatorSpec):
    """Aggregates the rows of each key and window.

    The result of a window is emitted once, when the watermark has reached its end plus the lateness, and never
    changes: allowing lateness means waiting for it. Rows that come later still, and rows whose event time is null,
    go to the port ``late`` as they are and are counted. At the end of a bounded stream every window fires.

    Output: the keys, ``window_start`` and ``window_end`` (timestamp[us]; the end is not part of the window), then
    the aggregates; ordered by window, within a window in the order in which the keys first came (where windows
    share panes: to the earliest pane of theirs).

    Where windows overlap, a row that is late for some of its windows counts in the others, and is late only if all
    of them have fired.

    The input may be a changelog: a window's result is that of the rows that are there when it fires, and there is none
    without any. A change is late, with its weight, when a row of its time would be. So a row that is taken back may
    shorten a session, or leave two of it, until a session of that row alone would have fired; what is left that should
    have fired by then does so when time goes on.

    Windows of processing time fire when the clock has reached their end. A row is in the windows of the moment at which
    it is processed, so that none is late, and there is no port ``late``. A clock that is found set back after a restart
    stands still for the windows that were open.

    Attributes:
        keys: the columns that name a group; none means one group per window.
        aggregates: (output column, aggregate), in order.
        time: the event time of a row: a timestamp, or int64 microseconds; None: windows are of processing time.
        lateness: how long a window stays open after its end, microseconds.
        updates: when results are shown that may still change. The output is then a changelog, which comes to the result
            of each window once that has closed; None: there are none, and it is an append stream.
    """

    keys: tuple[str, ...]
    window: Window
    aggregates: tuple[tuple[str, AggregateSpec], ...]
    time: Expr | None
    lateness: int = 0
    updates: Updates | None = None

    def __post_init__(self) -> None:
        if self.lateness < 0:
            raise JobError(f"a window's lateness cannot be negative, got {self.lateness} microseconds")
        if self.lateness and self.time is None:
            raise JobError("no row is late for windows of processing time: leave the lateness out")
        if self.updates is not None:
            self._check_updates(self.updates)
        for name, aggregate in self.aggregates if not isinstance(self.window, OneWindow) else ():
            if not aggregate.can_merge:
                raise JobError(
                    f"{name}={aggregate.function}(...) needs merge= in windows {self.window.describe()}: these are "
                    "put together from parts. Give aggregate() a function merge=(state, later) -> state, or "
                    "use ms.tumbling()"
                )

    def _check_updates(self, updates: Updates) -> None:
        if not isinstance(self.window, OneWindow):
            raise JobError(
                f"window(early=, late='correct') works in windows of ms.tumbling() only, not in windows "
                f"{self.window.describe()}"
            )
        if updates.correct and not self.lateness:
            raise JobError("window(late='correct') needs a lateness: how long after its end may rows correct a window?")

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "window_aggregate"

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        made = [(name, aggregate.identity()) for name, aggregate in self.aggregates]
        updates = "" if self.updates is None else f", {self.updates.identity()}"
        return (
            f"window_aggregate(keys={self.keys!r}, window={self.window.identity()}, aggregates={made!r}, "
            f"time={'processing' if self.time is None else self.time}, lateness={self.lateness}{updates})"
        )

    def describe(self) -> str:
        """One line for the plan."""
        made = ", ".join(f"{name}={aggregate.identity()}" for name, aggregate in self.aggregates)
        group = f" by {', '.join(self.keys)}" if self.keys else ""
        wait = f", {show_duration(self.lateness)} of lateness" if self.lateness else ""
        clock = " of processing time" if self.time is None else ""
        updates = "" if self.updates is None else f", {self.updates.describe()}"
        return f"{made}{group} {self.window.describe()}{clock}{wait}{updates}"

    def exchange(self) -> Exchange:
        """By hash of the keys; without keys one subtask has it all."""
        return Exchange(ExchangeKind.HASH, self.keys) if self.keys else Exchange(ExchangeKind.SINGLE)

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The results, and late rows as they came. Raises SchemaError when the input does not fit."""
        (schema,) = inputs
        self._check(schema)
        fields = [pa.field(key, plain_type(schema.field(key).type)) for key in self.keys]
        fields += [pa.field(WINDOW_START, TIME_TYPE), pa.field(WINDOW_END, TIME_TYPE)]
        fields += [pa.field(name, aggregate.type_in(schema)) for name, aggregate in self.aggregates]
        results = {MAIN: pa.schema(fields) if self.updates is None else weighted(pa.schema(fields))}
        return results if self.time is None else {**results, LATE: schema}

    def _check(self, schema: pa.Schema) -> None:
        check_columns(self.keys, schema, "key")
        for key in self.keys:
            form_of(schema.field(key).type, f"key column {key!r}")
        if self.time is not None:
            check_time(self.time, schema)
        for _, aggregate in self.aggregates:
            aggregate.check(schema)
            if self.updates is not None:
                storage_type(aggregate.type_in(schema))
        names = [*self.keys, WINDOW_START, WINDOW_END, *(name for name, _ in self.aggregates)]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise SchemaError(
                f"{self.kind} would make two columns called {', '.join(sorted(twice))}: keys and aggregates "
                f"must differ from each other and from {WINDOW_START} and {WINDOW_END}; rename the column first"
            )

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """One row per key and open window: keys, window_start, and what each aggregate keeps.

        If windows share panes, a row per key and pane, with its start, and at last up to which end windows have fired.
        A session has a number instead of a start, and at last the times of its first and last row.

        Of a changelog there is how many rows a group has, after what each aggregate keeps. Of sessions there is then a
        row per key and moment, and at last what was closed when it changed.

        If results are shown that may change, there is at last the one shown, and whether there is one.

        An aggregate that keeps items has a table for them, named after its column.
        """
        (schema,) = inputs
        piece, more = self._piece(is_changelog(schema))
        if is_changelog(schema):
            more = [pa.field("rows", pa.int64()), *more]
        if self.updates is not None:
            results = [pa.field(f"shown_{name}", aggregate.type_in(schema)) for name, aggregate in self.aggregates]
            more = [*more, pa.field("shown", pa.bool_()), *results]
        group = [*(pa.field(key, plain_type(schema.field(key).type)) for key in self.keys), piece]
        return aggregate_tables(STATE, group, len(self.keys), self.aggregates, schema, more)

    def _piece(self, changes: bool) -> tuple[pa.Field, list[pa.Field]]:
        """Return the column of state that names a piece of time of a key, and those that come last."""
        if isinstance(self.window, PanedWindow):
            return pa.field("pane_start", TIME_TYPE), [pa.field("fired", TIME_TYPE)]
        if isinstance(self.window, SessionWindow) and changes:
            return pa.field("moment", TIME_TYPE), [pa.field("closed", TIME_TYPE)]
        if isinstance(self.window, SessionWindow):
            return pa.field("session", pa.int64()), [pa.field(name, TIME_TYPE) for name in ("first", "last")]
        return pa.field(WINDOW_START, TIME_TYPE), []

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """Keys, time, what the aggregates read, and what is wanted of late rows."""
        del inputs
        time = frozenset() if self.time is None else self.time.columns()
        needed = frozenset(self.keys) | time | wanted.get(LATE, frozenset())
        return [needed.union(*(aggregate.columns() for _, aggregate in self.aggregates))]

    @property
    def takes_changelog(self) -> bool:
        """Windows of event time take rows out again while they are open; by the clock they are elsewhere by then."""
        return self.time is not None

    @property
    def uses_event_time(self) -> bool:
        """Windows fire by watermark, or else by the clock."""
        return self.time is not None

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        if isinstance(self.window, PanedWindow):
            from millstream.operators.pane_aggregate_operator import PaneAggregateOperator

            return PaneAggregateOperator(self, self.window, inputs[0])
        if isinstance(self.window, SessionWindow):
            if is_changelog(inputs[0]):
                from millstream.operators.changing_session_operator import ChangingSessionOperator

                return ChangingSessionOperator(self, self.window, inputs[0])
            from millstream.operators.session_operator import SessionOperator

            return SessionOperator(self, self.window, inputs[0])
        from millstream.operators.window_aggregate_operator import OneWindowOperator

        assert isinstance(self.window, OneWindow)
        if self.updates is not None:
            from millstream.operators.updating_window_operator import UpdatingWindowOperator

            return UpdatingWindowOperator(self, self.window, self.updates, inputs[0])
        return OneWindowOperator(self, self.window, inputs[0])
