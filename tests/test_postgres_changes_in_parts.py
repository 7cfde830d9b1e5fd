"""Changes of a PostgreSQL table that come in parts: a connection cut anywhere, rows larger than a batch."""

from __future__ import annotations

import random
from collections.abc import Iterator

import millstream as ms
import pytest
from millstream.engine.source import SplitEnd
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from servers.proxy import Proxy
from test_postgres_changes import dsn, read, reader_of, table
from test_postgres_sink import run

__all__ = ["dsn", "table"]

ROWS = 40


class Line:
    """A connection to the server that can be told after how many more bytes to break, once."""

    def __init__(self, dsn: str) -> None:
        port = int(conninfo_to_dict(dsn)["port"] or 0)
        self.left: int | None = None
        self.cuts = 0
        self.proxy = Proxy(port, let=self._let)
        self.dsn = make_conninfo(dsn, host="127.0.0.1", port=self.proxy.port)

    def _let(self, data: bytes) -> int:
        if self.left is None or self.left >= len(data):
            self.left = None if self.left is None else self.left - len(data)
            return len(data)
        most, self.left = self.left, None
        self.cuts += 1
        return most


@pytest.fixture
def line(table: str) -> Iterator[Line]:
    made = Line(table)
    with made.proxy:
        yield made


@pytest.mark.parametrize("cuts", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_a_connection_cut_within_a_batch_loses_and_doubles_nothing(cuts: int, table: str, line: Line) -> None:
    """Two transactions a time, so that a cut is before, within and behind one."""
    run(table, "alter table t drop column tags, drop column p, drop column n, drop column b")
    reader = reader_of(ms.postgres_changes(line.dsn, "t", slot="s1", snapshot=False))
    assert reader.read() is SplitEnd.PENDING
    chance, first = random.Random(5), 100
    while line.cuts < cuts:
        line.left = chance.randrange(ROWS * 80)
        half = first + ROWS // 2
        for begin, end in ((first, half), (half, first + ROWS)):
            run(table, f"insert into t select n, 'name ' || n from generate_series({begin}, {end - 1}) n")
        assert [row["id"] for row in read(reader, ROWS)] == list(range(first, first + ROWS))
        first += ROWS
    reader.close()


def test_large_rows_make_batches_of_few_rows(table: str) -> None:
    run(table, "alter table t alter column name set storage external")
    source = ms.postgres_changes(table, "t", slot="s1", snapshot=False)
    reader = reader_of(source)
    assert reader.read() is SplitEnd.PENDING
    run(table, "insert into t (id, name) select n, repeat('x', 6 << 20) from generate_series(11, 17) n")
    steps = []
    while sum(len(rows) for rows, _ in steps) < 7:
        steps.append(([row["id"] for row in read(reader, 1)], reader.position()))
    reader.close()
    assert [n for ids, _ in steps for n in ids] == list(range(11, 18))
    assert max(len(ids) for ids, _ in steps) <= 3, "16 MiB and one row more"
    seen = 0
    for ids, position in steps[:-1]:
        seen += len(ids)
        again = reader_of(source, position)
        assert [row["id"] for row in read(again, 7 - seen)] == list(range(11 + seen, 18)), position
        again.close()
