"""From the logical graph to stages: pruning, push-down, exchanges, and the guarantee of every path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
from millstream.engine.changelog import WEIGHT
from millstream.engine.errors import JobError
from millstream.engine.expression import Expr, col
from millstream.engine.graph import Edge, Graph, Node, OperatorId, Read, Write
from millstream.engine.operator import FORWARD, MAIN, Exchange, ExchangeKind, OperatorSpec
from millstream.engine.sink import EXACTLY_ONCE_KINDS
from millstream.engine.store.types import OperatorState
from millstream.engine.waiting import check_waits, exchanges_of


@dataclass(frozen=True, slots=True)
class StageInput:
    """A stream that enters a stage through channels."""

    edge: Edge
    exchange: Exchange
    combiner: OperatorSpec | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """A tree of operators without an exchange between them; the root is a source or reads from channels."""

    index: int
    parallelism: int
    root: OperatorId
    nodes: tuple[OperatorId, ...]
    inputs: tuple[StageInput, ...]


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What holds from one source to one sink, and why."""

    source: str
    sink: str
    exactly_once: bool
    reason: str


@dataclass(frozen=True)
class Plan:
    """A job ready to run.

    Attributes:
        graph: after pruning and push-down; ids are those of the graph as written.
        event_time: whether any operator needs watermarks, or any source waits for others.
        states: what each source, sink and stateful operator keeps.
        predicates: by source, what was offered to it: rows for which it is not true get no further anyway.
    """

    job: str
    graph: Graph
    stages: tuple[Stage, ...]
    parallelism: int
    event_time: bool
    states: tuple[OperatorState, ...]
    guarantees: tuple[Guarantee, ...]
    predicates: Mapping[OperatorId, Expr]

    def stage_of(self, id_: OperatorId) -> Stage:
        """The stage a node runs in."""
        return next(stage for stage in self.stages if id_ in stage.nodes)

    def input_schemas(self, node: Node) -> list[pa.Schema]:
        """The schemas of a node's inputs."""
        return [self.graph.schema(edge) for edge in node.inputs]


def make_plan(job: str, graph: Graph, parallelism: int = 1) -> Plan:
    """Plan a job.

    Raises:
        JobError: the job has no source or no sink, or a source would wait for itself.
    """
    _check_complete(job, graph)
    check_waits(graph)
    if parallelism < 1:
        raise JobError(f"parallelism must be at least 1, got {parallelism}")
    event_time = any(_uses_event_time(node) for node in graph.nodes.values())
    offered = ((node.id, _predicate(graph, node)) for node in graph.sources())
    predicates = {id_: predicate for id_, predicate in offered if predicate is not None}
    pruned, wanted = _prune(graph, event_time, predicates)
    stages = _stages(pruned, parallelism, wanted)
    width = {id_: stage.parallelism for stage in stages for id_ in stage.nodes}
    states = tuple(
        _state(pruned, node, width[node.id]) for node in pruned.nodes.values() if _keeps_something(pruned, node)
    )
    return Plan(
        job=job,
        graph=pruned,
        stages=stages,
        parallelism=parallelism,
        event_time=event_time,
        states=states,
        guarantees=tuple(_guarantees(graph)),
        predicates=predicates,
    )


def _check_complete(job: str, graph: Graph) -> None:
    if not graph.sources():
        raise JobError(f"job {job!r} reads nothing: start with job.read(...)")
    if not graph.sinks():
        raise JobError(f"job {job!r} has no sink, so it would have no effect: end a stream with .write(...)")


def _uses_event_time(node: Node) -> bool:
    match node.body:
        case Read():
            return node.body.max_ahead is not None
        case OperatorSpec():
            return node.body.uses_event_time
        case Write():
            return False


def _keeps_something(graph: Graph, node: Node) -> bool:
    if isinstance(node.body, OperatorSpec):
        return bool(node.body.state_tables([graph.schema(e) for e in node.inputs]))
    return True


def _state(graph: Graph, node: Node, parallelism: int) -> OperatorState:
    inputs = [graph.schema(edge) for edge in node.inputs]
    known = partial(OperatorState, node.id, node.name, node.kind, parallelism=parallelism)
    match node.body:
        case Write(sink):
            return known(tables=sink.state_tables(inputs[0]), folders=sink.folders())
        case OperatorSpec():
            return known(tables=node.body.state_tables(inputs), meaning=node.body.identity())
        case Read(source):
            return known(tables=(), folders=source.folders())


Wanted = dict[OperatorId, dict[str, frozenset[str]]]


def _prune(graph: Graph, event_time: bool, predicates: Mapping[OperatorId, Expr]) -> tuple[Graph, Wanted]:
    """Rebuild the graph so that every node makes only the columns somebody wants, with the same ids."""
    wanted = _wanted_columns(graph)
    pruned = Graph()
    for node in graph.nodes.values():
        ports = wanted[node.id]
        inputs = [pruned.schema(edge) for edge in node.inputs]
        match node.body:
            case Read():
                body: Read | OperatorSpec | Write = _pushed_down(node.body, ports, event_time, predicates.get(node.id))
                schemas: Mapping[str, pa.Schema] = {MAIN: body.source.schema}  # type: ignore[union-attr]
            case Write():
                body, schemas = node.body, {}
            case OperatorSpec():
                body = node.body.pruned(ports)
                schemas = body.output_schemas(inputs)
        pruned.nodes[node.id] = replace(node, body=body, schemas=schemas)
    return pruned, wanted


