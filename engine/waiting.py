"""Which sources of a job wait for which: for the end of a table, or for those behind them in event time."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

from millstream.engine.errors import InternalError, JobError
from millstream.engine.graph import Graph, Node, OperatorId, Read
from millstream.engine.operator import FORWARD, Exchange, ExchangeKind, OperatorSpec


def exchanges_of(node: Node) -> list[Exchange]:
    """How each input of a node must be distributed."""
    if not isinstance(node.body, OperatorSpec):
        return [FORWARD for _ in node.inputs]
    found = [node.body.exchange_of(index) for index in range(len(node.inputs))]
    if len({exchange.kind for exchange in found} - {ExchangeKind.BROADCAST}) > 1:
        raise InternalError(f"{node.label}: its inputs cannot be distributed in different ways: {found}")
    return found


def sources_met(graph: Graph) -> dict[OperatorId, frozenset[OperatorId]]:
    """Return whom each source with ``max_ahead`` waits for: the sources whose rows meet its rows, and itself.

    Those without event time are left out, and so are tables, which are read before anything is joined with them.
    """
    met: dict[OperatorId, set[OperatorId]] = {
        node.id: {node.id}
        for node in graph.sources()
        if isinstance(node.body, Read) and node.body.max_ahead is not None
    }
    rows_of: dict[OperatorId, set[OperatorId]] = {}
    for node in graph.nodes.values():
        if isinstance(node.body, Read):
            rows_of[node.id] = {node.id} if node.body.event_time is not None else set()
            continue
        kinds = [exchange.kind for exchange in exchanges_of(node)]
        edges = zip(node.inputs, kinds, strict=True)
        found = {id_ for edge, kind in edges if kind is not ExchangeKind.BROADCAST for id_ in rows_of[edge.node]}
        rows_of[node.id] = found
        for id_ in found & met.keys():
            met[id_] |= found
    return {id_: frozenset(others) for id_, others in met.items()}


def check_waits(graph: Graph) -> None:
    """Raise JobError if a source would wait for itself: what is broadcast is read before the other inputs."""
    ends = _ends_awaited(graph)
    try:
        TopologicalSorter(ends).prepare()
    except CycleError as error:
        cycle = " waits for ".join(repr(graph.nodes[id_].name) for id_ in reversed(error.args[1]))
        raise JobError(
            f"source {cycle}: a table is read to its end before the first row that is joined with "
            "it, so what is joined with it cannot come from the same source. Read the source twice, under two names, "
            "as in job.read(source, name='table')"
        ) from None
    waits = {id_: set(others) for id_, others in sources_met(graph).items()}
    for later, tables in ends.items():
        waits.setdefault(later, set()).update(tables)
    for later, tables in ends.items():
        for table in tables:
            if later in _reached(waits, table):
                first, then = graph.nodes[table].name, graph.nodes[later].name
                raise JobError(
                    f"source {then!r} is read on only when {first!r}, a table, has ended; but with max_ahead= that "
                    f"waits for sources that wait for {then!r}, so both would wait for ever: leave max_ahead= out in "
                    f"job.read() of {first!r}"
                )


def _ends_awaited(graph: Graph) -> dict[OperatorId, set[OperatorId]]:
    """Return by source those whose end its rows wait for."""
    ends: dict[OperatorId, set[OperatorId]] = {}
    for node in graph.nodes.values():
        kinds = [exchange.kind for exchange in exchanges_of(node)]
        if ExchangeKind.BROADCAST not in kinds:
            continue
        first: set[OperatorId] = set()
        later: set[OperatorId] = set()
        for edge, kind in zip(node.inputs, kinds, strict=True):
            ids = {source.id for source in graph.sources_behind(edge.node)}
            (first if kind is ExchangeKind.BROADCAST else later).update(ids)
        for id_ in later:
            ends.setdefault(id_, set()).update(first)
    return ends


def _reached(waits: Mapping[OperatorId, set[OperatorId]], start: OperatorId) -> set[OperatorId]:
    found: set[OperatorId] = set()
    waiting = [start]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting.extend(waits.get(current, ()))
    return found
