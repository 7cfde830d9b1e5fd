"""Reads the changes of a PostgreSQL table as a changelog: logical replication, after the rows there were."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from millstream.connectors.postgres_catalog import Column, TableFacts, check_encoding, look_up
from millstream.connectors.postgres_changes_reader import ChangesReader
from millstream.connectors.postgres_connection import Server, blame_server
from millstream.connectors.postgres_slot import Slot
from millstream.connectors.postgres_values import schema_of
from millstream.engine.changelog import WEIGHT, weighted
from millstream.engine.errors import JobError
from millstream.engine.expression import Expr
from millstream.engine.source import Position, ReadContext, Source, Split, SplitReader
from millstream.engine.time import Duration, micros

if TYPE_CHECKING:
    import psycopg

_SLOT: Final = re.compile(r"[a-z0-9_]{1,63}")
_IDENTITY: Final = b"SELECT relreplident, relkind FROM pg_class WHERE oid = %s"


def postgres_changes(
    dsn: str,
    table: str,
    *,
    slot: str,
    publication: str | None = None,
    snapshot: bool = True,
    patience: Duration = "30s",
    name: str | None = None,
) -> PostgresChanges:
    """Read a table of PostgreSQL and all that happens to it, as a changelog.

    First come the rows there are, then every change from that moment on, by logical replication (pgoutput): a row that
    comes with weight +1, one that goes with -1, one that changes with both. Each change comes once, also after crashes:
    the server keeps its log until a checkpoint holds what was read of it.

    Args:
        dsn: as for ``postgres_sink``; the role needs the attribute REPLICATION.
        table: its name. ``ALTER TABLE … REPLICA IDENTITY FULL`` must have been said, so that the server tells what
        goes. slot: names what the server keeps for this reader: one job's one source. Small letters, digits and
        underscores. publication: one that has the table; None: one of the slot's name is made.
        snapshot: whether rows there are come first. They are copied into a table beside it until they are read.
        patience: how long the server may be away while the source waits, before the job restarts.

    Raises:
        JobError: there is no such table, or its changes cannot be read.
        ExternalError: the server is away.
    """
    what = f"postgres_changes({table!r})"
    if not _SLOT.fullmatch(slot) or len(slot) > 58:
        raise JobError(f"{what}: slot must be made of up to 58 small letters, digits and underscores, got {slot!r}")
    server = Server(dsn)
    with blame_server(what, f"looking at table {table}"), server.connect("millstream check", autocommit=True) as link:
        check_encoding(link, what)
        facts = look_up(link, table)
        if facts is None:
            raise JobError(f"{what}: there is no such table in {server.shown()}")
        _check(what, link, facts)
    # Replication writes arrays as text that JSON cannot read; the copy must read the same.
    columns = tuple(replace(c, type="array") if c.type.startswith("_") else c for c in facts.columns)
    made = Slot(server, replace(facts, columns=columns), slot, publication, snapshot)
    wanted = tuple(column.name for column in columns)
    return PostgresChanges(made, wanted, micros(patience) / 1_000_000, name or f"postgres:{server.shown()}:{table}")


def _check(what: str, link: psycopg.Connection[Any], facts: TableFacts) -> None:
    row = link.execute(_IDENTITY, [facts.oid]).fetchone()
    assert row is not None
    if row[1] != "r":
        raise JobError(f"{what}: {facts.place} is no plain table, and only of those changes are read")
    if row[0] != "f":
        raise JobError(
            f"{what}: the server does not tell what goes from {facts.place}: ALTER TABLE {facts.place} REPLICA "
            "IDENTITY FULL"
        )
    level = link.execute(b"SHOW wal_level").fetchone()
    if level != ("logical",):
        raise JobError(f"{what}: the server does not log what this needs: set wal_level = logical and restart it")


@dataclass(frozen=True)
class PostgresChanges(Source):
    """The changes of a table; made by ``postgres_changes``. ``patience`` in seconds."""

    slot: Slot
    wanted: tuple[str, ...]
    patience: float
    given_name: str

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.given_name

    def identity(self) -> str:
        """Text that changes exactly when it is another source."""
        return f"postgres changes {self.slot.server.shown()!r} {self.slot.facts.place!r} by {self.slot.name!r}"

    @property
    def columns(self) -> tuple[Column, ...]:
        """What is read."""
        return tuple(column for column in self.slot.facts.columns if column.name in self.wanted)

    @property
    def schema(self) -> pa.Schema:
        """The columns it yields, the weight last."""
        return weighted(schema_of(self.columns))

    @property
    def bounded(self) -> bool:
        """It does not end."""
        return False

    def discover(self) -> Sequence[Split]:
        """One split: changes have one order."""
        return [Split("changes")]

    def open(self, split: Split, position: Position, context: ReadContext) -> SplitReader:
        """Open it; what it needs in the database is looked at, or made, when it is first read."""
        del split
        return ChangesReader(self.name, self.slot, self.columns, position, context.batch_rows, self.patience)

    def pushed_down(self, columns: frozenset[str], predicate: Expr | None, event_time: str | None) -> Source:
        """Keep only the columns that somebody wants."""
        del predicate, event_time
        wanted = tuple(name for name in self.wanted if name in columns - {WEIGHT})
        return replace(self, wanted=wanted or self.wanted[:1])

    def guarantee(self) -> str:
        """One sentence for the plan."""
        return "replayable: the server keeps its log until a checkpoint holds what was read of it"
