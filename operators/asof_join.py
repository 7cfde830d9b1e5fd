"""Joins with the value of that moment: "each trade with the quote that stood when it was made"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr
from millstream.engine.operator import MAIN, Operator
from millstream.engine.state import DELETED, StateTable
from millstream.engine.time import show_duration
from millstream.operators.join import SIDES, Join
from millstream.operators.join_columns import joined_schema
from millstream.operators.timed_join import LATE_PORTS
from millstream.operators.windowed import check_time, distinct_names

ASOF_HOWS: Final = ("inner", "left")
"""What can be asked of an as-of join."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AsOfJoin(Join):
    """Joins every left row with the latest right row of its key that is not later: at most one.

    Of right rows with the same event time the last to come stands. A left row is put out once the watermark has passed
    it, for then that row is known; so nothing is ever taken back, and the order in which rows come does not matter as
    long as they are on time. Of right rows that the watermark has passed only the last of each key is kept.

    A row is late if its event time is before the watermark. Late rows, and rows without event time, go to the ports
    ``late`` (left) and ``late_right``, and are counted.

    Attributes:
        tolerance: a right row stands for so many microseconds and no longer; None: until the next one comes.
        removed: over the right columns: true of a row that says that from its time on the key has no value.
    """

    left_time: Expr
    right_time: Expr
    tolerance: int | None = None
    removed: Expr | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.how not in ASOF_HOWS:
            raise JobError(f"join_asof(how={self.how!r}): how is one of {', '.join(map(repr, ASOF_HOWS))}")

    @property
    def kind(self) -> str:
        """``join_asof``."""
        return "join_asof"

    def timing(self) -> str:
        """Text that changes exactly when rows are in time for each other otherwise."""
        removed = "" if self.removed is None else f", removed={self.removed}"
        return f"as of, tolerance={self.tolerance}, {self.left_time}, {self.right_time}{removed}"

    def describe(self) -> str:
        """One line for the plan."""
        stands = "" if self.tolerance is None else f", at most {show_duration(self.tolerance)} before"
        removed = "" if self.removed is None else f", unless {self.removed}"
        return f"{self.how} join on {self.on()} with the last row as of {self.left_time}{stands}{removed}"

    def time_of(self, side: int) -> Expr:
        """The event time of the rows of one side."""
        return self.right_time if side else self.left_time

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The joined rows, and late rows as they came. Raises SchemaError when the inputs do not fit."""
        self.check_inputs(inputs)
        for side, schema in enumerate(inputs):
            check_time(self.time_of(side), schema)
        if self.removed is not None and not pa.types.is_boolean(self.removed.type_in(inputs[1])):
            raise SchemaError(
                f"join_asof(removed={self.removed}) is {self.removed.type_in(inputs[1])}; a condition over the right "
                "columns, such as a boolean column, is bool"
            )
        late = {port: self._late_schema(port, schema) for port, schema in zip(LATE_PORTS, inputs, strict=True)}
        return {MAIN: joined_schema(self.output_columns, *inputs), **late}

    def _late_schema(self, port: str, schema: pa.Schema) -> pa.Schema:
        if self.keep is None:
            return schema
        wanted = self.keep.get(port, frozenset())
        return pa.schema([field for field in schema if field.name in wanted], schema.metadata)

    def state_lanes(self, side: int) -> tuple[str, ...]:
        """What is kept of a row besides its columns."""
        return ("time", "removed") if side and self.removed is not None else ("time",)

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """The left rows that wait, and the right rows that stand or will: their columns, a number, their time."""
        tables = []
        for side, schema in enumerate(inputs):
            kept = self.kept(side, schema)
            lanes = self.state_lanes(side)
            names = distinct_names([*kept.names, "row", *lanes], {DELETED})
            types = [*kept.types, pa.int64(), *(pa.bool_() if lane == "removed" else pa.int64() for lane in lanes)]
            columns = pa.schema([pa.field(name, type) for name, type in zip(names, types, strict=True)])
            routed = tuple(names[kept.get_field_index(key)] for key in self.keys_of(side))
            keys = (*dict.fromkeys(routed), names[len(kept)])
            tables.append(StateTable(SIDES[side], columns, keys=keys, route_by=routed))
        return tuple(tables)

    def clock_columns(self, side: int, wanted: Mapping[str, frozenset[str]]) -> frozenset[str]:
        """The event time, what says that a row is removed, and what is wanted of late rows."""
        removed = self.removed.columns() if side and self.removed is not None else frozenset()
        return self.time_of(side).columns() | removed | wanted.get(LATE_PORTS[side], frozenset())

    @property
    def uses_event_time(self) -> bool:
        """Rows come out by watermark."""
        return True

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.asof_join_operator import AsOfJoinOperator

        return AsOfJoinOperator(self, inputs)
