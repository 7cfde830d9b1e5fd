"""Functions of a row and its neighbours in time: ``row_number()``, ``lag(x)``, ``lead(x)``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import pyarrow as pa
from millstream.engine.codes import plain_type
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr
from millstream.engine.store.columns import storage_type
from millstream.operators.aggregate_spec import expressions


@dataclass(frozen=True, eq=False)
class OverFunction(ABC):
    """A function that ``over()`` computes for every row, and that is no aggregate. Immutable."""

    @abstractmethod
    def identity(self) -> str:
        """Text that changes exactly when it is another function."""

    @abstractmethod
    def columns(self) -> frozenset[str]:
        """The columns it reads."""

    @abstractmethod
    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return the type of its values over rows of a schema. Raises SchemaError if it cannot take them."""


@dataclass(frozen=True, eq=False)
class RowNumber(OverFunction):
    """The row's place, from 1."""

    def identity(self) -> str:
        """As ``OverFunction.identity``."""
        return "row_number()"

    def columns(self) -> frozenset[str]:
        """None."""
        return frozenset()

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return int64."""
        del schema
        return pa.int64()


@dataclass(frozen=True, eq=False)
class Shift(OverFunction):
    """The argument's value in the row ``by`` places before; after, if that is less than 0."""

    argument: Expr
    by: int

    def identity(self) -> str:
        """As ``OverFunction.identity``."""
        return f"{'lag' if self.by > 0 else 'lead'}({self.argument}, {abs(self.by)})"

    def columns(self) -> frozenset[str]:
        """Those of the argument."""
        return self.argument.columns()

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return the argument's type."""
        type = plain_type(self.argument.type_in(schema))
        try:
            storage_type(type)
        except SchemaError as error:
            raise SchemaError(f"{self.identity()}: {error}") from None
        return type


def row_number() -> OverFunction:
    """Number the rows of a key from 1, in the order of event time; for ``over()``. The result is int64."""
    return RowNumber()


def lag(value: str | Expr, n: int = 1) -> OverFunction:
    """Take a value from the row ``n`` places before, null if there is none; for ``over()``.

    Args:
        value: a column or expression of any type that a checkpoint can hold.
        n: at least 1.

    Raises:
        JobError: ``n`` is no such number.
    """
    return Shift(expressions("lag", value)[0], _places("lag", n))


def lead(value: str | Expr, n: int = 1) -> OverFunction:
    """Take a value from the row ``n`` places after, null if there is none when the input ends; for ``over()``.

    A row waits until that other row has come, and until event time has passed it: the result has no event time.

    Args:
        value: a column or expression of any type that a checkpoint can hold.
        n: at least 1.

    Raises:
        JobError: ``n`` is no such number.
    """
    return Shift(expressions("lead", value)[0], -_places("lead", n))


def _places(function: str, n: int) -> int:
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise JobError(f"{function}(..., n={n!r}): n is how many rows away, a whole number, at least 1")
    return n
