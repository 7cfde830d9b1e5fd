"""Aggregates that keep the values themselves: ``count_distinct(x)``, ``collect(x)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
from millstream.engine.changelog import is_changelog
from millstream.engine.codes import form_of
from millstream.engine.errors import JobError
from millstream.engine.expression import Expr
from millstream.operators.aggregate_spec import WEIGHT_FIELD, AggregateSpec, condition, expressions

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
        """As ``AggregateSpec.item_fields``: the values seen, in a changelog with their weights."""
        value = pa.field("value", self.argument_type(schema))
        return (value, WEIGHT_FIELD) if is_changelog(schema) else (value,)

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.item_accumulators import DistinctAccumulator
        from millstream.operators.multisets import DistinctMultiset

        make = DistinctMultiset if is_changelog(schema) else DistinctAccumulator
        return make(self.argument_type(schema))


@dataclass(frozen=True, eq=False)
class Collect(AggregateSpec):
    """The values themselves, null or not, in a list.

    Attributes:
        limit: keep so many, the first to arrive; None: all.
    """

    limit: int | None

    @property
    def function(self) -> str:
        """What users call it."""
        return "collect"

    def options(self) -> tuple[str, ...]:
        """As ``AggregateSpec.options``."""
        return () if self.limit is None else (f"limit={self.limit}",)

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return a list of the argument's type."""
        type = self.kept_type(schema)
        if is_changelog(schema):
            form_of(type, f"the argument of {self.identity()}, over a changelog,")
        return pa.list_(type)

    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.state_fields``."""
        del schema
        return ()

    def item_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.item_fields``: the values, numbered from 0; in a changelog values and weights."""
        if is_changelog(schema):
            return pa.field("value", self.kept_type(schema)), WEIGHT_FIELD
        return pa.field("position", pa.int64()), pa.field("value", self.kept_type(schema))

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.item_accumulators import CollectAccumulator
        from millstream.operators.multisets import SortedMultiset

        if is_changelog(schema):
            return SortedMultiset(self.kept_type(schema), self.limit)
        return CollectAccumulator(self.kept_type(schema), self.limit)


def count_distinct(argument: str | Expr, *, where: str | Expr | None = None) -> AggregateSpec:
    """Count the different values of a column or expression that are not null, exactly. The result is int64.

    NaN equals NaN and -0.0 equals 0.0. Every value is kept, once per group, until the window fires;
    ``approx_count_distinct`` keeps at most 4 kB per group.

    Args:
        argument: number, boolean, date, time, string, binary or decimal.
        where: as for ``count``.
    """
    return CountDistinct(expressions("count_distinct", argument), where=condition("count_distinct", where))


def collect(argument: str | Expr, limit: int | None = None, *, where: str | Expr | None = None) -> AggregateSpec:
    """Put the values of a column or expression, nulls too, into a list, in the order of arrival.

    Rows that one subtask has read arrive in its order; of several (``--parallelism``), and of splits read side by
    side, who comes first is not fixed, and may differ after a restart for what had not reached a checkpoint.
    Over a changelog, which has no order of arrival, the list is in the order of the values, nulls last, and lists and
    structs are refused.

    Args:
        argument: of any type that a checkpoint can hold, lists and structs too.
        limit: keep so many values, the first to arrive; None: all.
        where: as for ``count``; without any row the result is null.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise JobError(f"collect(..., limit={limit!r}): limit is how many values to keep, at least 1; None keeps all")
    return Collect(expressions("collect", argument), limit, where=condition("collect", where))
