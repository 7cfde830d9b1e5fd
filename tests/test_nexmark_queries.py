"""Every query's committed files hold the same multiset as DuckDB's batch SQL over the same events."""

import millstream as ms
import pytest
from millstream.benchmarks.nexmark_events import FIRST_TIME, Timing
from millstream.benchmarks.nexmark_files import write_events
from millstream.benchmarks.nexmark_queries import PARTITIONS, QUERIES
from millstream.benchmarks.nexmark_run import RunOptions, build_query, run_query
from millstream.benchmarks.nexmark_sql import COMPARED, SQL
from millstream.benchmarks.nexmark_verify import WEIGHT, opened, verify
from millstream.engine.errors import JobError

EVENTS = 40_000
EVENING = FIRST_TIME + 18 * 3_600_000_000


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((1, Timing()), id="in order"),
        pytest.param((2, Timing(rate=1_000, disorder=4_000_000)), id="out of order"),
        pytest.param((3, Timing(rate=5, disorder=3_000_000, first=EVENING)), id="slow"),
    ],
)
def events(request, tmp_path_factory):
    seed, timing = request.param
    folder = tmp_path_factory.mktemp("events")
    write_events(folder, EVENTS, seed, timing)
    return folder


@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("query", QUERIES)
def test_query_equals_batch_sql(query, parallelism, events, tmp_path):
    sink = ms.parquet(tmp_path / "results" / query, partition_by=PARTITIONS.get(query, ()))
    report = run_query(query, events, sink, RunOptions(tmp_path / "job.duckdb", parallelism, every="100ms"))

    verdict = verify(query, events, tmp_path / "results")

    assert verdict.same, verdict
    assert verdict.expected_rows > 0
    assert report.outcome == "finished"


@pytest.mark.parametrize("query", QUERIES)
def test_query_has_the_columns_of_its_batch_definition(query, events):
    job = build_query(query, events, ms.blackhole())

    (sink,) = job.graph.sinks()
    with opened(events) as connection:
        if query in COMPARED:
            connection.register("written", job.graph.schema(sink.inputs[0]).empty_table())
            assert connection.sql(COMPARED[query]).columns == connection.sql(SQL[query]).columns
            return
        wanted = [*connection.sql(SQL[query]).columns, *PARTITIONS.get(query, ())]
        assert [name for name in job.graph.schema(sink.inputs[0]).names if name != WEIGHT] == wanted


def test_an_unknown_query_names_the_known_ones(tmp_path):
    with pytest.raises(JobError, match="q0, q1, q2"):
        build_query("q99", tmp_path, ms.blackhole())
