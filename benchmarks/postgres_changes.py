"""Changes out of PostgreSQL by logical replication: as columns, and beside it by psycopg, which drops what it reads.

``python -m millstream.benchmarks.postgres_changes --dsn postgresql://…`` makes a table and a slot, inserts rows of five
columns, and updates and deletes some of them. ``plain`` receives the messages of the replication stream and looks at
nothing but their kind. ``source`` is ``ms.postgres_changes``, which makes columns and weights of them. The slot is not
told how far they are, so both read all of it in turns, and both count the rows of the changelog. The server needs
``wal_level = logical``.
"""

from __future__ import annotations

import time
import uuid
from contextlib import closing
from dataclasses import dataclass
from select import select
from typing import Final

import click
import millstream as ms
import psycopg
import pyarrow as pa
from millstream.benchmarks.beside import in_turns, show
from millstream.connectors.postgres_changed_rows import ROWS
from millstream.connectors.postgres_pgoutput import DATA, KIND
from millstream.engine.runtime.scheduler import POLL_SECONDS
from millstream.engine.source import DeadLetter, Position, ReadContext, Source, SplitReader
from psycopg.conninfo import make_conninfo

_COLUMNS: Final = "id bigint, customer text, amount double precision, price numeric(10, 2), at timestamptz"
_ROWS: Final = "SELECT n, 'customer-' || n % 10000, random(), n % 1000000 / 100.0, now() FROM generate_series({}, {}) n"


@dataclass(frozen=True)
class Changes:
    """A table and what happens to it.

    Attributes:
        inserted: rows inserted, of which every fourth is updated and every eighth deleted.
        at_once: rows inserted in a transaction.
    """

    dsn: str
    table: str
    inserted: int
    at_once: int

    @property
    def rows(self) -> int:
        """How many rows the changelog has."""
        return self.inserted + 2 * (self.inserted // 4) + self.inserted // 8

    def execute(self, *statements: str) -> None:
        """Run statements, each in a transaction of its own."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def make(self) -> None:
        """Make the table and its publication."""
        self.execute(
            f"CREATE TABLE {self.table} ({_COLUMNS})",
            f"ALTER TABLE {self.table} REPLICA IDENTITY FULL",
            f"CREATE PUBLICATION {self.table} FOR TABLE {self.table}",
        )

    def happen(self) -> None:
        """Change the table."""
        self.execute(
            *(
                f"INSERT INTO {self.table} {_ROWS.format(start + 1, min(self.inserted, start + self.at_once))}"
                for start in range(0, self.inserted, self.at_once)
            ),
            f"UPDATE {self.table} SET amount = 0 WHERE id % 4 = 0",  # noqa: S608
            f"DELETE FROM {self.table} WHERE id % 8 = 0",  # noqa: S608
        )

    def drop(self) -> None:
        """Remove everything."""
        self.wait()
        mine = f"slot_name = '{self.table}'"
        self.execute(
            f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE {mine}",  # noqa: S608
            f"DROP PUBLICATION IF EXISTS {self.table}",
            f"DROP TABLE IF EXISTS {self.table}",
        )

    def wait(self) -> None:
        """Wait until nobody reads the slot."""
        query = f"SELECT 1 FROM pg_replication_slots WHERE active AND slot_name = '{self.table}'"  # noqa: S608
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while connection.execute(query.encode()).fetchall():
                time.sleep(0.01)

    def source(self) -> Source:
        """Return the source."""
        return ms.postgres_changes(self.dsn, self.table, slot=self.table, publication=self.table, snapshot=False)


def plain(changes: Changes) -> None:
    """Receive the changes with psycopg alone."""
    changes.wait()
    way = make_conninfo(changes.dsn, replication="database")
    with closing(psycopg.connect(way, autocommit=True)) as link:
        options = f"(proto_version '1', publication_names '{changes.table}')"
        link.execute(f"START_REPLICATION SLOT {changes.table} LOGICAL 0/0 {options}".encode())
        left = changes.rows
        while left > 0:
            select([link.pgconn.socket], [], [])
            link.pgconn.consume_input()
            while (got := link.pgconn.get_copy_data(1))[0] > 0:
                message = bytes(got[1])
                if message[0] == DATA:
                    left -= ROWS.get(message[KIND], 0)


def read(changes: Changes, start: Position) -> None:
    """Read them with the source."""
    changes.wait()
    reader = opened(changes, start)
    left = changes.rows
    while left > 0:
        got = reader.read()
        if isinstance(got, pa.RecordBatch):
            left -= got.num_rows
        else:
            time.sleep(POLL_SECONDS)
    reader.close()


def opened(changes: Changes, start: Position) -> SplitReader:
    """Return a reader of the source; at its first reading it makes the slot, if it is to start anew."""
    source = changes.source()
    reader = source.open(source.discover()[0], start, ReadContext(_no_letters))
    assert isinstance(reader, SplitReader)
    return reader


def _no_letters(letter: DeadLetter) -> None:
    raise click.ClickException(f"a change cannot be read: {letter}")


@click.command()
@click.option("--dsn", required=True, help="A database where tables and slots may be made.")
@click.option("--rows", type=click.IntRange(min=8), default=200_000, show_default=True, help="Inserted.")
@click.option("--at-once", type=click.IntRange(min=1), default=1_000, show_default=True, help="In a transaction.")
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True)
def main(dsn: str, rows: int, at_once: int, runs: int) -> None:
    """Measure reading changes from PostgreSQL, beside psycopg alone."""
    changes = Changes(dsn, f"millstream_benchmark_{uuid.uuid4().hex[:8]}", rows, at_once)
    changes.make()
    try:
        making = opened(changes, None)
        while making.position() is None:
            making.read()
        start = making.position()
        making.close()
        changes.happen()
        best = in_turns({"plain": lambda _: plain(changes), "source": lambda _: read(changes, start)}, runs)
    finally:
        changes.drop()
    click.echo(
        f"{rows:,} rows inserted, {at_once:,} in a transaction, {changes.rows:,} rows of changes, best of {runs}"
    )
    show("rows", changes.rows, best)


if __name__ == "__main__":
    main()
