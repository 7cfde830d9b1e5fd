"""The tree of an expression: columns, literals, and what is computed from them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, NoReturn, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.errors import DataError, JobError, SchemaError
from millstream.engine.expression_functions import FUNCTIONS, Function, as_array
from millstream.engine.expression_operators import Operators
from millstream.engine.expression_scope import Scope, explained
from millstream.engine.expression_text import TEXT_FUNCTIONS
from millstream.engine.expression_times import TIME_FUNCTIONS
from millstream.engine.expression_types import (
    did_you_mean,
    literal_scalar,
    literal_text,
    option_text,
    plain_value,
    shown_scalar,
)

_FUNCTIONS: Final[Mapping[str, Function]] = {**FUNCTIONS, **TEXT_FUNCTIONS, **TIME_FUNCTIONS}

Value: TypeAlias = Any
"""A ``pa.Array``, or a ``pa.Scalar`` that stands for as many rows as are needed."""


class Expr(Operators):
    """A value computed for every row. Write one with ``col``, ``lit``, ``when`` or ``call``."""

    # -- what it is --------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def text(self) -> str:
        """The canonical text."""

    @property
    @abstractmethod
    def children(self) -> tuple[Expr, ...]:
        """The expressions it is computed from."""

    @abstractmethod
    def with_children(self, children: Sequence[Expr]) -> Expr:
        """Return the same computation of other expressions."""

    @abstractmethod
    def compute(self, scope: Scope) -> Value:
        """Compute the value for the rows of the scope, from the children's values."""

    @cached_property
    def costly(self) -> bool:
        """Whether computing it for fewer rows pays for picking those rows out first."""
        return any(child.costly for child in self.children)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __bool__(self) -> NoReturn:
        raise JobError(
            f"{self} has one value per row, so it is neither true nor false: write & for and, | for or, ~ for not, "
            "with parentheses around comparisons, as in (col('a') > 1) & ~(col('b') == 2); "
            "write .between(1, 9) for 1 <= x <= 9 and when(...) for if"
        )

    def same_as(self, other: Expr) -> bool:
        """Whether both are the same expression (``==`` makes a comparison of their values).

        >>> from millstream.engine.expression import col, lit
        >>> col("a").same_as(col("a")), col("a").same_as(lit("a"))
        (True, False)
        """
        return self.text == other.text

    # -- what the engine asks ----------------------------------------------------------------------------------

    def evaluate(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the values for the rows of a batch, as an array of that length.

        Raises:
            DataError: a value cannot be taken (overflow, a text that is no number ...).
            SchemaError: the batch lacks a column or has other types than the expression was written for.

        >>> from millstream.engine.expression import col
        >>> (col("a") + 1).evaluate(pa.record_batch({"a": [1, None]})).to_pylist()
        [2, None]
        """
        return evaluate_all([self], batch)[0]

    def columns(self) -> frozenset[str]:
        """The names of the columns it reads."""
        return self._columns

    @cached_property
    def _columns(self) -> frozenset[str]:
        return frozenset().union(*(child.columns() for child in self.children))

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return the type of its values for rows of a schema.

        Raises:
            SchemaError: a column is unknown, or a type does not fit.

        >>> from millstream.engine.expression import col
        >>> (col("a") / 2).type_in(pa.schema({"a": pa.int64()}))
        DataType(double)
        """
        try:
            return self._type_in(schema)
        except RecursionError:
            raise SchemaError(
                "the expression is nested too deeply: write .is_in([...]) instead of many comparisons, or compute a "
                "part of it in a column of its own first, with with_columns(...)"
            ) from None

    def _type_in(self, schema: pa.Schema) -> pa.DataType:
        used = [field for field in schema if field.name in self.columns()]
        empty = pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in used], schema=pa.schema(used))
        for name in sorted(self.columns() - set(schema.names)):
            columns = ", ".join(schema.names) or "none"
            within = "" if self.is_column() == name else f" (in {self})"
            raise SchemaError(
                f"no column {name!r}{did_you_mean(name, schema.names)}{within}; the columns are: {columns}"
            )
        try:
            return Scope(empty).value(self).type
        except (DataError, SchemaError) as error:
            raise SchemaError(f"{error}{_within(str(error), self)}") from error.__cause__

    def substitute(self, mapping: Mapping[str, Expr]) -> Expr:
        """Return the expression with columns replaced by expressions.

        >>> from millstream.engine.expression import col
        >>> (col("a") + col("b")).substitute({"a": col("x") * 2})
        ((x * 2) + b)
        """
        if not self.columns() & mapping.keys():
            return self
        return self.with_children([child.substitute(mapping) for child in self.children])

    def is_column(self) -> str | None:
        """Return the column's name if it is nothing but a column."""
        return None

    def apply(self, function: str, *others: Any, **options: Any) -> Expr:
        """Apply one of the engine's own functions to this and other values."""
        return Operation(function, (self, *map(as_expr, others)), tuple(options.items()))

    def after(self, function: str, first: Any) -> Expr:
        """Apply a function to another value and this."""
        return Operation(function, (as_expr(first), self))

    def alias(self, name: str) -> Expr:
        """Name it, for ``select``."""
        return Alias(self, name)


