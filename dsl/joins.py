"""The joins of a ``Stream``, as methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    import pyarrow as pa
    from millstream.engine.expression import Expr
    from millstream.engine.expression_types import Schema
    from millstream.engine.lookup import LookupTable
    from millstream.engine.source import Source
    from millstream.engine.time import Duration
    from millstream.joining import JoinedStream
    from millstream.operators.windows import Window
    from millstream.stream import Stream


class Joins:
    """What ``Stream`` can be brought together with."""

    @property
    def _stream(self) -> Stream:
        return cast("Stream", self)

    def join(  # noqa: PLR0913  each is a word of its own
        self,
        other: Stream,
        *,
        on: str | Sequence[str] | Mapping[str, str],
        how: str = "inner",
        between: tuple[Expr | Duration, Expr | Duration] | None = None,
        window: Window | None = None,
        ttl: Duration | None = None,
        where: Expr | None = None,
        suffix: str = "_right",
        name: str | None = None,
    ) -> JoinedStream:
        """Bring rows of two streams together whose keys are equal; a null key equals nothing.

        With ``between`` or ``window`` (or ``ttl``) rows must also be near each other in event time; they are forgotten
        when it has passed, and rows that come before the watermark go to ``.late`` and ``.late_right``. Without any of
        them everything is joined with everything so far, and both streams are kept for ever.

        Args:
            other: the right stream, of the same job.
            on: the key: a column's name, several, or ``{"left_name": "right_name"}``.
            how: ``inner``: pairs; ``left``, ``right``, ``full``: also the rows of that side that are in no pair, with
                nulls beside them; ``semi``: the left rows that are in a pair, once each; ``anti``: those in none.
            between: the event time of the right row lies from the one to the other, both included. Either is an
                expression over the left columns, or a duration from the left row's event time: ``("-5m", "0s")``.
            window: both rows are in one window: ``ms.tumbling("1m")``, ``sliding`` or ``cumulating``. The result has
                its ``window_start`` and ``window_end``.
            ttl: the rows are at most so far from each other in event time; short for ``between=("-1d", "1d")``.
            where: a condition over the columns of the pair.
            suffix: is put behind the names of right columns that the left stream has too; keys that have the same
                name are there once.
            name: names the operator.

        Returns:
            The columns of both. Rows are never taken back, except that without ``between``, ``window`` and ``ttl`` the
            result is a changelog unless ``how`` is ``inner`` and neither stream is a changelog. The event time of a
            pair is the later of the two, or the last instant of the window; other results have none.

        Raises:
            JobError: what is asked for does not go together, or there is no event time.
            SchemaError: a column is unknown, keys are of different types, or a name is taken.

        >>> import datetime as dt
        >>> import millstream as ms
        >>> at = lambda minute: dt.datetime(2026, 1, 1, 12, minute)
        >>> job, out = ms.Job("j"), ms.memory_sink()
        >>> seen = job.read(ms.memory_source([{"ad": 1, "at": at(0)}], name="seen"), event_time="at")
        >>> clicks = job.read(ms.memory_source([{"ad": 1, "at": at(2)}, {"ad": 1, "at": at(9)}]), event_time="at")
        >>> clicks.join(seen, on="ad", between=("-5m", "0s"), suffix="_seen").select("at", "at_seen").write(out)
        >>> _ = job.run()
        >>> [row["at"].minute for row in out.rows()]
        [2]
        """
        from millstream.joining import Joining

        return Joining(self._stream, other, on, how, suffix, where).stream(between, window, ttl, name)

    def join_table(
        self,
        table: Stream | Source,
        *,
        on: str | Sequence[str] | Mapping[str, str],
        how: str = "inner",
        where: Expr | None = None,
        suffix: str = "_right",
        name: str | None = None,
    ) -> Stream:
        """Bring each row together with the rows of a table that have its key: reference data from a file, say.

        The table is read to its end before the first row is joined. Every subtask keeps all of it, so the stream is not
        exchanged. It becomes part of the checkpoint, written once: if its file changes later, the result does not.

        Args:
            table: a bounded source, or a stream that comes of bounded sources, of the same job.
            on: the key: a column's name, several, or ``{"left_name": "right_name"}``. A null key equals nothing.
            how: ``inner``: pairs; ``left``: also the rows that are in no pair, with nulls beside them; ``semi``: the
                rows that are in a pair, once each; ``anti``: those in none.
            where: a condition over the columns of the pair.
            suffix: is put behind the names of columns of the table that the stream has too; keys that have the same
                name are there once.
            name: names the operator.

        Returns:
            The columns of both, with the event time of the stream. Rows are never taken back.

        Raises:
            JobError: the table is not bounded, or a changelog, or of another job. When the job is planned: stream and
                table come from the same source, which would have to wait for its own end.
            SchemaError: a column is unknown, keys are of different types, or a name is taken.

        >>> import millstream as ms
        >>> job, out = ms.Job("j"), ms.memory_sink()
        >>> cities = ms.memory_source([{"id": 1, "city": "Rome"}], name="cities")
        >>> orders = job.read(ms.memory_source([{"order": 7, "to": 1}, {"order": 8, "to": 2}], name="orders"))
        >>> orders.join_table(cities, on={"to": "id"}, how="left").select("order", "city").write(out)
        >>> _ = job.run()
        >>> out.rows()
        [{'order': 7, 'city': 'Rome'}, {'order': 8, 'city': None}]
        """
        from millstream.joining import Joining, table_stream

        right = table_stream(self._stream, table)
        return Joining(self._stream, right, on, how, suffix, where, "join_table").table(name)

    def join_asof(
        self,
        other: Stream,
        *,
        on: str | Sequence[str] | Mapping[str, str],
        tolerance: Duration | None = None,
        how: str = "inner",
        removed: Expr | str | None = None,
        suffix: str = "_right",
        name: str | None = None,
    ) -> JoinedStream:
        """Bring each row together with the last row of its key as of its event time: the rate of that moment.

        The right row is the latest that is not later; among those of one event time, the last to come. A row comes out
        once the watermark has passed it, for only then that is known; nothing is taken back. Rows that come before the
        watermark go to ``.late`` and ``.late_right``. Of the past one right row per key is kept.

        Args:
            other: the right stream, of the same job: prices, or versions of a table, valid from their event time.
            on: the key: a column's name, several, or ``{"left_name": "right_name"}``. A null key equals nothing.
            tolerance: how much earlier the right row may be; None: any time.
            how: ``inner``: rows for which there is a right row; ``left``: all, with nulls where there is none.
            removed: a boolean column of the right stream, or a condition: true of a row that says that from its time
                on there is nothing under its key.
            suffix: is put behind the names of right columns that the left stream has too; keys that have the same
                name are there once.
            name: names the operator.

        Returns:
            The columns of both, with the event time of the left stream.

        Raises:
            JobError: a stream has no event time, or is a changelog.
            SchemaError: a column is unknown, keys are of different types, or a name is taken.

        >>> import datetime as dt
        >>> import millstream as ms
        >>> at = lambda minute: dt.datetime(2026, 1, 1, 12, minute)
        >>> job, out = ms.Job("j"), ms.memory_sink()
        >>> prices = [{"of": "X", "price": 9.0, "at": at(0)}, {"of": "X", "price": 9.5, "at": at(4)}]
        >>> quotes = job.read(ms.memory_source(prices, name="quotes"), event_time="at")
        >>> trades = job.read(ms.memory_source([{"of": "X", "at": at(3)}, {"of": "X", "at": at(4)}]), event_time="at")
        >>> trades.join_asof(quotes, on="of").select("price").write(out)
        >>> _ = job.run()
        >>> out.rows()
        [{'price': 9.0}, {'price': 9.5}]
        """
        from millstream.joining import Joining

        return Joining(self._stream, other, on, how, suffix, None, "join_asof").as_of(tolerance, removed, name)

    def lookup(  # noqa: PLR0913  each is a word of its own
        self,
        table: LookupTable | Callable[[pa.RecordBatch], Any],
        *,
        on: str | Sequence[str] | Mapping[str, str],
        schema: Schema | None = None,
        how: str = "inner",
        batch: int = 10_000,
        cache: Duration | None = None,
        cache_keys: int = 100_000,
        on_error: Literal["fail", "dead_letter"] = "fail",
        suffix: str = "_right",
        name: str | None = None,
    ) -> Stream:
        """Bring each row together with the rows that something outside has for its key at this moment.

        A service or database is asked for the distinct keys of a batch at once. A row that is processed again after a
        crash is looked up again, and may get another answer; it has its effect exactly once, with one of them. Of a
        changelog the checkpoint holds what each row that is there was answered, and that is taken back with it.

        Args:
            table: ``ms.duckdb_table("ref.duckdb", "customers")``, or a function that takes distinct keys as a
                ``pa.RecordBatch`` and returns a ``pa.Table`` of the key and the columns of ``schema``, with any number
                of rows for each key. It may be called from several threads at once.
            on: the key: a column's name, several, or ``{"name": "name_in_the_table"}``. A null key is not asked for.
            schema: of what a function returns; the key may be left out.
            how: ``inner``: rows for which there is something; ``left``: all, with nulls where there is nothing.
            batch: the most keys to ask for at once.
            cache: for how long an answer is used again, also that there is nothing; None: not beyond the batch.
            cache_keys: how many keys each subtask remembers at most; those used last stay.
            on_error: "fail": the job fails and goes on from its last checkpoint, as often as it may; "dead_letter": the
                keys are asked for again by halves, and the rows of those for which that raises are put aside whole, to
                be replayed later. An error of a server, ``ms.ExternalError``, fails the job all the same.
            suffix: is put behind the names of the table's columns that the stream has too.
            name: names the operator.

        Returns:
            The columns of both, with the event time of the stream; a changelog, if that is one.

        Raises:
            JobError: what is asked for does not go together.
            SchemaError: a column is unknown, keys are of different types, or a name is taken.

        >>> import millstream as ms
        >>> import pyarrow as pa
        >>> def squares(keys):
        ...     numbers = keys["n"].to_pylist()
        ...     return pa.table({"n": numbers, "square": [n * n for n in numbers]})
        >>> job, out = ms.Job("j"), ms.memory_sink()
        >>> rows = job.read(ms.memory_source([{"n": 2}, {"n": 3}, {"n": 2}]))
        >>> rows.lookup(squares, on="n", schema={"square": int}, cache="10m").write(out)
        >>> _ = job.run()
        >>> [row["square"] for row in out.rows()]
        [4, 9, 4]
        """
        from millstream.looking_up import LookingUp

        return LookingUp(self._stream, table, on, schema).stream(
            how=how, batch=batch, cache=cache, cache_keys=cache_keys, on_error=on_error, suffix=suffix, name=name
        )
