"""``match``: from a pattern, as users write it, to the stream of its matches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr, col
from millstream.engine.graph import Edge, Graph
from millstream.engine.time import Duration, micros
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.match import KNOWN_AT, Match
from millstream.operators.row_pattern import parse
from millstream.operators.windowed import LATE
from millstream.stream import Stream

CONTIGUITY: Final = {"strict": False, "relaxed": True}
AFTER_MATCH: Final = {"skip_past_last": True, "skip_to_next_row": False}


class MatchedStream(Stream):
    """The matches of a pattern, and beside them the rows that came too late to be put in order."""

    def __init__(self, graph: Graph, edge: Edge, late_time: Expr) -> None:
        # A match is known when no row can change it: later than its last row, never earlier than the watermark.
        super().__init__(graph, edge, col(KNOWN_AT))
        self._late_time = late_time

    @property
    def late(self) -> Stream:
        """The rows that came when the watermark had passed them, as they came; also rows without event time."""
        return Stream(self._graph, Edge(self._edge.node, LATE), self._late_time)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The arguments of ``GroupedStream.match``, as they were given."""

    pattern: str
    within: Duration
    define: Mapping[str, Expr] | None
    select: Mapping[str, AggregateSpec] | None
    contiguity: str
    after_match: str


def match_rows(stream: Stream, keys: tuple[str, ...], wanted: Wanted, name: str | None) -> MatchedStream:
    """Add a ``Match`` to the graph behind a stream."""
    if stream._time is None:
        raise JobError(
            "match() needs event time, since a pattern is looked for in the order in which things happened: name its "
            "column in job.read(..., event_time='at'), and keep that column in select(), drop() and map()"
        )
    spec = Match(
        keys,
        parse(wanted.pattern),
        tuple(_conditions(wanted.define)),
        tuple(_results(wanted.select)),
        stream._time,
        micros(wanted.within),
        relaxed=_choose("contiguity", wanted.contiguity, CONTIGUITY),
        past_last=_choose("after_match", wanted.after_match, AFTER_MATCH),
    )
    try:
        node = stream._graph.operator(spec, [stream._edge], name)
    except SchemaError as error:
        raise SchemaError(f"match(): {error}") from None
    return MatchedStream(stream._graph, Edge(node.id), stream._time)


def _conditions(define: Mapping[str, Expr] | None) -> list[tuple[str, Expr]]:
    for name, condition in (define or {}).items():
        if not isinstance(condition, Expr):
            hint = "; ms.first and ms.last are for select=" if isinstance(condition, AggregateSpec) else ""
            raise JobError(
                f"match(define={{{name!r}: ...}}) takes a condition such as col('price') > ms.prev('price'), "
                f"got {condition!r}{hint}"
            )
    return list((define or {}).items())


def _results(select: Mapping[str, AggregateSpec] | None) -> list[tuple[str, AggregateSpec]]:
    for column, aggregate in (select or {}).items():
        if not isinstance(aggregate, AggregateSpec):
            raise SchemaError(
                f"match(select={{{column!r}: ...}}) takes an aggregate over rows of the match, such as "
                f"ms.last('down.price') or ms.count('up'), got {aggregate!r}"
            )
    return list((select or {}).items())


def _choose(parameter: str, value: object, known: Mapping[str, bool]) -> bool:
    if value not in known:
        raise JobError(f"match({parameter}={value!r}): it is one of {', '.join(map(repr, known))}")
    return known[str(value)]
