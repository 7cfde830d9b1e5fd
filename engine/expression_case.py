"""``when(...).then(...).otherwise(...)``: SQL's CASE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.expression_functions import alike, as_array, common_type, convert
from millstream.engine.expression_scope import Scope, explained
from millstream.engine.expression_tree import Expr, Literal, Value, as_expr


@dataclass(frozen=True, eq=False, repr=False)
class Case(Expr):
    """The value of the first branch whose condition is true, or else the default; see ``when``."""

    branches: tuple[tuple[Expr, Expr], ...]
    default: Expr

    def when(self, condition: Any) -> When:
        """Add a branch, asked of rows for which no condition so far is true."""
        return When(as_expr(condition), self.branches)

    def otherwise(self, value: Any) -> Case:
        """Say what it is when no condition is true (null if this is left out)."""
        return Case(self.branches, as_expr(value))

    @cached_property
    def text(self) -> str:
        """As it is written."""
        branches = ".".join(f"when({condition}).then({value})" for condition, value in self.branches)
        return f"{branches}.otherwise({self.default})"

    @property
    def children(self) -> tuple[Expr, ...]:
        """Conditions and values by turns, then the default."""
        return (*(expr for branch in self.branches for expr in branch), self.default)

    def with_children(self, children: Sequence[Expr]) -> Expr:
        """The same branches of other expressions."""
        return Case(tuple(zip(children[:-1:2], children[1:-1:2], strict=True)), children[-1])

    def compute(self, scope: Scope) -> Value:
        """Compute each value for the rows that take it, where that is cheaper or the other rows would fail."""
        taken: list[pa.Array] = []
        values: list[Value] = []

        def free() -> pa.Array:
            rows = pa.repeat(True, scope.batch.num_rows)
            for mask in taken:
                rows = pc.and_(rows, pc.invert(mask))
            return rows

        for condition, value in self.branches:
            mask = self._mask(scope, condition, free)
            values.append(scope.value_where(value, partial(_both, free, mask)))
            taken.append(mask)
        result = scope.value_where(self.default, free)
        parts = [*zip((value for _, value in self.branches), values, strict=True), (self.default, result)]
        with explained(self, parts, "give all branches values of one type, with .cast(...)"):
            *values, result = alike([*values, result])
            type = common_type([*values, result])
            result = convert(result, type)
            for mask, value in zip(reversed(taken), reversed(values), strict=True):
                result = pc.if_else(mask, convert(value, type), result)
        return result

    def _mask(self, scope: Scope, condition: Expr, free: Callable[[], pa.Array]) -> pa.Array:
        value = as_array(scope.value_where(condition, free), scope.batch.num_rows)
        with explained(self, [(condition, value)], "when() takes what is true or false, such as col('a') > 1"):
            if not pa.types.is_boolean(value.type):
                raise pa.ArrowTypeError("the condition is not a boolean")
        return value.fill_null(False) if value.null_count else value


def _both(free: Callable[[], pa.Array], mask: pa.Array) -> pa.Array:
    return pc.and_(free(), mask)


class When:
    """A condition that waits for ``.then(value)``."""

    def __init__(self, condition: Expr, branches: tuple[tuple[Expr, Expr], ...] = ()) -> None:
        self._condition = condition
        self._branches = branches

    def __repr__(self) -> str:
        before = "".join(f"when({condition}).then({value})." for condition, value in self._branches)
        return f"{before}when({self._condition})"

    def then(self, value: Any) -> Case:
        """Say what the value is where the condition is true; go on with ``.when`` or ``.otherwise``."""
        return Case((*self._branches, (self._condition, as_expr(value))), Literal(None))
