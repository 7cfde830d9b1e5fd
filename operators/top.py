"""The top rows per key over all time, as a changelog: "the ten highest bids on every item, as they change"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
from millstream.engine.changelog import is_changelog, unweighted, weighted
from millstream.engine.codes import form_of, plain_type
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Operator, OperatorSpec
from millstream.engine.state import DELETED, StateTable
from millstream.operators.windowed import check_columns, distinct_names

STATE: Final = "top"
"""The name of the state table: one row per row that is on top now, or may be some day."""

MOST_COLUMNS: Final = 60


@dataclass(frozen=True, eq=False)
class Top(OperatorSpec):
    """Keeps the ``n`` best rows of each key and puts out how they change: a row that comes, a row that leaves.

    What readers are told after each batch is the difference to what they were told before; rows that come and leave
    within one batch are not mentioned. Nulls rank last, NaN is the greatest number.

    Of an ordinary stream only the rows on top are kept. Of a changelog all rows are kept, since any of them may come
    back to the top; a row is then found by its values, all of them, and of several equal ones the last to come is
    taken back. That is why no column of a changelog is left out before.

    Attributes:
        keys: the columns that name a group; none means that all rows are one.
        by: (expression, whether the greatest comes first), the most important first; may be empty.
        n: how many rows a group keeps, at least 1.
        ties: keep also every row that equals the n-th in all of ``by`` (SQL's ``rank() <= n``).
        newest: of rows equal in all of ``by`` the last to arrive is better, not the first.
        rank: the name of a column to add with the row's place in its group, from 1: SQL's ``row_number()``, or
            ``rank()`` with ties. A row whose place changes is taken back and put out again.
        keep: put out only those columns, since nobody wants the others; None: all.
    """

    keys: tuple[str, ...]
    by: tuple[tuple[Expr, bool], ...]
    n: int
    ties: bool = False
    newest: bool = False
    rank: str | None = None
    keep: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.n < 1 or len(self.by) > MOST_COLUMNS:
            raise JobError(
                f"top: n must be at least 1, and there are at most {MOST_COLUMNS} columns to rank by; got n={self.n} "
                f"and {len(self.by)} columns"
            )
        if self.ties and self.newest:
            raise JobError("top: where ties are kept none of them is the newest")

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "top"

    def _by(self) -> str:
        return ", ".join(f"{expr} {'desc' if down else 'asc'}" for expr, down in self.by)

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        return (
            f"top(keys={self.keys!r}, by=[{self._by()}], n={self.n}, ties={self.ties}, newest={self.newest}, "
            f"rank={self.rank!r})"
        )

    def describe(self) -> str:
        """One line for the plan."""
        group = f" of each {', '.join(self.keys)}" if self.keys else ""
        order = f" by {self._by()}" if self.by else ""
        what = f"newest {self.n}" if self.newest and not self.by else f"top {self.n}"
        more = (", ties kept" if self.ties else "") + (", the newest of equals" if self.newest and self.by else "")
        return what + group + order + more + (", with its rank" if self.rank else "")

    def exchange(self) -> Exchange:
        """By hash of the keys; without keys one subtask has it all."""
        return Exchange(ExchangeKind.HASH, self.keys) if self.keys else Exchange(ExchangeKind.SINGLE)

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The rows, their rank if asked for, their weight. Raises SchemaError when the input does not fit."""
        (schema,) = inputs
        rows = unweighted(schema)
        check_columns(self.keys, rows, "key")
        for key in self.keys:
            form_of(schema.field(key).type, f"key column {key!r}")
        for expr, _ in self.by:
            form_of(expr.type_in(rows), f"{expr}, which rows are ranked by,")
        if self.rank in rows.names:
            raise SchemaError(f"the rank of a row cannot be called {self.rank!r}: there is such a column already")
        if is_changelog(schema):
            check_findable(rows)
        fields = [_plain(field) for field in rows if self._makes(field.name)]
        if self.rank is not None and self._makes(self.rank):
            fields.append(pa.field(self.rank, pa.int64()))
        return {MAIN: weighted(pa.schema(fields))}

    def _makes(self, column: str) -> bool:
        return self.keep is None or column in self.keep

    def kept(self, schema: pa.Schema) -> pa.Schema:
        """The columns of a row that must be kept: what is put out, and what the row is placed by."""
        if is_changelog(schema):
            return pa.schema([_plain(field) for field in unweighted(schema)])
        needed = self._needed(schema)
        return pa.schema([_plain(field) for field in schema if field.name in needed])

    def _needed(self, schema: pa.Schema) -> frozenset[str]:
        made = [name for name in schema.names if self._makes(name)]
        needed = frozenset(made).union(self.keys, *(expr.columns() for expr, _ in self.by))
        return needed or frozenset(schema.names[:1])

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """One row per row kept: its columns, and its place in arrival."""
        kept = self.kept(inputs[0])
        names = distinct_names([*kept.names, "arrival"], {DELETED})
        columns = pa.schema([pa.field(n, t) for n, t in zip(names, [*kept.types, pa.int64()], strict=True)])
        routed = tuple(names[kept.get_field_index(key)] for key in self.keys)
        return (StateTable(STATE, columns, keys=(*routed, names[-1]), route_by=routed),)

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """What is kept; of a changelog all."""
        (schema,) = inputs
        if is_changelog(schema):
            return [frozenset(schema.names)]
        return [self.pruned(wanted)._needed(schema)]

    def pruned(self, wanted: Mapping[str, frozenset[str]]) -> Top:
        """Return one that keeps and puts out no more than is wanted."""
        return replace(self, keep=wanted.get(MAIN, frozenset()))

    @property
    def takes_changelog(self) -> bool:
        """A row that is taken back leaves the top, and the next one moves up."""
        return True

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.top_operator import TopOperator

        return TopOperator(self, inputs[0])

    def combiner(self, wanted: Mapping[str, frozenset[str]]) -> OperatorSpec | None:
        """Without keys one subtask has it all: send it only what may be on top. With keys that would save little."""
        del wanted
        return None if self.keys else TopCombiner(self)


@dataclass(frozen=True, eq=False)
class TopCombiner(OperatorSpec):
    """Passes on the rows of each batch that are on top in it; of a changelog all. Keeps no state."""

    top: Top

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "top_combiner"

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        return f"combiner({self.top.identity()})"

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The input's schema."""
        return {MAIN: inputs[0]}

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.top_operator import CombinerOperator

        return CombinerOperator(self.top, inputs[0])


def check_findable(rows: pa.Schema) -> None:
    """Raise SchemaError unless rows can be found by their values."""
    for field in rows:
        form_of(field.type, f"column {field.name!r} of a changelog to rank, whose rows are found by their values,")
    if len(rows) > MOST_COLUMNS:
        raise SchemaError(f"a changelog to rank has at most {MOST_COLUMNS} columns, this one has {len(rows)}")


def _plain(field: pa.Field) -> pa.Field:
    return pa.field(field.name, plain_type(field.type))
