"""Approximate aggregates, of which the state stays small: ``approx_count_distinct``, ``quantile``, ``median``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
from millstream.engine.changelog import is_changelog
from millstream.engine.codes import form_of
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr
from millstream.operators.aggregate_spec import WEIGHT_FIELD, AggregateSpec, condition, expressions

if TYPE_CHECKING:
    from millstream.operators.accumulators import Accumulator


class ApproxCountDistinct(AggregateSpec):
    """About how many different values there are that are not null."""

    @property
    def function(self) -> str:
        """What users call it."""
        return "approx_count_distinct"

    @property
    def instead(self) -> str:
        """As ``AggregateSpec.instead``: a sketch only remembers that there has been a value like this one."""
        return f"use ms.count_distinct({self.arguments[0]})"

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return int64."""
        form_of(self.argument_type(schema), f"the argument of {self.identity()}")
        return pa.int64()

    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.state_fields``."""
        del schema
        return (pa.field("registers", pa.large_binary()),)

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.hyperloglog import HyperLogLog

        del schema
        return HyperLogLog()


@dataclass(frozen=True, eq=False)
class Quantile(AggregateSpec):
    """The value below which a share of all values lies, to about 1 %.

    Attributes:
        shares: between 0 and 1.
        several: the result is a list, one value per share.
    """

    shares: tuple[float, ...]
    several: bool

    @property
    def function(self) -> str:
        """What users call it."""
        return "quantile"

    def options(self) -> tuple[str, ...]:
        """As ``AggregateSpec.options``."""
        return (repr(list(self.shares)) if self.several else repr(self.shares[0]),)

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return float64, for durations their own type; a list of these for several shares."""
        type = self.argument_type(schema)
        if not pa.types.is_duration(type):
            try:
                self.number_type(schema)
            except SchemaError:
                expected = "a number (integer, float, boolean, decimal of at most 38 digits) or a duration"
                raise self.refuse(
                    type, f"{expected}; of times take a difference first, as in col('paid_at') - col('made_at')"
                ) from None
            type = pa.float64()
        return pa.list_(type) if self.several else type

    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.state_fields``."""
        del schema
        return ()

    def item_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.item_fields``: a bucket's number, how many values are in it, the least and greatest.

        In a changelog every value is kept.
        """
        if is_changelog(schema):
            return pa.field("value", pa.float64()), WEIGHT_FIELD
        return (
            pa.field("bucket", pa.int64()),
            pa.field("count", pa.int64()),
            pa.field("low", pa.float64()),
            pa.field("high", pa.float64()),
        )

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.histogram import Histogram
        from millstream.operators.multisets import QuantileMultiset

        make = QuantileMultiset if is_changelog(schema) else Histogram
        return make(self.shares, self.type_in(schema))


def approx_count_distinct(argument: str | Expr, *, where: str | Expr | None = None) -> AggregateSpec:
    """Estimate how many different values a column or expression has that are not null. The result is int64.

    A HyperLogLog sketch of 4096 registers: the standard error is 1.6 %, so that all but a few of a thousand results
    lie within 5 %; up to about fifty values it is most often exact. A group takes at most 4 kB, and 128 bytes while
    it has few values. Neither order nor batches nor restarts change the result.

    Args:
        argument: types as for ``count_distinct``.
        where: as for ``count``.
    """
    name = "approx_count_distinct"
    return ApproxCountDistinct(expressions(name, argument), where=condition(name, where))


def quantile(argument: str | Expr, q: float | Sequence[float], *, where: str | Expr | None = None) -> AggregateSpec:
    """Estimate the value below which a share ``q`` of the values lies that are not null.

    As SQL's ``quantile_cont``: interpolated between the two values around the place ``q * (count - 1)``, NaN being the
    greatest number. Each of the two is off by at most 1/128 (0.8 %) of itself: values are counted in buckets of that
    width, and what is given lies between the least and the greatest value seen of the bucket. So it is exact where a
    bucket has but one value, as for whole numbers up to 256. Order, batches and restarts do not change the result.
    Over a changelog every value is kept, as a float64, and the result is exact.

    Args:
        argument: a number, which gives a float64, or a duration, which gives one.
        q: between 0 and 1, or several such for a list of results, which share what is kept.
        where: as for ``count``.
    """
    several = isinstance(q, (list, tuple))
    shares = tuple(q) if isinstance(q, (list, tuple)) else (q,)
    if not shares or not all(_is_share(share) for share in shares):
        raise JobError(f"quantile(..., {q!r}): q is a number between 0 and 1, such as 0.95, or a list of them")
    plain = tuple(float(share) for share in shares)
    return Quantile(expressions("quantile", argument), plain, several, where=condition("quantile", where))


def median(argument: str | Expr, *, where: str | Expr | None = None) -> AggregateSpec:
    """Estimate the median of the values that are not null: their ``quantile`` of 0.5."""
    return Quantile(expressions("median", argument), (0.5,), several=False, where=condition("median", where))


def _is_share(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return not math.isnan(value) and 0 <= value <= 1
