"""Publishes epochs in a DuckDB file: rows and marker in one transaction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from millstream.connectors.duckdb_file import opened, refuse_store
from millstream.connectors.outbox import Sent, settle, unpack
from millstream.connectors.outbox_marker import Marker, Publisher
from millstream.engine.changelog import WEIGHT, is_changelog, unweighted
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.failpoints import hit
from millstream.engine.sink import Committable, Committer, SinkContext
from millstream.engine.store.columns import quote

_PROGRESS: Final = "millstream_progress"
_MAKE_PROGRESS: Final = f"""
    CREATE TABLE IF NOT EXISTS {_PROGRESS} (job VARCHAR NOT NULL, job_id VARCHAR NOT NULL, sink_id VARCHAR NOT NULL,
        target VARCHAR NOT NULL, epoch BIGINT NOT NULL, generation BIGINT NOT NULL, owner VARCHAR NOT NULL,
        digest VARCHAR DEFAULT '')"""
_WIDER: Final = {
    "TINYINT": {"SMALLINT", "INTEGER", "BIGINT", "HUGEINT"},
    "SMALLINT": {"INTEGER", "BIGINT", "HUGEINT"},
    "INTEGER": {"BIGINT", "HUGEINT"},
    "BIGINT": {"HUGEINT"},
    "UTINYINT": {"USMALLINT", "UINTEGER", "UBIGINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UHUGEINT"},
    "USMALLINT": {"UINTEGER", "UBIGINT", "INTEGER", "BIGINT", "HUGEINT", "UHUGEINT"},
    "UINTEGER": {"UBIGINT", "BIGINT", "HUGEINT", "UHUGEINT"},
    "UBIGINT": {"HUGEINT", "UHUGEINT"},
    "FLOAT": {"DOUBLE"},
    "TIMESTAMP_S": {"TIMESTAMP_MS", "TIMESTAMP", "TIMESTAMP_NS"},
}
_DECIMAL: Final = re.compile(r"DECIMAL\((\d+),(\d+)\)")


@dataclass(frozen=True)
class Target:
    """Where rows go to and how; ``home`` is the folder that a relative path starts from, ``patience`` in seconds."""

    path: Path
    home: Path
    table: str
    keys: tuple[str, ...]
    again: bool
    patience: float

    def resolved(self) -> Path:
        """Return the file's whole path."""
        return (self.home / self.path).resolve()


