"""``group_by`` and ``window``: what stands between a stream and its aggregates."""

from __future__ import annotations

import datetime as dt
from types import NoneType
from typing import TYPE_CHECKING, Any, NoReturn, overload

from millstream.engine.changelog import is_changelog
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr, col, lit
from millstream.engine.graph import Edge, Graph
from millstream.engine.time import Duration, micros
from millstream.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from millstream.engine.expression_types import Schema
    from millstream.matching import MatchedStream
    from millstream.operators.aggregate_spec import AggregateSpec
    from millstream.operators.count_window import CountWindow
    from millstream.operators.process import Code
    from millstream.operators.window_updates import Updates
    from millstream.operators.windows import ClockWindow, Window
    from millstream.processing import ProcessedStream
    from millstream.ranking import Directions, OverStream, Ranks

LATE = "late"
# When the result of a window happened: as it closed.
_LAST_INSTANT = col("window_end") - lit(dt.timedelta(microseconds=1))


class GroupedStream:
    """A stream whose rows are told apart by some keys."""

    def __init__(self, graph: Graph, edge: Edge, time: Expr | None, keys: tuple[str, ...]) -> None:
        self._graph = graph
        self._edge = edge
        self._time = time
        self._keys = keys

    @overload
    def window(self, window: CountWindow) -> CountedStream: ...

    @overload
    def window(
        self,
        window: Window | ClockWindow,
        *,
        lateness: Duration = 0,
        early: Duration | None = None,
        late: str = "wait",
    ) -> WindowedStream: ...

    def window(
        self,
        window: Window | ClockWindow | CountWindow,
        *,
        lateness: Duration = 0,
        early: Duration | None = None,
        late: str = "wait",
    ) -> WindowedStream | CountedStream:
        """Cut time into windows, or the rows of each key.

        Args:
            window: ``ms.tumbling("1m")``, or one of ``sliding``, ``cumulating``, ``session``, ``count_window``.
            lateness: how long after its end a window still takes rows. It fires only then, once, so that its
                result is never taken back. Rows later still go to ``.late``.
            early: how often, in processing time, to show what windows come to so far: ``"5s"``; or ``"batch"``, after
                every batch. The result is then a changelog: what was shown is taken back when there is another result.
            late: ``"wait"``, or ``"correct"``: a window fires at its end, and rows that come within the lateness
                correct its result. That makes a changelog too.

        Raises:
            JobError: the stream has no event time, and the windows are not of processing time.
        """
        from millstream.operators.count_window import CountWindow
        from millstream.operators.window_updates import check_stream, updates_of
        from millstream.operators.windows import ClockWindow, Window

        updates = updates_of(early, late)
        check_stream(window, changes=is_changelog(self._graph.schema(self._edge)), timed=self._time is not None)
        if isinstance(window, CountWindow):
            if updates is not None or micros(lateness):
                raise JobError("lateness=, early= and late= are for windows of time, not for ms.count_window()")
            return CountedStream(self._graph, self._edge, self._keys, window)
        if isinstance(window, ClockWindow):
            wait = micros(lateness)
            return WindowedStream(self._graph, self._edge, None, self._keys, window.window, wait, updates)
        if not isinstance(window, Window):
            raise JobError(f"window() takes a window such as ms.tumbling('1m'), got {window!r}")
        return WindowedStream(self._graph, self._edge, self._time, self._keys, window, micros(lateness), updates)

    def match(
        self,
        pattern: str,
        *,
        within: Duration,
        define: Mapping[str, Expr] | None = None,
        select: Mapping[str, AggregateSpec] | None = None,
        contiguity: str = "strict",
        after_match: str = "skip_past_last",
        name: str | None = None,
    ) -> MatchedStream:
        """Find a pattern in the rows of each key, in event-time order (SQL's MATCH_RECOGNIZE).

        Args:
            pattern: a regular expression over names: ``"start down+ up{2,}"``, with ``? * + {m,n}``, all of them as
                long as possible, ``|`` and parentheses. ``!name``: no such row before the next one of the match or,
                at the end, until the time is over.
            within: the longest time from the first to the last row of a match.
            define: the condition of each name; a name without one takes any row. ``ms.prev("price")`` is the value in
                the row before; ``col("start.price")`` that in the match's first row, if the pattern begins with
                ``start``.
            select: results: aggregates over the rows of a name, ``ms.last("down.price")``, ``ms.count("up")``, or over
                all rows of the match, ``ms.max("price")``. Keys, ``match_start``, ``match_end`` and ``known_at``, the
                event time at which the match was certain, come by themselves.
            contiguity: ``"strict"``: every row from the first to the last is taken; ``"relaxed"``: rows that the
                pattern cannot take are passed over.
            after_match: ``"skip_past_last"``: the next match begins after the last row; ``"skip_to_next_row"``: after
                the first.
            name: names the operator.

        Raises:
            JobError: the pattern is not one, or the stream has no event time.
            SchemaError: a condition or result names what is not there, or is of the wrong type.

        >>> import datetime as dt
        >>> import millstream as ms
        >>> from millstream import col
        >>> job, out = ms.Job("j"), ms.memory_sink()
        >>> prices = [5, 3, 2, 4, 6, 1]
        >>> rows = [{"s": "a", "at": dt.datetime(2026, 1, 1, 12, n), "price": p} for n, p in enumerate(prices)]
        >>> ticks = job.read(ms.memory_source(rows), event_time="at")
        >>> ticks.group_by("s").match(
        ...     "start down+ up+",
        ...     define={"down": col("price") < ms.prev("price"), "up": col("price") > ms.prev("price")},
        ...     within="10m",
        ...     select={"bottom": ms.last("down.price"), "ups": ms.count("up")},
        ... ).select("s", "bottom", "ups").write(out)
        >>> _ = job.run()
        >>> out.rows()
        [{'s': 'a', 'bottom': 2, 'ups': 2}]
        """
        from millstream.matching import Wanted, match_rows

        wanted = Wanted(pattern, within, define, select, contiguity, after_match)
        return match_rows(Stream(self._graph, self._edge, self._time), self._keys, wanted, name)

    def top(
        self,
        n: int,
        *,
        by: Ranks,
        descending: Directions = True,
        ties: bool = False,
        row_number: str | None = None,
        name: str | None = None,
    ) -> Stream:
        """Keep the best ``n`` rows of each key, whole, as a changelog: rows that are best no more are taken back.

        Args:
            n: how many; a row costs time that grows with it when it comes to the middle of that many.
            by: the column or expression that ranks them, or a list of these, the most important first. Nulls rank
                last, NaN is the greatest number; of rows equal in all of them the first to arrive is better.
            descending: whether the largest comes first; a list says it for each of ``by``.
            ties: keep every row that equals the n-th.
            row_number: the name of a column to add, int64: the row's place in its key, from 1 (with ``ties``, where
                equal rows share one, SQL's ``rank()``). A row whose place changes is taken back and comes again.
            name: names the operator.

        Raises:
            JobError: ``n``, ``by`` or ``descending`` make no sense.
            SchemaError: a column is unknown or cannot be ordered; or the stream is a changelog, whose rows are found by
                their values, and has lists or structs.

        >>> import millstream as ms
        >>> job, out = ms.Job("j"), ms.memory_sink()
        >>> bids = job.read(ms.memory_source([{"item": "tea", "price": p} for p in (3, 5, 4)]))
        >>> bids.group_by("item").top(1, by="price").changes().write(out)
        >>> _ = job.run()
        >>> out.rows()
        [{'item': 'tea', 'price': 5, 'weight': 1}]
        """
        from millstream.ranking import changing_top, ranks_of

        ranks = ranks_of(n, by, descending)
        return changing_top(
            self._graph, self._edge, self._time, self._keys, ranks, n, ties=ties, row_number=row_number, name=name
        )

    def over(
        self, *, rows: int | None = None, range: Duration | None = None, name: str | None = None, **functions: Any
    ) -> OverStream:
        """Add columns to every row that look at the rows of its key before it in event time (or after it).

        Rows of one time are in the order of arrival. A row waits until the watermark has passed its time, and then
        goes on once, for good; rows go on in the order of event time. Later ones go to ``.late``.

        Args:
            rows: aggregates see the row and those before it, so many in all.
            range: aggregates see the rows from so long before the row on, and all those of its own time, as in SQL's
                ``range between interval ... preceding and current row``. With neither they see all up to the row.
            name: names the operator.
            functions: ``column=ms.row_number()``, ``ms.lag("price")``, ``ms.lead("price")``, or an aggregate:
                ``count``, ``sum``, ``mean``, ``min``, ``max``.

        Raises:
            JobError: the stream has no event time, or the frame makes no sense.
            SchemaError: a function does not fit the columns, or the stream has a column of its name.

        >>> import datetime as dt
        >>> import millstream as ms
        >>> rows = [{"at": dt.datetime(2026, 1, 1, 12, 0, s), "price": p} for s, p in [(1, 5), (3, 9), (2, 7)]]
        >>> job, out = ms.Job("j"), ms.memory_sink()
        >>> trades = job.read(ms.memory_source(rows), event_time="at", max_delay="5s")
        >>> trades.over(before=ms.lag("price"), total=ms.sum("price")).select("price", "before", "total").write(out)
        >>> _ = job.run()
        >>> [tuple(row.values()) for row in out.rows()]
        [(5, None, 5), (7, 5, 12), (9, 7, 21)]
        """
        from millstream.ranking import over

        return over(Stream(self._graph, self._edge, self._time), self._keys, functions, rows, range, name)

    def process(
        self,
        code: Code | Callable[..., Any],
        *,
        schema: Schema | None = None,
        ttl: Duration | None = None,
        side_outputs: Mapping[str, Schema] | None = None,
        changes: bool = False,
        retracts: bool = False,
        name: str | None = None,
    ) -> ProcessedStream:
        """Run Python code over the rows of each key, with state that survives, timers and side outputs.

        Event time goes on if its column is in the result, with its type.

        Args:
            code: a class derived from ``ms.Process``; ``functools.partial(Class, limit=100)`` for one with arguments.
                Or a function ``fn(row, state)``, or ``fn(row, state, ctx)``, where ``state`` is a dict that is kept for
                each key. It returns a dict, None or a list, or yields dicts.
            schema: what comes out, as in ``{"user": str, "total": float}``; a class says so itself.
            ttl: for functions: the dict of a key is forgotten so long after its last row.
            side_outputs: for functions: schemas of further streams, by name; ``ctx.emit("name", {...})`` fills them,
                and ``.side("name")`` of the result reads them.
            changes: the stream is a changelog, and the code looks at ``ctx.weight``: 1 for a row that comes, -1 for one
                that is taken back.
            retracts: the result is a changelog: ``ctx.retract(row)`` takes back a row that was yielded.
            name: names the operator.

        Raises:
            JobError: the code is not as it must be, or the stream is a changelog and ``changes`` is not said.
            SchemaError: the schema has types that are none.

        >>> import millstream as ms
        >>> def running_total(row, state):
        ...     state["total"] = state.get("total", 0) + row["amount"]
        ...     return {"user": row["user"], "total": state["total"]}
        >>> job, out = ms.Job("j"), ms.memory_sink()
        >>> payments = job.read(ms.memory_source([{"user": "ann", "amount": 2}, {"user": "ann", "amount": 3}]))
        >>> payments.group_by("user").process(running_total, schema={"user": str, "total": int}).write(out)
        >>> _ = job.run()
        >>> [row["total"] for row in out.rows()]
        [2, 5]
        """
        from millstream.processing import processed

        return processed(
            self._graph,
            self._edge,
            self._time,
            self._keys,
            code,
            schema=schema,
            ttl=ttl,
            side_outputs=side_outputs,
            changes=changes,
            retracts=retracts,
            name=name,
        )

    def agg(
        self,
        *misplaced: Any,
        ttl: Duration | None = None,
        clock: str | None = None,
        name: str | None = None,
        **aggregates: Any,
    ) -> Stream:
        """Reduce all rows of each key so far to one row: the keys, the aggregates. The result is a changelog.

        It is brought up to date with every batch: the results that have changed are taken back and the new ones
        follow. ``changes()`` shows all of that, ``final()`` what it comes to in the end. State grows with the number
        of keys, or with ``ttl`` of those that had a row lately.

        Args:
            misplaced: nothing; aggregates need names.
            ttl: how long a group lives after its last row. It is then forgotten, and its result taken back; a later row
                of its key begins anew. Without it groups live for ever.
            clock: measures ``ttl``: ``"event"`` (the default where the stream has event time: the watermark) or
                ``"processing"``.
            name: names the operator.
            aggregates: ``column=ms.sum("amount")``. ``first`` and ``last`` go by event time if the stream has one,
                otherwise by arrival.

        Raises:
            JobError: an aggregate has no name, or there is none; or ``ttl`` makes no sense.
            SchemaError: an aggregate cannot take its argument, or two columns would have one name.

        >>> import millstream as ms
        >>> import pyarrow as pa
        >>> job, out = ms.Job("j"), ms.memory_sink()
        >>> batches = [pa.record_batch({"shop": ["a", "b"], "n": [1, 1]}), pa.record_batch({"shop": ["a"], "n": [2]})]
        >>> orders = job.read(ms.memory_source(batches))
        >>> orders.group_by("shop").agg(n=ms.sum("n")).changes().write(out)
        >>> _ = job.run()
        >>> for row in out.rows():
        ...     print(row)
        {'shop': 'a', 'n': 1, 'weight': 1}
        {'shop': 'b', 'n': 1, 'weight': 1}
        {'shop': 'a', 'n': 1, 'weight': -1}
        {'shop': 'a', 'n': 3, 'weight': 1}
        """
        from millstream.operators.group_aggregate import GroupAggregate, time_to_live

        lives = time_to_live(ttl, clock, self._time)
        spec = GroupAggregate(self._keys, _aggregates(misplaced, name, aggregates), self._time, lives)
        stream = Stream(self._graph, Edge(self._graph.operator(spec, [self._edge], name).id), None)
        return stream._keyed(self._keys)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(
                f"group_by(...).{name}: go on with .agg(...), .top(3, by='price') or .window(ms.tumbling('1m'))"
            )


