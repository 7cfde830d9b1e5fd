"""Compare a query's committed files with DuckDB's batch SQL, as multisets."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
from millstream.benchmarks.nexmark_files import STREAMS, events_file
from millstream.benchmarks.nexmark_sql import COMPARED, SQL
from millstream.engine.errors import DataError, JobError

WEIGHT: Final = "weight"
SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is there too often (``copies`` > 0) or too seldom (``copies`` < 0)."""

    copies: int
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison found.

    Attributes:
        expected_rows: rows of DuckDB's result.
        different_rows: distinct rows with a wrong number of copies.
        differences: the first of them.
        complaint: why the two could not be compared at all; "" when they could.
    """

    expected_rows: int
    different_rows: int = 0
    differences: tuple[Difference, ...] = ()
    complaint: str = ""

    @property
    def same(self) -> bool:
        """Whether the results are the same multiset with the same columns."""
        return not self.different_rows and not self.complaint


def verify(query: str, events: Path, results: Path) -> Verdict:
    """Compare ``results/query/**/*.parquet`` with the query's SQL over the events.

    A result with a last column ``weight`` is a changelog: a row counts as often as its weights sum to.

    Raises:
        JobError: the query has no batch definition.
        DataError: an events file is missing, or a file cannot be read.
    """
    if query not in SQL:
        raise JobError(f"{query} has no batch definition to compare with; those that have one: {', '.join(SQL)}")
    with opened(events) as connection:
        try:
            compared = COMPARED.get(query, "from written")
            return _compare(connection, SQL[query], compared, result_files(results / query))
        except duckdb.Error as error:
            raise DataError(f"DuckDB could not compare the results of {query} in {results / query}: {error}") from error


@contextmanager
def opened(events: Path, threads: int | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open DuckDB with the events as views ``person``, ``auction`` and ``bid``; large queries spill to disk.

    Raises:
        DataError: an events file is missing.
    """
    with tempfile.TemporaryDirectory(prefix="nexmark-") as spill, duckdb.connect() as connection:
        connection.execute("set temp_directory = $folder", {"folder": spill})
        connection.execute("set timezone = 'UTC'")
        if threads is not None:
            connection.execute("set threads = $threads", {"threads": threads})
        for stream in STREAMS:
            file = events_file(events, stream)
            if not file.exists():
                raise DataError(
                    f"there is no {file.name} in {events}: write one with `millstream nexmark generate --out {events}`"
                )
            connection.read_parquet(str(file)).create_view(stream)
        yield connection


def result_files(folder: Path) -> list[str]:
    """Return the visible Parquet files below a folder: a name that begins with ``.`` or ``_`` hides."""
    files = (file for file in folder.rglob("*.parquet") if file.is_file())
    return sorted(str(f) for f in files if not any(part[0] in "._" for part in f.relative_to(folder).parts))


def _compare(connection: duckdb.DuckDBPyConnection, sql: str, compared: str, files: Sequence[str]) -> Verdict:
    connection.execute(f"create temp table expected as {sql}")
    if files:
        connection.read_parquet(list(files), hive_partitioning=False).create_view("written")
        connection.execute(f"create temp view result as {compared}")
    else:
        connection.execute("create temp view result as from expected limit 0")
    wanted = _columns(connection, "expected")
    found = _columns(connection, "result")
    weighted = list(found)[-1] == WEIGHT
    if weighted:
        found.pop(WEIGHT)
    expected_rows = _number(connection, "select count(*) from expected")
    complaint = _columns_differ(wanted, found)
    if complaint:
        return Verdict(expected_rows, complaint=complaint)
    return _differences(connection, list(wanted), weighted, expected_rows)


def _columns_differ(wanted: dict[str, str], found: dict[str, str]) -> str:
    """Say how the columns (name to type) of the two results differ; "" when they do not."""
    if set(wanted) != set(found):
        return f"the columns should be {', '.join(wanted)}; the results have {', '.join(found)}"
    return "; ".join(
        f"column {name} should be {kind}, the results have {found[name]}"
        for name, kind in wanted.items()
        if found[name] != kind
    )


def _differences(
    connection: duckdb.DuckDBPyConnection, names: list[str], weighted: bool, expected_rows: int
) -> Verdict:
    counted = "select * rename (weight as copies) from result" if weighted else "select *, 1 as copies from result"
    connection.execute(f"create temp view counted as {counted}")
    connection.execute("""
        create temp table difference as
        select * exclude (copies), sum(copies)::bigint as surplus
        from (select *, -1 as copies from expected union all by name from counted)
        group by all having surplus <> 0
    """)
    different = _number(connection, "select count(*) from difference")
    rows = connection.execute(f"from difference order by all limit {SHOWN}").fetchall()
    first = tuple(Difference(row[-1], dict(zip(names, row[:-1], strict=True))) for row in rows)
    return Verdict(expected_rows, different, first)


def _columns(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    return {name: kind for name, kind, *_ in connection.execute(f"describe {table}").fetchall()}


def _number(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    row = connection.execute(sql).fetchone()
    assert row is not None, sql
    return int(row[0])
