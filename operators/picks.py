"""The value of the row that is least or greatest in something else: ``arg_min(value, by)``, ``arg_max(value, by)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
from millstream.engine.changelog import is_changelog
from millstream.engine.codes import form_of
from millstream.engine.expression import Expr
from millstream.operators.aggregate_spec import WEIGHT_FIELD, AggregateSpec, condition, expressions

if TYPE_CHECKING:
    from millstream.operators.accumulators import Accumulator


@dataclass(frozen=True, eq=False)
class Pick(AggregateSpec):
    """The first argument in the row where the second is least or greatest."""

    greatest: bool

    @property
    def function(self) -> str:
        """What users call it."""
        return "arg_max" if self.greatest else "arg_min"

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return the type of the first argument."""
        self._by_type(schema)
        type = self.kept_type(schema)
        if is_changelog(schema):
            form_of(type, f"the value of {self.identity()}, over a changelog,")
        return type

    def _by_type(self, schema: pa.Schema) -> pa.DataType:
        type = self.argument_type(schema, 1)
        form_of(type, f"by= of {self.identity()}")
        return type

    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.state_fields``."""
        value, by = pa.field("value", self.type_in(schema)), pa.field("by", self._by_type(schema))
        return () if is_changelog(schema) else (value, by)

    def item_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.item_fields``: in a changelog all rows, for any may be picked one day."""
        if not is_changelog(schema):
            return ()
        return pa.field("by", self._by_type(schema)), pa.field("value", self.type_in(schema)), WEIGHT_FIELD

    @property
    def item_names(self) -> int:
        """As ``AggregateSpec.item_names``."""
        return 2

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.multisets import PickMultiset
        from millstream.operators.pick_accumulators import picks

        if is_changelog(schema):
            return PickMultiset(self.type_in(schema), self._by_type(schema), greatest=self.greatest)
        return picks(self.type_in(schema), self._by_type(schema), self.greatest)


def arg_min(value: str | Expr, by: str | Expr, *, where: str | Expr | None = None) -> AggregateSpec:
    """Take a value from the row where ``by`` is least; of several, from the first to arrive.

    Rows where the value or ``by`` is null are left out, as in DuckDB; without any other the result is null. Over a
    changelog, which has no order of arrival, it is the least value of several, and lists and structs are refused.

    Args:
        value: a column or expression of any type that a checkpoint can hold, lists and structs too.
        by: number, boolean, date, time, string, binary or decimal.
        where: as for ``count``.
    """
    return Pick(expressions("arg_min", value, by), greatest=False, where=condition("arg_min", where))


def arg_max(value: str | Expr, by: str | Expr, *, where: str | Expr | None = None) -> AggregateSpec:
    """Take a value from the row where ``by`` is greatest (NaN is the greatest number); else as ``arg_min``."""
    return Pick(expressions("arg_max", value, by), greatest=True, where=condition("arg_max", where))
