"""What every aggregate is before it runs: arguments, a condition, the types of its result and of its state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
from millstream.engine.changelog import is_changelog
from millstream.engine.codes import plain_type
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr, col
from millstream.engine.store.columns import storage_type

if TYPE_CHECKING:
    from millstream.operators.accumulators import Accumulator

COUNT_FIELD = pa.field("count", pa.int64())
WEIGHT_FIELD = pa.field("weight", pa.int64())


@dataclass(frozen=True, eq=False)
class AggregateSpec(ABC):
    """An aggregate in the job's graph. Immutable; equal specs have equal ``identity()``.

    Attributes:
        arguments: what it aggregates; () if it counts rows.
        where: it sees only the rows for which this is true; None: all rows.
    """

    arguments: tuple[Expr, ...]
    where: Expr | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def function(self) -> str:
        """What users call it: ``"sum"``."""

    def options(self) -> tuple[str, ...]:
        """What else it was given, as ``"ddof=0"``."""
        return ()

    def identity(self) -> str:
        """Text that changes exactly when it is another aggregate.

        >>> from millstream.operators.aggregates import count, sum
        >>> sum("price").identity(), count(where=col("price") > 1).identity()
        ('sum(price)', 'count(where=(price > 1))')
        """
        where = () if self.where is None else (f"where={self.where}",)
        return f"{self.function}({', '.join([*map(str, self.arguments), *self.options(), *where])})"

    def columns(self) -> frozenset[str]:
        """The columns its arguments and its condition read."""
        read = self.arguments if self.where is None else (*self.arguments, self.where)
        return frozenset().union(*(expr.columns() for expr in read))

    def check(self, schema: pa.Schema) -> None:
        """Raise SchemaError if it cannot be computed over rows of a schema."""
        self.type_in(schema)
        if is_changelog(schema) and self.instead:
            raise SchemaError(f"{self.identity()} cannot take rows of a changelog back: {self.instead}")
        if self.where is None:
            return
        type = self.where.type_in(schema)
        if not pa.types.is_boolean(type):
            raise SchemaError(
                f"{self.identity()}: where= needs a condition that is true or false; {self.where} is {type}: compare "
                "it with something, as in where=col('price') > 10"
            )

    @abstractmethod
    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return the type of its result over rows of a schema. Raises SchemaError if it cannot take them."""

    @abstractmethod
    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """Declare what it keeps per group; names are short, ``[a-z]+``, to be prefixed by the aggregate's own."""

    def item_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """Declare the rows it keeps, any number per group, in a table of their own; the first names one in its group
        (or more of them: see ``item_names``).

        Its accumulator is then an ``ItemAccumulator``. () means that it keeps none.
        """
        del schema
        return ()

    @property
    def item_names(self) -> int:
        """How many of the first fields of ``item_fields`` it takes to name an item in its group."""
        return 1

    @property
    def instead(self) -> str:
        """What to write over a changelog if it cannot take rows back; "" if it can.

        The schema of a changelog has a column with the weight, by which the other methods know what is asked for; its
        accumulator is then a ``Retractable``.
        """
        return ""

    @property
    def can_merge(self) -> bool:
        """Whether what it keeps of some rows can be joined to what it keeps of others."""
        return True

    @abstractmethod
    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """Make its running values."""

    def argument_type(self, schema: pa.Schema, position: int = 0) -> pa.DataType:
        """Return the plain type of an argument."""
        return plain_type(self.arguments[position].type_in(schema))

    def number_type(self, schema: pa.Schema) -> pa.DataType:
        """Return the type of the first argument. Raises SchemaError unless it is a number that can be added."""
        type = self.argument_type(schema)
        if pa.types.is_boolean(type) or pa.types.is_integer(type) or pa.types.is_floating(type):
            return type
        if pa.types.is_decimal(type) and type.bit_width <= 128:
            return type
        raise self.refuse(type, "a number: integer, float, boolean, or decimal of at most 38 digits")

    def kept_type(self, schema: pa.Schema, position: int = 0) -> pa.DataType:
        """Return the plain type of an argument. Raises SchemaError if checkpoints cannot hold its values."""
        type = self.argument_type(schema, position)
        try:
            storage_type(type)
        except SchemaError as error:
            raise SchemaError(f"{self.identity()}: {error}") from None
        return type

    def refuse(self, type: pa.DataType, expected: str) -> SchemaError:
        """Return the error for an argument of a type that it cannot take."""
        return SchemaError(f"{self.identity()}: the argument has type {type}; expected {expected}")


def expressions(function: str, *arguments: str | Expr) -> tuple[Expr, ...]:
    """Return the arguments of a function of the user's interface as expressions.

    Raises:
        JobError: one is neither a column's name nor an expression.
    """
    return tuple(_expression(function, argument, "a column's name or an expression") for argument in arguments)


def condition(function: str, where: str | Expr | None) -> Expr | None:
    """Return ``where=`` as an expression. Raises JobError if it is none."""
    return None if where is None else _expression(f"{function}(where=...)", where, "a condition")


def _expression(function: str, argument: str | Expr, expected: str) -> Expr:
    if isinstance(argument, Expr):
        return argument
    if isinstance(argument, str):
        return col(argument)
    call = function if function.endswith(")") else f"{function}()"
    raise JobError(f"{call} takes {expected}, such as 'price' or col('price') > 10, got {argument!r}")
