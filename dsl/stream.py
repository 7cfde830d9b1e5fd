"""``Stream``: what flows, and everything that can be done with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import pyarrow as pa
from millstream.calling import TakesFunctions
from millstream.engine.changelog import WEIGHT, is_changelog, unweighted
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr, col, lit
from millstream.engine.expression_tree import as_expr
from millstream.engine.graph import Edge, Graph, Write, check_columns
from millstream.engine.operator import MAIN, OperatorSpec
from millstream.engine.sink import Sink
from millstream.engine.time import Duration
from millstream.joins import Joins
from millstream.operators.project import Filter, Project
from millstream.operators.sample import sample_of
from millstream.operators.union import Union
from millstream.projecting import named_column, renamed_key, renamed_time

if TYPE_CHECKING:
    from millstream.deduplicating import DeduplicatedStream
    from millstream.finishing import FinalStream
    from millstream.grouping import CountedStream, GroupedStream, WindowedStream
    from millstream.operators.count_window import CountWindow
    from millstream.operators.windows import ClockWindow, Window
    from millstream.ranking import Directions, OverStream, Ranks


class Stream(Joins, TakesFunctions):
    """Rows with a schema, on their way. Every method returns a new stream; nothing runs until the job does."""

    _key: tuple[str, ...] | None = None
    """Of a changelog: the columns of which no two rows that are there at once have the same values, if known."""

    def __init__(self, graph: Graph, edge: Edge, time: Expr | None) -> None:
        self._graph = graph
        self._edge = edge
        self._time = time

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        return unweighted(self._graph.schema(self._edge))

    @property
    def is_changelog(self) -> bool:
        """Whether rows may be taken back; ``changes()`` and ``final()`` make an ordinary stream of it."""
        return is_changelog(self._graph.schema(self._edge))

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self.schema.names)

    def __repr__(self) -> str:
        return f"Stream({', '.join(f'{f.name}: {f.type}' for f in self.schema)})"

    # -- columns -----------------------------------------------------------------------------------------------

    def select(self, *columns: str | Expr, **named: Expr | str | float | bool) -> Stream:
        """Keep only these columns, existing or computed.

        Args:
            columns: names, or expressions (``col("a") + 1`` needs ``.alias("b")``).
            named: ``new_name=expression``.

        >>> import millstream as ms
        >>> s = ms.Job("j").read(ms.memory_source([{"a": 1, "b": 2}]))
        >>> s.select("a", total=ms.col("a") + ms.col("b")).columns
        ['a', 'total']
        """
        exprs = [named_column(column, "select") for column in columns] + self._values(named, "select")
        if not exprs:
            raise SchemaError("select() needs at least one column, as in select('id', total=col('a') + col('b'))")
        return self._project(exprs, "select")

    def with_columns(self, *columns: Expr, **named: Expr | str | float | bool) -> Stream:
        """Add columns, or replace those of the same name.

        Args:
            columns: expressions with ``.alias("name")``.
            named: ``new_name=expression``; what is no expression stands in every row.

        >>> import millstream as ms
        >>> s = ms.Job("j").read(ms.memory_source([{"a": 1}]))
        >>> s.with_columns(b=ms.col("a") * 2).columns
        ['a', 'b']
        """
        values = dict(
            [named_column(column, "with_columns") for column in columns] + self._values(named, "with_columns")
        )
        exprs = [(name, values.pop(name, col(name))) for name in self.columns]
        return self._project([*exprs, *values.items()], "with_columns")

    def drop(self, *columns: str) -> Stream:
        """Leave columns out."""
        check_columns(self.schema, columns, "drop()")
        kept = [name for name in self.columns if name not in columns]
        if not kept:
            raise SchemaError(f"drop({', '.join(map(repr, columns))}) leaves no column")
        return self._project([(name, col(name)) for name in kept], "drop")

    def rename(self, names: Mapping[str, str] | None = None, /, **new_to_old: str) -> Stream:
        """Rename columns: ``rename({"old": "new"})`` or ``rename(new="old")``."""
        mapping = {**(names or {}), **{old: new for new, old in new_to_old.items()}}
        check_columns(self.schema, list(mapping), "rename()")
        return self._project([(mapping.get(name, name), col(name)) for name in self.columns], "rename")

    def filter(self, predicate: Expr) -> Stream:
        """Keep the rows for which the predicate is true (not false, not null).

        >>> import millstream as ms
        >>> s = ms.Job("j").read(ms.memory_source([{"a": 1}]))
        >>> s.filter((ms.col("a") > 0) & (ms.col("a") < 9)).columns
        ['a']
        """
        if not isinstance(predicate, Expr):
            raise JobError(f"filter() takes an expression such as col('price') > 10, got {predicate!r}")
        return self._then(Filter(predicate), self._time)._keyed(self._key)

    def sample(self, fraction: float, *, by: str | Sequence[str] | None = None, seed: int = 0) -> Stream:
        """Keep a fraction of the rows, chosen by a hash of columns: the same ones every time, after a crash too.

        Args:
            fraction: of all values of these columns, those whose rows are kept: more than 0, at most 1.
            by: the columns; rows equal in them are kept together or not at all. All columns if left out.
            seed: another one chooses other rows. With the same one what a smaller fraction keeps a larger keeps too.

        Raises:
            JobError: the fraction or the seed makes no sense.
            SchemaError: a column is unknown, or cannot be hashed (lists, structs).

        >>> import millstream as ms
        >>> job, out = ms.Job("j"), ms.memory_sink()
        >>> visits = job.read(ms.memory_source([{"user": n % 3, "page": n} for n in range(9)]))
        >>> visits.sample(0.5, by="user", seed=2).write(out)
        >>> _ = job.run()
        >>> sorted({row["user"] for row in out.rows()})
        [1]
        """
        return self._then(sample_of(self.schema, fraction, by, seed), self._time)._keyed(self._key)

    def rate_limit(self, rows_per_second: float, *, name: str | None = None) -> Stream:
        """Let no more than so many rows a second through, in their order; those behind wait, back to the sources.

        All rows of the job go through one subtask, so the limit holds for any parallelism. The first may go at once;
        after a pause up to a tenth of a second's worth. Rows that wait are part of checkpoints, which do not wait for
        them.

        Args:
            rows_per_second: more than 0; it may be another one at the next start.
            name: names the operator.

        Raises:
            JobError: the rate is no number above 0.
            SchemaError: state cannot hold a column.

        >>> import millstream as ms
        >>> job, out = ms.Job("j"), ms.memory_sink()
        >>> job.read(ms.memory_source([{"n": n} for n in range(3)])).rate_limit(1000).write(out)
        >>> _ = job.run()
        >>> out.rows()
        [{'n': 0}, {'n': 1}, {'n': 2}]
        """
        from millstream.operators.rate_limit import RateLimit

        return self._then(RateLimit(rows_per_second), self._time, name)._keyed(self._key)

    # -- several streams ---------------------------------------------------------------------------------------

    def union(self, *others: Stream) -> Stream:
        """Put streams of the same columns together; event time is then the furthest behind of theirs."""
        for other in others:
            if not isinstance(other, Stream):
                raise JobError(f"union() takes streams, got {other!r}")
            if other._graph is not self._graph:
                raise JobError("union() of streams of two jobs: a stream belongs to the job whose read() began it")
        streams = [self, *others]
        if any(stream.is_changelog for stream in streams):
            streams = [stream._as_changelog() for stream in streams]
        edges = [stream._edge for stream in streams]
        node = self._graph.operator(Union(len(edges)), edges)
        same_time = all(str(other._time) == str(self._time) for other in others)
        return Stream(self._graph, Edge(node.id), self._time if same_time else None)

    def split(self, *predicates: Expr) -> tuple[Stream, ...]:
        """Part a stream: each row goes to the first predicate that is true of it, or else to the last stream.

        Returns one stream per predicate, and one more for the rest.

        >>> import millstream as ms
        >>> s = ms.Job("j").read(ms.memory_source([{"a": 1}]))
        >>> small, large, rest = s.split(ms.col("a") < 10, ms.col("a") >= 10)
        """
        if not predicates:
            raise JobError("split() needs at least one predicate, as in paid, rest = s.split(col('status') == 'paid')")
        for predicate in predicates:
            if not isinstance(predicate, Expr):
                raise JobError(f"split() takes predicates such as col('status') == 'paid', got {predicate!r}")
            Filter(predicate).output_schemas([self.schema])
        taken: Expr | None = None
        parts = []
        for predicate in predicates:
            true = predicate.fill_null(False)
            parts.append(self.filter(true if taken is None else true & ~taken))
            taken = true if taken is None else taken | true
        assert taken is not None
        return (*parts, self.filter(~taken))

    # -- changelogs --------------------------------------------------------------------------------------------

    def changes(self, weight: str = "weight") -> Stream:
        """Make an ordinary stream of a changelog: every change is a row of its own, and a last column says which.

        Args:
            weight: the name of that column, int64: 1 for a row that comes, -1 for one that is taken back (n or -n for
                n equal ones). A row holds as often as its weights sum to. A change has no event time: what is taken
                back has the time with which it came.

        Raises:
            JobError: the stream is no changelog.
            SchemaError: it has a column of that name.
        """
        if not self.is_changelog:
            raise JobError("changes() is for changelogs; no row of this stream is ever taken back: leave changes() out")
        if weight in self.columns:
            raise SchemaError(
                f"changes(): there is a column {weight!r} already; name the other one, as in changes(weight='change')"
            )
        exprs = [*((name, col(name)) for name in self.columns), (weight, col(WEIGHT))]
        return self._then(Project(tuple(exprs)), None)

    def final(self, *keys: str, name: str | None = None) -> FinalStream:
        """Make an ordinary stream of what is left of a changelog when its input has ended.

        The rows are held in state until then; a stream that never ends has none. What changes them later, when dead
        letters are replayed into a job that has ended, goes to ``.late``.

        Args:
            keys: the columns that tell rows apart. Those of ``group_by(...).agg(...)``, ``group_by(...).top(1, ...)``
                and ``deduplicate(..., keep="last")`` are known as long as they are selected; otherwise, without any
                named, rows are told apart by all their columns.
            name: names the operator.

        Raises:
            JobError: the stream is no changelog.
            SchemaError: a key is unknown or of a type that cannot be one, or state cannot hold a column.

        >>> import millstream as ms
        >>> import pyarrow as pa
        >>> job, out = ms.Job("j"), ms.memory_sink()
        >>> batches = [pa.record_batch({"shop": ["a", "b"], "n": [1, 1]}), pa.record_batch({"shop": ["a"], "n": [2]})]
        >>> job.read(ms.memory_source(batches)).group_by("shop").agg(n=ms.sum("n")).final().write(out)
        >>> _ = job.run()
        >>> out.rows()
        [{'shop': 'a', 'n': 3}, {'shop': 'b', 'n': 1}]
        """
        from millstream.finishing import FinalStream
        from millstream.operators.final import FinalRows

        check_columns(self.schema, keys, "final()")
        known = tuple(self.columns) if self._key is None else self._key
        return FinalStream(self._graph, self._then(FinalRows(keys or known), None, name)._edge, None)

    def consolidate(self, *, name: str | None = None) -> Stream:
        """Hold a changelog back until the next checkpoint and let only its net changes through.

        A row that comes and is taken back in between is never seen, and each row of an aggregate changes at most once
        per checkpoint: less for a sink to write, at the price of waiting. Event time is not carried on.

        Args:
            name: names the operator.

        Raises:
            JobError: the stream is no changelog.
            SchemaError: a column has a type of which equal values cannot be told, such as a map.
        """
        from millstream.operators.consolidate import Consolidate

        return self._then(Consolidate(), None, name)._keyed(self._key)

    def _keyed(self, key: tuple[str, ...] | None) -> Stream:
        self._key = key
        return self

    def _as_changelog(self) -> Stream:
        if self.is_changelog:
            return self
        exprs = [*((name, col(name)) for name in self.columns), (WEIGHT, lit(1))]
        return self._then(Project(tuple(exprs)), self._time)

    # -- duplicates --------------------------------------------------------------------------------------------

    @overload
    def deduplicate(
        self, *columns: str, within: Duration | None = None, keep: Literal["first"] = "first", name: str | None = None
    ) -> DeduplicatedStream: ...

    @overload
    def deduplicate(self, *columns: str, keep: Literal["last"], name: str | None = None) -> Stream: ...

    def deduplicate(
        self, *columns: str, within: Duration | None = None, keep: str = "first", name: str | None = None
    ) -> Stream:
        """Keep the first row of each key, in order of arrival; the others go to ``.duplicates``.

        With ``keep="last"`` the result is a changelog of the last row of each key: by event time if the stream has
        one (of several at one time the last to arrive; rows without a time come before all others), else by arrival.
        A row that is replaced is taken back; nothing goes to ``.duplicates``. The last row of every key is kept.

        Of a changelog both are changelogs: of the first or last row there is of each key, by event time or arrival as
        above (rows without a time are neither, while there are others). When it is taken back the next one takes its
        place; so all rows are kept.

        Args:
            columns: what makes up the key, such as a message's id. Nulls are a value like any other.
            within: in event time. A row is then a duplicate if a row of the same key was kept that happened less than
                this before or after it. A key is forgotten when event time has passed its row by as much; rows that
                come later than that go to ``.late``. Without it keys are remembered for ever: about 20 to 60 bytes of
                memory for each.
            keep: ``"first"`` or ``"last"``; of the last row of a key ``within`` some time nothing is known before that
                time is over: write ``group_by(...).window(...).top(1, by=...)`` for it.
            name: names the operator.

        Raises:
            JobError: ``within`` is used on a stream without event time, on a changelog, or to keep the last row.
            SchemaError: a column is unknown, or of a type whose values cannot be told apart (lists, structs).

        >>> import millstream as ms
        >>> job, out, again = ms.Job("j"), ms.memory_sink("out"), ms.memory_sink("again")
        >>> orders = job.read(ms.memory_source([{"id": 1, "n": 5}, {"id": 2, "n": 6}, {"id": 1, "n": 7}]))
        >>> unique = orders.deduplicate("id")
        >>> unique.write(out)
        >>> unique.duplicates.write(again)
        >>> _ = job.run()
        >>> out.rows(), again.rows()
        ([{'id': 1, 'n': 5}, {'id': 2, 'n': 6}], [{'id': 1, 'n': 7}])
        """
        from millstream.deduplicating import first_of, last_of

        if not columns:
            raise JobError("deduplicate() needs the columns that make up the key, as in deduplicate('id')")
        check_columns(self.schema, columns, "deduplicate()")
        if keep not in {"first", "last"}:
            raise JobError(f"deduplicate(keep={keep!r}): keep is 'first' or 'last'")
        return (first_of if keep == "first" else last_of)(self._graph, self._edge, self._time, columns, within, name)

    # -- groups and windows ------------------------------------------------------------------------------------

    def group_by(self, *keys: str) -> GroupedStream:
        """Bring rows with equal keys together; follow it with ``.agg(...)`` or ``.window(...)``."""
        from millstream.grouping import GroupedStream

        if not keys:
            raise JobError("group_by() needs a column; for one result over all rows leave it out: stream.agg(...)")
        check_columns(self.schema, keys, "group_by()")
        return GroupedStream(self._graph, self._edge, self._time, keys)

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
        """Keep the best ``n`` of all rows, as a changelog; see ``GroupedStream.top``."""
        from millstream.ranking import changing_top, ranks_of

        ranks = ranks_of(n, by, descending)
        return changing_top(
            self._graph, self._edge, self._time, (), ranks, n, ties=ties, row_number=row_number, name=name
        )

    def over(
        self, *, rows: int | None = None, range: Duration | None = None, name: str | None = None, **functions: Any
    ) -> OverStream:
        """Add columns to every row that look at those before it in event time; see ``GroupedStream.over``."""
        from millstream.ranking import over

        return over(self, (), functions, rows, range, name)

    def agg(
        self,
        *misplaced: Any,
        ttl: Duration | None = None,
        clock: str | None = None,
        name: str | None = None,
        **aggregates: Any,
    ) -> Stream:
        """Reduce all rows so far to one row, a changelog; there is none before the first row comes.

        See ``GroupedStream.agg``.
        """
        from millstream.grouping import GroupedStream

        rows = GroupedStream(self._graph, self._edge, self._time, ())
        return rows.agg(*misplaced, ttl=ttl, clock=clock, name=name, **aggregates)

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
        self, window: Any, *, lateness: Duration = 0, early: Duration | None = None, late: str = "wait"
    ) -> WindowedStream | CountedStream:
        """Cut time, or rows, into windows, over all rows; see ``GroupedStream.window``."""
        from millstream.grouping import GroupedStream

        rows = GroupedStream(self._graph, self._edge, self._time, ())
        made: WindowedStream | CountedStream = rows.window(window, lateness=lateness, early=early, late=late)
        return made

    # -- out ---------------------------------------------------------------------------------------------------

    def write(self, sink: Sink) -> None:
        """End the stream in a sink.

        Raises:
            JobError: it is not a sink, or another sink of the job has its name.
            SchemaError: the sink cannot take these columns.
        """
        if not isinstance(sink, Sink):
            raise JobError(f"write() takes a sink such as ms.parquet('out/'), got {sink!r}")
        self._graph.write(Write(sink), self._edge)

    # -- inside ------------------------------------------------------------------------------------------------

    def _then(self, spec: OperatorSpec, time: Expr | None, name: str | None = None) -> Stream:
        node = self._graph.operator(spec, [self._edge], name)
        stream = Stream(self._graph, Edge(node.id, MAIN), time)
        if time is not None and not time.columns() <= set(stream.columns):
            stream._time = None
        return stream

    def _project(self, exprs: list[tuple[str, Expr]], where: str) -> Stream:
        weight = [(WEIGHT, col(WEIGHT))] if self.is_changelog else []
        try:
            return self._then(Project((*exprs, *weight)), renamed_time(self._time, exprs))._keyed(
                renamed_key(self._key, exprs)
            )
        except SchemaError as error:
            raise SchemaError(f"{where}(): {error}") from None

    def _values(self, named: Mapping[str, Any], where: str) -> list[tuple[str, Expr]]:
        for name, value in named.items():
            if isinstance(value, str) and value in self.columns:
                raise SchemaError(
                    f"{where}({name}={value!r}) would write the text {value!r} into every row, but a column has "
                    f"that name: write col({value!r}) for the column, lit({value!r}) for the text"
                )
        return [(name, as_expr(value)) for name, value in named.items()]