class CountedStream:
    """Rows by key, so many at a time, waiting to be reduced to a result."""

    def __init__(self, graph: Graph, edge: Edge, keys: tuple[str, ...], window: CountWindow) -> None:
        self._graph = graph
        self._edge = edge
        self._keys = keys
        self._window = window

    def agg(self, *misplaced: Any, name: str | None = None, **aggregates: Any) -> Stream:
        """Reduce each window to one row: the keys, the aggregates; see ``ms.count_window``. It has no event time.

        Args:
            misplaced: nothing; aggregates need names.
            name: names the operator.
            aggregates: ``column=ms.sum("amount")``. ``first`` and ``last`` go by arrival.
        """
        from millstream.operators.count_window import CountWindowAggregate

        made = _aggregates(misplaced, name, aggregates)
        spec = CountWindowAggregate(self._keys, self._window.rows, made, self._window.slide)
        return Stream(self._graph, Edge(self._graph.operator(spec, [self._edge], name).id), None)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(f"window(ms.count_window(...)).{name}: go on with .agg(orders=ms.count())")


class WindowedStream:
    """Rows by key and window, waiting to be reduced to a result."""

    def __init__(
        self,
        graph: Graph,
        edge: Edge,
        time: Expr | None,
        keys: tuple[str, ...],
        window: Window,
        lateness: int,
        updates: Updates | None,
    ) -> None:
        self._graph = graph
        self._edge = edge
        self._time = time
        self._keys = keys
        self._window = window
        self._lateness = lateness
        self._updates = updates

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(f"window(...).{name}: first go on with .agg(orders=ms.count()) or .top(3, by='price')")

    def agg(self, *misplaced: Any, name: str | None = None, **aggregates: Any) -> WindowResult:
        """Reduce each key and window to one row: the keys, ``window_start``, ``window_end``, the aggregates.

        Args:
            misplaced: nothing; aggregates need names.
            name: names the operator.
            aggregates: ``column=ms.sum("amount")``.

        >>> import datetime as dt
        >>> import millstream as ms
        >>> job = ms.Job("j")
        >>> rows = [{"shop": "a", "at": dt.datetime(2026, 1, 1, 12, 0, s), "amount": s} for s in (1, 2)]
        >>> out = ms.memory_sink()
        >>> orders = job.read(ms.memory_source(rows), event_time="at")
        >>> orders.group_by("shop").window(ms.tumbling("1m")).agg(revenue=ms.sum("amount")).select("revenue").write(out)
        >>> _ = job.run()
        >>> out.rows()
        [{'revenue': 3}]
        """
        from millstream.operators.window_aggregate import WindowAggregate

        made = _aggregates(misplaced, name, aggregates)
        spec = WindowAggregate(self._keys, self._window, made, self._time, self._lateness, self._updates)
        node = self._graph.operator(spec, [self._edge], name)
        late = None if self._time is None else Edge(node.id, LATE)
        time = None if late is None else _LAST_INSTANT
        result = WindowResult(self._graph, Edge(node.id), time, late, self._time)
        result._keyed((*self._keys, "window_start") if self._updates is not None else None)
        return result

    def top(
        self, n: int, *, by: Ranks, descending: Directions = True, ties: bool = False, name: str | None = None
    ) -> WindowResult:
        """Keep the best ``n`` rows of each key and window, whole, when the window closes.

        With ``window(early=)`` or ``late="correct"`` they are a changelog: rows come to the top and leave it again.
        In windows that overlap, and in sessions, each row gets ``window_start`` and ``window_end``, and the event time
        of the result is the last instant of its window.

        Args:
            by: as for ``GroupedStream.top``, and so are ``descending`` and ``ties``.
        """
        from millstream.operators.window_top import WindowTop
        from millstream.operators.windows import OneWindow
        from millstream.ranking import ranks_of

        ranks = ranks_of(n, by, descending)
        if self._time is None:
            raise JobError("top() works in windows of event time only: leave time='processing' out")
        spec = WindowTop(self._keys, self._window, ranks, n, ties, self._time, self._lateness, None, self._updates)
        node = self._graph.operator(spec, [self._edge], name)
        time = self._time if isinstance(self._window, OneWindow) else _LAST_INSTANT
        return WindowResult(self._graph, Edge(node.id), time, Edge(node.id, LATE), self._time)


