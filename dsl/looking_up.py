"""``Stream.lookup``: what is asked for, checked, and made an operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from millstream.engine.codes import plain_type
from millstream.engine.errors import JobError
from millstream.engine.expression_types import Schema, schema_of
from millstream.engine.graph import Edge, check_columns
from millstream.engine.lookup import LookupTable
from millstream.engine.time import Duration, micros
from millstream.joining import key_pairs
from millstream.operators.join_columns import check_keys, join_columns
from millstream.operators.lookup import FunctionTable, Lookup
from millstream.operators.python import check_function
from millstream.stream import Stream


@dataclass(frozen=True)
class LookingUp:
    """What ``Stream.lookup`` was asked for."""

    left: Stream
    table: LookupTable | Callable[[pa.RecordBatch], Any]
    on: Any
    schema: Schema | None

    def stream(
        self,
        *,
        how: str,
        batch: int,
        cache: Duration | None,
        cache_keys: int,
        on_error: str,
        suffix: str,
        name: str | None,
    ) -> Stream:
        """Add the operator to the graph; return what comes out of it."""
        if on_error not in {"fail", "dead_letter"}:
            raise JobError(f"lookup(): on_error is 'fail' or 'dead_letter', got {on_error!r}")
        keys = key_pairs(self.on, "lookup")
        left = self.left.schema
        check_columns(left, [key for key, _ in keys], "lookup()")
        table = self._table(keys)
        check_columns(table.schema, [key for _, key in keys], f"lookup() in {table.name}")
        check_keys(keys, left, table.schema)
        spec = Lookup(
            left_keys=tuple(key for key, _ in keys),
            right_keys=tuple(key for _, key in keys),
            how=how,
            columns=join_columns(left, table.schema, keys, suffix, window=False),
            table=table,
            most_keys=batch,
            remember=0 if cache is None else micros(cache),
            cache_keys=cache_keys,
            keeps=on_error == "dead_letter",
            time=self.left._time,
            changes=self.left.is_changelog,
        )
        node = self.left._graph.operator(spec, [self.left._edge], name)
        return Stream(self.left._graph, Edge(node.id), self.left._time)

    def _table(self, keys: list[tuple[str, str]]) -> LookupTable:
        if isinstance(self.table, LookupTable):
            if self.schema is not None:
                raise JobError(f"lookup(schema=...): {self.table.name} has a schema; leave it out")
            return self.table
        check_function(self.table, "lookup()", 1, "one argument, the distinct keys as a pa.RecordBatch")
        if self.schema is None:
            raise JobError("lookup() needs schema={...}: the columns that its function returns besides the key")
        fields = [pa.field(right, plain_type(self.left.schema.field(key).type)) for key, right in keys]
        found = [field for field in schema_of(self.schema) if field.name not in {right for _, right in keys}]
        return FunctionTable(self.table, pa.schema([*fields, *found]))
