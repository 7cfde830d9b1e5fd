"""Joins of rows that are near each other in event time: within an interval, or in the same window."""

from __future__ import annotations

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from millstream.engine.errors import JobError
from millstream.engine.expression import Expr
from millstream.engine.expression_tree import Literal, Operation
from millstream.engine.operator import MAIN, Operator
from millstream.engine.state import DELETED, StateTable
from millstream.engine.time import show_duration
from millstream.operators.event_time import check_time_type
from millstream.operators.join import SIDES, Join
from millstream.operators.join_columns import joined_schema
from millstream.operators.windowed import LATE, check_time, distinct_names
from millstream.operators.windows import Window

LATE_RIGHT: Final = "late_right"
"""The port of right rows that came too late, or have no event time; left ones go to ``late``."""

LATE_PORTS: Final = (LATE, LATE_RIGHT)


class Nearness(ABC):
    """Which rows of equal keys are near each other. Immutable; equal ones have equal ``identity()``."""

    @abstractmethod
    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""

    @abstractmethod
    def describe(self, left_time: Expr) -> str:
        """A few words for the plan."""

    def columns(self) -> frozenset[str]:
        """The left columns it looks at."""
        return frozenset()

    def check(self, left: pa.Schema) -> None:
        """Raise SchemaError unless the left rows fit."""


@dataclass(frozen=True, eq=False)
class Between(Nearness):
    """A right row is near a left one if ``low <= its event time <= high``.

    Attributes:
        low, high: event times, over the left columns. Where one is null nothing is near.
    """

    low: Expr
    high: Expr

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        return f"between({self.low}, {self.high})"

    def describe(self, left_time: Expr) -> str:
        """A few words for the plan."""
        reach = self.reach(left_time)
        kept = "for ever" if reach is None else f"until event time has passed theirs{_later(-reach)}"
        return f"with right rows from {self.low} to {self.high}; those are kept {kept}"

    def columns(self) -> frozenset[str]:
        """The left columns it looks at."""
        return self.low.columns() | self.high.columns()

    def check(self, left: pa.Schema) -> None:
        """Raise SchemaError unless both are event times."""
        for expr in (self.low, self.high):
            check_time_type(expr.type_in(left), f"join(between=...) {expr}")

    def reach(self, left_time: Expr) -> int | None:
        """Return how many microseconds ``low`` is later than the left row's event time (earlier: negative).

        None if it is not written as that time, plus or minus a constant.

        >>> from millstream.engine.expression import col
        >>> Between(col("at") - dt.timedelta(minutes=5), col("at")).reach(col("at"))
        -300000000
        """
        if self.low.same_as(left_time):
            return 0
        match self.low:
            case Operation("add" | "subtract" as sign, (base, Literal(value))) if base.same_as(left_time):
                shift = _micros(value)
                return -shift if sign == "subtract" and shift is not None else shift
        return None


def _later(shift: int) -> str:
    return f" by {show_duration(shift)}" if shift > 0 else f" less {show_duration(-shift)}" if shift < 0 else ""


def _micros(value: object) -> int | None:
    if isinstance(value, dt.timedelta):
        return value // dt.timedelta(microseconds=1)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


@dataclass(frozen=True, eq=False)
class SameWindow(Nearness):
    """Two rows are near each other if they are in the same window; once for each window that they share."""

    window: Window

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        return f"window({self.window.identity()})"

    def describe(self, left_time: Expr) -> str:
        """A few words for the plan."""
        del left_time
        return f"in windows {self.window.describe()}"


@dataclass(frozen=True, eq=False, kw_only=True)
class TimedJoin(Join):
    """Joins rows that are near each other; every row is put out once and is never taken back.

    Pairs come at once, when the second of two rows does. Rows that are in no pair come when event time has passed the
    last moment at which a row might have come for them, and rows are kept until then: a left row until the watermark
    has passed the end of its interval; a right row until no left row can come that is on time and reaches back to it,
    which is known if the interval begins at the left row's event time plus or minus a constant. Rows of a window are
    kept until it ends.

    A row is late if its event time is before the watermark, or, in windows, if all its windows have ended. Late rows,
    and rows without event time, go to the ports ``late`` (left) and ``late_right``, and are counted. So which pairs
    there are does not depend on the order in which rows come, as long as they are on time.

    Attributes:
        left_time: the event time of a left row: a timestamp, or int64 microseconds.
        nearness: ``Between``, or ``SameWindow``: the columns then include ``window_start`` and ``window_end``.
    """

    left_time: Expr
    right_time: Expr
    nearness: Nearness

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            self.keeps_unmatched(1)
            and isinstance(self.nearness, Between)
            and self.nearness.reach(self.left_time) is None
        ):
            raise JobError(
                f"join(how={self.how!r}) must know when no left row can reach a right one any more: let between=(low, "
                f"high) begin with the left event time plus or minus a constant, as in between=('-5m', '5m'); got "
                f"{self.nearness.low}, and the event time is {self.left_time}"
            )

    def timing(self) -> str:
        """Text that changes exactly when rows are in time for each other otherwise."""
        return f"{self.nearness.identity()}, left_time={self.left_time}, right_time={self.right_time}"

    def describe(self) -> str:
        """One line for the plan."""
        where = "" if self.where is None else f", where {self.where}"
        return f"{self.how} join on {self.on()} {self.nearness.describe(self.left_time)}{where}"

    def time_of(self, side: int) -> Expr:
        """The event time of the rows of one side."""
        return self.right_time if side else self.left_time

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The joined rows, and late rows as they came. Raises SchemaError when the inputs do not fit."""
        left, right = inputs
        self.check_inputs(inputs)
        self.nearness.check(left)
        for side, schema in enumerate(inputs):
            check_time(self.time_of(side), schema)
        late = {port: self._late_schema(port, schema) for port, schema in zip(LATE_PORTS, inputs, strict=True)}
        return {MAIN: joined_schema(self.output_columns, left, right), **late}

    def _late_schema(self, port: str, schema: pa.Schema) -> pa.Schema:
        if self.keep is None:
            return schema
        wanted = self.keep.get(port, frozenset())
        return pa.schema([field for field in schema if field.name in wanted], schema.metadata)

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """For each side the rows that wait: their columns, a number, their span, and whether they are in a pair."""
        tables = []
        for side, schema in enumerate(inputs):
            kept = self.kept(side, schema)
            flags = ["matched"] if self.keeps_unmatched(side) else []
            names = distinct_names([*kept.names, "row", "low", "high", *flags], {DELETED})
            types = [*kept.types, pa.int64(), pa.int64(), pa.int64(), *[pa.bool_() for _ in flags]]
            columns = pa.schema([pa.field(name, type) for name, type in zip(names, types, strict=True)])
            routed = tuple(names[kept.get_field_index(key)] for key in self.keys_of(side))
            unique = tuple(dict.fromkeys(routed))
            tables.append(StateTable(SIDES[side], columns, keys=(*unique, names[len(kept)]), route_by=routed))
        return tuple(tables)

    def clock_columns(self, side: int, wanted: Mapping[str, frozenset[str]]) -> frozenset[str]:
        """The event time, the interval, and what is wanted of late rows."""
        near = frozenset() if side else self.nearness.columns()
        return self.time_of(side).columns() | near | wanted.get(LATE_PORTS[side], frozenset())

    @property
    def uses_event_time(self) -> bool:
        """Rows are forgotten by watermark."""
        return True

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.timed_join_operator import TimedJoinOperator

        return TimedJoinOperator(self, inputs)
