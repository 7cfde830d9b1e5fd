"""Publishes epochs in PostgreSQL: rows and marker in one transaction, whose outcome is always found out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from millstream.connectors.outbox import Letter, Sent, settle, unpack
from millstream.connectors.outbox_marker import Publisher
from millstream.connectors.postgres_connection import Server, blame_server, persistently, quoted_table
from millstream.connectors.postgres_progress import Progress, begin
from millstream.connectors.postgres_text import COPY_FORMAT, TextRows
from millstream.engine.changelog import WEIGHT, is_changelog, unweighted
from millstream.engine.failpoints import hit
from millstream.engine.sink import Committable, Committer
from millstream.engine.store.columns import quote

if TYPE_CHECKING:
    import psycopg
    from millstream.connectors.postgres_sink import Target

Result = TypeVar("Result")

_STAGING: Final = "pg_temp.millstream_staging"
_ADVICE: Final = (
    "What was to be written waits in the checkpoint: mend what the server complains of, and start the job again"
)


@dataclass(frozen=True, slots=True)
class _Statements:
    """The SQL of one target; an empty text: not needed."""

    stage: bytes
    copy: bytes
    upsert: bytes
    copy_keys: bytes
    delete: bytes

    @staticmethod
    def of(place: str, columns: Sequence[str], keys: Sequence[str]) -> _Statements:
        """Make them. Rows of keyed targets go through a staging table, which is emptied at each commit."""
        target, all_ = quoted_table(place), ", ".join(quote(name) for name in columns)
        if not keys:
            return _Statements(b"", f"COPY {target} ({all_}) FROM STDIN {COPY_FORMAT}".encode(), b"", b"", b"")
        key = ", ".join(quote(name) for name in keys)
        others = [f"{quote(name)} = EXCLUDED.{quote(name)}" for name in columns if name not in keys]
        action = f"DO UPDATE SET {', '.join(others)}" if others else "DO NOTHING"
        equal = " AND ".join(f"t.{quote(name)} = s.{quote(name)}" for name in keys)
        made = (
            f"CREATE TEMP TABLE IF NOT EXISTS millstream_staging ON COMMIT DELETE ROWS AS SELECT {all_} FROM {target} "  # noqa: S608
            "WITH NO DATA"
        )
        return _Statements(
            made.encode(),
            f"COPY {_STAGING} ({all_}) FROM STDIN {COPY_FORMAT}".encode(),
            f"INSERT INTO {target} ({all_}) SELECT {all_} FROM {_STAGING} ON CONFLICT ({key}) {action}".encode(),  # noqa: S608
            f"COPY {_STAGING} ({key}) FROM STDIN {COPY_FORMAT}".encode(),
            f"DELETE FROM {target} t USING {_STAGING} s WHERE {equal}".encode(),  # noqa: S608
        )


class PostgresCommitter(Committer):
    """One start of a job towards one table."""

    def __init__(
        self, target: Target, schema: pa.Schema, publisher: Publisher, sent: Sent, text: TextRows, place: str
    ) -> None:
        self._connection: psycopg.Connection[Any] | None = None
        self._target = target
        self._name = publisher.name
        self._server: Server = target.server
        self._sent = sent
        self._text = text
        self._schema = schema
        self._progress = Progress(publisher, target.progress, place)
        self._statements = _Statements.of(place, unweighted(schema).names, target.keys)
        context = publisher.context
        self._application = f"millstream {context.job_id} {context.sink_id}"
        self._registered = False
        with blame_server(self._name, "registering this start of the job", advice=_RIGHTS.format(target.progress)):
            self._persistently(self._register)

    def commit(self, epoch: int, committables: Sequence[Committable]) -> None:
        """Publish an epoch; each attempt finds out whether one before it has done so.

        Raises:
            ExternalError: the server was away for too long.
            JobError: it refuses the rows, or this start of the job must not write (any more).
        """
        if not committables:
            return
        letter = unpack(committables)
        letter = replace(letter, rows=settle(letter.rows, self._target.keys))
        with blame_server(self._name, f"writing epoch {epoch} to {self._progress.place}", advice=_ADVICE):
            self._persistently(lambda connection: self._publish(connection, epoch, letter))
        self._registered = True
        self._sent.note(epoch)
        hit("postgres.visible")

    def close(self) -> None:
        """Let go of the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        # A generation that fails before its first batch is never closed.
        self.close()

    # -- attempts: each is one transaction ------------------------------------------------------------------------

    def _persistently(self, work: Any) -> None:
        """Run ``work(connection)`` in a transaction until it is committed.

        Where the connection is lost in COMMIT nobody knows the outcome: the next attempt locks the marker, for which
        the server must have decided, and reads it.
        """

        def attempt() -> None:
            connection = self._connected()
            try:
                begin(connection)
                work(connection)
                connection.commit()
            except BaseException:
                self.close()
                raise

        persistently(attempt, self._name, self._target.patience)

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = self._server.connect(self._application)
        return self._connection

    def _register(self, connection: psycopg.Connection[Any]) -> None:
        self._progress.make(connection)
        self._registered = self._progress.register(connection, self._application, again=self._target.again)

    def _publish(self, connection: psycopg.Connection[Any], epoch: int, letter: Letter) -> None:
        marker = self._progress.read(connection, lock=True)
        publisher, registered = self._progress.publisher, self._registered
        if not publisher.must_publish(marker, epoch, letter.after, letter.digest, registered=registered):
            return
        hit("postgres.begun")
        self._write(connection, letter.rows)
        self._progress.publish(connection, marker, epoch, letter.digest)
        hit("postgres.written")

    def _write(self, connection: psycopg.Connection[Any], rows: pa.Table) -> None:
        statements = self._statements
        if statements.stage:
            connection.execute(statements.stage)
        if is_changelog(rows.schema):
            gone = rows.filter(pc.less(rows[WEIGHT], 0)).select(list(self._target.keys))
            rows = rows.filter(pc.greater(rows[WEIGHT], 0)).select(unweighted(rows.schema).names)
            if gone.num_rows:
                self._copy(connection, statements.copy_keys, gone)
                connection.execute(statements.delete)
                connection.execute(f"TRUNCATE {_STAGING}".encode())
        if rows.num_rows:
            self._copy(connection, statements.copy, rows)
            if statements.upsert:
                connection.execute(statements.upsert)

    def _copy(self, connection: psycopg.Connection[Any], statement: bytes, rows: pa.Table) -> None:
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            for chunk in self._text.chunks(rows):
                copy.write(chunk)


_RIGHTS: Final = (
    "The role needs CONNECT, TEMPORARY and, once, CREATE for the table {0}; or make that table for it and grant "
    "SELECT, INSERT, UPDATE and DELETE on it. One that an earlier version has made needs, once: ALTER TABLE {0} ADD "
    "COLUMN digest text NOT NULL DEFAULT ''"
)
