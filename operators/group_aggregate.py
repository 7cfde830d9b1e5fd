"""Aggregates per key over all rows so far: a changelog of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
from millstream.engine.changelog import is_changelog, weighted
from millstream.engine.codes import form_of, plain_type
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Operator, OperatorSpec
from millstream.engine.state import StateTable
from millstream.engine.time import Duration, micros, show_duration
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.aggregate_state import aggregate_tables
from millstream.operators.aggregates import Edge
from millstream.operators.event_time import TIME_TYPE
from millstream.operators.process_states import CLOCKS, EVENT, PROCESSING, Clock
from millstream.operators.windowed import check_columns, check_time

STATE: Final = "groups"
"""The name of the state table: one row per group."""

EVERYTHING: Final = "everything"
"""The column of state that names the only group there is, if there are no keys."""


@dataclass(frozen=True, slots=True)
class TimeToLive:
    """How long something is kept after it was last touched.

    Attributes:
        micros: how long, more than 0.
        clock: ``event`` or ``processing``: what it is measured by.
    """

    micros: int
    clock: Clock

    @property
    def by_event_time(self) -> bool:
        """Whether the watermark decides, or the clock."""
        return self.clock == EVENT


def time_to_live(ttl: Duration | None, clock: str | None, time: Expr | None) -> TimeToLive | None:
    """Return what ``agg(ttl=..., clock=...)`` asks for. Raises JobError if it makes no sense."""
    if isinstance(ttl, AggregateSpec) or isinstance(clock, AggregateSpec):
        raise JobError("agg(): ttl= and clock= say how long groups live; give an aggregate another name")
    if clock not in {None, *CLOCKS}:
        raise JobError(f"agg(clock={clock!r}): a time to live is measured by 'event' or by 'processing' time")
    if ttl is None:
        if clock is not None:
            raise JobError(f"agg(clock={clock!r}) says what ttl= is measured by, and there is no ttl=")
        return None
    if micros(ttl) == 0:
        raise JobError("agg(ttl=0) would forget groups at once: give it a time such as ttl='1d', or leave it out")
    if clock == EVENT and time is None:
        raise JobError(
            "agg(ttl=..., clock='event') needs event time: name its column in job.read(..., event_time='paid_at'), and "
            "keep that column in select(), drop() and map(); or write clock='processing'"
        )
    return TimeToLive(micros(ttl), PROCESSING if clock == PROCESSING or time is None else EVENT)


@dataclass(frozen=True, eq=False)
class GroupAggregate(OperatorSpec):
    """Aggregates all rows of each key that have come so far, without a window.

    After each batch the results that it has changed are taken back (weight -1), all of them, and the new ones
    follow (weight +1); a new group has only the latter. So whenever a batch has been dealt with, the changelog sums
    to one row per key: what the aggregates are over all rows so far.

    The input may be a changelog. Then every aggregate is that of the rows there are, each as often as its weights sum
    to; a key without any row has no result.

    With a time to live a group is forgotten when the watermark, or the clock, has passed its last row by as much, and
    its result is taken back, so that whatever is behind forgets it too. A later row of its key begins anew. In event
    time a row that is late is taken to come at the watermark. At the end of the input nothing is forgotten any more.

    Output: the keys, the aggregates, the weight.

    Attributes:
        keys: the columns that name a group; none means that there is one group, from the first row on.
        aggregates: (output column, aggregate), in order.
        time: the event time of a row, by which ``first`` and ``last`` go, leaving out rows without one; None: they go
            by arrival.
        lives: how long a group lives after its last row; None: for ever. Another time is the same operator.
    """

    keys: tuple[str, ...]
    aggregates: tuple[tuple[str, AggregateSpec], ...]
    time: Expr | None = None
    lives: TimeToLive | None = None

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "aggregate"

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        made = [(name, aggregate.identity()) for name, aggregate in self.aggregates]
        time = f", time={self.time}" if self.reads_time else ""
        lives = "" if self.lives is None else f", lives by {self.lives.clock} time"
        return f"aggregate(keys={self.keys!r}, aggregates={made!r}{time}{lives})"

    def describe(self) -> str:
        """One line for the plan."""
        made = ", ".join(f"{name}={aggregate.identity()}" for name, aggregate in self.aggregates)
        by = f"by {', '.join(self.keys)}" if self.keys else "over all rows"
        lives = "" if self.lives is None else f", forgotten {show_duration(self.lives.micros)} after the last row"
        return f"{made} {by}{lives}"

    @property
    def takes_changelog(self) -> bool:
        """Rows are taken out of their groups again; a group without any row goes."""
        return True

    @property
    def uses_event_time(self) -> bool:
        """Whether groups live by it."""
        return self.lives is not None and self.lives.by_event_time

    @property
    def reads_time(self) -> bool:
        """Whether an aggregate goes by event time, or groups live by it."""
        ordered = any(isinstance(aggregate, Edge) for _, aggregate in self.aggregates)
        return self.time is not None and (ordered or self.uses_event_time)

    def fed(self) -> list[AggregateSpec]:
        """The aggregates with the conditions under which they really see a row."""
        return [self._timed(aggregate) for _, aggregate in self.aggregates]

    def _timed(self, aggregate: AggregateSpec) -> AggregateSpec:
        if self.time is None or not isinstance(aggregate, Edge):
            return aggregate
        known = self.time.is_not_null()
        return replace(aggregate, where=known if aggregate.where is None else aggregate.where & known)

    def exchange(self) -> Exchange:
        """By hash of the keys; without keys one subtask has it all."""
        return Exchange(ExchangeKind.HASH, self.keys) if self.keys else Exchange(ExchangeKind.SINGLE)

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The results, a changelog. Raises SchemaError when the input does not fit."""
        (schema,) = inputs
        check_columns(self.keys, schema, "key")
        for key in self.keys:
            form_of(schema.field(key).type, f"key column {key!r}")
        if self.reads_time:
            assert self.time is not None
            check_time(self.time, schema)
        for _, aggregate in self.aggregates:
            aggregate.check(schema)
            if self.time is None and isinstance(aggregate, Edge) and is_changelog(schema):
                raise SchemaError(
                    f"{aggregate.identity()} needs event time over a changelog, which has no order of arrival, and "
                    "this stream has none (any more): use ms.arg_min or ms.arg_max by a column that says the order"
                )
        if self.lives is not None and is_changelog(schema):
            raise SchemaError(
                "agg(ttl=...) takes no changelog: a row that is taken back may be one of a group that is forgotten. "
                "Give the ttl= to the aggregate that makes the changelog: what it forgets it takes back, and groups "
                "without rows go by themselves"
            )
        names = [*self.keys, *(name for name, _ in self.aggregates)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SchemaError(
                f"{self.kind} would make two columns called {', '.join(twice)}: keys and aggregates must differ from "
                "each other; rename the column first"
            )
        fields = [pa.field(key, plain_type(schema.field(key).type)) for key in self.keys]
        fields += [pa.field(name, aggregate.type_in(schema)) for name, aggregate in self.aggregates]
        return {MAIN: weighted(pa.schema(fields))}

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """One row per group: keys, and what each aggregate keeps.

        An aggregate that keeps items has a table for them, named after its column.
        """
        (schema,) = inputs
        group = [pa.field(key, plain_type(schema.field(key).type)) for key in self.keys]
        group = group or [pa.field(EVERYTHING, pa.bool_())]
        # Of a changelog: how many rows there are, for without any the group goes.
        more = [pa.field("rows", pa.int64())] if is_changelog(schema) else []
        more += [pa.field("touched", TIME_TYPE)] if self.lives is not None else []
        return aggregate_tables(STATE, group, len(self.keys), self.aggregates, schema, more)

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """Keys, and what the aggregates read."""
        del wanted, inputs
        time = self.time.columns() if self.time is not None and self.reads_time else frozenset()
        return [frozenset(self.keys).union(time, *(aggregate.columns() for _, aggregate in self.aggregates))]

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.group_aggregate_operator import GroupAggregateOperator

        return GroupAggregateOperator(self, inputs[0])
