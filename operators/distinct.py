"""``count_distinct(x)``: how many different values there are, exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
from millstream.engine.codes import form_of
from millstream.engine.expression import Expr
from millstream.operators.aggregate_spec import AggregateSpec, condition, expressions

if TYPE_CHECKING:
    from millstream.operators.accumulators import Accumulator


class CountDistinct(AggregateSpec):
    """The number of different values that are not null."""

    @property
    def function(self) -> str:
        """What users call it."""
        return "count_distinct"

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return int64."""
        form_of(self.kept_type(schema), f"the argument of {self.identity()}")
        return pa.int64()

    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.state_fields``."""
        del schema
        return ()

    def item_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.item_fields``: the values seen."""
        return (pa.field("value", self.argument_type(schema)),)

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.item_accumulators import DistinctAccumulator

        return DistinctAccumulator(self.argument_type(schema))


def count_distinct(argument: str | Expr, *, where: str | Expr | None = None) -> AggregateSpec:
    """Count the different values of a column or expression that are not null, exactly. The result is int64.

    NaN equals NaN and -0.0 equals 0.0. Every value is kept, once per group, until the window fires;
    ``approx_count_distinct`` keeps at most 4 kB per group.

    Args:
        argument: number, boolean, date, time, string, binary or decimal.
        where: as for ``count``.
    """
    return CountDistinct(expressions("count_distinct", argument), where=condition("count_distinct", where))
