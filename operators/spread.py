"""Variance and standard deviation: ``variance(x)``, ``stddev(x)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
from millstream.engine.changelog import is_changelog
from millstream.engine.errors import JobError
from millstream.engine.expression import Expr
from millstream.operators.aggregate_spec import COUNT_FIELD, AggregateSpec, condition, expressions

if TYPE_CHECKING:
    from millstream.operators.accumulators import Accumulator


@dataclass(frozen=True, eq=False)
class Spread(AggregateSpec):
    """How far the values that are not null lie from their mean.

    Attributes:
        ddof: what is taken off the count before dividing: 1 for a sample, 0 for a whole population.
        root: the standard deviation instead of the variance.
    """

    ddof: int
    root: bool

    @property
    def function(self) -> str:
        """What users call it."""
        return "stddev" if self.root else "variance"

    def options(self) -> tuple[str, ...]:
        """As ``AggregateSpec.options``."""
        return (f"ddof={self.ddof}",)

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return float64."""
        self.number_type(schema)
        return pa.float64()

    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.state_fields``: sums of ``x - shift`` and of its square are ``sum + error`` each."""
        names = ("shift", "sum", "error", "squares", "squareserror")
        odd = (pa.field("odd", pa.int64()),) if is_changelog(schema) else ()
        return (*(pa.field(name, pa.float64()) for name in names), COUNT_FIELD, *odd)

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.spread_accumulator import RetractableSpread, SpreadAccumulator

        make = RetractableSpread if is_changelog(schema) else SpreadAccumulator
        return make(self.number_type(schema), self.ddof, self.root)


def variance(argument: str | Expr, ddof: int = 1, *, where: str | Expr | None = None) -> AggregateSpec:
    """Take the variance of a column or expression, as a float64; types as for ``sum``.

    Sums of differences from the first value are kept in twice the precision: neither a large offset of all values
    nor the order of the rows shows in the result. NaN and infinite values make it NaN, over a changelog until they are
    taken back; what is taken back there may leave an error in the 31st digit of the largest square.

    Args:
        ddof: 1: of a sample (SQL's ``var_samp``, null for fewer than two values); 0: of a population (``var_pop``).
        where: as for ``count``.
    """
    return Spread(expressions("variance", argument), _ddof("variance", ddof), False, where=condition("variance", where))


def stddev(argument: str | Expr, ddof: int = 1, *, where: str | Expr | None = None) -> AggregateSpec:
    """Take the standard deviation of a column or expression: the square root of its ``variance``."""
    return Spread(expressions("stddev", argument), _ddof("stddev", ddof), True, where=condition("stddev", where))


def _ddof(function: str, ddof: int) -> int:
    if isinstance(ddof, bool) or ddof not in {0, 1}:
        raise JobError(f"{function}(..., ddof={ddof!r}): ddof is 1 for a sample or 0 for a whole population")
    return int(ddof)
