"""Answers SQL of people's: one SELECT, read-only, of a bounded size."""

from __future__ import annotations

import contextlib
from typing import Final

import duckdb
import pyarrow as pa
from millstream.engine.errors import JobError

MAX_RESULT_BYTES: Final = 256 * 1024 * 1024


def answer(cursor: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    """Run one SELECT in a read-only transaction of its own.

    Raises:
        JobError: it is not a single SELECT, DuckDB refuses it, or the result is too large.
    """
    try:
        _check(cursor, sql)
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        try:
            return _bounded(cursor.sql(sql).to_arrow_reader(65_536))
        finally:
            with contextlib.suppress(duckdb.Error):
                cursor.execute("ROLLBACK")
    except duckdb.Error as error:
        raise JobError(f"the query cannot be answered: {error}") from error


def _check(cursor: duckdb.DuckDBPyConnection, sql: str) -> None:
    statements = cursor.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
        raise JobError(f"only a single SELECT can be answered, got {kinds}; the store is written by the job alone")


def _bounded(reader: pa.RecordBatchReader) -> pa.Table:
    batches, size = [], 0
    for batch in reader:
        batches.append(batch)
        size += batch.nbytes
        if size > MAX_RESULT_BYTES:
            raise JobError(f"the result is larger than {MAX_RESULT_BYTES // 2**20} MiB: ask for fewer rows or columns")
    return pa.Table.from_batches(batches, schema=reader.schema)
