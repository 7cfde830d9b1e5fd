"""Looks up, in something outside, what goes with the key of each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from millstream.engine.errors import JobError, UserCodeError
from millstream.engine.expression import Expr
from millstream.engine.lookup import LookupTable
from millstream.engine.operator import FORWARD, MAIN, Exchange, Operator
from millstream.engine.time import show_duration
from millstream.operators.join import Join
from millstream.operators.join_columns import joined_schema
from millstream.operators.python import function_name, function_place
from millstream.operators.python_rows import shown

LOOKUP_HOWS: Final = ("inner", "left")
"""What can be asked of a lookup."""


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

    Attributes:
        most_keys: how many keys the table is asked for at once.
        remember: how long an answer may be used, microseconds of processing time; 0: for the batch.
        cache_keys: how many keys a subtask remembers; those used last stay.
        keeps: rows whose lookup fails are put aside as dead letters instead of failing the job.
        time: the rows' event time, to be shown with those that were put aside.
    """

    table: LookupTable
    most_keys: int = 10_000
    remember: int = 0
    cache_keys: int = 100_000
    keeps: bool = False
    time: Expr | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.how not in LOOKUP_HOWS:
            raise JobError(f"lookup(how={self.how!r}): how is one of {', '.join(map(repr, LOOKUP_HOWS))}")
        for name, value in (("batch", self.most_keys), ("cache_keys", self.cache_keys)):
            if not isinstance(value, int) or value < 1:
                raise JobError(f"lookup({name}={value!r}) takes a number of keys, at least 1")

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
        """Rows stay where they are."""
        del index
        return FORWARD

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The joined rows. Raises SchemaError when the input does not fit."""
        (left,) = inputs
        self.check_inputs([left, self.table.schema])
        return {MAIN: joined_schema(self.output_columns, left, self.table.schema)}

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """The key and what is put out; rows that are put aside are so with all columns."""
        return [frozenset(inputs[0].names) if self.keeps else self.pruned(wanted)._kept_names(0)]

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.lookup_operator import LookupOperator

        return LookupOperator(self, inputs[0])
