"""Reads a table of PostgreSQL in the order of a cursor, page by page, once or for ever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from millstream.connectors.postgres_catalog import TableFacts, check_encoding, look_up, named
from millstream.connectors.postgres_connection import Absence, Server, blame_server, quoted_table
from millstream.connectors.postgres_values import SESSION, TableReader, schema_of
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr
from millstream.engine.source import Position, ReadContext, Source, Split, SplitEnd, SplitReader
from millstream.engine.store.columns import literal, quote
from millstream.engine.time import Duration, micros

if TYPE_CHECKING:
    import psycopg

_ORDERED: Final = frozenset(
    {"int2", "int4", "int8", "numeric", "date", "timestamp", "timestamptz", "text", "varchar", "uuid"}
)
_TIMES: Final = {"timestamptz": "now()", "timestamp": "now() AT TIME ZONE 'UTC'"}
_SPLIT: Final = Split("table")


def postgres_source(  # noqa: PLR0913
    dsn: str,
    table: str,
    *,
    cursor: str | Sequence[str],
    columns: Sequence[str] | None = None,
    poll: Duration | None = None,
    lag: Duration = "0s",
    patience: Duration = "30s",
    name: str | None = None,
) -> PostgresSource:
    """Read a table (or view) of PostgreSQL in the order of a cursor: columns whose values only grow.

    A position is the cursor of the last row read, so a row is read once, provided that **rows become visible in the
    order of their cursors**: one that is committed later with a lower cursor is not read. Numbers from a sequence, and
    times that a transaction began at, can be overtaken by those of other transactions while both run; ``lag`` waits for
    them.

    A row that is updated is read again if its cursor grows, and a row that is deleted is not noticed;
    ``ms.postgres_changes`` reads those.

    Args:
        dsn: as for ``postgres_sink``.
        table: its name, with its schema before a dot if it is not in the search path.
        cursor: a column, or several of which the last ones tell apart rows that are equal in the first, as in
            ``["updated_at", "id"]``. Never null, together unique, and with an index in that order if it is to be fast.
        columns: what is read; None: all.
        poll: how often to look for more when everything is read; None: the source ends then.
        lag: for a cursor that is a timestamp: rows younger than that, by the server's clock, are left for later.
        patience: how long the server may be away while the source waits, before the job restarts.

    Raises:
        JobError: there is no such table, or its rows cannot be read by this cursor.
        ExternalError: the server is away.
    """
    by = (cursor,) if isinstance(cursor, str) else tuple(cursor)
    server, what = Server(dsn), f"postgres_source({table!r})"
    with blame_server(what, f"looking at table {table}"), server.connect("millstream check", autocommit=True) as link:
        check_encoding(link, what)
        facts = look_up(link, table)
    if facts is None:
        raise JobError(f"{what}: there is no such table in {server.shown()}")
    wanted = tuple(columns) if columns is not None else tuple(column.name for column in facts.columns)
    _check(what, facts, by, wanted, micros(lag))
    every = None if poll is None else micros(poll) / 1_000_000
    return PostgresSource(
        server,
        table,
        facts,
        by,
        wanted,
        every,
        micros(lag),
        micros(patience) / 1_000_000,
        name or f"postgres:{server.shown()}:{table}",
    )


def _check(what: str, facts: TableFacts, by: Sequence[str], wanted: Sequence[str], lag: int) -> None:
    for name in (*by, *wanted):
        if facts.column(name) is None:
            raise SchemaError(f"{what}: there is no column {name!r}, but: {named(facts.columns)}")
    if not by or not wanted:
        raise JobError(f"{what}: a cursor needs at least one column, and so does what is read")
    for name in by:
        column = facts.column(name)
        assert column is not None
        if column.type not in _ORDERED:
            raise SchemaError(f"{what}: cursor {name!r} is {column.declared}; it must be a number, a time or text")
        if not column.not_null and not facts.view:
            raise SchemaError(
                f"{what}: cursor {name!r} may be null, and such rows would never be read: ALTER TABLE {facts.place} "
                f"ALTER COLUMN {quote(name)} SET NOT NULL"
            )
    if not facts.view and not any(unique <= set(by) for unique in facts.unique):
        raise SchemaError(
            f"{what}: rows may have the same cursor {', '.join(by)}, so a position in it would not be exact: add the "
            "columns of a unique key, as in cursor=['updated_at', 'id']"
        )
    first = facts.column(by[0])
    if lag and (first is None or first.type not in _TIMES):
        raise JobError(f"{what}: lag= is for a cursor that begins with a timestamp, not with {by[0]!r}")


@dataclass(frozen=True)
class PostgresSource(Source):
    """A table of PostgreSQL by a cursor; made by ``postgres_source``. ``lag`` in microseconds, others in seconds."""

    server: Server
    table: str
    facts: TableFacts
    by: tuple[str, ...]
    wanted: tuple[str, ...]
    poll: float | None
    lag: int
    patience: float
    given_name: str

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.given_name

    def identity(self) -> str:
        """Text that changes exactly when it is another source."""
        return f"postgres {self.server.shown()!r} {self.table!r} by {list(self.by)!r}"

    @property
    def schema(self) -> pa.Schema:
        """The columns it yields."""
        return schema_of(column for column in self.facts.columns if column.name in self.wanted)

    @property
    def bounded(self) -> bool:
        """Whether it ends by itself."""
        return self.poll is None

    def discover(self) -> Sequence[Split]:
        """One split: a table is read in one order."""
        return [_SPLIT]

    def open(self, split: Split, position: Position, context: ReadContext) -> SplitReader:
        """Open it at a cursor."""
        del split
        return _CursorReader(self, position, context.batch_rows)

    def pushed_down(self, columns: frozenset[str], predicate: Expr | None, event_time: str | None) -> Source:
        """Ask the server only for the columns that somebody wants."""
        del predicate, event_time
        return replace(self, wanted=tuple(name for name in self.wanted if name in columns))

    def guarantee(self) -> str:
        """One sentence for the plan."""
        return "replayable, while rows become visible in the order of their cursors"


class _CursorReader(SplitReader):
    def __init__(self, source: PostgresSource, position: Position, batch_rows: int) -> None:
        self._source = source
        self._position: list[str] | None = position
        self._batch_rows = batch_rows
        facts = source.facts
        self._reader = TableReader(source.name, tuple(c for c in facts.columns if c.name in source.wanted))
        self._types = [column.declared for name in source.by if (column := facts.column(name)) is not None]
        self._texts = [f"$cursor{index}" for index in range(len(source.by))]
        self._connection: psycopg.Connection[Any] | None = None
        self._absence = Absence(source.patience)

    def read(self) -> pa.RecordBatch | SplitEnd:
        """Return the next page. Raises ExternalError when the server has been away for too long."""
        from psycopg import Error

        if self._absence.lasts:
            return SplitEnd.PENDING
        with blame_server(self._source.name, "reading the table"):
            try:
                text = self._copied()
            except Error as error:
                self.close()
                self._absence.note(error)
                return SplitEnd.PENDING
        self._absence.wait(0)
        rows = self._reader.rows(text, self._texts)
        if rows.num_rows:
            self._position = [rows[name][-1].as_py() for name in self._texts]
            (batch,) = rows.select(self._reader.schema.names).combine_chunks().to_batches()
            return batch.cast(self._source.schema)
        if self._source.poll is None:
            return SplitEnd.FINISHED
        self._absence.wait(self._source.poll)
        return SplitEnd.PENDING

    def position(self) -> Position:
        """The cursor of the last row read, as the server writes it."""
        return self._position

    def close(self) -> None:
        """Let go of the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        self.close()

    def _copied(self) -> bytes:
        if self._connection is None:
            self._connection = self._source.server.connect("millstream source", autocommit=True)
            self._connection.execute(SESSION)
        with self._connection.cursor() as cursor, cursor.copy(self._query()) as copy:
            return b"".join(bytes(part) for part in copy)

    def _query(self) -> bytes:
        source = self._source
        names = [f"t.{quote(name)}" for name in source.by]
        conditions = []
        if self._position is not None:
            last = zip(self._position, self._types, strict=True)
            values = ", ".join(f"{literal(value)}::{type_}" for value, type_ in last)
            conditions.append(f"({', '.join(names)}) > ({values})")
        if source.lag:
            first = source.facts.column(source.by[0])
            assert first is not None
            conditions.append(f"{names[0]} <= {_TIMES[first.type]} - {source.lag} * interval '1 microsecond'")
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        texts = ", ".join(f"{name}::text" for name in names)
        select = f"SELECT {self._reader.selected('t.')}, {texts} FROM {quoted_table(source.facts.place)} t {where}"  # noqa: S608
        return f"COPY ({select} ORDER BY {', '.join(names)} LIMIT {self._batch_rows}) TO STDOUT (FORMAT csv)".encode()
