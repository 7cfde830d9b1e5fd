"""One evaluation: the batch it is over, what has been computed already, and errors that name the expression."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from millstream.engine.errors import DataError, SchemaError
from millstream.engine.expression_types import shortened

if TYPE_CHECKING:
    from millstream.engine.expression_tree import Expr


class Scope:
    """The values of expressions over one batch. Each expression is computed once."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch
        self._known: dict[str, Any] = {}

    def value(self, expr: Expr) -> Any:
        """Return an expression's value: an array, or a scalar that stands for all rows."""
        text = expr.text
        if text not in self._known:
            self._known[text] = expr.compute(self)
        return self._known[text]

    def value_where(self, expr: Expr, rows: Callable[[], pa.Array]) -> Any:
        """Return an expression's value that need not be right in other rows than these.

        It is computed for all rows, which is simplest and mostly fastest, unless it is costly or fails: then only
        for those rows, so that a guard such as ``when(b != 0).then(a // b)`` protects from what it should.

        Args:
            rows: returns which rows matter: booleans without nulls. Not called when it does not matter.
        """
        if self.batch.num_rows == 0 or expr.text in self._known or not expr.columns():
            return self.value(expr)
        if not expr.costly:
            try:
                return self.value(expr)
            except DataError:
                pass
        return self._value_only_where(expr, rows())

    def _value_only_where(self, expr: Expr, rows: pa.Array) -> Any:
        count = rows.true_count
        if count == len(rows):
            return self.value(expr)
        if count == 0:
            return pa.nulls(len(rows), expr.type_in(self.batch.schema))
        picked = self.batch.select(sorted(expr.columns())).filter(rows)
        value = Scope(picked).value(expr)
        if isinstance(value, pa.Scalar):
            return value
        mask = rows.to_numpy(zero_copy_only=False)
        return value.take(pa.array(np.cumsum(mask) - 1, mask=~mask))


@contextmanager
def explained(expr: Expr, parts: Iterable[tuple[Expr, Any]], hint: str) -> Iterator[None]:
    """Turn Arrow's errors into ours: the data's fault or the types'.

    Args:
        expr: what is computed.
        parts: from what, with their values.
        hint: what to write instead when the types do not fit.

    Raises:
        DataError: a value cannot be taken.
        SchemaError: a type cannot be taken.
    """
    parts = list(parts)
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowIndexError, pa.ArrowCapacityError) as error:
        if not any(isinstance(value, pa.Array) and len(value) == 0 for _, value in parts):
            raise DataError(f"{expr}: {shortened(str(error))}") from error
        raise _misfit(expr, parts, hint, error) from error  # without a row it cannot be the data
    except (pa.ArrowException, TypeError, ValueError, KeyError) as error:
        raise _misfit(expr, parts, hint, error) from error


def _misfit(expr: Expr, parts: list[tuple[Expr, Any]], hint: str, error: Exception) -> SchemaError:
    types = ", ".join(f"{part} is {value.type}" for part, value in parts)
    advice = f". Hint: {hint}" if hint else ""
    return SchemaError(f"{expr} does not fit its types: {types} ({error}){advice}")
