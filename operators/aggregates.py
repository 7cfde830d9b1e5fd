"""Aggregates as values: ``count()``, ``sum``, ``min``, ``max``, ``mean``, ``first``, ``last``.

Nulls follow SQL as DuckDB has it: ``count()`` counts rows, ``count(x)`` values; sum, min, max and mean leave nulls
out and are null without any value; ``first`` and ``last`` take the row that is first or last in event time, null or
not. NaN is the greatest number. With ``where=`` an aggregate sees only the rows for which the condition is true:
neither false nor null.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
from millstream.engine.changelog import is_changelog
from millstream.engine.codes import form_of
from millstream.engine.expression import Expr
from millstream.operators.aggregate_spec import COUNT_FIELD, WEIGHT_FIELD, AggregateSpec, condition, expressions
from millstream.operators.event_time import TIME_TYPE

if TYPE_CHECKING:
    from millstream.operators.accumulators import Accumulator


class Count(AggregateSpec):
    """How many rows, or values that are not null."""

    @property
    def function(self) -> str:
        """What users call it."""
        return "count"

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return int64."""
        for argument in self.arguments:
            argument.type_in(schema)
        return pa.int64()

    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.state_fields``."""
        del schema
        return (COUNT_FIELD,)

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.accumulators import CountAccumulator

        del schema
        return CountAccumulator()


@dataclass(frozen=True, eq=False)
class _Total(AggregateSpec):
    """What sum and mean have in common: the argument's kind of number decides how they add."""

    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.state_fields``: the exact value is sum + overflow * 2**64 or 10**38, or sum + error.

        Of floats in a changelog those that are not finite are counted apart.
        """
        type = self.number_type(schema)
        if pa.types.is_floating(type):
            odd = ("nan", "infinite", "negative") if is_changelog(schema) else ()
            sums = pa.field("sum", pa.float64()), pa.field("error", pa.float64())
            return (*sums, COUNT_FIELD, *(pa.field(name, pa.int64()) for name in odd))
        total = pa.decimal128(38, type.scale) if pa.types.is_decimal(type) else pa.int64()
        return pa.field("sum", total), pa.field("overflow", pa.int64()), COUNT_FIELD

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.accumulators import IntSum
        from millstream.operators.decimal_sum import DecimalSum
        from millstream.operators.float_sum import FloatSum, RetractableFloatSum

        type, mean = self.number_type(schema), self.function == "mean"
        if pa.types.is_floating(type):
            return RetractableFloatSum(mean) if is_changelog(schema) else FloatSum(mean)
        if pa.types.is_decimal(type):
            return DecimalSum(type.scale, mean, self.identity())
        return IntSum(mean, self.identity())


class Sum(_Total):
    """The sum of the values that are not null."""

    @property
    def function(self) -> str:
        """What users call it."""
        return "sum"

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return int64 for integers and booleans, float64 for floats, decimal128(38, scale) for decimals."""
        type = self.number_type(schema)
        if pa.types.is_decimal(type):
            return pa.decimal128(38, type.scale)
        return pa.float64() if pa.types.is_floating(type) else pa.int64()


class Mean(_Total):
    """The mean of the values that are not null."""

    @property
    def function(self) -> str:
        """What users call it."""
        return "mean"

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return float64."""
        self.number_type(schema)
        return pa.float64()


@dataclass(frozen=True, eq=False)
class Extreme(AggregateSpec):
    """The least or greatest of the values that are not null."""

    greatest: bool

    @property
    def function(self) -> str:
        """What users call it."""
        return "max" if self.greatest else "min"

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return the argument's type."""
        type = self.argument_type(schema)
        form_of(type, f"the argument of {self.identity()}")
        return type

    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.state_fields``."""
        return () if is_changelog(schema) else (pa.field(self.function, self.type_in(schema)),)

    def item_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.item_fields``: in a changelog all values, for any may be the least one day."""
        return (pa.field("value", self.kept_type(schema)), WEIGHT_FIELD) if is_changelog(schema) else ()

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.accumulators import extremes
        from millstream.operators.multisets import BestOfMultiset

        if is_changelog(schema):
            return BestOfMultiset([self.type_in(schema)], greatest=self.greatest)
        return extremes(self.type_in(schema), self.greatest)


