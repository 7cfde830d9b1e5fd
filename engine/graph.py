"""The logical graph: what the user wrote, checked, with stable ids. Nothing here runs."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NewType, TypeAlias

import pyarrow as pa
from millstream.engine.changelog import WEIGHT, is_changelog
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr
from millstream.engine.operator import MAIN, OperatorSpec
from millstream.engine.sink import Sink
from millstream.engine.source import Source

OperatorId = NewType("OperatorId", str)
"""Names a source, operator or sink for ever: derived from its content, so unrelated changes keep it."""


_NO_CHANGELOG = (
    "does not take a changelog, a stream whose rows may be taken back: put .changes() before it to see every change "
    "as a row of its own, with a column 'weight' (1: comes, -1: is taken back), or .final() to see what is left when a "
    "bounded input has ended"
)


@dataclass(frozen=True, slots=True)
class Edge:
    """The stream that leaves one port of a node."""

    node: OperatorId
    port: str = MAIN


@dataclass(frozen=True, slots=True)
class Markers:
    """Rows of a source that say how far event time has come.

    Attributes:
        rows: true of a row of which the event time is a watermark: no row of its split before it is still to come.
        kept: whether they go on among the others.
    """

    rows: Expr
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """A source in the graph.

    Attributes:
        event_time: the column with the event time; None: rows have none.
        max_delay: how far behind the newest row another may come, microseconds.
        idle_timeout: a split without rows for so long (microseconds) stops holding the watermark back; 0: never.
        max_ahead: a split whose rows are so much newer (microseconds) than those of the slowest split that it meets is
            not read on for now; None: it never waits.
        markers: which rows tell the watermark; None: every row does.
    """

    source: Source
    event_time: str | None = None
    max_delay: int = 0
    idle_timeout: int = 0
    max_ahead: int | None = None
    markers: Markers | None = None

    def identity(self) -> str:
        """What positions are kept under: reading the same source with another delay is the same source."""
        return self.source.identity()


@dataclass(frozen=True, slots=True)
class Write:
    """A sink in the graph."""

    sink: Sink

    def identity(self) -> str:
        """What committables and held-back rows are kept under."""
        return self.sink.identity()


Body: TypeAlias = Read | OperatorSpec | Write


@dataclass(frozen=True, slots=True)
class Node:
    """A source, operator or sink, its inputs and the schemas of its ports."""

    id: OperatorId
    name: str
    body: Body
    inputs: tuple[Edge, ...]
    schemas: Mapping[str, pa.Schema]

    @property
    def kind(self) -> str:
        """``source``, ``sink``, or the operator's own kind."""
        match self.body:
            case Read():
                return "source"
            case Write():
                return "sink"
            case OperatorSpec():
                return self.body.kind

    @property
    def label(self) -> str:
        """How errors and logs name it."""
        return f"{self.kind} {self.name!r}"


