"""``Stream.join``: what is asked for, checked, and made an operator."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from millstream.engine.changelog import WEIGHT
from millstream.engine.errors import JobError
from millstream.engine.expression import Expr, call, col, lit
from millstream.engine.graph import Edge, Graph, Read, check_columns
from millstream.engine.source import Source
from millstream.engine.time import Duration, micros
from millstream.operators.asof_join import ASOF_HOWS, AsOfJoin
from millstream.operators.join import HOWS
from millstream.operators.join_columns import JoinedColumn, check_keys, join_columns
from millstream.operators.table_join import TABLE_HOWS, TableJoin
from millstream.operators.timed_join import LATE_PORTS, Between, Nearness, SameWindow, TimedJoin
from millstream.operators.unbounded_join import UnboundedJoin
from millstream.stream import Stream

if TYPE_CHECKING:
    from millstream.operators.windows import Window

_HOWS: Final = {"join": HOWS, "join_table": TABLE_HOWS, "join_asof": ASOF_HOWS}
_MICROSECOND = dt.timedelta(microseconds=1)


class JoinedStream(Stream):
    """The rows of a join, and beside it those that came too late for it."""

    def __init__(self, graph: Graph, edge: Edge, time: Expr | None, late: tuple[Expr, Expr] | None = None) -> None:
        super().__init__(graph, edge, time)
        self._late = late

    @property
    def late(self) -> Stream:
        """The left rows that came too late, as they came; also those without event time.

        Raises:
            JobError: there are none, for rows are remembered for ever.
        """
        return self._beside(0)

    @property
    def late_right(self) -> Stream:
        """As ``late``, of the right stream."""
        return self._beside(1)

    def _beside(self, side: int) -> Stream:
        if self._late is None:
            raise JobError("a join without between=, window= and ttl= keeps rows for ever: none is late")
        return Stream(self._graph, Edge(self._edge.node, LATE_PORTS[side]), self._late[side])


@dataclass(frozen=True)
class Joining:
    """What ``Stream.join`` was asked for."""

    left: Stream
    right: Stream
    on: Any
    how: str
    suffix: str
    where: Expr | None
    what: str = "join"

    def stream(self, between: Any, window: Window | None, ttl: Duration | None, name: str | None) -> JoinedStream:
        """Add the operator to the graph; return what comes out of it."""
        self._check()
        if sum(part is not None for part in (between, window, ttl)) > 1:
            raise JobError("join(): between=, window= and ttl= say three different things: give one of them, or none")
        if ttl is not None:
            reach = micros(ttl)
            between = (dt.timedelta(microseconds=-reach), dt.timedelta(microseconds=reach))
        if between is not None:
            return self._timed(self._between(between), name)
        if window is not None:
            return self._timed(self._same_window(window), name)
        return self._unbounded(name)

    def _check(self) -> None:
        if not isinstance(self.right, Stream):
            raise JobError(f"{self.what}() takes a stream, got {self.right!r}")
        if self.right._graph is not self.left._graph:
            raise JobError(f"{self.what}() of streams of two jobs: a stream belongs to the job whose read() began it")
        hows = _HOWS[self.what]
        if self.how not in hows:
            raise JobError(f"{self.what}(how={self.how!r}): how is one of {', '.join(map(repr, hows))}")
        if self.where is not None and not isinstance(self.where, Expr):
            raise JobError(f"{self.what}(where=...) takes a condition such as col('a') > col('b'), got {self.where!r}")
        if not self.suffix or not isinstance(self.suffix, str):
            raise JobError(
                f"{self.what}(suffix={self.suffix!r}): it is put behind the names of right columns, as in '_right'"
            )

    def _keys(self) -> list[tuple[str, str]]:
        keys = key_pairs(self.on, self.what)
        check_columns(self.left.schema, [left for left, _ in keys], f"{self.what}(): the left stream")
        check_columns(self.right.schema, [right for _, right in keys], f"{self.what}(): the right stream")
        check_keys(keys, self.left.schema, self.right.schema)
        return keys

    # -- near each other in time -------------------------------------------------------------------------------

    def _timed(self, nearness: Nearness, name: str | None) -> JoinedStream:
        left_time, right_time = self._times()
        keys = self._keys()
        windows = isinstance(nearness, SameWindow)
        columns = join_columns(self.left.schema, self.right.schema, keys, self.suffix, windows)
        spec = TimedJoin(
            left_keys=tuple(left for left, _ in keys),
            right_keys=tuple(right for _, right in keys),
            how=self.how,
            columns=columns,
            where=self.where,
            left_time=left_time,
            right_time=right_time,
            nearness=nearness,
        )
        graph = self.left._graph
        node = graph.operator(spec, [self.left._edge, self.right._edge], name)
        time = col("window_end") - lit(_MICROSECOND) if windows else self._later(columns)
        return JoinedStream(graph, Edge(node.id), time, (left_time, right_time))

    # -- everything with everything ----------------------------------------------------------------------------

    def _unbounded(self, name: str | None) -> JoinedStream:
        keys = self._keys()
        columns = join_columns(self.left.schema, self.right.schema, keys, self.suffix, window=False)
        spec = UnboundedJoin(
            left_keys=tuple(left for left, _ in keys),
            right_keys=tuple(right for _, right in keys),
            how=self.how,
            columns=columns,
            where=self.where,
        )
        graph = self.left._graph
        node = graph.operator(spec, [self.left._edge, self.right._edge], name)
        changes = self.left.is_changelog or self.right.is_changelog
        timed = not changes and self.left._time is not None and self.right._time is not None
        return JoinedStream(graph, Edge(node.id), self._later(columns) if timed else None)

    # -- with a table ------------------------------------------------------------------------------------------

    def table(self, name: str | None) -> Stream:
        """Add the operator of a join with a table; return what comes out of it."""
        self._check()
        if self.right.is_changelog:
            raise JobError("join_table(): the table is a changelog: put .final() behind it to join with what is left")
        keys = self._keys()
        columns = join_columns(self.left.schema, self.right.schema, keys, self.suffix, window=False)
        # A table does not change: what is taken back meets the rows that it met when it came.
        weight = (JoinedColumn(WEIGHT, WEIGHT),) if self.left.is_changelog else ()
        spec = TableJoin(
            left_keys=tuple(left for left, _ in keys),
            right_keys=tuple(right for _, right in keys),
            how=self.how,
            columns=(*columns, *weight),
            where=self.where,
        )
        graph = self.left._graph
        node = graph.operator(spec, [self.left._edge, self.right._edge], name)
        return Stream(graph, Edge(node.id), self.left._time)

    # -- with what stood at that moment ------------------------------------------------------------------------

    def as_of(self, tolerance: Duration | None, removed: Expr | str | None, name: str | None) -> JoinedStream:
        """Add the operator of an as-of join; return what comes out of it."""
        self._check()
        left_time, right_time = self._times()
        if isinstance(removed, str):
            check_columns(self.right.schema, [removed], "join_asof(removed=...)")
            removed = col(removed)
        if removed is not None and not isinstance(removed, Expr):
            raise JobError(f"join_asof(removed=...) takes a boolean column or a condition, got {removed!r}")
        keys = self._keys()
        spec = AsOfJoin(
            left_keys=tuple(left for left, _ in keys),
            right_keys=tuple(right for _, right in keys),
            how=self.how,
            columns=join_columns(self.left.schema, self.right.schema, keys, self.suffix, window=False),
            left_time=left_time,
            right_time=right_time,
            tolerance=None if tolerance is None else micros(tolerance),
            removed=removed,
        )
        graph = self.left._graph
        node = graph.operator(spec, [self.left._edge, self.right._edge], name)
        return JoinedStream(graph, Edge(node.id), left_time, (left_time, right_time))

    def _times(self) -> tuple[Expr, Expr]:
        asked = "join(between=, window= or ttl=)" if self.what == "join" else f"{self.what}()"
        instead = "leave these out to get a changelog, or " if self.what == "join" else ""
        for stream, side in ((self.left, "left"), (self.right, "right")):
            if stream.is_changelog:
                raise JobError(
                    f"{asked}: the {side} stream is a changelog, whose rows may be taken back, "
                    f"while what such a join puts out stands: {instead}put .changes() before it"
                )
            if stream._time is None:
                raise JobError(
                    f"{asked}: the {side} stream has no event time: name its column in "
                    "job.read(..., event_time='at'), and keep that column in select(), drop() and map()"
                )
        assert self.left._time is not None
        assert self.right._time is not None
        return self.left._time, self.right._time

    def _between(self, between: Any) -> Between:
        if not isinstance(between, tuple) or len(between) != 2:
            raise JobError(
                "join(between=...) takes the earliest and the latest event time of right rows, as in "
                f"between=('-5m', '0s') or between=(col('at'), col('expires')); got {between!r}"
            )
        return Between(*(self._bound(bound) for bound in between))

    def _bound(self, bound: Any) -> Expr:
        if isinstance(bound, Expr):
            return bound
        shift = _signed_micros(bound)
        time, _ = self._times()
        if shift == 0:
            return time
        if pa.types.is_int64(time.type_in(self.left.schema)):
            return time + lit(shift)
        delta = lit(dt.timedelta(microseconds=abs(shift)))
        return time + delta if shift > 0 else time - delta

    def _same_window(self, window: Window) -> SameWindow:
        from millstream.operators.session_window import SessionWindow
        from millstream.operators.windows import ClockWindow, Window

        if isinstance(window, ClockWindow):
            raise JobError("join(window=...) needs windows of event time: leave time='processing' out")
        if not isinstance(window, Window):
            raise JobError(f"join(window=...) takes a window such as ms.tumbling('1m'), got {window!r}")
        if isinstance(window, SessionWindow):
            raise JobError(
                "join(window=ms.session(...)) is not possible: sessions end by the rows of one stream. Write "
                "between=('-30m', '30m') for rows that are not far from each other"
            )
        return SameWindow(window)

    def _later(self, columns: Sequence[JoinedColumn]) -> Expr | None:
        """The later of the event times of a pair; None if the output has rows that are no pairs."""
        left_time, right_time = self._times()
        if self.how != "inner":
            return None
        named = {column.right: col(column.name) for column in columns if column.right is not None}
        right_time = right_time.substitute(named)
        types = [
            time.type_in(stream.schema) for time, stream in zip(self._times(), (self.left, self.right), strict=True)
        ]
        if types[0] != types[1]:
            left_time, right_time = left_time.cast(pa.timestamp("us")), right_time.cast(pa.timestamp("us"))
        return call("max_element_wise", left_time, right_time)


def key_pairs(on: Any, what: str) -> list[tuple[str, str]]:
    """Return the names of the key, left and right, as users write them; raises JobError if there are none."""
    if isinstance(on, Mapping):
        keys = list(on.items())
    else:
        keys = [(key, key) for key in ([on] if isinstance(on, str) else on)]
    if not keys:
        raise JobError(f"{what}(on=...) needs a column: on='id', on=['a', 'b'] or on={{'left_name': 'right_name'}}")
    return keys


def table_stream(left: Stream, table: Stream | Source) -> Stream:
    """Return the stream of a table, reading it if it is a source; raises JobError unless it is bounded."""
    graph = left._graph
    if isinstance(table, Source):
        table = Stream(graph, Edge(graph.read(Read(table), None).id), None)
    if not isinstance(table, Stream):
        raise JobError(f"join_table() takes a source or a stream, got {table!r}")
    for source in table._graph.sources_behind(table._edge.node):
        assert isinstance(source.body, Read)
        if not source.body.source.bounded:
            raise JobError(
                f"join_table(): source {source.name!r} never ends, and a table is read to its end before the first row "
                "is joined with it. Let the source be bounded, or use join() with a stream that goes on"
            )
    return table


def _signed_micros(bound: Any) -> int:
    """Return a duration, which may be negative, as microseconds."""
    if isinstance(bound, str) and bound.strip().startswith("-"):
        return -micros(bound.strip()[1:])
    if isinstance(bound, dt.timedelta):
        return bound // _MICROSECOND
    if isinstance(bound, (int, float)) and bound < 0:
        return -micros(-bound)
    return micros(bound)