def _wanted_columns(graph: Graph) -> Wanted:
    wanted: Wanted = {id_: {port: frozenset() for port in node.schemas} for id_, node in graph.nodes.items()}
    for node in reversed(list(graph.nodes.values())):
        for edge, columns in zip(node.inputs, _needs(graph, node, wanted[node.id]), strict=True):
            ports = wanted[edge.node]
            # A batch without any column has no rows either: one column always travels.
            schema = graph.schema(edge)
            # And so does the weight of a changelog: without it a row that is taken back is one more row.
            ports[edge.port] |= (columns or frozenset([_narrowest(schema)])) | (frozenset([WEIGHT]) & {*schema.names})
    return wanted


def _needs(graph: Graph, node: Node, ports: Mapping[str, frozenset[str]]) -> list[frozenset[str]]:
    inputs = [graph.schema(edge) for edge in node.inputs]
    match node.body:
        case Read():
            return []
        case Write(sink):
            return [sink.columns_needed(inputs[0])]
        case OperatorSpec():
            return node.body.columns_needed(ports, inputs)


def _narrowest(schema: pa.Schema) -> str:
    def width(field: pa.Field) -> int:
        return int(field.type.bit_width) if pa.types.is_primitive(field.type) else 1 << 20

    return str(min(schema, key=width).name)


def _pushed_down(read: Read, ports: Mapping[str, frozenset[str]], event_time: bool, predicate: Expr | None) -> Read:
    time = read.event_time if event_time else None
    columns = ports[MAIN] | ({time} if time else frozenset())
    asked = time
    if read.markers is not None:
        # They have to come whatever is done with the other rows; and these do not tell the time.
        columns, asked = columns | read.markers.rows.columns(), None
        predicate = None if predicate is None else predicate | read.markers.rows
    source = read.source.pushed_down(columns or frozenset([_narrowest(read.source.schema)]), predicate, asked)
    return replace(read, source=source, event_time=time)


def _predicate(graph: Graph, node: Node) -> Expr | None:
    """What must be true of a source's rows to get through the filters right behind it, over the source's columns."""
    found: list[Expr] = []
    columns: dict[str, Expr] = {name: col(name) for name in node.schemas[MAIN].names}
    while True:
        consumers = graph.consumers(node.id)
        if len(consumers) != 1 or not isinstance(consumers[0].body, OperatorSpec):
            break
        node = consumers[0]
        spec = node.body
        assert isinstance(spec, OperatorSpec)
        predicate, projection = spec.as_filter(), spec.as_projection()
        if predicate is not None:
            found.append(predicate.substitute(columns))
        elif projection is not None:
            columns = {name: expr.substitute(columns) for name, expr in projection.items()}
        else:
            break
    whole: Expr | None = None
    for expr in found:
        whole = expr if whole is None else whole & expr
    return whole


def _stages(graph: Graph, parallelism: int, wanted: Wanted) -> tuple[Stage, ...]:
    stage_of: dict[OperatorId, int] = {}
    drafts: list[tuple[int, list[OperatorId], tuple[StageInput, ...]]] = []
    for node in graph.nodes.values():
        exchanges = exchanges_of(node)
        exchange = next((into for into in exchanges if into.kind is not ExchangeKind.BROADCAST), FORWARD)
        upstream = [
            drafts[stage_of[edge.node]][0]
            for edge, into in zip(node.inputs, exchanges, strict=True)
            if into.kind is not ExchangeKind.BROADCAST
        ]
        width = _width(exchange, upstream, parallelism)
        if len(node.inputs) == 1 and width == upstream[0] and (exchange.kind is ExchangeKind.FORWARD or width == 1):
            stage_of[node.id] = stage_of[node.inputs[0].node]
            drafts[stage_of[node.id]][1].append(node.id)
            continue
        combiner = (
            node.body.combiner(wanted[node.id]) if isinstance(node.body, OperatorSpec) and parallelism > 1 else None
        )
        inputs = tuple(StageInput(edge, into, combiner) for edge, into in zip(node.inputs, exchanges, strict=True))
        stage_of[node.id] = len(drafts)
        drafts.append((width, [node.id], inputs))
    return tuple(Stage(i, width, ids[0], tuple(ids), inputs) for i, (width, ids, inputs) in enumerate(drafts))


def _width(exchange: Exchange, upstream: list[int], parallelism: int) -> int:
    if not upstream or exchange.kind is ExchangeKind.HASH:
        return parallelism
    return 1 if exchange.kind is ExchangeKind.SINGLE else max(upstream)


def _guarantees(graph: Graph) -> list[Guarantee]:
    paths = []
    for sink_node in graph.sinks():
        assert isinstance(sink_node.body, Write)
        sink = sink_node.body.sink
        for source_node in graph.sources_behind(sink_node.id):
            assert isinstance(source_node.body, Read)
            source = source_node.body.source
            exact = source.replayable and sink.kind in EXACTLY_ONCE_KINDS
            reason = f"source: {source.guarantee()}; sink: {sink.guarantee()}"
            paths.append(Guarantee(source_node.name, sink_node.name, exact, reason))
    return paths
