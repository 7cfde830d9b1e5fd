"""Aggregates as values: ``count()``, ``sum``, ``min``, ``max``, ``mean``, ``first``, ``last``.

Nulls follow SQL as DuckDB has it: ``count()`` counts rows, ``count(x)`` values; sum, min, max and mean leave nulls
out and are null without any value; ``first`` and ``last`` take the row that is first or last in event time, null or
not. NaN is the greatest number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
from millstream.engine.codes import form_of, plain_type
from millstream.engine.errors import SchemaError
from millstream.engine.expression import Expr, col
from millstream.operators.event_time import TIME_TYPE

if TYPE_CHECKING:
    from millstream.operators.accumulators import Accumulator

_COUNT_FIELD = pa.field("count", pa.int64())


@dataclass(frozen=True, eq=False)
class AggregateSpec(ABC):
    """An aggregate in the job's graph. Immutable; equal specs have equal ``identity()``.

    Attributes:
        expr: its argument; None if it has none.
    """

    expr: Expr | None

    @property
    @abstractmethod
    def function(self) -> str:
        """What users call it: ``"sum"``."""

    def identity(self) -> str:
        """Text that changes exactly when it is another aggregate.

        >>> sum("price").identity(), count().identity()
        ('sum(price)', 'count()')
        """
        return f"{self.function}({'' if self.expr is None else self.expr})"

    def columns(self) -> frozenset[str]:
        """The columns its argument reads."""
        return frozenset() if self.expr is None else frozenset(self.expr.columns())

    @abstractmethod
    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return the type of its result over rows of a schema. Raises SchemaError if it cannot take them."""

    @abstractmethod
    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """Declare what it keeps per group; names are short, ``[a-z]+``, to be prefixed by the aggregate's own."""

    @abstractmethod
    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """Make its running values."""

    def _argument_type(self, schema: pa.Schema) -> pa.DataType:
        assert self.expr is not None
        return plain_type(self.expr.type_in(schema))

    def _refuse(self, type: pa.DataType, expected: str) -> SchemaError:
        return SchemaError(f"{self.identity()}: the argument has type {type}; expected {expected}")


class Count(AggregateSpec):
    """How many rows, or values that are not null."""

    @property
    def function(self) -> str:
        """What users call it."""
        return "count"

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return int64."""
        if self.expr is not None:
            self.expr.type_in(schema)
        return pa.int64()

    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.state_fields``."""
        del schema
        return (_COUNT_FIELD,)

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.accumulators import CountAccumulator

        del schema
        return CountAccumulator()


@dataclass(frozen=True, eq=False)
class _Total(AggregateSpec):
    """What sum and mean have in common: the argument's kind of number decides how they add."""

    def _checked(self, schema: pa.Schema) -> pa.DataType:
        type = self._argument_type(schema)
        if pa.types.is_boolean(type) or pa.types.is_integer(type) or pa.types.is_floating(type):
            return type
        if pa.types.is_decimal(type) and type.bit_width <= 128:
            return type
        raise self._refuse(type, "a number: integer, float, boolean, or decimal of at most 38 digits")

    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.state_fields``: the exact value is sum + overflow * 2**64 or 10**38, or sum + error."""
        type = self._checked(schema)
        if pa.types.is_floating(type):
            return pa.field("sum", pa.float64()), pa.field("error", pa.float64()), _COUNT_FIELD
        total = pa.decimal128(38, type.scale) if pa.types.is_decimal(type) else pa.int64()
        return pa.field("sum", total), pa.field("overflow", pa.int64()), _COUNT_FIELD

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.accumulators import FloatSum, IntSum
        from millstream.operators.decimal_sum import DecimalSum

        type, mean = self._checked(schema), self.function == "mean"
        if pa.types.is_floating(type):
            return FloatSum(mean)
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
        type = self._checked(schema)
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
        self._checked(schema)
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
        type = self._argument_type(schema)
        form_of(type, f"the argument of {self.identity()}")
        return type

    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.state_fields``."""
        return (pa.field(self.function, self.type_in(schema)),)

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.accumulators import extremes

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
        type = self._argument_type(schema)
        form_of(type, f"the argument of {self.identity()}")
        return type

    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.state_fields``."""
        return pa.field("value", self.type_in(schema)), pa.field("time", TIME_TYPE)

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.accumulators import Edges

        return Edges(self.type_in(schema), self.at_end)


def _expression(argument: str | Expr) -> Expr:
    return col(argument) if isinstance(argument, str) else argument


def count(argument: str | Expr | None = None) -> AggregateSpec:
    """Count rows, or the values of a column or expression that are not null. The result is int64."""
    return Count(None if argument is None else _expression(argument))


def sum(argument: str | Expr) -> AggregateSpec:
    """Add the values of a column or expression up.

    Integers give an int64, and a DataError if the sum of a group does not fit; floats a float64, computed in twice
    the precision; decimals a decimal of 38 digits, exact.
    """
    return Sum(_expression(argument))


def min(argument: str | Expr) -> AggregateSpec:
    """Take the least value of a column or expression: number, boolean, date, time, string, binary, decimal."""
    return Extreme(_expression(argument), greatest=False)


def max(argument: str | Expr) -> AggregateSpec:
    """Take the greatest value of a column or expression; types as for ``min``."""
    return Extreme(_expression(argument), greatest=True)


def mean(argument: str | Expr) -> AggregateSpec:
    """Take the mean of a column or expression, as a float64; types as for ``sum``."""
    return Mean(_expression(argument))


def first(argument: str | Expr) -> AggregateSpec:
    """Take the value, null or not, of the row earliest in event time (of several, the first to arrive)."""
    return Edge(_expression(argument), at_end=False)


def last(argument: str | Expr) -> AggregateSpec:
    """Take the value, null or not, of the row latest in event time (of several, the last to arrive)."""
    return Edge(_expression(argument), at_end=True)
