"""Joins of everything with everything so far: "each bid with its auction, whichever comes first"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from millstream.engine.changelog import is_changelog, weighted
from millstream.engine.operator import MAIN, Operator
from millstream.engine.state import DELETED, StateKind, StateTable
from millstream.operators.join import SIDES, Join
from millstream.operators.join_columns import joined_schema
from millstream.operators.windowed import distinct_names


@dataclass(frozen=True, eq=False, kw_only=True)
class UnboundedJoin(Join):
    """Joins rows of equal keys, whenever they come; every row is kept for ever, or until it is taken back.

    Pairs of append streams, and the left rows of a semi join of them, are append streams too. All other results are
    changelogs: the weight of a pair is the product of the weights of its rows; a row that is in no pair is put out at
    once, taken back when it comes to be in one, and put out again when its last pair is taken back.

    A side whose rows are never taken back, and which need not remember which of them are in pairs, is written to the
    store once, as ``ROWS``. Of a changelog only the rows are kept whose weights do not sum to 0.
    """

    def timing(self) -> str:
        """Text that changes exactly when rows are in time for each other otherwise."""
        return "ever"

    def describe(self) -> str:
        """One line for the plan."""
        where = "" if self.where is None else f", where {self.where}"
        return f"{self.how} join on {self.on()} with everything so far; both sides are kept for ever{where}"

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The joined rows. Raises SchemaError when the inputs do not fit."""
        self.check_inputs(inputs)
        schema = joined_schema(self.output_columns, *inputs)
        return {MAIN: weighted(schema) if self.makes_changelog(inputs) else schema}

    def makes_changelog(self, inputs: Sequence[pa.Schema]) -> bool:
        """Whether rows may be taken back."""
        return self.how not in {"inner", "semi"} or any(map(is_changelog, inputs))

    def counts_pairs(self, side: int) -> bool:
        """Whether it matters how many pairs a row of the side is in."""
        return self.keeps_unmatched(side) or (self.left_only and side == 0)

    def settles(self, inputs: Sequence[pa.Schema]) -> bool:
        """Whether a left row that is in a pair need not be known any more."""
        return self.left_only and not any(map(is_changelog, inputs))

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """For each side its rows: their columns, and a bucket, or else a number, and weights."""
        return tuple(self._state_table(side, schema) for side, schema in enumerate(inputs))

    def state_lanes(self, side: int, schema: pa.Schema) -> tuple[str, ...]:
        """What is kept of a row besides its columns; () for a side whose rows never change."""
        weight = ("weight",) if is_changelog(schema) else ()
        return (*weight, "matches") if self.counts_pairs(side) else weight

    def _state_table(self, side: int, schema: pa.Schema) -> StateTable:
        kept = self.kept(side, schema)
        lanes = self.state_lanes(side, schema)
        names = distinct_names([*kept.names, *(("row", *lanes) if lanes else ("bucket",))], {DELETED})
        types = [*kept.types, *[pa.int64()] * (len(names) - len(kept))]
        columns = pa.schema([pa.field(name, type) for name, type in zip(names, types, strict=True)])
        routed = tuple(names[kept.get_field_index(key)] for key in self.keys_of(side))
        if not lanes:
            return StateTable(SIDES[side], columns, (names[-1],), routed, StateKind.ROWS)
        return StateTable(SIDES[side], columns, (*dict.fromkeys(routed), names[len(kept)]), routed)

    @property
    def takes_changelog(self) -> bool:
        """Weights are multiplied."""
        return True

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.unbounded_join_operator import UnboundedJoinOperator

        return UnboundedJoinOperator(self, inputs)
