"""Rows into a table of PostgreSQL, exactly once, by a job; and beside it psycopg alone doing the same to another table.

``python -m millstream.benchmarks.postgres_upsert --dsn postgresql://…`` writes rows of five columns in turns, first as
upserts by key, half of which are of keys that are there, then as appends, and prints the best of each way, in seconds
and in processor time of this process:

* ``plain``: rows are Python tuples already, ``copy.write_row`` puts them into an unlogged staging table, from which one
  ``INSERT … ON CONFLICT`` takes them, all in one transaction. Appends go into the table itself.
* ``text``: the same with text made before, so that nothing is left to do but to pass it on.
* ``job``: reads an Arrow table, keeps the rows in its checkpoint, and writes them with their marker in one transaction.

The tables must be equal in the end.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import click
import millstream as ms
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from millstream.benchmarks.beside import in_turns, show

_COLUMNS: Final = "id bigint, customer text, amount double precision, price numeric(10, 2), at timestamptz"
_PIECE: Final = 1 << 16
_UPSERT: Final = """
    INSERT INTO {table} SELECT * FROM {staging} ON CONFLICT (id) DO UPDATE SET
        customer = EXCLUDED.customer, amount = EXCLUDED.amount, price = EXCLUDED.price, at = EXCLUDED.at"""


def orders(rows: int, turn: int) -> pa.Table:
    """Return rows in random order; half of them have a key that the turn before had.

    >>> first, second = orders(10, 0), orders(10, 1)
    >>> len(set(first["id"].to_pylist()) & set(second["id"].to_pylist()))
    5
    """
    draw = np.random.default_rng(turn)
    ids = draw.permutation(rows) + turn * (rows // 2)
    price = pc.round(pa.array(draw.random(rows) * 10_000), 2).cast(pa.decimal128(10, 2))
    return pa.table(
        {
            "id": ids,
            "customer": pa.array(np.char.add("customer-", draw.integers(0, 10_000, rows).astype(str))),
            "amount": draw.random(rows),
            "price": price,
            "at": pa.array(draw.integers(0, 2**50, rows), pa.timestamp("us", "UTC")),
        }
    )


@dataclass(frozen=True)
class Tables:
    """Where rows go to: a table for each way.

    Attributes:
        name: how the names of the tables begin.
        upsert: rows are upserted by key, not appended.
    """

    dsn: str
    name: str
    upsert: bool

    def of(self, way: str) -> str:
        """Return the table of a way."""
        return f"{self.name}_{way}"

    @property
    def progress(self) -> str:
        """Return the table of the job's marker."""
        return f"{self.name}_progress"

    def execute(self, *statements: str) -> Any:
        """Run statements in one transaction, and return the rows of the last one, if it has any."""
        import psycopg

        with psycopg.connect(self.dsn) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else None

    def make(self, ways: Sequence[str]) -> None:
        """Make the tables."""
        key = ", PRIMARY KEY (id)" if self.upsert else ""
        for way in ways:
            self.execute(f"CREATE TABLE {self.of(way)} ({_COLUMNS}{key})")

    def drop(self, ways: Sequence[str]) -> None:
        """Drop them."""
        self.execute(*(f"DROP TABLE IF EXISTS {table}" for table in [*map(self.of, ways), self.progress]))

    def check(self, ways: Sequence[str]) -> None:
        """Raise ClickException unless the tables have the same rows."""
        for one, other in pairwise([*ways, ways[0]]):
            extra = f"SELECT * FROM {self.of(one)} EXCEPT ALL SELECT * FROM {self.of(other)}"  # noqa: S608
            ((count,),) = self.execute(f"SELECT count(*) FROM ({extra}) AS extra")  # noqa: S608
            if count:
                raise click.ClickException(f"{one} has {count:,} rows that {other} has not")

    def copied(self, way: str, put: Callable[[Any], None], csv: bool) -> None:
        """Have something put into a COPY, and take the rows over, in one transaction."""
        import psycopg

        how = " (FORMAT csv)" if csv else ""
        with psycopg.connect(self.dsn) as connection, connection.cursor() as cursor:
            staging = self.name if self.upsert else self.of(way)
            if self.upsert:
                cursor.execute(f"CREATE UNLOGGED TABLE {staging} ({_COLUMNS})".encode())
            with cursor.copy(f"COPY {staging} FROM STDIN{how}".encode()) as copy:
                put(copy)
            if self.upsert:
                cursor.execute(_UPSERT.format(table=self.of(way), staging=staging).encode())
                cursor.execute(f"DROP TABLE {staging}".encode())


def plain(tables: Tables, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write Python tuples with psycopg alone."""

    def put(copy: Any) -> None:
        for row in rows:
            copy.write_row(row)

    tables.copied("plain", put, csv=False)


def text(tables: Tables, ready: memoryview) -> None:
    """Pass text on with psycopg alone."""

    def put(copy: Any) -> None:
        for start in range(0, len(ready), _PIECE):
            copy.write(ready[start : start + _PIECE])

    tables.copied("text", put, csv=True)


def job(tables: Tables, rows: pa.Table) -> None:
    """Write with a job."""
    writing = ms.Job(tables.name)
    sink = ms.postgres_sink(
        tables.dsn, tables.of("job"), key="id" if tables.upsert else None, again=True, progress=tables.progress
    )
    writing.read(ms.memory_source(rows)).write(sink)
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        writing.run(Path(folder) / "job.duckdb", every="1s")


def as_text(rows: pa.Table) -> memoryview:
    """Return rows as COPY reads them in the format csv."""
    buffer = pa.BufferOutputStream()
    pyarrow.csv.write_csv(rows, buffer, pyarrow.csv.WriteOptions(include_header=False, quoting_style="needed"))
    return memoryview(buffer.getvalue())


def measure(dsn: str, rows: int, runs: int, *, upsert: bool) -> None:
    """Measure the three ways, and print how they went. Raises ClickException if they wrote different rows."""
    made = cache(lambda turn: orders(rows, turn))
    tuples = {turn: list(zip(*made(turn).to_pydict().values(), strict=True)) for turn in range(runs + 1)}
    texts = {turn: as_text(made(turn)) for turn in range(runs + 1)}
    tables = Tables(dsn, f"millstream_benchmark_{uuid.uuid4().hex[:8]}", upsert)
    ways: dict[str, Callable[[int], None]] = {
        "plain": lambda turn: plain(tables, tuples[turn]),
        "text": lambda turn: text(tables, texts[turn]),
        "job": lambda turn: job(tables, made(turn)),
    }
    tables.make(list(ways))
    try:
        best = in_turns(ways, runs)
        tables.check(list(ways))
    finally:
        tables.drop(list(ways))
    click.echo(f"{rows:,} rows {'upserted' if upsert else 'appended'} in a transaction, best of {runs}")
    show("rows", rows, best)


@click.command()
@click.option("--dsn", required=True, help="A database where tables may be made.")
@click.option("--rows", type=click.IntRange(min=2), default=200_000, show_default=True, help="In a transaction.")
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True)
def main(dsn: str, rows: int, runs: int) -> None:
    """Measure writing to PostgreSQL, beside psycopg alone."""
    for upsert in (True, False):
        measure(dsn, rows, runs, upsert=upsert)


if __name__ == "__main__":
    main()
