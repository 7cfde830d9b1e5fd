"""``top``, ``deduplicate(keep="last")`` and ``over``: rows and their place among others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, TypeAlias

from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr, col
from millstream.engine.graph import Edge, Graph
from millstream.engine.time import Duration, micros
from millstream.stream import Stream

LATE = "late"

Ranks: TypeAlias = str | Expr | Sequence[str | Expr]
Directions: TypeAlias = bool | Sequence[bool]


def ranks_of(n: int, by: Ranks, descending: Directions) -> tuple[tuple[Expr, bool], ...]:
    """Return what ``top(n, by=..., descending=...)`` ranks by: each expression, and whether the greatest comes first.

    >>> ranks_of(1, ["price", "date_time"], [True, False])
    ((price, True), (date_time, False))
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise JobError(f"top({n!r}, by=...): the number of rows must be a whole number, at least 1")
    columns = [by] if isinstance(by, (str, Expr)) else by
    valid = isinstance(columns, (list, tuple)) and all(isinstance(column, (str, Expr)) for column in columns)
    if not valid or not columns:
        raise JobError(
            f"top({n}, by={by!r}): by is a column's name, an expression such as col('price') * 2, or a list of these"
        )
    falling = [descending] * len(columns) if isinstance(descending, bool) else descending
    if not isinstance(falling, (list, tuple)) or not all(isinstance(down, bool) for down in falling):
        raise JobError(f"top({n}, descending={descending!r}): descending is True, False, or a list of these")
    if len(falling) != len(columns):
        raise JobError(
            f"top({n}): by= has {len(columns)} columns and descending= {len(falling)} values; give one value for each "
            "column, as in by=['price', 'date_time'], descending=[True, False], or one for all"
        )
    exprs = [col(column) if isinstance(column, str) else column for column in columns]
    return tuple(zip(exprs, falling, strict=True))


def changing_top(  # noqa: PLR0913  where both streams' methods end
    graph: Graph,
    edge: Edge,
    time: Expr | None,
    keys: tuple[str, ...],
    by: tuple[tuple[Expr, bool], ...],
    n: int,
    *,
    ties: bool = False,
    newest: bool = False,
    row_number: str | None = None,
    name: str | None = None,
    call: str = "top",
) -> Stream:
    """Return the changelog of the top rows of each key; what is taken back has the event time with which it came."""
    from millstream.operators.top import Top

    if row_number is not None and (not isinstance(row_number, str) or not row_number):
        raise JobError(f"{call}(row_number={row_number!r}): row_number is the name of the column to add")
    try:
        node = graph.operator(Top(keys, by, n, ties, newest, row_number), [edge], name)
    except SchemaError as error:
        raise SchemaError(f"{call}(): {error}") from None
    stream = Stream(graph, Edge(node.id), time)
    if ties or (n > 1 and row_number is None):
        return stream
    return stream._keyed(keys if n == 1 or row_number is None else (*keys, row_number))


class OverStream(Stream):
    """Rows with columns added, and beside it the rows that came too late for it."""

    def __init__(self, graph: Graph, edge: Edge, time: Expr | None, late_time: Expr) -> None:
        super().__init__(graph, edge, time)
        self._late_time = late_time

    @property
    def late(self) -> Stream:
        """The rows that came when event time had passed them, as they came; also rows without event time."""
        return Stream(self._graph, Edge(self._edge.node, LATE), self._late_time)


def over(
    stream: Stream,
    keys: tuple[str, ...],
    functions: Mapping[str, Any],
    rows: int | None,
    range: Duration | None,
    name: str | None,
) -> OverStream:
    """Return the stream of ``GroupedStream.over``."""
    from millstream.operators.aggregate_spec import AggregateSpec
    from millstream.operators.over import Over
    from millstream.operators.over_functions import OverFunction

    time = stream._time
    if time is None:
        raise JobError(
            "over() needs event time: name its column in job.read(..., event_time='paid_at'), and keep that column in "
            "select(), drop() and map()"
        )
    if not functions or not isinstance(name, (str, NoneType)):
        raise JobError("over() needs a name for each function, as in over(n=ms.row_number(), total=ms.sum('amount'))")
    for column, function in functions.items():
        if not isinstance(function, (OverFunction, AggregateSpec)):
            raise SchemaError(
                f"over({column}=...) takes ms.row_number(), ms.lag('price'), ms.lead('price') or an aggregate such as "
                f"ms.sum('price'), got {function!r}"
            )
    if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool)):
        raise JobError(f"over(rows={rows!r}): rows is how many rows a frame has, a whole number")
    spec = Over(keys, tuple(functions.items()), time, rows, None if range is None else micros(range))
    try:
        node = stream._graph.operator(spec, [stream._edge], name)
    except SchemaError as error:
        raise SchemaError(f"over(): {error}") from None
    # A row that waits for another one goes on when event time is past it.
    return OverStream(stream._graph, Edge(node.id), None if spec.after else time, time)
