"""``Stream.deduplicate``: what is asked for, checked, and made an operator."""

from __future__ import annotations

from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr
from millstream.engine.graph import Edge, Graph
from millstream.engine.time import Duration, micros
from millstream.operators.deduplicate import Deduplicate
from millstream.stream import Stream


class DeduplicatedStream(Stream):
    """The first row of each key, and beside it the rows that were there before."""

    def __init__(self, graph: Graph, edge: Edge, time: Expr | None, *, timed: bool) -> None:
        super().__init__(graph, edge, time)
        self._timed = timed

    @property
    def duplicates(self) -> Stream:
        """The rows whose key was there before, as they came."""
        return self._beside("duplicates")

    @property
    def late(self) -> Stream:
        """The rows of which nobody knows, since their time was forgotten when they came; also those without one.

        Raises:
            JobError: there are none, for keys are remembered for ever.
        """
        if not self._timed:
            raise JobError(
                "deduplicate() without within= remembers keys for ever: no row is late, so there is no .late"
            )
        return self._beside("late")

    def _beside(self, port: str) -> Stream:
        return Stream(self._graph, Edge(self._edge.node, port), self._time)


def first_of(
    graph: Graph, edge: Edge, time: Expr | None, keys: tuple[str, ...], within: Duration | None, name: str | None
) -> DeduplicatedStream:
    """Keep the first row of each key, within some time or for ever."""
    if within is not None and time is None:
        raise JobError(
            "deduplicate(within=...) needs event time: name its column in job.read(..., event_time='sent_at'), and "
            "keep that column in select(), drop() and map(); or leave within= out to remember keys for ever"
        )
    spec = Deduplicate(keys, None if within is None else micros(within), None if within is None else time)
    try:
        node = graph.operator(spec, [edge], name)
    except SchemaError as error:
        raise SchemaError(f"deduplicate(): {error}") from None
    return DeduplicatedStream(graph, Edge(node.id), time, timed=within is not None)


def last_of(
    graph: Graph, edge: Edge, time: Expr | None, keys: tuple[str, ...], within: Duration | None, name: str | None
) -> Stream:
    """Keep the last row of each key, a changelog."""
    from millstream.ranking import changing_top

    if within is not None:
        raise JobError(
            "deduplicate(keep='last') has no within=: leave it out for the last row there is of each key, or write "
            f"group_by({', '.join(map(repr, keys))}).window(ms.tumbling('1h')).top(1, by=...) for that of an hour"
        )
    by = () if time is None else ((time, True),)
    return changing_top(graph, edge, time, keys, by, 1, newest=True, name=name, call="deduplicate")
