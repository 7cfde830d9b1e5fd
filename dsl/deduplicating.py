"""``Stream.deduplicate``: what is asked for, checked, and made an operator."""

from __future__ import annotations

from millstream.engine.changelog import is_changelog
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
        """The rows whose key was there before, as they came.

        Raises:
            JobError: the stream is a changelog, in which a duplicate becomes the first row when that is taken back.
        """
        if self.is_changelog:
            raise JobError(
                "deduplicate() of a changelog has no .duplicates: a row is one only until those before it are taken "
                "back. For duplicates among changes put .changes() before it"
            )
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
    """Keep the first row of each key, within some time or for ever; of a changelog the first of those there."""
    if is_changelog(graph.schema(edge)):
        if within is not None:
            raise JobError(
                "deduplicate(within=...) is for streams whose rows stay, and this one is a changelog: leave within= "
                "out for the first row there is of each key, or put .changes() before it"
            )
        first = _one_of(graph, edge, time, keys, name, last=False)
        result = DeduplicatedStream(graph, first._edge, time, timed=False)
        result._keyed(keys)
        return result
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
    if within is not None:
        raise JobError(
            "deduplicate(keep='last') has no within=: leave it out for the last row there is of each key, or write "
            f"group_by({', '.join(map(repr, keys))}).window(ms.tumbling('1h')).top(1, by=...) for that of an hour"
        )
    return _one_of(graph, edge, time, keys, name, last=True)


def _one_of(
    graph: Graph, edge: Edge, time: Expr | None, keys: tuple[str, ...], name: str | None, *, last: bool
) -> Stream:
    """Keep the first or last row of each key that there is, a changelog."""
    from millstream.ranking import changing_top

    by = () if time is None else ((time, last),)
    return changing_top(graph, edge, time, keys, by, 1, newest=last, name=name, call="deduplicate")
