"""Writes rows to a table of PostgreSQL, each exactly once: upserts by key, or plain appends."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
from millstream.connectors.outbox import Generations, OutboxWriter, check_keys, outbox_table, plain_schema, read_keys
from millstream.connectors.outbox_marker import Publisher
from millstream.connectors.postgres_catalog import Column, TableFacts, check_encoding, look_up
from millstream.connectors.postgres_committer import PostgresCommitter
from millstream.connectors.postgres_connection import Server, blame_server, persistently, quoted_table
from millstream.connectors.postgres_fit import best_type, check_fit, create_statement
from millstream.connectors.postgres_text import TextRows
from millstream.engine.changelog import unweighted
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.sink import Committer, Sink, SinkContext, SinkKind, SinkWriter
from millstream.engine.state import StateTable
from millstream.engine.time import Duration, micros


def postgres_sink(  # noqa: PLR0913
    dsn: str,
    table: str,
    *,
    key: str | Sequence[str] | None = None,
    mode: Literal["upsert", "append"] | None = None,
    create: bool = False,
    again: bool = False,
    progress: str = "millstream_progress",
    patience: Duration = "30s",
    name: str | None = None,
) -> PostgresSink:
    """Write rows to a table of PostgreSQL, exactly once.

    The rows of an epoch wait in the checkpoint. After it is committed they are written, together with the epoch's
    number in the table ``progress``, in one transaction: others see an epoch whole or not at all.

    Args:
        dsn: ``postgresql://user@host:5432/database`` or ``host=… dbname=…``; secrets as ``${env:NAME}`` or
            ``${file:/path}``.
        table: its name, with its schema before a dot if it is not in the search path.
        key: the columns that tell rows apart; the table must have a unique index on exactly these.
        mode: ``upsert``: a row replaces the one with its key, and a changelog may take it away; ``append``: rows are
            added. None: upsert if there is a key.
        create: make the table if it is not there, with a primary key for upserts.
        again: the job may start anew over what it has written from another store.
        progress: the table with the numbers; made if it is not there.
        patience: how long to try again while the server is away, before the job restarts.

    Raises:
        JobError: an argument makes no sense.

    >>> postgres_sink("postgresql://me@db.example/shop", "orders", key="id")
    PostgresSink(postgres:db.example/shop:orders)
    """
    keys = read_keys("postgres_sink()", key, mode)
    quoted_table(table)
    quoted_table(progress)
    target = Target(Server(dsn), table, keys, create, again, progress, micros(patience) / 1_000_000)
    return PostgresSink(target, name or f"postgres:{target.server.shown()}:{table}")


@dataclass(frozen=True)
class Target:
    """Where rows go to and how; ``patience`` in seconds."""

    server: Server
    table: str
    keys: tuple[str, ...]
    create: bool
    again: bool
    progress: str
    patience: float


@dataclass(frozen=True)
class _Checked:
    """The tables of running generations as they were found at the start; their writers need not ask again."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    facts: dict[tuple[str, int], TableFacts] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class PostgresSink(Sink):
    """A table of PostgreSQL; made by ``postgres_sink``."""

    target: Target
    given_name: str
    _generations: Generations = field(default_factory=Generations, compare=False)
    _checked: _Checked = field(default_factory=_Checked, compare=False)

    def __repr__(self) -> str:
        return f"PostgresSink({self.name})"

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.given_name

    def identity(self) -> str:
        """Text that changes exactly when it is another destination."""
        target = self.target
        return f"postgres {target.server.shown()!r} {target.table!r} by {list(target.keys)!r}"

    @property
    def kind(self) -> SinkKind:
        """How it has its effect once."""
        return SinkKind.OUTBOX

    @property
    def takes_changelog(self) -> bool:
        """Upserts do: a row that is taken back goes from the table."""
        return bool(self.target.keys)

    def check(self, schema: pa.Schema) -> None:
        """Raise SchemaError when rows of this schema cannot be written to any table."""
        check_keys(self.name, schema, self.target.keys)
        for column in plain_schema(unweighted(schema)):
            try:
                best_type(column.type, column.name)
            except SchemaError as error:
                raise SchemaError(f"{self.name}: {error}") from None

    def writer(self, schema: pa.Schema, context: SinkContext) -> SinkWriter:
        """Make one running copy."""
        text = self._text(schema, self._facts(schema, context))
        sent = self._generations.of(context)
        return OutboxWriter(self.name, schema, self.target.keys, context, sent, text.admit)

    def committer(self, schema: pa.Schema, context: SinkContext) -> Committer:
        """Make the committer, which takes over from earlier starts.

        Raises:
            ExternalError: the server is away.
            SchemaError: the table does not fit.
            JobError: the table is ahead of the store, or has rows of this job from another store.
        """
        facts = self._facts(schema, context)
        publisher = Publisher(self.name, facts.place, context)
        plain = plain_schema(schema)
        sent, text = self._generations.of(context), self._text(schema, facts)
        return PostgresCommitter(self.target, plain, publisher, sent, text, facts.place)

    def state_tables(self, schema: pa.Schema) -> tuple[StateTable, ...]:
        """Declare what is kept of epochs."""
        del schema
        return (outbox_table(),)

    def guarantee(self) -> str:
        """One sentence for the plan."""
        return (
            "exactly once: rows wait in the checkpoint and are written with the epoch's number in one transaction, "
            "which readers see whole"
        )

    def _text(self, schema: pa.Schema, facts: TableFacts) -> TextRows:
        columns: list[Column] = []
        for column_name in unweighted(schema).names:
            column = facts.column(column_name)
            assert column is not None, f"{column_name} was there when the table was checked"
            columns.append(column)
        return TextRows(self.name, tuple(columns))

    def _facts(self, schema: pa.Schema, context: SinkContext) -> TableFacts:
        """Return the table, checked; made if that was asked for."""
        key = (context.job_id, context.generation)
        with self._checked.lock:
            found = self._checked.facts.get(key)
            if found is None:
                with blame_server(self.name, f"looking at table {self.target.table}"):
                    found = persistently(lambda: self._look(schema), self.name, self.target.patience)
                self._checked.facts.clear()
                self._checked.facts[key] = found
            return found

    def _look(self, schema: pa.Schema) -> TableFacts:
        target, rows = self.target, plain_schema(unweighted(schema))
        with target.server.connect("millstream check", autocommit=True) as connection:
            check_encoding(connection, self.name)
            facts = look_up(connection, target.table)
            if facts is None and target.create:
                connection.execute(create_statement(quoted_table(target.table), rows, target.keys))
                facts = look_up(connection, target.table)
            if facts is None:
                statement = create_statement(quoted_table(target.table), rows, target.keys).decode()
                raise JobError(
                    f"{self.name}: there is no table {target.table!r} in {target.server.shown()}. Pass create=True, "
                    f"or: {statement}"
                )
            check_fit(self.name, rows, facts, target.keys)
            return facts
