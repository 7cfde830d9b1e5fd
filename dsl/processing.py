"""``process``: what stands behind ``group_by(...).process(...)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
from millstream.engine.changelog import is_changelog
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr
from millstream.engine.expression_types import Schema
from millstream.engine.graph import Edge, Graph
from millstream.engine.time import Duration
from millstream.operators.process import (
    Code,
    Process,
    ProcessSpec,
    check_changes,
    class_of,
    process_from_function,
    process_of,
    schema_for,
)
from millstream.operators.process_states import SideOutput
from millstream.stream import Stream


class ProcessedStream(Stream):
    """The result of ``process``, and beside it the side outputs."""

    def __init__(self, graph: Graph, edge: Edge, time: Expr | None, sides: Mapping[str, Expr | None]) -> None:
        super().__init__(graph, edge, time)
        self._sides = dict(sides)

    def side(self, name: str) -> Stream:
        """A side output, by its name.

        Raises:
            JobError: there is none of this name.
        """
        if name not in self._sides:
            there = ", ".join(map(repr, self._sides)) or "none"
            raise JobError(f"side({name!r}): there is no such side output; there are: {there}")
        return Stream(self._graph, Edge(self._edge.node, name), self._sides[name])


def processed(  # noqa: PLR0913 - all by name
    graph: Graph,
    edge: Edge,
    time: Expr | None,
    keys: tuple[str, ...],
    code: Code | Callable[..., Any],
    *,
    schema: Schema | None,
    ttl: Duration | None,
    side_outputs: Mapping[str, Schema] | None,
    changes: bool,
    retracts: bool,
    name: str | None,
) -> ProcessedStream:
    """See ``GroupedStream.process``."""
    if is_changelog(graph.schema(edge)) and not changes:
        raise JobError(
            "process(): the stream is a changelog, whose rows may be taken back: write process(..., changes=True) and "
            "look at ctx.weight (1: the row comes, -1: it is taken back); or put .changes() before it to get the "
            "weight as a column, or .final() to see what is left when a bounded input has ended"
        )
    if isinstance(class_of(code), type) or isinstance(code, Process):
        if ttl is not None or side_outputs is not None:
            raise JobError(
                "process(ttl=..., side_outputs=...) are for functions: a class says so itself, as in "
                "total = ms.value_state(float, ttl='1h') and late = ms.side_output({...})"
            )
        checked = process_of(code)
    else:
        if not callable(code):
            raise JobError(f"process() takes a function, or a class derived from ms.Process; got {code!r}")
        sides = {side: SideOutput(columns) for side, columns in (side_outputs or {}).items()}
        if "main" in sides:
            raise JobError("process(side_outputs=...): 'main' is the name of the result; give it another name")
        checked = process_from_function(code, ttl, sides)
    cls = class_of(checked)
    check_changes(cls, changes=changes, retracts=retracts)
    spec = ProcessSpec(keys, checked, schema_for(cls, schema), time, changes, retracts)
    try:
        node = graph.operator(spec, [edge], name)
    except SchemaError as error:
        raise SchemaError(f"process(): {error}") from None
    input_schema = graph.schema(edge)
    kept = {port: _kept_time(time, input_schema, side.schema) for port, side in spec.sides.items()}
    return ProcessedStream(graph, Edge(node.id), _kept_time(time, input_schema, spec.schema), kept)


def _kept_time(time: Expr | None, before: pa.Schema, after: pa.Schema) -> Expr | None:
    """Event time goes on if its columns are still there, with their types."""
    if time is None:
        return None
    columns = time.columns()
    kept = all(name in after.names and after.field(name).type == before.field(name).type for name in columns)
    return time if kept else None
