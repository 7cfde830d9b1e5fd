"""A table of PostgreSQL, to look rows up in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from millstream.connectors.postgres_catalog import Column, TableFacts, check_encoding, look_up
from millstream.connectors.postgres_connection import Server, blame_server, persistently, quoted_table
from millstream.connectors.postgres_fit import fits_type
from millstream.connectors.postgres_text import UUID, array_literal
from millstream.connectors.postgres_values import SESSION, TableReader, schema_of
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.lookup import LookupTable
from millstream.engine.store.columns import literal, quote
from millstream.engine.time import Duration, micros

if TYPE_CHECKING:
    import psycopg

_COMPARED: Final = frozenset(
    {"int2", "int4", "int8", "numeric", "bool", "text", "varchar", "bpchar", "uuid", "bytea", "date", "time"}
    | {"timestamp", "timestamptz"}
)


def postgres_table(dsn: str, table: str, *, patience: Duration = "10s") -> LookupTable:
    """Return a table (or view) of PostgreSQL, for ``stream.lookup``.

    The distinct keys of a batch go to the server in one query; an index on them makes it fast.

    Args:
        dsn: as for ``postgres_sink``.
        table: its name, with its schema before a dot if it is not in the search path.
        patience: how long to try again while the server is away, before the job restarts.

    Raises:
        JobError: there is no such table.
        ExternalError: the server is away.
    """
    server, what = Server(dsn), f"postgres_table({table!r})"
    with blame_server(what, f"looking at table {table}"), server.connect("millstream check", autocommit=True) as link:
        check_encoding(link, what)
        facts = look_up(link, table)
    if facts is None:
        raise JobError(f"{what}: there is no such table in {server.shown()}")
    return _PostgresTable(server, table, facts, micros(patience) / 1_000_000)


@dataclass(frozen=True)
class _Idle:
    """Connections that nobody uses now: subtasks ask at the same time."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    connections: list[Any] = field(default_factory=list)

    def take(self) -> psycopg.Connection[Any] | None:
        with self.lock:
            return self.connections.pop() if self.connections else None

    def put(self, connection: psycopg.Connection[Any]) -> None:
        with self.lock:
            self.connections.append(connection)

    def __del__(self) -> None:
        for connection in self.connections:
            connection.close()


@dataclass(frozen=True)
class _PostgresTable(LookupTable):
    server: Server
    table: str
    facts: TableFacts
    patience: float
    _idle: _Idle = field(default_factory=_Idle, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The table and its database."""
        return f"{self.table} of {self.server.shown()}"

    @property
    def schema(self) -> pa.Schema:
        """The columns it had when the job was made."""
        return schema_of(self.facts.columns)

    def identity(self) -> str:
        """Which table of which database."""
        return f"postgres_table({self.server.shown()!r}, {self.table!r})"

    def fetch(self, keys: pa.RecordBatch, columns: list[str]) -> pa.Table:
        """As ``LookupTable.fetch``. Raises ExternalError if the server is away for too long."""
        reader = TableReader(self.name, tuple(self._column(name) for name in columns))
        query = self._query(keys, reader)
        with blame_server(f"table {self.name}", "looking rows up"):
            return reader.rows(persistently(lambda: self._copied(query), self.name, self.patience))

    def _query(self, keys: pa.RecordBatch, reader: TableReader) -> bytes:
        wanted = [self._column(name) for name in keys.schema.names]
        for column, array in zip(wanted, keys.columns, strict=True):
            if column.type not in _COMPARED or not fits_type(array.type, column):
                raise SchemaError(
                    f"table {self.name}: rows cannot be looked up by {column.name!r}: it is {column.declared}, and the "
                    f"keys are {array.type}; cast the keys before"
                )
        keys = _comparable(keys, wanted)
        lists = ", ".join(
            f"{literal(array_literal(array))}::{column.type}[]"
            for column, array in zip(wanted, keys.columns, strict=True)
        )
        names = ", ".join(f"k{index}" for index in range(len(wanted)))
        equal = " AND ".join(f"t.{quote(column.name)} = k.k{index}" for index, column in enumerate(wanted))
        source = f"{quoted_table(self.facts.place)} t JOIN unnest({lists}) k({names}) ON {equal}"
        return f"COPY (SELECT {reader.selected('t.')} FROM {source}) TO STDOUT (FORMAT csv)".encode()  # noqa: S608

    def _column(self, name: str) -> Column:
        column = self.facts.column(name)
        assert column is not None, f"{name} is of the schema"
        return column

    def _copied(self, query: bytes) -> bytes:
        with self._connected() as connection, connection.cursor() as cursor, cursor.copy(query) as copy:
            return b"".join(bytes(part) for part in copy)

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        connection = self._idle.take()
        if connection is None:
            connection = self.server.connect("millstream lookup", autocommit=True)
            connection.execute(SESSION)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.put(connection)


def _comparable(keys: pa.RecordBatch, columns: list[Column]) -> pa.RecordBatch:
    """Leave out texts that no row can have, and that the server would not even compare."""
    possible = pa.repeat(True, keys.num_rows)
    for column, array in zip(columns, keys.columns, strict=True):
        if column.type == "uuid":
            possible = pc.and_(possible, pc.match_substring_regex(array, UUID))
        elif column.type in ("text", "varchar", "bpchar"):
            possible = pc.and_(possible, pc.invert(pc.match_substring(array, "\0")))
    return keys.filter(possible)