@dataclass
class Graph:
    """Nodes in the order they were added, so inputs always come before what reads them."""

    nodes: dict[OperatorId, Node] = field(default_factory=dict)

    def schema(self, edge: Edge) -> pa.Schema:
        """The columns of a stream."""
        return self.nodes[edge.node].schemas[edge.port]

    def read(self, body: Read, name: str | None) -> Node:
        """Add a source; raises JobError when another source has its name."""
        if any(node.name == (name or body.source.name) for node in self.sources()):
            raise JobError(
                f"two sources are called {name or body.source.name!r}: their positions could not be told apart after a "
                "restart. Give one of them another name, as in job.read(..., name='other'); to use one source twice, "
                "read it once and use the stream twice"
            )
        return self._add(body, name or body.source.name, (), {MAIN: body.source.schema}, explicit=name)

    def operator(self, spec: OperatorSpec, inputs: Sequence[Edge], name: str | None = None) -> Node:
        """Add an operator; raises SchemaError when it does not fit its inputs."""
        if not spec.takes_changelog and any(is_changelog(self.schema(edge)) for edge in inputs):
            raise JobError(f"{name or spec.kind} {_NO_CHANGELOG}")
        schemas = spec.output_schemas([self.schema(edge) for edge in inputs])
        return self._add(spec, name or spec.kind, tuple(inputs), schemas, explicit=name)

    def write(self, body: Write, source: Edge) -> Node:
        """Add a sink; raises JobError when another sink has its name."""
        sink = body.sink
        for node in self.sinks():
            if node.name == sink.name:
                raise JobError(
                    f"two sinks are called {sink.name!r}: their effects could not be told apart after a restart. "
                    f"Give one of them another name, as in ms.memory_sink('other') or ms.parquet(..., name='other')"
                )
        if not sink.takes_changelog and is_changelog(self.schema(source)):
            raise JobError(f"sink {sink.name!r} {_NO_CHANGELOG}")
        sink.check(self.schema(source))
        return self._add(body, sink.name, (source,), {}, explicit=None)

    def consumers(self, id_: OperatorId) -> list[Node]:
        """The nodes that read from a node, in the order they were added."""
        return [n for n in self.nodes.values() if any(e.node == id_ for e in n.inputs)]

    def sources(self) -> list[Node]:
        """The nodes that read."""
        return [n for n in self.nodes.values() if isinstance(n.body, Read)]

    def sources_behind(self, id_: OperatorId) -> list[Node]:
        """The sources a node's rows come from; itself, if it is one."""
        found: set[OperatorId] = set()
        waiting = [id_]
        while waiting:
            current = waiting.pop()
            if current not in found:
                found.add(current)
                waiting.extend(edge.node for edge in self.nodes[current].inputs)
        return [node for node in self.sources() if node.id in found]

    def sinks(self) -> list[Node]:
        """The nodes that write."""
        return [n for n in self.nodes.values() if isinstance(n.body, Write)]

    def _add(
        self, body: Body, name: str, inputs: tuple[Edge, ...], schemas: Mapping[str, pa.Schema], *, explicit: str | None
    ) -> Node:
        if explicit is not None and any(n.name == explicit for n in self.nodes.values()):
            raise JobError(
                f"the name {explicit!r} is taken: names tell operators apart after a restart, so each is used once"
            )
        node = Node(self._new_id(body, name, inputs, explicit), name, body, inputs, schemas)
        for schema in schemas.values():
            _check_schema(schema, node.label)
        self.nodes[node.id] = node
        return node

    def _new_id(self, body: Body, name: str, inputs: tuple[Edge, ...], explicit: str | None) -> OperatorId:
        """A name the user gave is the id, so that all else may change; without one the content is."""
        if explicit is not None:
            content = f"named {explicit}"
        else:
            content = "\n".join(
                [type(body).__name__, name, body.identity(), *(f"{edge.node}.{edge.port}" for edge in inputs)]
            )
        for occurrence in range(1, len(self.nodes) + 2):
            text = content if occurrence == 1 else f"{content}\n#{occurrence}"
            id_ = OperatorId("o" + hashlib.sha256(text.encode()).hexdigest()[:11])
            if id_ not in self.nodes:
                return id_
        raise AssertionError("more equal operators than operators")


def _check_schema(schema: pa.Schema, where: str) -> None:
    """Raise SchemaError unless rows of the schema can flow: distinct names, and types that Arrow can filter."""
    for index, column in enumerate(schema):
        if column.name == WEIGHT and index < len(schema) - 1:
            raise SchemaError(f"{where}: no column but the weight of a changelog may be called {WEIGHT!r}: rename it")
        if column.name in schema.names[:index]:
            raise SchemaError(f"{where}: two columns are called {column.name!r}; rename one of them first")
        try:
            pa.nulls(0, column.type).filter(pa.array([], pa.bool_()))
        except pa.ArrowNotImplementedError:
            raise SchemaError(
                f"{where}: column {column.name!r} is {column.type}, of which Arrow cannot pick out rows: make it "
                "another type first, for example pa.string() of pa.string_view()"
            ) from None


def check_columns(schema: pa.Schema, names: Sequence[str], where: str) -> None:
    """Raise SchemaError if a column is not in the schema, saying which are."""
    for name in names:
        if not isinstance(name, str):
            raise SchemaError(f"{where} takes names of columns, as in 'price', separated by commas; got {name!r}")
        if name not in schema.names:
            close = difflib.get_close_matches(name, schema.names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise SchemaError(f"{where}: there is no column {name!r}; {hint}the columns are {', '.join(schema.names)}")
