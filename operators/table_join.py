"""Joins with a table: a bounded input that is there as a whole before the first row is joined with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from millstream.engine.errors import JobError
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Operator
from millstream.engine.state import DELETED, StateKind, StateTable
from millstream.operators.join import Join
from millstream.operators.join_columns import joined_schema
from millstream.operators.windowed import distinct_names

TABLE_HOWS: Final = ("inner", "left", "semi", "anti")
"""What can be asked of a join with a table: its own rows are not put out alone."""

TABLE: Final = "table"
"""The state table of the table's rows."""

EARLY: Final = "early"
"""The state table of left rows that came before the table had ended."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TableJoin(Join):
    """Joins every left row with all rows of the right input, the table, that have its key.

    Each subtask has the whole table, so the left rows stay where they are. The engine reads the table first; of the
    left input it reads only what a barrier waits for, and those rows are kept until the table has ended.

    The left input may be a changelog; every pair has the weight of its left row.

    The table is part of the state, written once: what comes out after a restart does not depend on whether the files
    it was read from are still the same.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.how not in TABLE_HOWS:
            raise JobError(f"join_table(how={self.how!r}): how is one of {', '.join(map(repr, TABLE_HOWS))}")

    @property
    def kind(self) -> str:
        """``join_table``."""
        return "join_table"

    @property
    def takes_changelog(self) -> bool:
        """Weights are columns of left rows."""
        return True

    def timing(self) -> str:
        """Text that changes exactly when rows are in time for each other otherwise."""
        return "table"

    def describe(self) -> str:
        """One line for the plan."""
        where = "" if self.where is None else f", where {self.where}"
        return f"{self.how} join on {self.on()} with a table that is read first, and kept by every subtask{where}"

    def exchange_of(self, index: int) -> Exchange:
        """Left rows stay where they are; the table goes everywhere."""
        return Exchange(ExchangeKind.BROADCAST if index else ExchangeKind.FORWARD)

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The joined rows. Raises SchemaError when the inputs do not fit."""
        self.check_inputs(inputs)
        return {MAIN: joined_schema(self.output_columns, *inputs)}

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """The left rows that came early, by the epoch in which they came, and the rows of the table."""
        tables = []
        for side, name in enumerate((EARLY, TABLE)):
            kept = self.kept(side, inputs[side])
            names = distinct_names([*kept.names, "bucket"], {DELETED})
            types = [*kept.types, pa.int64()]
            schema = pa.schema([pa.field(n, type) for n, type in zip(names, types, strict=True)])
            tables.append(StateTable(name, schema, (names[-1],), kind=StateKind.ROWS, broadcast=name == TABLE))
        return tuple(tables)

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.table_join_operator import TableJoinOperator

        return TableJoinOperator(self, inputs)
