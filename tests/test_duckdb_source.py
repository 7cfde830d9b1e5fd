"""DuckDB files as sources: every row once, from every position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import millstream as ms
import pyarrow as pa
import pytest
from millstream.engine.errors import DataError, JobError
from millstream.testing import check_source
from test_duckdb_sink import write
from test_postgres_sink import VALUES


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "in.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute(
            "create table t as select 'it''s ' || (n % 3) as k, n, make_timestamp(n * -1000001) as at, "
            "case when n % 2 = 0 then n / 10 end as x from range(7) r(n)"
        )
    return path


@pytest.mark.parametrize("order_by", ["n", ["k", "at"]])
def test_a_table_is_read_on_from_every_position(order_by: Any, file: Path) -> None:
    rows = check_source(lambda: ms.duckdb_source(file, "t", order_by=order_by))
    by = [order_by] if isinstance(order_by, str) else order_by
    assert rows == sorted(rows, key=lambda row: [row[name] for name in by])
    assert len(rows) == 7


def test_a_query_is_read_too(file: Path) -> None:
    rows = check_source(
        lambda: ms.duckdb_source(file, query="select k, sum(n)::bigint as n from t group by k", order_by="k")
    )
    assert rows == [{"k": "it's 0", "n": 9}, {"k": "it's 1", "n": 5}, {"k": "it's 2", "n": 7}]


def test_every_type_comes_as_it_was_written(tmp_path: Path) -> None:
    columns = {name: pa.array([*values, None], type_) for name, (type_, values) in VALUES.items()}
    for name in ("coded", "span", "fixed", "tz", "void"):
        del columns[name]  # these come as another type
    batch = pa.record_batch({"id": pa.array([1, 2, 3]), **columns})
    write(tmp_path / "d", [batch])
    job, out = ms.Job("j"), ms.memory_sink()
    job.read(ms.duckdb_source(tmp_path / "d", "t", order_by="id")).write(out)
    job.run(tmp_path / "store.duckdb")
    assert out.rows() == batch.to_pylist()


@pytest.mark.parametrize(
    ("options", "kind", "error"),
    [
        ({"table": "no", "order_by": "n"}, JobError, "Table with name no does not exist"),
        ({"table": "t", "query": "select 1", "order_by": "n"}, JobError, "either a table or query="),
        ({"table": "t", "order_by": "no"}, JobError, "no column 'no' to order by"),
        ({"table": "t", "order_by": []}, JobError, "at least one column"),
        ({"table": "t", "order_by": "k"}, DataError, "the same in several"),
        ({"table": "t", "order_by": ["x", "n"]}, DataError, "null in some rows"),
    ],
)
def test_what_cannot_be_read_is_refused(options: dict[str, Any], kind: type[Exception], error: str, file: Path) -> None:
    with pytest.raises(kind, match=error):
        check_source(lambda: ms.duckdb_source(file, **options))


def test_a_store_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    job = ms.Job("j")
    job.read(ms.memory_source([{"a": 1}])).write(ms.memory_sink())
    job.run(tmp_path / "store.duckdb")
    with pytest.raises(JobError, match="this is a checkpoint store"):
        ms.duckdb_source(tmp_path / "store.duckdb", "manifest", order_by="epoch")
    with pytest.raises(JobError, match="no such file"):
        ms.duckdb_source(tmp_path / "no.duckdb", "t", order_by="n")
    assert not (tmp_path / "no.duckdb").exists()
