"""Several streams of the same columns as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.operator import MAIN, Operator, OperatorSpec, Output


@dataclass(frozen=True)
class Union(OperatorSpec):
    """Put the rows of several streams together, in the order they come.

    Attributes:
        n: how many inputs, at least two.
        keep: the columns that go on; None: all. An input may then have others, which are left out.
    """

    n: int
    keep: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.n < 2:
            raise JobError(f"union() puts at least two streams together, got {self.n}")

    @property
    def kind(self) -> str:
        """``union``."""
        return "union"

    def identity(self) -> str:
        """How many inputs."""
        keep = "" if self.keep is None else f", keep={sorted(self.keep)}"
        return f"union({self.n}{keep})"

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """Return the first input's columns; those that may be null in any input may be null in the output.

        Raises:
            SchemaError: the inputs differ in the names, order or types of their columns.
        """
        assert len(inputs) == self.n, f"{len(inputs)=} {self.n=}"
        first, *others = [_kept(schema, self.keep) for schema in inputs]
        for number, other in enumerate(others, 2):
            difference = _difference(first, other, number)
            if difference:
                raise SchemaError(f"union() takes streams of the same columns; {difference}")
        fields = [
            field.with_nullable(field.nullable or any(other.field(i).nullable for other in others))
            for i, field in enumerate(first)
        ]
        return {MAIN: pa.schema(fields, first.metadata)}

    @property
    def takes_changelog(self) -> bool:
        """The weight is a column like any other here."""
        return True

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        return _UnionOperator(self.output_schemas(inputs)[MAIN])

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """What is wanted, of every input."""
        columns = wanted.get(MAIN) or frozenset(inputs[0].names[:1])
        return [columns & frozenset(schema.names) for schema in inputs]

    def pruned(self, wanted: Mapping[str, frozenset[str]]) -> OperatorSpec:
        """Pass the wanted columns on only: one input may have been pruned further than another."""
        columns = wanted.get(MAIN)
        return replace(self, keep=columns) if columns else self


def _kept(schema: pa.Schema, keep: frozenset[str] | None) -> pa.Schema:
    return schema if keep is None else pa.schema([f for f in schema if f.name in keep], schema.metadata)


def _difference(first: pa.Schema, other: pa.Schema, number: int) -> str:
    """Say how the ``number``-th input differs from the first; "" if only in metadata or in what may be null."""
    missing = [name for name in first.names if name not in other.names]
    extra = [name for name in other.names if name not in first.names]
    types = [
        f"{field.name!r} is {field.type} in stream 1 and {other.field(field.name).type} in stream {number}"
        for field in first
        if field.name in other.names and not field.type.equals(other.field(field.name).type)
    ]
    parts = [f"stream {number} lacks {', '.join(map(repr, missing))}"] if missing else []
    parts += [f"stream {number} also has {', '.join(map(repr, extra))}"] if extra else []
    parts += types
    if not parts and first.names != other.names:
        parts = [f"stream {number} has them in the order {', '.join(other.names)}, stream 1 {', '.join(first.names)}"]
    if not parts:
        return ""
    columns = ", ".join(map(repr, first.names))
    return f"{'; '.join(parts)}. Write .select({columns}) on it, with .cast(...) where types differ"


class _UnionOperator(Operator):
    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        self.process_input(0, batch, out)

    def process_input(self, index: int, batch: pa.RecordBatch, out: Output) -> None:
        del index
        if not batch.schema.equals(self._schema, check_metadata=True):
            arrays = [batch.column(name) for name in self._schema.names]
            batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        out.emit(batch)
