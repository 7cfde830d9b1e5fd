"""What conditions and results of a pattern name: ``prev("price")``, ``col("start.price")``, ``last("down.price")``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
from millstream.engine.codes import Form, form_of, has_form, plain_type
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr, col
from millstream.engine.expression_scope import Scope
from millstream.engine.expression_tree import Column, Operation
from millstream.engine.expression_types import did_you_mean
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.aggregates import Count

PREVIOUS: Final = "$prev."
"""Before the name of a column: its value in the row before."""

COMPARISONS: Final = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
_TURNED: Final = {"less": "greater", "less_equal": "greater_equal", "greater": "less", "greater_equal": "less_equal"}

ALL_ROWS: Final = -1
"""Stands for a name where all rows of a match are meant."""


@dataclass(frozen=True, eq=False, repr=False)
class Prev(Expr):
    """An expression's value in the row before."""

    expr: Expr

    @property
    def text(self) -> str:
        """As it is written."""
        return f"prev({self.expr})"

    @property
    def children(self) -> tuple[Expr, ...]:
        """What is taken from the row before."""
        return (self.expr,)

    def with_children(self, children: Sequence[Expr]) -> Expr:
        """Take another expression from the row before."""
        return Prev(children[0])

    def compute(self, scope: Scope) -> Expr:
        """Not possible for rows by themselves; the message says where it is."""
        del scope
        raise JobError(f"{self} looks at the row before, which only the conditions of match(define={{...}}) can")


def prev(value: str | Expr) -> Expr:
    """Return a value in the row before, for the conditions of ``match``.

    The row before is that of the same key, in event time and then in order of arrival, whether it is in the match or
    not. The value is null if there is none, or if it is more than ``within`` before.

    Args:
        value: a column's name or an expression.

    Raises:
        JobError: it is neither, or looks at another row itself.

    >>> col("price") < prev("price")
    (price < prev(price))
    """
    if not isinstance(value, (str, Expr)):
        raise JobError(f"prev() takes a column's name or an expression, such as prev('price'), got {value!r}")
    expr = col(value) if isinstance(value, str) else value
    if any(isinstance(part, Prev) for part in _walk(expr)):
        raise JobError(f"prev({expr}): only the row right before can be looked at")
    return Prev(expr)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A value of the row compared with one of the row that the match begins with.

    Attributes:
        function: one of COMPARISONS.
    """

    function: str
    own: Expr
    begin: Expr

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return the type in which both sides are compared. Raises SchemaError if there is none."""
        types = [plain_type(side.type_in(schema)) for side in (self.own, self.begin)]
        type = _common(*types)
        ordered = self.function not in {"equal", "not_equal"}
        if type is None or (ordered and form_of(type, str(self.own)) is Form.BYTES):
            raise SchemaError(
                f"{self.own} is {types[0]} and {self.begin}, in the row that the match begins with, is {types[1]}: "
                "only numbers, times and booleans can be compared by size, others with == and != alone, and both "
                "must be of one type: .cast(...) one of them"
            )
        return type


@dataclass(frozen=True, slots=True)
class Condition:
    """When a row may be taken: all of it must be true.

    Attributes:
        alone: over the row's columns, and, with PREVIOUS before their names, those of the row before; None: no more.
    """

    name: str
    alone: Expr | None
    comparisons: tuple[Comparison, ...]

    def columns(self) -> frozenset[str]:
        """The columns that it reads, of whatever row."""
        exprs = [] if self.alone is None else [self.alone]
        exprs += [side for comparison in self.comparisons for side in (comparison.own, comparison.begin)]
        return frozenset(name.removeprefix(PREVIOUS) for expr in exprs for name in expr.columns())

    def previous(self) -> frozenset[str]:
        """The columns that it reads of the row before."""
        names = frozenset() if self.alone is None else self.alone.columns()
        return frozenset(name.removeprefix(PREVIOUS) for name in names if name.startswith(PREVIOUS))

    def check(self, schema: pa.Schema) -> None:
        """Raise SchemaError unless it is true or false of rows of a schema."""
        for column in sorted(self.columns() - set(schema.names)):
            columns = ", ".join(schema.names)
            raise SchemaError(
                f"define {self.name!r}: no column {column!r}{did_you_mean(column, schema.names)}; the columns are: "
                f"{columns}"
            )
        looked = [pa.field(PREVIOUS + column, schema.field(column).type) for column in sorted(self.previous())]
        if self.alone is not None:
            type = self.alone.type_in(pa.schema([*schema, *looked]))
            if not pa.types.is_boolean(type):
                raise SchemaError(f"define {self.name!r}: {self.alone} is {type}; expected a condition: compare it")
        for comparison in self.comparisons:
            comparison.type_in(schema)


def read_condition(name: str, expr: Expr, names: Sequence[str], begin: str | None) -> Condition:
    """Read the condition of a name.

    Args:
        names: of the pattern.
        begin: the name of the row that every match begins with; None: there is no such name.

    Raises:
        SchemaError: it looks at rows that a condition cannot look at.
    """
    alone: list[Expr] = []
    comparisons: list[Comparison] = []
    for part in _conjuncts(expr):
        part = _own(part, name, names)  # noqa: PLW2901  the same condition, in the row's own columns
        others = {named[0] for column in part.columns() if (named := _named(column, names))}
        if others - {begin}:
            raise SchemaError(_unreachable(name, part, sorted(others - {begin})[0], begin))
        if others:
            comparisons.append(_comparison(name, part, f"{begin}."))
        else:
            alone.append(_looking_back(part))
    whole = None
    for part in alone:
        whole = part if whole is None else whole & part
    return Condition(name, whole, tuple(comparisons))


