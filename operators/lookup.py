"""Looks up, in something outside, what goes with the key of each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from millstream.engine.changelog import is_changelog, weighted
from millstream.engine.errors import JobError, SchemaError, UserCodeError
from millstream.engine.expression import Expr
from millstream.engine.lookup import LookupTable
from millstream.engine.operator import FORWARD, MAIN, Exchange, Operator
from millstream.engine.state import DELETED, StateTable
from millstream.engine.store.columns import storage_type
from millstream.engine.time import show_duration
from millstream.operators.join import Join
from millstream.operators.join_columns import joined_schema
from millstream.operators.python import function_name, function_place
from millstream.operators.python_rows import shown
from millstream.operators.windowed import distinct_names

LOOKUP_HOWS: Final = ("inner", "left")
"""What can be asked of a lookup."""

STATE: Final = "answers"
"""The name of the state table, of a changelog: one row per row that is there."""


@dataclass(frozen=True)
class FunctionTable(LookupTable):
    """A function as a table: it takes distinct keys and returns the rows that it has for them."""

    fn: Callable[[pa.RecordBatch], Any]
    columns: pa.Schema

    @property
    def name(self) -> str:
        """The function's name, and where it is."""
        return function_place(self.fn)

    @property
    def schema(self) -> pa.Schema:
        """What it promises to return."""
        return self.columns

    def identity(self) -> str:
        """The function's name and what it promises."""
        types = ", ".join(f"{field.name}: {field.type}" for field in self.columns)
        return f"{function_name(self.fn)}({types})"

    def fetch(self, keys: pa.RecordBatch, columns: list[str]) -> pa.Table:
        """As ``LookupTable.fetch``. Raises UserCodeError if the function returns what it must not."""
        del columns
        result = self.fn(keys)
        if isinstance(result, pa.RecordBatch):
            result = pa.Table.from_batches([result])
        if not isinstance(result, pa.Table):
            raise UserCodeError(f"{self.name} must return a pa.Table or a pa.RecordBatch, got {shown(result)}")
        return result


@dataclass(frozen=True, eq=False, kw_only=True)
class Lookup(Join):
    """Joins every row with the rows that a table outside has for its key at this moment.

    Rows stay where they are; each subtask asks for the distinct keys of a batch that it does not know, and remembers
    the answers, also that there is nothing, for as long as it may. Nothing of this is in the checkpoint: after a
    restart rows are looked up again, and the answer may be another one.

    Of a changelog every row that is there is kept with what it was answered, in the checkpoint too, and that is taken
    back with it: the table may say something else by then. While it is there a row keeps its answer, and equal rows
    have the same. Rows are then exchanged by their keys, so that equal rows meet.

    Attributes:
        most_keys: how many keys the table is asked for at once.
        remember: how long an answer may be used, microseconds of processing time; 0: for the batch.
        cache_keys: how many keys a subtask remembers; those used last stay.
        keeps: rows whose lookup fails are put aside as dead letters instead of failing the job.
        time: the rows' event time, to be shown with those that were put aside.
        changes: whether the input is a changelog.
    """

    table: LookupTable
    most_keys: int = 10_000
    remember: int = 0
    cache_keys: int = 100_000
    keeps: bool = False
    time: Expr | None = None
    changes: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.how not in LOOKUP_HOWS:
            raise JobError(f"lookup(how={self.how!r}): how is one of {', '.join(map(repr, LOOKUP_HOWS))}")
        for name, value in (("batch", self.most_keys), ("cache_keys", self.cache_keys)):
            if not isinstance(value, int) or value < 1:
                raise JobError(f"lookup({name}={value!r}) takes a number of keys, at least 1")
        if self.changes and self.keeps:
            raise JobError(
                "lookup(on_error='dead_letter'): the stream is a changelog, and a row that was put aside could not be "
                "taken back: leave on_error= out, and have the function return nothing where there is no answer"
            )

    @property
    def kind(self) -> str:
        """``lookup``."""
        return "lookup"

    def timing(self) -> str:
        """The table; how it is asked and what is remembered changes no meaning."""
        return self.table.identity()

    def describe(self) -> str:
        """One line for the plan."""
        kept = f", remembered for {show_duration(self.remember)}" if self.remember else ""
        aside = ", errors to dead letters" if self.keeps else ""
        return f"{self.how} lookup by {self.on()} in {self.table.identity()}{kept}{aside}"

    def exchange_of(self, index: int) -> Exchange:
        """Rows stay where they are; those of a changelog go by their keys."""
        return super().exchange_of(index) if self.changes else FORWARD

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The joined rows. Raises SchemaError when the input does not fit."""
        (left,) = inputs
        self.check_inputs([left, self.table.schema])
        assert is_changelog(left) == self.changes, f"{self.changes=}, {left.names=}"
        joined = joined_schema(self.output_columns, left, self.table.schema)
        if self.changes:
            _check_storable(self.kept(0, left))
            _check_storable(self.kept(1, self.table.schema))
        return {MAIN: weighted(joined) if self.changes else joined}

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """Of a changelog: rows that are there, with what they were answered, how often, and their place in arrival."""
        if not self.changes:
            return ()
        kept, found = self.kept(0, inputs[0]), self.kept(1, self.table.schema)
        fields = [(STATE, pa.list_(pa.struct(list(found)))), ("weight", pa.int64()), ("arrival", pa.int64())]
        names = distinct_names([*kept.names, *(name for name, _ in fields)], {DELETED})
        columns = pa.schema(list(zip(names, [*kept.types, *(type for _, type in fields)], strict=True)))
        routed = tuple(names[kept.get_field_index(key)] for key in self.left_keys)
        return (StateTable(STATE, columns, keys=(*routed, names[-1]), route_by=routed),)

    @property
    def takes_changelog(self) -> bool:
        """What a row was answered is remembered, and taken back with it."""
        return True

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """The key and what is put out; rows that are put aside are so with all columns."""
        return [frozenset(inputs[0].names) if self.keeps else self.pruned(wanted)._kept_names(0)]

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        if self.changes:
            from millstream.operators.changing_lookup_operator import ChangingLookupOperator

            return ChangingLookupOperator(self, inputs[0])
        from millstream.operators.lookup_operator import LookupOperator

        return LookupOperator(self, inputs[0])


def _check_storable(rows: pa.Schema) -> None:
    for field in rows:
        try:
            storage_type(field.type)
        except SchemaError as error:
            raise SchemaError(
                f"lookup(): column {field.name!r}: {error}; rows of a changelog are kept with what they were answered"
            ) from None
