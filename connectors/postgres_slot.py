"""What a database keeps for one reader of a table's changes: a publication, a slot, and a copy of the rows there were.

The slot and the copy are of one moment: the copy is made in the snapshot that the slot exports. It is an own table, so
that reading it can go on where it was after any crash, which a snapshot cannot. Its comment says how far things are:

* ``begun TOKEN``: nothing that was read is part of a checkpoint; all is made anew by the next start.
* ``used TOKEN``: a checkpoint holds a position in it.

Once a checkpoint holds a position behind the copy it is dropped, and the slot alone is left.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from millstream.connectors.postgres_catalog import TableFacts
from millstream.connectors.postgres_connection import Server, quoted_table
from millstream.engine.errors import JobError
from millstream.engine.failpoints import hit
from millstream.engine.store.columns import literal, quote

if TYPE_CHECKING:
    import psycopg

TEXT_SETTINGS: Final = (
    "-c timezone=UTC -c datestyle=ISO -c bytea_output=hex -c extra_float_digits=1 -c intervalstyle=postgres "
    "-c statement_timeout=0"
)
"""In which form a replication connection writes values."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One reader of one table's changes; ``name`` is of the slot, ``copied`` whether rows there were are read first."""

    server: Server
    facts: TableFacts
    name: str
    publication: str | None
    copied: bool

    @property
    def published(self) -> str:
        """The publication that is read."""
        return self.publication or self.name

    @property
    def copy(self) -> str:
        """The copy's name as SQL."""
        schema = self.facts.place.split(".", 1)[0]
        return f"{quote(schema)}.{quote(f'{self.name}_copy')}"

    def lsn(self, connection: psycopg.Connection[Any]) -> int | None:
        """Return up to where the server may have forgotten changes; None: there is no slot."""
        row = connection.execute(
            b"SELECT confirmed_flush_lsn - '0/0'::pg_lsn, database = current_database() FROM pg_replication_slots "
            b"WHERE slot_name = %s",
            [self.name],
        ).fetchone()
        if row is None:
            return None
        if not row[1]:
            raise JobError(f"replication slot {self.name!r} is of another database: give this one another name")
        return int(row[0])

    def state(self, connection: psycopg.Connection[Any]) -> str | None:
        """Return the copy's comment; None: there is no copy."""
        row = connection.execute(
            b"SELECT coalesce(obj_description(to_regclass(%s)), ''), to_regclass(%s)", 2 * [self.copy]
        )
        found = row.fetchone()
        return None if found is None or found[1] is None else str(found[0])

    def make(self, connection: psycopg.Connection[Any], replication: psycopg.Connection[Any]) -> tuple[int, str]:
        """Make everything anew.

        Returns:
            Where changes begin, and the copy's token.

        Raises:
            JobError: the slot is another reader's.
        """
        self._clear(connection)
        token = uuid.uuid4().hex
        connection.execute(f"CREATE TABLE {self.copy} ()".encode())
        self.say(connection, f"begun {token}")
        self._publish(connection)
        hit("postgres.copying")
        made = replication.execute(
            f"CREATE_REPLICATION_SLOT {quote(self.name)} LOGICAL pgoutput EXPORT_SNAPSHOT".encode()
        ).fetchone()
        assert made is not None
        if self.copied:
            self._fill(connection, str(made[2]), f"begun {token}")
        high, _, low = str(made[1]).partition("/")
        return int(high, 16) << 32 | int(low, 16), token

    def say(self, connection: psycopg.Connection[Any], state: str) -> None:
        """Write down how far things are."""
        connection.execute(f"COMMENT ON TABLE {self.copy} IS {literal(state)}".encode())

    def drop_copy(self, connection: psycopg.Connection[Any]) -> None:
        """Remove the copy: nobody will read in it again."""
        connection.execute(f"DROP TABLE IF EXISTS {self.copy}".encode())

    def page(self, columns: str, after: int, count: int) -> bytes:
        """Return the query for rows of the copy by number."""
        inner = f"SELECT {columns}, t.{quote(NUMBER)}::text FROM {self.copy} t WHERE t.{quote(NUMBER)} > {after}"  # noqa: S608
        return f"COPY ({inner} ORDER BY t.{quote(NUMBER)} LIMIT {count}) TO STDOUT (FORMAT csv)".encode()

    def _clear(self, connection: psycopg.Connection[Any]) -> None:
        lsn, state = self.lsn(connection), self.state(connection)
        if (lsn is not None or state is not None) and not str(state).startswith("begun "):
            raise JobError(
                f"replication slot {self.name!r} exists: another job reads it, or this one has done so with another "
                "store. Go on with that store; give this source another slot=; or, to start over, remove what is left: "
                f"SELECT pg_drop_replication_slot('{self.name}'); DROP TABLE IF EXISTS {self.copy}"
            )
        if lsn is not None:
            connection.execute(b"SELECT pg_drop_replication_slot(%s)", [self.name])
        self.drop_copy(connection)

    def _publish(self, connection: psycopg.Connection[Any]) -> None:
        schema, table = self.facts.place.split(".", 1)
        found = connection.execute(
            b"SELECT bool_or(t.schemaname = %s AND t.tablename = %s), bool_and(p.pubinsert AND p.pubupdate AND "
            b"p.pubdelete AND p.pubtruncate) FROM pg_publication p LEFT JOIN pg_publication_tables t USING (pubname) "
            b"WHERE p.pubname = %s HAVING count(*) > 0",
            [schema, table, self.published],
        ).fetchone()
        if found is None and self.publication is None:
            connection.execute(
                f"CREATE PUBLICATION {quote(self.published)} FOR TABLE {quoted_table(self.facts.place)}".encode()
            )
        elif found != (True, True):
            raise JobError(
                f"publication {self.published!r} does not publish every kind of change of {self.facts.place}: CREATE "
                f"PUBLICATION {quote(self.published)} FOR TABLE {self.facts.place}"
            )

    def _fill(self, connection: psycopg.Connection[Any], snapshot: str, state: str) -> None:
        number = quote(NUMBER)
        with connection.transaction():
            connection.execute(b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            connection.execute(f"SET TRANSACTION SNAPSHOT {literal(snapshot)}".encode())
            connection.execute(f"DROP TABLE {self.copy}".encode())
            connection.execute(
                f"CREATE TABLE {self.copy} AS SELECT row_number() OVER () AS {number}, t.* FROM "  # noqa: S608
                f"{quoted_table(self.facts.place)} t".encode()
            )
            connection.execute(f"ALTER TABLE {self.copy} ADD PRIMARY KEY ({number})".encode())
            self.say(connection, state)
        hit("postgres.copied")


NUMBER: Final = "$millstream"
"""The copy's column with the rows' numbers, from 1."""
