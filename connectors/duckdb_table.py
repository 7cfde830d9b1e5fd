"""A table of a DuckDB file, to look rows up in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
from millstream.engine.errors import ExternalError, JobError
from millstream.engine.lookup import LookupTable
from millstream.engine.store.columns import quote


def duckdb_table(path: str | Path, table: str) -> LookupTable:
    """Return a table (or view) of a DuckDB file, for ``stream.lookup``.

    The file is opened, read-only, for each lookup and closed again, so that another process may write to it in between.

    Raises:
        JobError: the file cannot be read, or has no such table.

    >>> import duckdb, tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "ref.duckdb"
    >>> with duckdb.connect(file) as connection:
    ...     _ = connection.execute("create table customers as select 1::bigint as id, 'Ann' as name")
    >>> duckdb_table(file, "customers").schema.names
    ['id', 'name']
    """
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            connection.execute("SET timezone = 'UTC'")
            schema = connection.sql(f"SELECT * FROM {quote(table)} LIMIT 0").to_arrow_table().schema  # noqa: S608
    except duckdb.Error as error:
        raise JobError(
            f"duckdb_table({str(path)!r}, {table!r}): {error}. Name a DuckDB file that is there, that no process is "
            "writing to, and a table of it"
        ) from error
    return _DuckDBTable(str(path), table, schema)


@dataclass(frozen=True)
class _DuckDBTable(LookupTable):
    path: str
    table: str
    columns: pa.Schema

    @property
    def name(self) -> str:
        """The table and its file."""
        return f"{self.table} of {self.path}"

    @property
    def schema(self) -> pa.Schema:
        """The columns it had when the job was made."""
        return self.columns

    def identity(self) -> str:
        """Which table of which file."""
        return f"duckdb_table({self.path!r}, {self.table!r})"

    def fetch(self, keys: pa.RecordBatch, columns: list[str]) -> pa.Table:
        """As ``LookupTable.fetch``. Raises ExternalError if the file cannot be read now."""
        wanted = ", ".join(f"t.{quote(name)}" for name in columns)
        equal = " AND ".join(f"t.{quote(name)} = k.{quote(name)}" for name in keys.schema.names)
        try:
            with duckdb.connect(self.path, read_only=True) as connection:
                connection.execute("SET threads = 1")
                connection.execute("SET timezone = 'UTC'")
                connection.register("millstream_keys", pa.Table.from_batches([keys]))
                sql = f"SELECT {wanted} FROM {quote(self.table)} t SEMI JOIN millstream_keys k ON {equal}"  # noqa: S608
                return connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise ExternalError(f"table {self.table!r} of {self.path} could not be read: {error}") from error
