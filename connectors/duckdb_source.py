"""Reads a table of a DuckDB file, or what a query makes of it, in an order in which it can be read on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from millstream.connectors.duckdb_file import opened
from millstream.engine.errors import DataError, JobError, SchemaError
from millstream.engine.expression import Expr
from millstream.engine.source import Position, ReadContext, Source, Split, SplitEnd, SplitReader
from millstream.engine.store.columns import literal, quote
from millstream.engine.time import Duration, micros


def duckdb_source(
    path: str | Path,
    table: str | None = None,
    *,
    query: str | None = None,
    order_by: str | Sequence[str],
    patience: Duration = "30s",
    name: str | None = None,
) -> DuckDBSource:
    """Read a table (or view) of a DuckDB file, or the result of a query on it; then end.

    A position is the last row read, by the columns it is ordered by. The file is open, for reading only, as long as
    rows are left; it must stay as it is until then.

    Args:
        path: the file. Not the job's checkpoint store.
        table: what to read.
        query: or a SELECT; it is part of your program, and may do whatever DuckDB lets it.
        order_by: columns that are never null and together different in each row.
        patience: how long to wait for another process that has the file open, before the job restarts.

    Raises:
        JobError: there is no such file or table, or the query is wrong.
        ExternalError: another process writes to the file.

    >>> import duckdb, tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "shop.duckdb"
    >>> with duckdb.connect(file) as connection:
    ...     _ = connection.execute("create table orders as select 1::bigint as id, 'tea' as item")
    >>> duckdb_source(file, "orders", order_by="id").schema.names
    ['id', 'item']
    """
    by = (order_by,) if isinstance(order_by, str) else tuple(order_by)
    what = f"duckdb_source({str(path)!r})"
    if (table is None) == (query is None):
        raise JobError(f"{what}: give either a table or query='SELECT ...'")
    file = Path(path).resolve()
    if not file.exists():
        raise JobError(f"{what}: there is no such file")
    if file.with_name(f"{file.name}.witness").exists():
        raise JobError(f"{what}: this is a checkpoint store, which a running job must not open again")
    rows = f"({query})" if query is not None else quote(table or "")
    with opened(file, what, read_only=True, patience=micros(patience) / 1_000_000) as connection:
        relation = connection.sql(f"SELECT * FROM {rows} t LIMIT 0")  # noqa: S608
        schema, types = relation.to_arrow_table().schema, dict(zip(relation.columns, relation.types, strict=True))
    for column in by:
        if column not in types:
            raise SchemaError(f"{what}: there is no column {column!r} to order by, but: {', '.join(types)}")
    if not by:
        raise JobError(f"{what}: order_by needs at least one column")
    kinds = tuple(str(types[column]) for column in by)
    shown = name or f"duckdb:{path}:{table or 'query'}"
    return DuckDBSource(str(path), rows, by, kinds, schema, micros(patience) / 1_000_000, Path.cwd(), shown)


@dataclass(frozen=True)
class DuckDBSource(Source):
    """Rows of a DuckDB file; made by ``duckdb_source``. ``rows`` is SQL, ``kinds`` are the types of ``by``."""

    path: str
    rows: str
    by: tuple[str, ...]
    kinds: tuple[str, ...]
    columns: pa.Schema
    patience: float
    home: Path
    given_name: str

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.given_name

    def identity(self) -> str:
        """Text that changes exactly when it is another source."""
        return f"duckdb {self.path!r} {self.rows!r} by {list(self.by)!r}"

    @property
    def schema(self) -> pa.Schema:
        """The columns it yields."""
        return self.columns

    def resolved(self) -> Path:
        """Return the file's whole path."""
        return (self.home / self.path).resolve()

    def folders(self) -> tuple[str, ...]:
        """The file."""
        return (str(self.resolved()),)

    def discover(self) -> Sequence[Split]:
        """One split: rows have one order."""
        return [Split("rows")]

    def open(self, split: Split, position: Position, context: ReadContext) -> SplitReader:
        """Open it behind a row."""
        del split
        return _DuckDBReader(self, position, context.batch_rows)

    def pushed_down(self, columns: frozenset[str], predicate: Expr | None, event_time: str | None) -> Source:
        """Read only the columns that somebody wants."""
        del predicate, event_time
        return replace(self, columns=pa.schema([field for field in self.columns if field.name in columns]))

    def guarantee(self) -> str:
        """One sentence for the plan."""
        return "replayable, as long as the file stays as it is"


class _DuckDBReader(SplitReader):
    def __init__(self, source: DuckDBSource, position: Position, batch_rows: int) -> None:
        self._source = source
        self._position: list[str] | None = position
        self._batch_rows = batch_rows
        self._held = ExitStack()
        self._batches: Iterator[pa.RecordBatch] | None = None

    def read(self) -> pa.RecordBatch | SplitEnd:
        """Return the next rows. Raises DataError if the order does not tell rows apart."""
        if self._batches is None:
            self._batches = iter(self._start())
        for batch in self._batches:
            if batch.num_rows:
                return self._taken(batch)
        return SplitEnd.FINISHED

    def position(self) -> Position:
        """The last row read, by the columns of the order, as text."""
        return self._position

    def close(self) -> None:
        """Let go of the file."""
        self._batches = None
        self._held.close()

    def __del__(self) -> None:
        self.close()

    def _start(self) -> Iterator[pa.RecordBatch]:
        source = self._source
        connection: duckdb.DuckDBPyConnection = self._held.enter_context(
            opened(source.resolved(), source.name, read_only=True, patience=source.patience)
        )
        by = [f"t.{quote(name)}" for name in source.by]
        where = ""
        if self._position is not None:
            last = zip(self._position, source.kinds, strict=True)
            values = ", ".join(f"CAST({literal(text)} AS {kind})" for text, kind in last)
            where = f"WHERE ({', '.join(by)}) > ({values})"
        names = [f"t.{quote(name)}" for name in source.columns.names]
        texts = [f"CAST({name} AS VARCHAR)" for name in by]
        result: Any = connection.execute(
            f"SELECT {', '.join(names + texts)} FROM {source.rows} t {where} ORDER BY {', '.join(by)}"  # noqa: S608
        )
        return iter(result.to_arrow_reader(self._batch_rows))

    def _taken(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        width = len(self._source.columns)
        texts = batch.columns[width:]
        last = [column[-1].as_py() for column in texts]
        if any(column.null_count for column in texts) or last == self._position or _repeats(texts):
            raise DataError(
                f"{self._source.name}: order_by={list(self._source.by)!r} is null in some rows or the same in several, "
                "so a position in it is not exact: add columns that tell rows apart"
            )
        self._position = last
        return pa.record_batch(batch.columns[:width], names=self._source.columns.names).cast(self._source.columns)


def _repeats(columns: Sequence[pa.Array]) -> bool:
    """Whether two rows in succession are equal."""
    same = None
    for column in columns:
        equal = pc.equal(column.slice(1), column.slice(0, len(column) - 1))
        same = equal if same is None else pc.and_(same, equal)
    return bool(pc.any(same).as_py())
