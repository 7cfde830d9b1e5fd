"""``Stream.join``: what it refuses, which rows are late, what event time its result has, and what the plan says."""

from __future__ import annotations

import datetime as dt
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from join_kit import SCHEMAS, joined
from millstream import col
from millstream.benchmarks.nexmark_files import write_events
from millstream.benchmarks.nexmark_queries import Events, bids_in_time
from millstream.benchmarks.nexmark_verify import opened
from millstream.engine.element import Watermark
from millstream.engine.errors import JobError, SchemaError
from millstream.testing import On, check_operator

NOON = dt.datetime(2026, 1, 1, 12)


def at(second: float) -> dt.datetime:
    return NOON + dt.timedelta(seconds=second)


def two(event_time: str | None = "at") -> tuple[ms.Job, ms.Stream, ms.Stream]:
    job = ms.Job("j")
    left = job.read(ms.memory_source([{"id": 1, "at": at(0), "n": 1}], name="l"), event_time=event_time)
    right = job.read(ms.memory_source([{"id": 1, "at": at(1), "m": 2}], name="r"), event_time=event_time)
    return job, left, right


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "outer"}, "how is one of 'inner', 'left'"),
        ({"on": []}, "needs a column"),
        ({"between": ("-5m", "0s"), "ttl": "1d"}, "give one of them"),
        ({"between": "5m"}, "takes the earliest and the latest"),
        ({"between": ("soon", "5m")}, "'soon' is not a duration"),
        ({"window": ms.session("5m")}, "sessions end by the rows of one stream"),
        ({"window": "5m"}, "takes a window"),
        ({"where": True}, "takes a condition"),
        ({"how": "full", "between": (col("at").dt.truncate("day"), col("at"))}, "no left row can reach a right one"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    _, left, right = two()
    with pytest.raises(JobError, match=message):
        left.join(right, **{"on": "id", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": "ib"}, "the left stream: there is no column 'ib'; the columns are id, at, n"),
        ({"on": {"n": "id_"}}, "the right stream: there is no column 'id_'"),
        ({"on": {"at": "id"}}, r"'at' is timestamp\[us\], the right key 'id' is int64.*cast\('timestamp\[us\]'\)"),
        ({"on": "id", "where": col("m") + 1}, "is int64; a condition such as"),
        ({"on": "id", "where": col("mm") > 1}, "no column 'mm'.*m"),
        ({"on": {"id": "m"}, "suffix": "x"}, None),
        ({"on": "id", "between": (col("n") * 1.5, col("n"))}, "expected a timestamp"),
    ],
)
def test_columns_that_do_not_fit_are_refused(options: dict[str, Any], message: str | None) -> None:
    _, left, right = two()
    if message is None:
        assert left.join(right, **options).columns == ["id", "at", "n", "idx", "atx", "m"]
        return
    with pytest.raises(SchemaError, match=message):
        left.join(right, **options)


def test_a_name_that_is_taken_even_with_the_suffix_is_refused() -> None:
    _, left, right = two()
    with pytest.raises(SchemaError, match="would be called 'at_right', and that name is taken too"):
        left.with_columns(at_right=1).join(right, on="id")
    with pytest.raises(SchemaError, match="'window_start' already"):
        left.with_columns(window_start=1).join(right, on="id", window=ms.tumbling("1m"))


def test_event_time_is_asked_for_where_it_is_needed() -> None:
    _, left, right = two(event_time=None)
    with pytest.raises(JobError, match="the left stream has no event time"):
        left.join(right, on="id", ttl="1d")
    with pytest.raises(JobError, match=r"keeps rows for ever: none is late"):
        _ = left.join(right, on="id").late
    with pytest.raises(JobError, match="needs event time"):
        left.join(right, on="id").window(ms.tumbling("1m"))


def test_streams_of_two_jobs_are_refused() -> None:
    with pytest.raises(JobError, match="of two jobs"):
        two()[1].join(two()[2], on="id")


def test_a_changelog_cannot_be_joined_in_time() -> None:
    _, left, right = two()
    changelog = left.join(right, on="id", how="left")
    assert changelog.is_changelog
    with pytest.raises(JobError, match="the right stream is a changelog"):
        left.join(changelog, on="id", ttl="1d")


def test_only_joins_that_take_rows_back_make_changelogs() -> None:
    _, left, right = two()
    made = {
        how
        for how in ("inner", "left", "right", "full", "semi", "anti")
        if left.join(right, on="id", how=how).is_changelog
    }
    assert made == {"left", "right", "full", "anti"}


def rows(side: int, *times: float | None) -> On:
    found = [{"k": 1, "n": n, "at": None if time is None else at(time)} for n, time in enumerate(times)]
    return On(side, pa.RecordBatch.from_pylist(found, SCHEMAS[side]))


def micros(second: float) -> int:
    return int((at(second) - dt.datetime(1970, 1, 1)) / dt.timedelta(microseconds=1))


def test_rows_before_the_watermark_are_late() -> None:
    """One at the watermark itself is on time, and the rows that it may match are still there."""
    script = [rows(0, 10), rows(1, 7), Watermark(micros(12)), rows(1, 12, 11.9, None), rows(0, 12, 11.9, None)]
    spec = joined(on="k", between=("-5s", "2s"))
    got = check_operator(spec, script, schemas=SCHEMAS)
    assert sorted((r["at"], r["at_right"]) for r in got["main"]) == [
        (at(10), at(7)),
        (at(10), at(12)),
        (at(12), at(7)),
        (at(12), at(12)),
    ]
    for port in ("late", "late_right"):
        assert sorted((row["at"] for row in got[port]), key=repr) == [None, at(11.9)]


def test_late_rows_and_null_keys_are_counted() -> None:
    spec = joined(on="k", between=("-5s", "2s"))
    operator = spec.build(SCHEMAS)
    out = type("Out", (), {"emit": lambda *_, **__: None})()
    operator.on_watermark(micros(12), out)
    for side in (0, 1):
        batch = rows(side, 12, 11, None).batch
        operator.process_input(side, batch, out)
    keyless = pa.RecordBatch.from_pylist([{"k": None, "at": at(13)}], SCHEMAS[1])
    operator.process_input(1, keyless, out)
    assert operator.counters() == {
        "late_rows_left": 1,
        "null_time_rows_left": 1,
        "null_key_rows_left": 0,
        "late_rows_right": 1,
        "null_time_rows_right": 1,
        "null_key_rows_right": 1,
    }


def test_rows_go_when_nothing_more_can_come_for_them() -> None:
    spec = joined(on="k", how="full", between=("-5s", "2s"))
    operator: Any = spec.build(SCHEMAS)
    emitted: list[dict[str, Any]] = []
    out = type("Out", (), {"emit": lambda _, batch, port="main": emitted.extend(batch.to_pylist())})()
    operator.process_input(0, rows(0, 10).batch, out)
    operator.process_input(1, rows(1, 30).batch, out)
    held = []
    for second in (12, 12.001, 25, 35, 35.001):
        operator.on_watermark(micros(second), out)
        held.append((*(side.buffer.count for side in operator._sides), len(emitted)))
    assert held == [(1, 1, 0), (0, 1, 1), (0, 1, 1), (0, 1, 1), (0, 0, 2)]


def test_the_result_goes_on_into_windows() -> None:
    """The event time of a pair is the later of its rows', so that none of them is late for a window behind it."""
    job = ms.Job("j")
    clicks = [{"id": n % 5, "at": at(n)} for n in range(100)]
    seen = [{"id": n % 5, "shown": at(n + 3)} for n in range(100)]
    left = job.read(ms.memory_source(clicks, name="clicks", splits=2), event_time="at", max_delay="2s")
    right = job.read(ms.memory_source(seen, name="seen", splits=3), event_time="shown", max_delay="2s")
    pairs = left.join(right, on="id", between=("-20s", "20s"))
    counts = pairs.window(ms.tumbling("10s")).agg(pairs=ms.count())
    everything = left.join(right, on="id").window(ms.tumbling("10s")).agg(pairs=ms.count())
    out, late, ever, ever_late = (ms.memory_sink(name) for name in ("out", "late", "ever", "ever late"))
    counts.write(out)
    counts.late.write(late)
    everything.write(ever)
    everything.late.write(ever_late)
    job.run(parallelism=2)
    expected: dict[dt.datetime, int] = {}
    for click in clicks:
        for impression in seen:
            gap = abs((click["at"] - impression["shown"]).total_seconds())  # type: ignore[operator]
            if click["id"] == impression["id"] and gap <= 20:
                latest: Any = max(click["at"], impression["shown"])  # type: ignore[type-var]
                start = latest - dt.timedelta(seconds=latest.second % 10)
                expected[start] = expected.get(start, 0) + 1
    assert {row["window_start"]: row["pairs"] for row in out.rows()} == expected
    assert sum(row["pairs"] for row in ever.rows()) == 100 * 20
    assert not late.rows()
    assert not ever_late.rows()


def test_a_stream_is_joined_with_itself() -> None:
    job = ms.Job("j")
    stream = job.read(ms.memory_source([{"id": n % 3, "n": n} for n in range(9)]))
    out = ms.memory_sink()
    stream.join(stream, on="id", where=col("n") < col("n_right")).write(out)
    job.run(parallelism=2)
    assert len(out.rows()) == 9


def test_dictionaries_and_times_of_several_units_are_joined() -> None:
    job = ms.Job("j")
    names = pa.array(["a", "b", "a"]).dictionary_encode()
    seconds = pa.array([at(0), at(1), at(2)], pa.timestamp("s"))
    nanos = pa.array([at(0), at(1), at(2)], pa.timestamp("ns", "UTC"))
    left = job.read(ms.memory_source(pa.table({"name": names, "at": seconds}), name="l"), event_time="at")
    right = job.read(ms.memory_source(pa.table({"name": names, "at": nanos}), name="r"), event_time="at")
    out = ms.memory_sink()
    pairs = left.join(right, on="name", between=(0, 1))
    pairs.window(ms.tumbling("1h")).agg(n=ms.count()).write(out)
    job.run()
    assert [row["n"] for row in out.rows()] == [3]


def test_the_plan_says_what_is_kept_and_until_when() -> None:
    job, left, right = two()
    said = [
        left.join(right, on="id", between=("-5m", "1m")),
        left.join(right, on={"id": "m"}, between=(col("at").dt.truncate("day"), col("at"))),
        left.join(right, on="id"),
    ]
    lines = [job.graph.nodes[stream._edge.node].body.describe() for stream in said]  # type: ignore[union-attr]
    assert "those are kept until event time has passed theirs by 5m" in lines[0]
    assert "on id = m" in lines[1]
    assert "those are kept for ever" in lines[1]
    assert "both sides are kept for ever" in lines[2]


def test_bids_in_time_are_those_of_sql(tmp_path: Any) -> None:
    write_events(tmp_path, 5_000, 1)
    job, out = ms.Job("j"), ms.memory_sink()
    bids_in_time(Events(job, tmp_path)).select("id", "bidder", "price", "bid_time").write(out)
    job.run()
    with opened(tmp_path) as connection:
        expected = connection.sql(
            "select a.id, b.bidder, b.price, b.date_time from auction a join bid b on a.id = b.auction "
            "where b.date_time between a.date_time and a.expires"
        ).fetchall()
    assert sorted(tuple(row.values()) for row in out.rows()) == sorted(expected)
    assert expected
