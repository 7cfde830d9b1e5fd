"""The top rows of a group as an aggregate, for windows that are put together from parts: ``WindowTop`` makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
from millstream.engine.codes import plain_type
from millstream.engine.expression import Expr
from millstream.operators.aggregate_spec import WEIGHT_FIELD, AggregateSpec

if TYPE_CHECKING:
    from millstream.operators.accumulators import Accumulator


@dataclass(frozen=True, eq=False)
class TopRows(AggregateSpec):
    """The best rows, whole: a list of structs, best first.

    Attributes:
        arguments: the columns that are kept of a row; what it is ranked by follows from them.
        by: as for ``WindowTop``, and so are ``n`` and ``ties``.
        changes: whether the rows are those of a changelog; then all are kept, for any may be among the best one day.
    """

    by: tuple[tuple[Expr, bool], ...]
    n: int
    ties: bool
    changes: bool = False

    @property
    def function(self) -> str:
        """What users call it."""
        return "top"

    def row(self, schema: pa.Schema) -> pa.Schema:
        """Return the columns that are kept of a row."""
        return pa.schema([(str(column), plain_type(column.type_in(schema))) for column in self.arguments])

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return a list of structs."""
        return pa.list_(pa.struct(list(self.row(schema))))

    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.state_fields``."""
        del schema
        return ()

    def item_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.item_fields``: the rows, numbered by arrival, or in a changelog with their weights."""
        if self.changes:
            return *self.row(schema), WEIGHT_FIELD
        return pa.field("arrival", pa.int64()), *self.row(schema)

    @property
    def item_names(self) -> int:
        """As ``AggregateSpec.item_names``: the arrival, or in a changelog the whole row."""
        return len(self.arguments) if self.changes else 1

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        if self.changes:
            from millstream.operators.top_multiset import TopMultiset

            return TopMultiset(self.row(schema), self.by, self.n, self.ties)
        from millstream.operators.top_accumulator import TopAccumulator

        return TopAccumulator(self.row(schema), self.by, self.n, self.ties)