@dataclass(frozen=True, eq=False, repr=False)
class Column(Expr):
    """The values of a column."""

    name: str

    @cached_property
    def text(self) -> str:
        """The name, where it cannot be mistaken for anything else."""
        plain = self.name.isidentifier() and self.name not in {"None", "True", "False"}
        return self.name if plain else f"col({self.name!r})"

    @property
    def children(self) -> tuple[Expr, ...]:
        """None."""
        return ()

    @cached_property
    def _columns(self) -> frozenset[str]:
        return frozenset([self.name])

    def with_children(self, children: Sequence[Expr]) -> Expr:
        """There are none."""
        del children
        return self

    def substitute(self, mapping: Mapping[str, Expr]) -> Expr:
        """Return what stands for the column."""
        return mapping.get(self.name, self)

    def is_column(self) -> str | None:
        """Return the name."""
        return self.name

    def compute(self, scope: Scope) -> Value:
        """Return the column itself."""
        index = scope.batch.schema.get_field_index(self.name)
        if index < 0:
            names = scope.batch.schema.names
            raise SchemaError(f"no column {self.name!r}{did_you_mean(self.name, names)}; the columns are: {names}")
        return scope.batch.column(index)


@dataclass(frozen=True, eq=False, repr=False)
class Literal(Expr):
    """The same value for every row."""

    value: Any

    @cached_property
    def text(self) -> str:
        """The value as Python writes it."""
        return literal_text(self.value)

    @property
    def children(self) -> tuple[Expr, ...]:
        """None."""
        return ()

    def with_children(self, children: Sequence[Expr]) -> Expr:
        """There are none."""
        del children
        return self

    @cached_property
    def _scalar(self) -> pa.Scalar:
        return literal_scalar(self.value)

    def compute(self, scope: Scope) -> Value:
        """Return the value."""
        del scope
        return self._scalar


@dataclass(frozen=True, eq=False, repr=False)
class Alias(Expr):
    """A named expression."""

    expr: Expr
    name: str

    @cached_property
    def text(self) -> str:
        """Tells two names apart."""
        return f"alias({self.expr}, {self.name!r})"

    @property
    def children(self) -> tuple[Expr, ...]:
        """What is named."""
        return (self.expr,)

    def with_children(self, children: Sequence[Expr]) -> Expr:
        """Name another expression."""
        return Alias(children[0], self.name)

    def is_column(self) -> str | None:
        """Return the column's own name."""
        return self.expr.is_column()

    def compute(self, scope: Scope) -> Value:
        """Return what is named."""
        return scope.value(self.expr)


