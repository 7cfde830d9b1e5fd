"""Writes rows to a table of a DuckDB file, each exactly once: upserts by key, or plain appends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa
from millstream.connectors.duckdb_committer import DuckDBCommitter, Target
from millstream.connectors.outbox import Generations, OutboxWriter, check_keys, outbox_table, plain_schema, read_keys
from millstream.engine.changelog import unweighted
from millstream.engine.errors import SchemaError
from millstream.engine.sink import Committer, Sink, SinkContext, SinkKind, SinkWriter
from millstream.engine.state import StateTable
from millstream.engine.store.columns import quote
from millstream.engine.time import Duration, micros


def duckdb_sink(
    path: str | Path,
    table: str,
    *,
    key: str | Sequence[str] | None = None,
    mode: Literal["upsert", "append"] | None = None,
    again: bool = False,
    patience: Duration = "30s",
    name: str | None = None,
) -> DuckDBSink:
    """Write rows to a table of a DuckDB file, exactly once.

    The rows of an epoch wait in the checkpoint. After it is committed they are written, together with the epoch's
    number in the table ``millstream_progress``, in one transaction. The file is open only for that moment, so that
    other processes may read it in between.

    Args:
        path: the file; made if it is not there. Not the job's checkpoint store.
        table: made if it is not there.
        key: the columns that tell rows apart; the table needs no index on them.
        mode: ``upsert``: a row replaces the one with its key, and a changelog may take it away; ``append``: rows are
            added. None: upsert if there is a key.
        again: the job may start anew over what it has written from another store.
        patience: how long to wait for another process that has the file open, before the job restarts.

    Raises:
        JobError: an argument makes no sense.

    >>> duckdb_sink("shop.duckdb", "orders", key="id")
    DuckDBSink(duckdb:shop.duckdb:orders)
    """
    keys = read_keys("duckdb_sink()", key, mode)
    quote(table)
    target = Target(Path(path), Path.cwd(), table, keys, again, micros(patience) / 1_000_000)
    return DuckDBSink(target, name or f"duckdb:{path}:{table}")


@dataclass(frozen=True, repr=False)
class DuckDBSink(Sink):
    """A table of a DuckDB file; made by ``duckdb_sink``."""

    target: Target
    given_name: str
    _generations: Generations = field(default_factory=Generations, compare=False)

    def __repr__(self) -> str:
        return f"DuckDBSink({self.name})"

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.given_name

    def identity(self) -> str:
        """Text that changes exactly when it is another destination."""
        return f"duckdb {str(self.target.path)!r} {self.target.table!r} by {list(self.target.keys)!r}"

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
        names = [name.lower() for name in schema.names]
        for position, column in enumerate(names):
            if column in names[:position]:
                raise SchemaError(
                    f"{self.name}: DuckDB takes no difference between upper and lower case, and two columns are called "
                    f"{column!r}: rename one of them before"
                )
        for column in plain_schema(unweighted(schema)):
            try:
                duckdb_type(column.type)
            except duckdb.Error:
                raise SchemaError(
                    f"{self.name}: column {column.name!r} is {column.type}, for which DuckDB has no type: leave it out "
                    "before, or make another type of it"
                ) from None

    def writer(self, schema: pa.Schema, context: SinkContext) -> SinkWriter:
        """Make one running copy."""
        return OutboxWriter(
            self.name, schema, self.target.keys, context, self._generations.of(context), lambda rows: rows
        )

    def committer(self, schema: pa.Schema, context: SinkContext) -> Committer:
        """Make the committer.

        Raises:
            ExternalError: another process has the file open for too long.
            SchemaError: the table does not fit.
            JobError: the file is ahead of the store, has rows of this job from another store, or is the store.
        """
        rows = plain_schema(unweighted(schema))
        types = {column.name: duckdb_type(column.type) for column in rows}
        return DuckDBCommitter(self.name, self.target, types, context, self._generations.of(context))

    def state_tables(self, schema: pa.Schema) -> tuple[StateTable, ...]:
        """Declare what is kept of epochs."""
        del schema
        return (outbox_table(),)

    def folders(self) -> tuple[str, ...]:
        """The file."""
        return (str(self.target.resolved()),)

    def guarantee(self) -> str:
        """One sentence for the plan."""
        return "exactly once: rows wait in the checkpoint and are written with the epoch's number in one transaction"


def duckdb_type(type_: pa.DataType) -> str:
    """Return DuckDB's name for the type in which it reads an Arrow column.

    >>> duckdb_type(pa.list_(pa.int32())), duckdb_type(pa.timestamp("us", "UTC"))
    ('INTEGER[]', 'TIMESTAMP WITH TIME ZONE')
    """
    rows: Any = pa.schema([("c", type_)]).empty_table()
    with duckdb.connect() as connection:
        return str(connection.from_arrow(rows).types[0])