def _unreachable(name: str, part: Expr, other: str, begin: str | None) -> str:
    can = f", and {begin + '.price'!r} in the row that the match begins with" if begin is not None else ""
    return (
        f"define {name!r}: {part} looks at {other!r}, which may be one of several rows. A condition can look at "
        f"columns of the row itself, such as 'price', ms.prev('price') in the row before{can}"
    )


def _comparison(name: str, part: Expr, prefix: str) -> Comparison:
    if isinstance(part, Operation) and part.function in COMPARISONS:
        function, (left, right) = part.function, part.args
        if any(column.startswith(prefix) for column in left.columns()):
            function, left, right = _TURNED.get(function, function), right, left
        mixed = any(c.startswith(prefix) for c in left.columns()) or any(
            not c.startswith(prefix) for c in right.columns()
        )
        if not mixed and not any(isinstance(e, Prev) for e in _walk(part)):
            return Comparison(function, left, _renamed(right, lambda column: column.removeprefix(prefix)))
    raise SchemaError(
        f"define {name!r}: {part} cannot be computed: what looks at the row that the match begins with must be a "
        f"comparison by itself, joined to others with &, with that row alone on one side and without ms.prev(), as in "
        f"(col('price') > col('{prefix}price') * 1.1) & (col('volume') > 10)"
    )


def _looking_back(expr: Expr) -> Expr:
    if isinstance(expr, Prev):
        return _renamed(expr.expr, lambda column: PREVIOUS + column)
    return expr.with_children([_looking_back(child) for child in expr.children]) if expr.children else expr


def _own(expr: Expr, name: str, names: Sequence[str]) -> Expr:
    """``price`` and ``down.price`` mean the same in the condition of ``down``."""

    def own(column: str) -> str:
        named = _named(column, names)
        return named[1] if named is not None and named[0] == name else column

    return _renamed(expr, own)


@dataclass(frozen=True, slots=True)
class Result:
    """A result of a match: an aggregate over its rows of one name.

    Attributes:
        label: the number of the name; ALL_ROWS: the rows of all.
    """

    column: str
    label: int
    aggregate: AggregateSpec


def read_result(column: str, aggregate: AggregateSpec, names: Sequence[str], schema: pa.Schema) -> Result:
    """Read a result: ``last("down.price")``, ``count("up")``, ``max("price")``.

    Raises:
        SchemaError: it names no column, or rows of several names.
    """
    read = aggregate.columns()
    if isinstance(aggregate, Count) and aggregate.where is None and read & set(names) - set(schema.names):
        (argument,) = aggregate.arguments
        if argument.is_column() is not None:
            return Result(column, names.index(str(argument.is_column())), replace(aggregate, arguments=()))
    of = {named[0] if (named := _named(name, names)) else None for name in read}
    if len(of) > 1:
        shown = ", ".join(sorted(repr(name) if name is not None else "all rows" for name in of))
        raise SchemaError(f"select {column!r}: {aggregate.identity()} reads rows of {shown}; write one result for each")
    for name in sorted(read):
        _check_named(column, aggregate, name, names, schema)

    def plain(name: str) -> str:
        named = _named(name, names)
        return named[1] if named is not None else name

    where = None if aggregate.where is None else _renamed(aggregate.where, plain)
    arguments = tuple(_renamed(argument, plain) for argument in aggregate.arguments)
    (owner,) = of or {None}
    return Result(
        column, ALL_ROWS if owner is None else names.index(owner), replace(aggregate, arguments=arguments, where=where)
    )


def _check_named(column: str, aggregate: AggregateSpec, name: str, names: Sequence[str], schema: pa.Schema) -> None:
    named = _named(name, names)
    plain = name if named is None else named[1]
    if plain in schema.names:
        return
    before, dot, _ = plain.partition(".")
    if dot and named is None and before not in schema.names:
        hint = did_you_mean(before, names)
        raise SchemaError(
            f"select {column!r}: {aggregate.identity()} names {before!r}, which is not in the pattern{hint}; "
            f"there are: {', '.join(names)}"
        )
    known = [*schema.names, *names] if named is None else schema.names
    columns = ", ".join(schema.names)
    raise SchemaError(
        f"select {column!r}: {aggregate.identity()} reads {plain!r}, which is no column{did_you_mean(plain, known)}; "
        f"the columns are: {columns}"
    )


# -- expressions -----------------------------------------------------------------------------------------------


def _common(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    numbers = [pa.types.is_integer(type) or pa.types.is_floating(type) for type in (left, right)]
    if left == right:
        return left if has_form(left) else None
    if not all(numbers):
        return None
    whole = all(pa.types.is_integer(type) and not pa.types.is_uint64(type) for type in (left, right))
    return pa.int64() if whole else pa.float64()


def _named(column: str, names: Sequence[str]) -> tuple[str, str] | None:
    """Part ``down.price`` into a name of the pattern and a column."""
    name, dot, rest = column.partition(".")
    return (name, rest) if dot and name in names else None


def _conjuncts(expr: Expr) -> Iterator[Expr]:
    if isinstance(expr, Operation) and expr.function == "and":
        for part in expr.args:
            yield from _conjuncts(part)
    else:
        yield expr


def _walk(expr: Expr) -> Iterator[Expr]:
    yield expr
    for child in expr.children:
        yield from _walk(child)


def _renamed(expr: Expr, new_name: Callable[[str], str]) -> Expr:
    return expr.substitute({column: Column(new_name(column)) for column in expr.columns()})