class DuckDBCommitter(Committer):
    """One start of a job towards one table.

    Args:
        types: of the rows' columns, as DuckDB calls them.
    """

    def __init__(self, name: str, target: Target, types: Mapping[str, str], context: SinkContext, sent: Sent) -> None:
        self._name = name
        self._target = target
        self._types = dict(types)
        self._sent = sent
        self._context = context
        self._publisher = Publisher(name, f"{target.table} of {target.path}", context)
        refuse_store(target.resolved(), context.store, name)
        with opened(target.resolved(), name, read_only=False, patience=target.patience) as connection:
            connection.begin()
            self._check_table(connection)
            self._registered = self._register(connection)
            connection.commit()

    def commit(self, epoch: int, committables: Sequence[Committable]) -> None:
        """Publish an epoch, unless that has been done.

        Raises:
            ExternalError: another process has the file open for too long, or the disk failed.
            JobError: DuckDB refuses the rows, or this start of the job must not write.
        """
        if not committables:
            return
        letter = unpack(committables)
        rows = settle(letter.rows, self._target.keys)
        with opened(self._target.resolved(), self._name, read_only=False, patience=self._target.patience) as connection:
            connection.begin()
            marker = self._read(connection)
            publisher, registered = self._publisher, self._registered
            if publisher.must_publish(marker, epoch, letter.after, letter.digest, registered=registered):
                self._write(connection, rows)
                self._mark(connection, marker, epoch, letter.digest)
                hit("duckdb.written")
            connection.commit()
        self._registered = True
        self._sent.note(epoch)
        hit("duckdb.visible")

    def _write(self, connection: duckdb.DuckDBPyConnection, rows: pa.Table) -> None:
        table, columns = quote(self._target.table), unweighted(rows.schema).names
        all_ = ", ".join(map(quote, columns))
        connection.register("millstream_rows", rows)
        if not self._target.keys:
            connection.execute(f"INSERT INTO {table} ({all_}) SELECT {all_} FROM millstream_rows")  # noqa: S608
            return
        equal = " AND ".join(f"t.{quote(key)} = s.{quote(key)}" for key in self._target.keys)
        others = [f"{quote(name)} = s.{quote(name)}" for name in columns if name not in self._target.keys]
        own = ", ".join(f"s.{quote(name)}" for name in columns)
        if is_changelog(rows.schema):
            gone = rows.filter(pc.less(rows[WEIGHT], 0))
            connection.register("millstream_gone", gone)
            connection.execute(f"DELETE FROM {table} t USING millstream_gone s WHERE {equal}")  # noqa: S608
            connection.register("millstream_rows", rows.filter(pc.greater(rows[WEIGHT], 0)))
        change = f"WHEN MATCHED THEN UPDATE SET {', '.join(others)} " if others else ""
        connection.execute(
            f"MERGE INTO {table} t USING millstream_rows s ON {equal} {change}"  # noqa: S608
            f"WHEN NOT MATCHED THEN INSERT ({all_}) VALUES ({own})"
        )

    # -- the table ---------------------------------------------------------------------------------------------------

    def _check_table(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Make the table, or check that no value loses anything in it. Raises SchemaError if one would."""
        target = self._target
        found = connection.execute(
            "SELECT column_name, data_type, is_nullable OR column_default IS NOT NULL FROM duckdb_columns() "
            "WHERE table_name = ? AND schema_name = current_schema() AND database_name = current_database()",
            [target.table],
        ).fetchall()
        if not found:
            columns = ", ".join(f"{quote(name)} {type_}" for name, type_ in self._types.items())
            connection.execute(f"CREATE TABLE {quote(target.table)} ({columns})")
            return
        there = {name.lower(): (type_, optional) for name, type_, optional in found}
        for name, type_ in self._types.items():
            into = there.get(name.lower())
            if into is None:
                columns = ", ".join(row[0] for row in found)
                raise SchemaError(f"{self._name}: the table has no column {name!r}, but: {columns}")
            if not keeps(into[0], type_):
                raise SchemaError(
                    f"{self._name}: column {name!r} is {type_}, which does not go into {into[0]} of the table without "
                    "loss; cast it before, or change the table"
                )
        missing = [name for name, _, optional in found if not optional and name not in self._types]
        if missing:
            raise SchemaError(f"{self._name}: the table cannot do without {', '.join(missing)}")

    # -- the marker --------------------------------------------------------------------------------------------------

    def _register(self, connection: duckdb.DuckDBPyConnection) -> bool:
        connection.execute(_MAKE_PROGRESS)
        # A table that an earlier version has made has no such column.
        connection.execute(f"ALTER TABLE {_PROGRESS} ADD COLUMN IF NOT EXISTS digest VARCHAR DEFAULT ''")
        marker = self._read(connection)
        self._publisher.may_start(marker)
        if marker is None and self._context.restored:
            return False
        if marker is None and not self._target.again:
            self._check_alone(connection)
        self._mark(connection, marker, *((marker.epoch, marker.digest) if marker is not None else (0, "")))
        return True

    def _read(self, connection: duckdb.DuckDBPyConnection) -> Marker | None:
        row = connection.execute(
            f"SELECT epoch, generation, owner, digest FROM {_PROGRESS} WHERE job_id = ? AND sink_id = ?",  # noqa: S608
            self._key,
        ).fetchone()
        return None if row is None else Marker(*row)

    def _mark(self, connection: duckdb.DuckDBPyConnection, marker: Marker | None, epoch: int, digest: str) -> None:
        context, owner = self._context, self._publisher.owner
        if marker is not None:
            changed = "SET epoch = ?, generation = ?, owner = ?, digest = ?"
            connection.execute(
                f"UPDATE {_PROGRESS} {changed} WHERE job_id = ? AND sink_id = ?",
                [epoch, context.generation, owner, digest, *self._key],
            )
            return
        connection.execute(
            f"INSERT INTO {_PROGRESS} VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            [context.job, *self._key, self._target.table, epoch, context.generation, owner, digest],
        )

    @property
    def _key(self) -> list[str]:
        return [self._context.job_id, self._context.sink_id]

    def _check_alone(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Refuse a job that starts anew beside what it has written from another store."""
        same = [self._context.job, self._target.table, self._context.job_id]
        where = "WHERE job = ? AND target = ? AND job_id <> ?"
        connection.execute(f"DELETE FROM {_PROGRESS} {where} AND epoch = 0", same)  # noqa: S608
        found = connection.execute(f"SELECT job_id, epoch FROM {_PROGRESS} {where} LIMIT 1", same)  # noqa: S608
        row = found.fetchone()
        if row is not None:
            raise JobError(
                f"{self._name}: job {self._context.job!r} has written to this table before, from another store (up to "  # noqa: S608
                f"epoch {row[1]}), and starts anew now: it would write the same rows again. Go on with that store. To "
                f"start over, empty the table and DELETE FROM {_PROGRESS} WHERE job_id = '{row[0]}'; to write over "
                "what is there, pass again=True to the sink"
            )


def keeps(into: str, type_: str) -> bool:
    """Whether a DuckDB column keeps every value of another type.

    >>> keeps("BIGINT", "INTEGER"), keeps("INTEGER", "BIGINT"), keeps("DECIMAL(20,4)", "DECIMAL(18,2)")
    (True, False, True)
    """
    wide, narrow = _DECIMAL.fullmatch(into), _DECIMAL.fullmatch(type_)
    if wide and narrow:
        (p, s), (q, r) = ((int(m[1]), int(m[2])) for m in (wide, narrow))
        return s >= r and p - s >= q - r
    return into == type_ or into in _WIDER.get(type_, ())
