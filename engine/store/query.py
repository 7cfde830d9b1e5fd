"""Answers SQL of people's: one SELECT, read-only, of a bounded size."""

from __future__ import annotations

import contextlib
from typing import Final

import duckdb
import pyarrow as pa
from millstream.engine.errors import JobError

MAX_RESULT_BYTES: Final = 256 * 1024 * 1024


AT_EPOCH: Final = "millstream_epoch"
"""The variable of a DuckDB connection by which the views of state show an earlier epoch."""


def answer(cursor: duckdb.DuckDBPyConnection, sql: str, epoch: int | None = None) -> pa.Table:
    """Run one SELECT in a read-only transaction of its own, with the state of the last epoch or of ``epoch``.

    Raises:
        JobError: it is not a single SELECT, DuckDB refuses it, the result is too large, or the epoch is not kept.
    """
    try:
        _check(cursor, sql)
        if epoch is not None:
            cursor.execute(f"SET VARIABLE {AT_EPOCH} = {int(epoch)}")
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        try:
            if epoch is not None:
                _check_kept(cursor, epoch)
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


def _check_kept(cursor: duckdb.DuckDBPyConnection, epoch: int) -> None:
    kept = [number for (number,) in cursor.execute("SELECT epoch FROM manifest ORDER BY epoch").fetchall()]
    if epoch not in kept:
        raise JobError(
            f"epoch {epoch} is not in the store; it holds {', '.join(map(str, kept)) or 'none'}. To keep one for "
            f"longer make a savepoint of it: millstream savepoint create"
        )


def _bounded(reader: pa.RecordBatchReader) -> pa.Table:
    batches, size = [], 0
    for batch in reader:
        batches.append(batch)
        size += batch.nbytes
        if size > MAX_RESULT_BYTES:
            raise JobError(f"the result is larger than {MAX_RESULT_BYTES // 2**20} MiB: ask for fewer rows or columns")
    return pa.Table.from_batches(batches, schema=reader.schema)
