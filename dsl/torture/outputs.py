"""What a tortured run has left, beside what an undisturbed one has: rows of sinks, and dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import duckdb
from millstream.engine.store.columns import quote
from millstream.engine.store.reader import StoreReader

SHOWN: Final = 3


def files_below(folder: Path) -> list[str]:
    """The Parquet files that a reader of the folder sees."""
    return sorted(str(file) for file in folder.rglob("*.parquet") if file.is_file())


def count_rows(folder: Path) -> int:
    """How many rows a sink was given; of a changelog, changes."""
    files = files_below(folder)
    if not files:
        return 0
    with duckdb.connect() as connection:
        row = connection.read_parquet(files).aggregate("count(*)").fetchone()
    assert row is not None
    return int(row[0])


def differences(sink: str, wanted: Path, found: Path, weight: str | None = None) -> list[str]:
    """Say how the rows of a sink differ, as multisets; with a column ``weight``, how what is left of them does."""
    before, after = files_below(wanted), files_below(found)
    if not before and not after:
        return []
    with duckdb.connect() as connection:
        connection.execute("SET timezone = 'UTC'")
        for name, files in (("wanted", before), ("found", after)):
            connection.read_parquet(files or before or after, hive_partitioning=False).create_view(f"{name}_files")
            nothing = "" if files else " LIMIT 0"
            connection.execute(f"CREATE VIEW {name} AS FROM {name}_files{nothing}")
        names = [row[0] for row in connection.execute("DESCRIBE wanted").fetchall()]
        if names != [row[0] for row in connection.execute("DESCRIBE found").fetchall()]:
            return [f"sink {sink!r}: the columns differ"]
        return _surplus(connection, sink, names, weight)


def _surplus(connection: duckdb.DuckDBPyConnection, sink: str, names: list[str], weight: str | None) -> list[str]:
    copies = quote(weight) if weight in names else "1"
    columns = ", ".join(quote(name) for name in names if name != weight)
    connection.execute(f"""
        CREATE TEMP TABLE surplus AS
        SELECT {columns}, sum(copies)::BIGINT AS "$copies"
        FROM (SELECT {columns}, -{copies} AS copies FROM wanted UNION ALL SELECT {columns}, {copies} FROM found)
        GROUP BY ALL HAVING sum(copies) <> 0
    """)  # noqa: S608 - the names are quoted
    lost, doubled = (
        connection.execute(
            f'SELECT coalesce(sum(abs("$copies")), 0) FROM surplus WHERE "$copies" {sign} 0'  # noqa: S608
        ).fetchall()[0][0]
        for sign in "<>"
    )
    if not lost and not doubled:
        return []
    rows = connection.execute(f"FROM surplus ORDER BY ALL LIMIT {SHOWN}").fetchall()
    examples = "; ".join(f"{row[-1]:+d} x {row[:-1]}" for row in rows)
    return [f"sink {sink!r}: {lost:,} rows are missing and {doubled:,} are too many, such as {examples}"]


def letters_differ(wanted: Path, found: Path) -> list[str]:
    """Say how the dead letters in two stores differ, as multisets."""
    before, after = _letters(wanted), _letters(found)
    complaints = []
    for what, surplus in (("missing", before - after), ("too many", after - before)):
        if surplus:
            (node, _), _ = surplus.most_common(1)[0]
            complaints.append(f"{surplus.total():,} dead letters are {what}, such as one of {node!r}")
    return complaints


def _letters(store: Path) -> Counter[tuple[str, str]]:
    with StoreReader.open(store) as reader:
        rows = reader.query(
            "SELECT coalesce(operator, source) AS node, coalesce(row_json, md5(raw)) AS content FROM dead_letters"
        )
    return Counter(_pairs(rows.to_pylist()))


def _pairs(rows: Iterable[dict[str, str]]) -> Iterable[tuple[str, str]]:
    return ((row["node"], row["content"]) for row in rows)
