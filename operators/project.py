"""Columns computed from columns, and rows kept or dropped: everything that looks at one row at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.errors import DataError, SchemaError
from millstream.engine.expression import Expr, evaluate_all
from millstream.engine.expression_functions import as_array
from millstream.engine.expression_scope import Scope
from millstream.engine.expression_tree import Operation, explain_failure
from millstream.engine.operator import MAIN, Operator, OperatorSpec, Output


@dataclass(frozen=True, eq=False)
class Project(OperatorSpec):
    """Compute the output's columns, in order: select, with_columns, drop and rename are all this.

    Attributes:
        exprs: names and what stands under them; at least one.
    """

    exprs: tuple[tuple[str, Expr], ...]

    @property
    def kind(self) -> str:
        """``project``."""
        return "project"

    def identity(self) -> str:
        """The columns."""
        return f"project({', '.join(f'{name!r}: {expr}' for name, expr in self.exprs)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Project) and self.identity() == other.identity()

    def __hash__(self) -> int:
        return hash(self.identity())

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """Type every column.

        Raises:
            SchemaError: two columns have one name, an expression does not fit the input, or it has no type.
        """
        twice = [name for name, count in Counter(name for name, _ in self.exprs).items() if count > 1]
        if twice:
            raise SchemaError(
                f"two columns are called {twice[0]!r}: name one of them anew, with .alias('...') or name=..."
            )
        return {MAIN: pa.schema([_field(name, expr, inputs[0]) for name, expr in self.exprs])}

    @property
    def takes_changelog(self) -> bool:
        """The weight is a column like any other here."""
        return True

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        return _ProjectOperator([expr for _, expr in self.exprs], self.output_schemas(inputs)[MAIN])

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """What the wanted columns are computed from."""
        del inputs
        return [frozenset[str]().union(*(expr.columns() for _, expr in self._made(wanted)))]

    def pruned(self, wanted: Mapping[str, frozenset[str]]) -> OperatorSpec:
        """Compute the wanted columns only."""
        return Project(self._made(wanted))

    def _made(self, wanted: Mapping[str, frozenset[str]]) -> tuple[tuple[str, Expr], ...]:
        made = tuple((name, expr) for name, expr in self.exprs if name in wanted.get(MAIN, ()))
        # A batch without any column has no rows either.
        return made or self.exprs[:1]

    def as_projection(self) -> Mapping[str, Expr]:
        """The columns."""
        return dict(self.exprs)


def _field(name: str, expr: Expr, schema: pa.Schema) -> pa.Field:
    column = expr.is_column()
    type = expr.type_in(schema)
    if column is not None:
        return schema.field(column).with_name(name)
    if pa.types.is_null(type):
        raise SchemaError(
            f"column {name!r} is null and nothing else, so it has no type: write {expr}.cast('int64'), say"
        )
    return pa.field(name, type)


class _ProjectOperator(Operator):
    def __init__(self, exprs: list[Expr], schema: pa.Schema) -> None:
        self._exprs = exprs
        self._schema = schema
        names = [expr.is_column() for expr in exprs]
        self._only_names = None if None in names else names

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        if self._only_names is not None:
            columns = [batch.column(name) for name in self._only_names]
        else:
            columns = evaluate_all(self._exprs, batch)
        out.emit(pa.RecordBatch.from_arrays(columns, schema=self._schema))


@dataclass(frozen=True, eq=False)
class Filter(OperatorSpec):
    """Keep the rows for which a predicate is true, not false and not null.

    Attributes:
        predicate: a boolean.
        keep: the columns that go on; None: all.
    """

    predicate: Expr
    keep: frozenset[str] | None = None

    @property
    def kind(self) -> str:
        """``filter``."""
        return "filter"

    def identity(self) -> str:
        """The predicate."""
        keep = "" if self.keep is None else f", keep={sorted(self.keep)}"
        return f"filter({self.predicate}{keep})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and self.identity() == other.identity()

    def __hash__(self) -> int:
        return hash(self.identity())

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """Return the input's columns, or those that go on.

        Raises:
            SchemaError: the predicate does not fit the input, or is no boolean.
        """
        type = self.predicate.type_in(inputs[0])
        if not pa.types.is_boolean(type):
            raise SchemaError(
                f"filter() needs a predicate that is true or false; {self.predicate} is {type}: "
                "compare it with something, as in col('price') > 10"
            )
        keep = self.keep
        if keep is None:
            return {MAIN: inputs[0]}
        return {MAIN: pa.schema([field for field in inputs[0] if field.name in keep], inputs[0].metadata)}

    @property
    def takes_changelog(self) -> bool:
        """The weight is a column like any other here."""
        return True

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        return _FilterOperator(conjuncts(self.predicate), self.output_schemas(inputs)[MAIN].names)

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """What is wanted, and what the predicate reads."""
        return [(wanted.get(MAIN, frozenset()) & frozenset(inputs[0].names)) | self.predicate.columns()]

    def pruned(self, wanted: Mapping[str, frozenset[str]]) -> OperatorSpec:
        """Copy only the wanted columns of the rows that stay."""
        columns = wanted.get(MAIN, frozenset())
        # A batch without any column has no rows either.
        columns = columns or frozenset(sorted(self.predicate.columns())[:1])
        return replace(self, keep=columns) if columns else self

    def as_filter(self) -> Expr:
        """The predicate."""
        return self.predicate


def conjuncts(predicate: Expr) -> list[Expr]:
    """Return what must be true together, in the order it was written.

    >>> from millstream.engine.expression import col
    >>> conjuncts((col("a") > 1) & (col("b") > 2) & col("c"))
    [(a > 1), (b > 2), c]
    """
    if isinstance(predicate, Operation) and predicate.function == "and":
        return [part for arg in predicate.args for part in conjuncts(arg)]
    return [predicate]


class _FilterOperator(Operator):
    def __init__(self, parts: list[Expr], names: list[str]) -> None:
        self._parts = parts
        self._names = names

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        rows = self._rows(batch)
        if rows.true_count == len(rows):
            out.emit(batch.select(self._names))
        elif rows.true_count:
            out.emit(batch.select(self._names).filter(rows))

    def _rows(self, batch: pa.RecordBatch) -> pa.Array:
        """Ask each part only of rows that got through those before, as a chain of filters would."""
        scope = Scope(batch)
        rows: pa.Array | None = None
        for part in self._parts:
            try:
                found = scope.value(part) if rows is None else scope.value_where(part, partial(_itself, rows))
                value = as_array(found, batch.num_rows)
            except DataError as error:
                raise explain_failure(error, part, batch if rows is None else batch.filter(rows)) from error.__cause__
            value = value.fill_null(False) if value.null_count else value
            rows = value if rows is None else pc.and_(rows, value)
        assert rows is not None, "a predicate has at least one part"
        return rows


def _itself(rows: pa.Array) -> pa.Array:
    return rows
