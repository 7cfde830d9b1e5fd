"""The net changes of a changelog, once per checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyarrow as pa
from millstream.engine.changelog import WEIGHT, is_changelog, unweighted, weights_of
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.operator import MAIN, Operator, OperatorSpec, Output
from millstream.engine.time import END_OF_TIME

if TYPE_CHECKING:
    from millstream.engine.codes import Ints

_HELD_ROWS: Final = 262_144
"""So many rows are held before what cancels out among them is looked for, between barriers too."""


@dataclass(frozen=True, eq=False)
class Consolidate(OperatorSpec):
    """Holds a changelog back until a barrier, or the end of event time, and lets only its net changes through.

    Equal rows become one, with the sum of their weights; it goes if that is 0. What is taken back comes first. Nothing
    is held when the snapshot is taken, so there is no state.
    """

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "consolidate"

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        return "consolidate()"

    def describe(self) -> str:
        """One line for the plan."""
        return "net changes, once per checkpoint"

    @property
    def takes_changelog(self) -> bool:
        """It takes nothing else."""
        return True

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The input's. Raises SchemaError if rows cannot be compared, JobError if it is no changelog."""
        from millstream.operators.row_numbers import is_comparable

        (schema,) = inputs
        if not is_changelog(schema):
            raise JobError("consolidate() is for changelogs; no row of this stream is ever taken back: leave it out")
        for field in schema:
            if not is_comparable(field.type):
                raise SchemaError(
                    f"consolidate() compares whole rows, and column {field.name!r} is {field.type}, of which equal "
                    "values cannot be told: leave it out before, or make another type of it"
                )
        return {MAIN: schema}

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """What is wanted: rows that differ in nothing else may as well be one."""
        del inputs
        return [wanted[MAIN]]

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        return _ConsolidateOperator(inputs[0])


class _ConsolidateOperator(Operator):
    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._held: list[pa.RecordBatch] = []
        self._rows = 0
        self._limit = _HELD_ROWS

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Hold the rows."""
        del out
        self._held.append(batch)
        self._rows += batch.num_rows
        if self._rows > self._limit:
            self._held = [self._net()]
            self._rows = self._held[0].num_rows
            self._limit = max(_HELD_ROWS, 2 * self._rows)

    def on_barrier(self, out: Output) -> None:
        """Let the net changes through."""
        if self._held:
            out.emit(self._net())
        self._held, self._rows, self._limit = [], 0, _HELD_ROWS

    def on_watermark(self, time: int, out: Output) -> None:
        """At the end of event time those behind want to have everything."""
        if time == END_OF_TIME:
            self.on_barrier(out)

    def _net(self) -> pa.RecordBatch:
        (batch,) = pa.Table.from_batches(self._held, self._schema).combine_chunks().to_batches()
        rows, weights = net_rows(batch.select(unweighted(self._schema).names).columns, weights_of(batch))
        columns = [*(batch.column(name).take(pa.array(rows)) for name in batch.schema.names if name != WEIGHT)]
        return pa.record_batch([*columns, pa.array(weights)], schema=self._schema)


def net_rows(columns: Sequence[pa.Array], weights: Ints) -> tuple[Ints, Ints]:
    """Return one row of each kind of which something remains, and how much; what is taken back first.

    Args:
        columns: of the rows, at least one, each comparable and of shape (rows,).
    """
    import numpy as np
    from millstream.operators.row_numbers import row_numbers

    numbers = row_numbers(columns, len(weights))
    kinds = int(numbers.max(initial=-1)) + 1
    first = np.empty(kinds, np.int64)
    first[numbers[::-1]] = np.arange(len(numbers))[::-1]
    total = np.zeros(kinds, np.int64)
    np.add.at(total, numbers, weights)
    left = np.concatenate([np.flatnonzero(total < 0), np.flatnonzero(total > 0)])
    return first[left], total[left]