class WindowResult(Stream):
    """The result of windows, and beside it the rows that came too late for them."""

    def __init__(
        self, graph: Graph, edge: Edge, time: Expr | None, late: Edge | None = None, late_time: Expr | None = None
    ) -> None:
        super().__init__(graph, edge, time)
        self._late = late
        self._late_time = late_time

    @property
    def late(self) -> Stream:
        """The rows that came after their window had fired, as they came; also rows without event time.

        Raises:
            JobError: the windows are of processing time.
        """
        if self._late is None:
            raise JobError("no row is late for windows of processing time: there is no .late")
        return Stream(self._graph, self._late, self._late_time)


def _aggregates(
    misplaced: tuple[Any, ...], name: object, aggregates: dict[str, Any]
) -> tuple[tuple[str, AggregateSpec], ...]:
    """Return what ``agg()`` was given, checked."""
    from millstream.operators.aggregate_spec import AggregateSpec

    if misplaced or not isinstance(name, (str, NoneType)):
        raise JobError("agg() needs a name for each aggregate, other than 'name', as in agg(orders=ms.count())")
    if not aggregates:
        raise JobError("agg() needs at least one aggregate, as in agg(orders=ms.count())")
    for column, aggregate in aggregates.items():
        if not isinstance(aggregate, AggregateSpec):
            raise SchemaError(f"agg({column}=...) takes an aggregate such as ms.sum('amount'), got {aggregate!r}")
    return tuple(aggregates.items())