@dataclass(frozen=True, eq=False)
class Edge(AggregateSpec):
    """The value of the row that is first or last in event time; of rows with one time, in arrival."""

    at_end: bool

    @property
    def function(self) -> str:
        """What users call it."""
        return "last" if self.at_end else "first"

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return the argument's type."""
        type = self.kept_type(schema)
        if is_changelog(schema):
            form_of(type, f"the argument of {self.identity()}, over a changelog,")
        return type

    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.state_fields``."""
        return () if is_changelog(schema) else (pa.field("value", self.type_in(schema)), pa.field("time", TIME_TYPE))

    def item_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.item_fields``: in a changelog all rows, named by time and value."""
        if not is_changelog(schema):
            return ()
        return pa.field("time", TIME_TYPE), pa.field("value", self.type_in(schema)), WEIGHT_FIELD

    @property
    def item_names(self) -> int:
        """As ``AggregateSpec.item_names``."""
        return 2

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.accumulators import Edges
        from millstream.operators.multisets import EdgeMultiset

        if is_changelog(schema):
            return EdgeMultiset(self.type_in(schema), last=self.at_end)
        return Edges(self.type_in(schema), self.at_end)


def count(argument: str | Expr | None = None, *, where: str | Expr | None = None) -> AggregateSpec:
    """Count rows, or the values of a column or expression that are not null. The result is int64.

    Args:
        where: look only at rows for which this condition is true, as in ``where=col("status") == "paid"``; every
            aggregate takes it.
    """
    arguments = () if argument is None else expressions("count", argument)
    return Count(arguments, where=condition("count", where))


def sum(argument: str | Expr, *, where: str | Expr | None = None) -> AggregateSpec:
    """Add the values of a column or expression up.

    Integers give an int64, and a DataError if the sum of a group does not fit; floats a float64, computed in twice
    the precision (about 31 digits); decimals a decimal of 38 digits, exact.

    Over a changelog integers and decimals stay exact. Of floats that are taken back nothing remains but, beside much
    smaller ones, an error in the 31st digit of the largest; nothing at all once no finite value is left. NaN and
    infinite values can be taken back; a sum that has passed the range of float64 stays infinite.
    """
    return Sum(expressions("sum", argument), where=condition("sum", where))


def min(argument: str | Expr, *, where: str | Expr | None = None) -> AggregateSpec:
    """Take the least value of a column or expression: number, boolean, date, time, string, binary, decimal."""
    return Extreme(expressions("min", argument), greatest=False, where=condition("min", where))


def max(argument: str | Expr, *, where: str | Expr | None = None) -> AggregateSpec:
    """Take the greatest value of a column or expression; types as for ``min``."""
    return Extreme(expressions("max", argument), greatest=True, where=condition("max", where))


def mean(argument: str | Expr, *, where: str | Expr | None = None) -> AggregateSpec:
    """Take the mean of a column or expression, as a float64; types as for ``sum``."""
    return Mean(expressions("mean", argument), where=condition("mean", where))


def first(argument: str | Expr, *, where: str | Expr | None = None) -> AggregateSpec:
    """Take the value, null or not, of the row earliest in event time (of several, the first to arrive)."""
    return Edge(expressions("first", argument), at_end=False, where=condition("first", where))


def last(argument: str | Expr, *, where: str | Expr | None = None) -> AggregateSpec:
    """Take the value, null or not, of the row latest in event time (of several, the last to arrive)."""
    return Edge(expressions("last", argument), at_end=True, where=condition("last", where))
