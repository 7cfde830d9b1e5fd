"""The top rows of a group as an aggregate, for windows that are put together from parts: ``WindowTop`` makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
from millstream.engine.codes import plain_type
from millstream.engine.expression import Expr
from millstream.operators.aggregate_spec import AggregateSpec

if TYPE_CHECKING:
    from millstream.operators.accumulators import Accumulator


@dataclass(frozen=True, eq=False)
class TopRows(AggregateSpec):
    """The best rows, whole: a list of structs, best first.

    Attributes:
        arguments: the columns that are kept of a row; what it is ranked by follows from them.
        by: as for ``WindowTop``, and so are ``n`` and ``ties``.
    """

    by: tuple[tuple[Expr, bool], ...]
    n: int
    ties: bool

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
        """As ``AggregateSpec.item_fields``: the rows, numbered by arrival."""
        return pa.field("arrival", pa.int64()), *self.row(schema)

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.top_accumulator import TopAccumulator

        return TopAccumulator(self.row(schema), self.by, self.n, self.ties)
