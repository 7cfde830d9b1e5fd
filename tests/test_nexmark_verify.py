"""The comparison with DuckDB: it accepts exactly the right multiset and says what is wrong with others."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from millstream.benchmarks.nexmark_files import write_events
from millstream.benchmarks.nexmark_sql import SQL
from millstream.benchmarks.nexmark_verify import opened, result_files, verify
from millstream.engine.errors import DataError, JobError


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events")
    write_events(folder, 20_000, 3)
    return folder


def expected(events, query):
    with opened(events) as connection:
        return connection.sql(SQL[query]).to_arrow_table()


def write(table, results, query, name="part.parquet"):
    file = results / query / name
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


@pytest.mark.parametrize("query", SQL)
def test_its_own_result_in_several_files_and_another_order_is_right(query, events, tmp_path):
    table = expected(events, query)
    assert table.num_rows > 0
    half = table.num_rows // 2
    write(table.slice(half), tmp_path, query, "a.parquet")
    write(table.slice(0, half).select(table.column_names[::-1]), tmp_path, query, "0/b.parquet")

    verdict = verify(query, events, tmp_path)

    assert verdict.same, verdict
    assert verdict.expected_rows == table.num_rows


def test_a_missing_and_a_repeated_row_are_both_named(events, tmp_path):
    table = expected(events, "q2").sort_by([("auction", "ascending"), ("price", "ascending")])
    write(pa.concat_tables([table.slice(1), table.slice(5, 1)]), tmp_path, "q2")

    verdict = verify("q2", events, tmp_path)

    found = {(d.copies, tuple(d.row.values())) for d in verdict.differences}
    assert found == {(-1, row(table, 0)), (1, row(table, 5))}
    assert verdict.different_rows == 2
    assert not verdict.same


def row(table, index):
    return tuple(table.slice(index, 1).to_pylist()[0].values())


def test_no_files_means_every_row_is_missing(events, tmp_path):
    verdict = verify("q2", events, tmp_path)

    assert verdict.different_rows > 0
    assert all(difference.copies < 0 for difference in verdict.differences)


def test_an_empty_result_may_have_no_files(tmp_path):
    write_events(tmp_path / "events", 3, 1)

    assert verify("q2", tmp_path / "events", tmp_path).same


def test_a_changelog_counts_by_weight(events, tmp_path):
    table = expected(events, "q4")
    wrong = table.set_column(1, "avg_final", pa.array([1.5] * table.num_rows))
    rows = pa.concat_tables([wrong, wrong, table])
    weights = [1] * table.num_rows + [-1] * table.num_rows + [1] * table.num_rows
    write(rows.append_column("weight", pa.array(weights, pa.int64())), tmp_path, "q4")

    assert verify("q4", events, tmp_path).same


def test_a_changelog_that_never_takes_a_row_back_is_wrong(events, tmp_path):
    table = expected(events, "q4")
    rows = pa.concat_tables([table, table.slice(0, 1)])
    write(rows.append_column("weight", pa.array([1] * rows.num_rows, pa.int64())), tmp_path, "q4")

    verdict = verify("q4", events, tmp_path)

    assert [difference.copies for difference in verdict.differences] == [1]


def test_other_columns_or_types_are_refused_by_name(events, tmp_path):
    table = expected(events, "q2")
    write(table.rename_columns(["auction", "cost"]), tmp_path / "names", "q2")
    write(table.set_column(1, "price", table.column("price").cast("float64")), tmp_path / "types", "q2")

    assert "auction, cost" in verify("q2", events, tmp_path / "names").complaint
    assert verify("q2", events, tmp_path / "types").complaint == (
        "column price should be BIGINT, the results have DOUBLE"
    )


def test_hidden_files_are_no_results(tmp_path):
    table = pa.table({"a": [1]})
    for name in ("x.parquet", ".staged/x.parquet", "_tmp/x.parquet", "day=1/x.parquet", ".x.parquet"):
        write(table, tmp_path, "q", name)

    names = [file.removeprefix(f"{tmp_path}/q/") for file in result_files(tmp_path / "q")]

    assert names == ["day=1/x.parquet", "x.parquet"]


def test_what_cannot_be_compared_says_why(events, tmp_path):
    with pytest.raises(JobError, match="q99 has no batch definition"):
        verify("q99", events, tmp_path)
    with pytest.raises(DataError, match=r"there is no person\.parquet"):
        verify("q2", tmp_path / "nowhere", tmp_path)
    (tmp_path / "q2").mkdir()
    (tmp_path / "q2" / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="could not compare"):
        verify("q2", events, tmp_path)
