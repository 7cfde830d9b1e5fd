"""The top rows per key and window: "the highest bid of every ten seconds"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
from millstream.engine.changelog import is_changelog, unweighted, weighted
from millstream.engine.codes import form_of, plain_type
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr, col
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Operator, OperatorSpec
from millstream.engine.state import DELETED, StateTable
from millstream.engine.time import show_duration
from millstream.operators.event_time import TIME_TYPE
from millstream.operators.session_window import SessionWindow
from millstream.operators.top import check_findable
from millstream.operators.top_rows import TopRows
from millstream.operators.window_aggregate import WINDOW_END, WINDOW_START, WindowAggregate
from millstream.operators.window_updates import Updates
from millstream.operators.windowed import LATE, check_columns, check_time, distinct_names
from millstream.operators.windows import OneWindow, Window

STATE: Final = "top"
"""The name of the state table: one row per row that is on top now."""

_WINDOW: Final = (WINDOW_START, WINDOW_END)


@dataclass(frozen=True, eq=False)
class WindowTop(OperatorSpec):
    """Keeps the ``n`` best rows of each key and window and emits them when the window closes.

    Windows close, and late rows are treated, as in ``WindowAggregate``. Output: ``columns`` of the rows, ordered by
    window, within a window by the order in which keys first came, within a key best first. Where windows may overlap
    (all but ``OneWindow``) a row does not tell which one it is of: then ``window_start`` and ``window_end`` follow.

    The input may be a changelog, as that of ``WindowAggregate``: then all rows of open windows are kept, with all their
    columns, since any may be among the best when the window closes. Equal rows have no order of arrival there: the
    least by its columns is better.

    Attributes:
        keys: the columns that name a group; none means one group per window.
        by: (expression, whether the greatest comes first), the most important first; nulls rank last, NaN is the
            greatest number. Of rows equal in all of them the first to arrive is better.
        n: how many rows a group keeps, at least 1.
        ties: keep also every row that equals the n-th in all of ``by`` (SQL's ``rank() <= n``).
        time: the event time of a row: a timestamp, or int64 microseconds.
        lateness: how long a window stays open after its end, microseconds.
        columns: the output columns, in order; None: all of the input's.
        updates: when results are shown that may still change; the output is then a changelog of rows that come to the
            top and leave it. None: there are none.
        keep: put out only those of ``columns`` that are in here, since nobody wants the others; None: all.
    """

    keys: tuple[str, ...]
    window: Window
    by: tuple[tuple[Expr, bool], ...]
    n: int
    ties: bool
    time: Expr
    lateness: int = 0
    columns: tuple[str, ...] | None = None
    updates: Updates | None = None
    keep: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.n < 1 or not self.by:
            raise JobError(f"a top-n needs n >= 1 and something to rank by, got n={self.n}, by={self._by()}")
        if self.lateness < 0:
            raise JobError(f"a window's lateness cannot be negative, got {self.lateness} microseconds")

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "window_top"

    def _by(self) -> str:
        return ", ".join(f"{expr} {'desc' if down else 'asc'}" for expr, down in self.by)

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        updates = "" if self.updates is None else f", {self.updates.identity()}"
        return (
            f"window_top(keys={self.keys!r}, window={self.window.identity()}, by=[{self._by()}], n={self.n}, "
            f"ties={self.ties}, time={self.time}, lateness={self.lateness}, columns={self.columns!r}{updates})"
        )

    def describe(self) -> str:
        """One line for the plan."""
        group = f" of each {', '.join(self.keys)}" if self.keys else ""
        ties = ", ties kept" if self.ties else ""
        wait = f", {show_duration(self.lateness)} of lateness" if self.lateness else ""
        updates = "" if self.updates is None else f", {self.updates.describe()}"
        return f"top {self.n}{group} by {self._by()} {self.window.describe()}{ties}{wait}{updates}"

    def exchange(self) -> Exchange:
        """By hash of the keys; without keys one subtask has it all."""
        return Exchange(ExchangeKind.HASH, self.keys) if self.keys else Exchange(ExchangeKind.SINGLE)

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The top rows, and late rows as they came. Raises SchemaError when the input does not fit."""
        (schema,) = inputs
        rows = unweighted(schema)
        check_columns(self.keys, rows, "key")
        check_columns(self.columns or (), rows, "output column")
        if is_changelog(schema):
            check_findable(rows)
        for key in self.keys:
            form_of(schema.field(key).type, f"key column {key!r}")
        for expr, _ in self.by:
            form_of(expr.type_in(schema), f"{expr}, which rows are ranked by,")
        check_time(self.time, schema)
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise SchemaError(f"{self.kind}: an output column is named twice in {', '.join(self.columns)}")
        fields = [_plain_field(schema.field(name)) for name in self._output(schema)]
        if not isinstance(self.window, OneWindow):
            taken = {name for name in schema.names if name in _WINDOW}
            if taken:
                raise SchemaError(
                    f"{self.kind} in windows {self.window.describe()} adds the columns {' and '.join(_WINDOW)}, and "
                    f"the input has {', '.join(sorted(taken))} already; rename that first"
                )
            fields += [pa.field(name, TIME_TYPE) for name in _WINDOW if self.keep is None or name in self.keep]
        if self._merges(schema):
            self.aggregate(schema).output_schemas(inputs)
        made = pa.schema(fields)
        return {MAIN: made if self.updates is None else weighted(made), LATE: schema}

    def _merges(self, schema: pa.Schema) -> bool:
        """Whether the rows are kept by an aggregate."""
        return not isinstance(self.window, OneWindow) or self.updates is not None or is_changelog(schema)

    def _output(self, schema: pa.Schema) -> list[str]:
        names = unweighted(schema).names if self.columns is None else self.columns
        return [name for name in names if self.keep is None or name in self.keep]

    def kept(self, schema: pa.Schema) -> pa.Schema:
        """The columns of a row that must be kept: what is put out, and what the row is placed by."""
        needed = self._needed(schema)
        return pa.schema([_plain_field(field) for field in schema if field.name in needed])

    def aggregate(self, schema: pa.Schema) -> WindowAggregate:
        """Return what keeps the rows where windows are put together from parts, or results may change."""
        read = frozenset().union(*(expr.columns() for expr, _ in self.by))
        own = [field.name for field in self.kept(schema) if field.name in read or field.name not in self.keys]
        kept = tuple(col(name) for name in own or schema.names[:1])
        rows = TopRows(kept, self.by, self.n, self.ties, is_changelog(schema))
        (name,) = distinct_names([STATE], {*self.keys, *_WINDOW})
        return WindowAggregate(self.keys, self.window, ((name, rows),), self.time, self.lateness, self.updates)

    def _needed(self, schema: pa.Schema) -> frozenset[str]:
        if is_changelog(schema):
            return frozenset(unweighted(schema).names)
        return frozenset(self._output(schema)).union(self.keys, *(expr.columns() for expr, _ in self.by))

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """One row per row on top now: its columns, its window_start and its place in arrival.

        Where windows are put together from parts, or results may change, those of ``WindowAggregate``, and rows are of
        its parts.
        """
        if self._merges(inputs[0]):
            return self.aggregate(inputs[0]).state_tables(inputs)
        kept = self.kept(inputs[0])
        names = distinct_names([*kept.names, "window_start", "arrival"], {DELETED})
        columns = pa.schema([pa.field(n, t) for n, t in zip(names, [*kept.types, TIME_TYPE, pa.int64()], strict=True)])
        routed = tuple(names[kept.get_field_index(key)] for key in self.keys)
        return (StateTable(STATE, columns, keys=(*routed, *names[-2:]), route_by=routed),)

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """What is kept, the time, and what is wanted of late rows."""
        kept = self.pruned(wanted)._needed(inputs[0])
        return [kept | frozenset(self.time.columns()) | wanted.get(LATE, frozenset())]

    def pruned(self, wanted: Mapping[str, frozenset[str]]) -> WindowTop:
        """Return one that keeps and puts out no more than is wanted."""
        return replace(self, keep=wanted.get(MAIN, frozenset()))

    @property
    def takes_changelog(self) -> bool:
        """Rows leave their window again while it is open."""
        return True

    @property
    def uses_event_time(self) -> bool:
        """Windows fire by watermark."""
        return True

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        if self._merges(inputs[0]):
            from millstream.operators.merged_top_operator import MergedTopOperator

            return MergedTopOperator(self, inputs[0])
        from millstream.operators.window_top_operator import WindowTopOperator

        return WindowTopOperator(self, inputs[0])

    def combiner(self, wanted: Mapping[str, frozenset[str]]) -> OperatorSpec | None:
        """Leave out, before the exchange, rows that cannot be on top; only where nobody takes late rows.

        A row left out may be late behind the exchange and would then be missed in the late output; without one,
        all that shows is that ``late_rows`` counts the rows that were sent. In sessions every row counts: it may hold
        others together.
        """
        return None if wanted.get(LATE) or isinstance(self.window, SessionWindow) else WindowTopCombiner(self)


@dataclass(frozen=True, eq=False)
class WindowTopCombiner(OperatorSpec):
    """Passes on the rows of each batch that are on top in it; the top of all batches is among them. Keeps no state.

    Of a changelog it passes on all.
    """

    top: WindowTop

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "window_top_combiner"

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        return f"combiner({self.top.identity()})"

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The input's schema."""
        return {MAIN: inputs[0]}

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.window_top_operator import CombinerOperator

        return CombinerOperator(self.top, inputs[0])


def _plain_field(field: pa.Field) -> pa.Field:
    return pa.field(field.name, plain_type(field.type))