@dataclass(frozen=True, eq=False, repr=False)
class Operation(Expr):
    """One of the engine's own functions (``engine.expression_functions``)."""

    function: str
    args: tuple[Expr, ...]
    options: tuple[tuple[str, Any], ...] = ()

    @cached_property
    def text(self) -> str:
        """An operator with parentheses around it, or ``name(arguments, option=...)``."""
        symbol = _FUNCTIONS[self.function].symbol
        if symbol and len(self.args) == 2:
            return f"({self.args[0]} {symbol} {self.args[1]})"
        if symbol:
            return f"({symbol}{self.args[0]})"
        return f"{self.function}({_arguments(self.args, self.options)})"

    @property
    def children(self) -> tuple[Expr, ...]:
        """The arguments."""
        return self.args

    @cached_property
    def costly(self) -> bool:
        """Whether the function or an argument is."""
        return _FUNCTIONS[self.function].costly or any(arg.costly for arg in self.args)

    def with_children(self, children: Sequence[Expr]) -> Expr:
        """Apply the function to others."""
        return replace(self, args=tuple(children))

    def compute(self, scope: Scope) -> Value:
        """Apply the function."""
        function = _FUNCTIONS[self.function]
        values = self._values(scope)
        with explained(self, zip(self.args, values, strict=True), function.hint):
            return _on_arrays(lambda *arrays: function.run(*arrays, **dict(self.options)), values)

    def _values(self, scope: Scope) -> list[Value]:
        if self.function not in {"and", "or"}:
            return [scope.value(arg) for arg in self.args]
        # The right side is not asked of rows which the left side decides: (b != 0) & (a // b > 1) never fails.
        left = scope.value(self.args[0])

        def undecided() -> pa.Array:
            known = as_array(left, scope.batch.num_rows)
            return known.fill_null(True) if self.function == "and" else pc.invert(known.fill_null(False))

        return [left, scope.value_where(self.args[1], undecided)]


@dataclass(frozen=True, eq=False, repr=False)
class Kernel(Expr):
    """A function of ``pyarrow.compute``, by name."""

    function: str
    args: tuple[Expr, ...]
    options: tuple[tuple[str, Any], ...] = ()

    @cached_property
    def text(self) -> str:
        """As one would write it with ``pyarrow.compute``."""
        return f"pc.{self.function}({_arguments(self.args, self.options)})"

    @property
    def children(self) -> tuple[Expr, ...]:
        """The arguments."""
        return self.args

    def with_children(self, children: Sequence[Expr]) -> Expr:
        """Call the kernel with others."""
        return replace(self, args=tuple(children))

    def compute(self, scope: Scope) -> Value:
        """Call the kernel."""
        run = getattr(pc, self.function)
        values = [scope.value(arg) for arg in self.args]
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in self.options}
        hint = f"see the documentation of pyarrow.compute.{self.function}"
        with explained(self, zip(self.args, values, strict=True), hint):
            return _on_arrays(lambda *arrays: run(*arrays, **options), values)


def as_expr(value: Any) -> Expr:
    """Return an expression as it is, anything else as a literal; raises JobError if it cannot be one."""
    return value if isinstance(value, Expr) else Literal(plain_value(value))


def evaluate_all(exprs: Sequence[Expr], batch: pa.RecordBatch) -> list[pa.Array]:
    """Evaluate several expressions over one batch; what they have in common is computed once.

    Raises:
        DataError: as ``Expr.evaluate``.
    """
    scope = Scope(batch)
    arrays = []
    for expr in exprs:
        try:
            arrays.append(as_array(scope.value(expr), batch.num_rows))
        except DataError as error:
            raise explain_failure(error, expr, batch) from error.__cause__
    return arrays


def explain_failure(error: DataError, expr: Expr, batch: pa.RecordBatch) -> DataError:
    """Return the error with the whole expression and the first row that fails, found by halving."""
    works, fails = 0, batch.num_rows
    while fails - works > 1:
        middle = (works + fails) // 2
        try:
            Scope(batch.slice(0, middle)).value(expr)
            works = middle
        except DataError as earlier:
            # Arrow names the last value that it cannot take, which need not be this row's.
            error, fails = earlier, middle
    row = batch.slice(works, 1)
    shown = ", ".join(f"{name} = {shown_scalar(row.column(name)[0])}" for name in sorted(expr.columns()))
    return DataError(f"{error}{_within(str(error), expr)}{'; first where ' if shown else ''}{shown}")


def _within(message: str, whole: Expr) -> str:
    return "" if whole.text in message else f" (in {whole})"


def _arguments(args: Iterable[Expr], options: Iterable[tuple[str, Any]]) -> str:
    return ", ".join([*map(str, args), *(f"{name}={option_text(value)}" for name, value in options)])


def _on_arrays(run: Callable[..., pa.Array], values: Sequence[Value]) -> Value:
    """Call a function that wants at least one array; of scalars alone make a scalar."""
    if any(isinstance(value, pa.Array) for value in values):
        return run(*values)
    return run(*(pa.repeat(value, 1) for value in values))[0]
