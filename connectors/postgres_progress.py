"""The table in which a PostgreSQL database keeps how far each sink of each job has come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from millstream.connectors.outbox_marker import Marker, Publisher
from millstream.connectors.postgres_connection import quoted_table
from millstream.engine.errors import JobError

if TYPE_CHECKING:
    import psycopg

_SETTINGS: Final = b"""
    SELECT set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO', true),
           set_config('lock_timeout', '30s', true), set_config('statement_timeout', '0', true),
           set_config('idle_in_transaction_session_timeout', '60s', true),
           CASE current_setting('synchronous_commit')
               WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END"""
_DIGEST: Final = "digest text NOT NULL DEFAULT ''"
_LOCK_PLACE: Final = b"SELECT pg_advisory_xact_lock(hashtextextended('millstream ' || %s, 0))"
_END_OTHERS: Final = b"""
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name = %s AND usename = current_user AND datname = current_database()
      AND pid <> pg_backend_pid()"""


def begin(connection: psycopg.Connection[Any]) -> None:
    """Set, for this transaction alone, what its statements rely on."""
    connection.execute(_SETTINGS)


@dataclass(frozen=True, slots=True)
class Progress:
    """The rows of one start of a job in the progress table; every method is called within a transaction."""

    publisher: Publisher
    table: str
    """The progress table's name."""
    place: str
    """The target table's name, as the server has found it."""

    def make(self, connection: psycopg.Connection[Any]) -> None:
        """Make the progress table if it is not there, or its column digest; this needs the right to do so only then."""
        if self._has(connection, "digest"):
            return
        # Two jobs may start at the same time, and IF NOT EXISTS alone then fails one of them.
        connection.execute(_LOCK_PLACE, [self.table])
        table = quoted_table(self.table)
        if not self._has(connection, "epoch"):
            columns = (
                "job text NOT NULL, job_id text, sink_id text, target text NOT NULL, epoch bigint NOT NULL, generation "
                "bigint NOT NULL, owner text NOT NULL, changed_at timestamp with time zone NOT NULL DEFAULT now(), "
                f"{_DIGEST}, PRIMARY KEY (job_id, sink_id)"
            )
            connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})".encode())
        elif not self._has(connection, "digest"):
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {_DIGEST}".encode())

    def _has(self, connection: psycopg.Connection[Any], column: str) -> bool:
        """Whether the table is there and has a column."""
        found = connection.execute(
            b"SELECT FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = %s AND NOT attisdropped",
            [quoted_table(self.table), column],
        )
        return found.fetchone() is not None

    def read(self, connection: psycopg.Connection[Any], *, lock: bool) -> Marker | None:
        """Return this sink's marker, locked until the transaction ends if asked for."""
        row = connection.execute(
            self._sql("SELECT epoch, generation, owner, digest FROM {} WHERE job_id = %s AND sink_id = %s", lock),
            self._key,
        ).fetchone()
        return None if row is None else Marker(*row)

    def register(self, connection: psycopg.Connection[Any], application: str, *, again: bool) -> bool:
        """Take over from earlier starts of this job: from now on they cannot commit.

        Returns:
            Whether there is a marker now.

        Raises:
            JobError: this start must not write to the table.
        """
        context = self.publisher.context
        self.publisher.may_start(self.read(connection, lock=False))
        connection.execute(_END_OTHERS, [application])
        connection.execute(_LOCK_PLACE, [self.place])
        marker = self.read(connection, lock=True)
        self.publisher.may_start(marker)
        if marker is not None:
            self._write(connection, marker.epoch, marker.digest)
            return True
        if context.restored:
            # There should be one. If rows have been published that will be found, and must not be hidden now.
            return False
        if not again:
            self._check_alone(connection)
        self.publish(connection, None, 0, "")
        return True

    def publish(self, connection: psycopg.Connection[Any], marker: Marker | None, epoch: int, digest: str) -> None:
        """Write down that an epoch is published, in the transaction that publishes it."""
        if marker is not None:
            self._write(connection, epoch, digest)
            return
        context = self.publisher.context
        connection.execute(
            self._sql(
                "INSERT INTO {} (job, job_id, sink_id, target, epoch, generation, owner, digest) VALUES (%s, %s, %s, "
                "%s, %s, %s, %s, %s)"
            ),
            [context.job, *self._key, self.place, epoch, context.generation, self.publisher.owner, digest],
        )

    def _write(self, connection: psycopg.Connection[Any], epoch: int, digest: str) -> None:
        connection.execute(
            self._sql(
                "UPDATE {} SET epoch = %s, generation = %s, owner = %s, target = %s, digest = %s, changed_at = now() "
                "WHERE job_id = %s AND sink_id = %s"
            ),
            [epoch, self.publisher.context.generation, self.publisher.owner, self.place, digest, *self._key],
        )

    def _check_alone(self, connection: psycopg.Connection[Any]) -> None:
        """Refuse a job that starts anew beside what it has written from another store."""
        context = self.publisher.context
        same = [context.job, self.place, context.job_id]
        where = "WHERE job = %s AND target = %s AND job_id <> %s"
        # Starts that have published nothing are in nobody's way, and must not publish later.
        connection.execute(self._sql(f"DELETE FROM {{}} {where} AND epoch = 0"), same)  # noqa: S608
        row = connection.execute(self._sql(f"SELECT job_id, epoch FROM {{}} {where} LIMIT 1"), same).fetchone()  # noqa: S608
        if row is not None:
            raise JobError(
                f"{self.publisher.name}: job {context.job!r} has written to {self.place} before, from another store "  # noqa: S608
                f"(up to epoch {row[1]}), and starts anew now: it would write the same rows again. Go on with that "
                f"store. To start over, empty {self.place} and DELETE FROM {self.table} WHERE job_id = '{row[0]}'; to "
                "write over what is there, pass again=True to the sink"
            )

    @property
    def _key(self) -> list[str]:
        return [self.publisher.context.job_id, self.publisher.context.sink_id]

    def _sql(self, text: str, lock: bool = False) -> bytes:
        return (text.format(quoted_table(self.table).replace("%", "%%")) + (" FOR UPDATE" if lock else "")).encode()
