"""What a changelog comes to when its input has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from millstream.engine.changelog import is_changelog, unweighted, weighted
from millstream.engine.codes import form_of, plain_type
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Operator, OperatorSpec
from millstream.engine.state import DELETED, StateTable
from millstream.engine.store.columns import storage_type
from millstream.operators.group_aggregate import EVERYTHING
from millstream.operators.windowed import LATE, check_columns, distinct_names

STATE: Final = "rows"
"""The name of the state table: one row per key."""

MOST_KEYS: Final = 62


@dataclass(frozen=True, eq=False)
class FinalRows(OperatorSpec):
    """Keeps the rows of a changelog that are there, and emits them when event time has come to its end.

    Of each key the row that came last is kept, with the sum of the weights, and with a fingerprint of the rows that are
    left: a sum of their hashes. In the end the weight must be 1 and the fingerprint that of the row; otherwise two rows
    had the same key at once, which is an error. If all columns are keys a row is put out as often as its weights
    sum to.

    What comes after that, of dead letters that are replayed into a job that has ended, cannot change what was given:
    the changes of a key of which something is taken back go to the port ``late``, with their weights, and are counted.
    All that was given and what has gone there sums to what is left.

    Attributes:
        keys: the columns that tell rows apart; () if there is at most one row at any time.
    """

    keys: tuple[str, ...]

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "final"

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        return f"final(keys={self.keys!r})"

    def describe(self) -> str:
        """One line for the plan."""
        return f"what is left in the end, by {', '.join(self.keys)}" if self.keys else "what is left in the end"

    @property
    def takes_changelog(self) -> bool:
        """It takes nothing else."""
        return True

    @property
    def uses_event_time(self) -> bool:
        """The end of a bounded input is the end of event time."""
        return True

    def exchange(self) -> Exchange:
        """By hash of the keys."""
        return Exchange(ExchangeKind.HASH, self.keys) if self.keys else Exchange(ExchangeKind.SINGLE)

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The rows, and changes after the end.

        Raises:
            SchemaError: state cannot hold the rows.
            JobError: the input is no changelog.
        """
        (schema,) = inputs
        if not is_changelog(schema):
            raise JobError("final() is for changelogs; no row of this stream is ever taken back: leave final() out")
        rows = unweighted(schema)
        check_columns(self.keys, rows, "key")
        whole = len(self.keys) == len(rows)
        try:
            if len(self.keys) > MOST_KEYS:
                raise SchemaError(f"a key has at most {MOST_KEYS} columns, got {len(self.keys)}")
            for key in self.keys:
                form_of(rows.field(key).type, f"key column {key!r}")
        except SchemaError as error:
            hint = "; name the columns that tell rows apart, as in final('shop')" if whole else ""
            raise SchemaError(f"final(): {error}{hint}") from None
        for field in rows:
            try:
                storage_type(plain_type(field.type))
            except SchemaError as error:
                raise SchemaError(f"final(): column {field.name!r}: {error}") from None
        given = pa.schema([pa.field(field.name, plain_type(field.type)) for field in rows])
        return {MAIN: given, LATE: weighted(given)}

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """One row per key: keys, the other columns, weight, fingerprint."""
        rows = self.output_schemas(inputs)[MAIN]
        keys = [rows.field(key) for key in self.keys] or [pa.field(EVERYTHING, pa.bool_())]
        others = [field for field in rows if field.name not in self.keys]
        fields = [*keys, *others, pa.field("weight", pa.int64()), pa.field("fingerprint", pa.int64())]
        names = distinct_names([field.name for field in fields], {DELETED})
        schema = pa.schema([pa.field(name, field.type) for name, field in zip(names, fields, strict=True)])
        return (StateTable(STATE, schema, tuple(names[: len(keys)]), route_by=tuple(names[: len(self.keys)])),)

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.final_operator import FinalOperator

        return FinalOperator(self, inputs[0])
