"""Streams of a real Redis server: what is read once, what is noticed, and jobs and servers that are killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream.engine.errors import DataError, ExternalError, JobError
from millstream.engine.source import DeadLetter, ReadContext, SplitEnd, SplitReader
from nursery import Nursery, Start
from servers.redis import RedisServer, redis_server

server = redis_server()


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    server.client.flushall()
    return server


def fill(redis: RedisServer, count: int, first: int = 0, stream: str = "s") -> list[str]:
    together = redis.client.pipeline(transaction=False)
    for n in range(first, first + count):
        together.xadd(stream, {"n": n, "text": f"é {n}"})
    return [id_.decode() for id_ in together.execute()]


class Reading:
    """One reader, with what it put aside."""

    def __init__(self, redis: RedisServer, position: Any = None, **options: Any) -> None:
        source = ms.redis_source(redis.url, "s", **{"schema": {"n": int, "text": str}, **options})
        self.letters: list[DeadLetter] = []
        (split,) = source.discover()
        self.reader: SplitReader = source.open(split, position, ReadContext(self.letters.append, batch_rows=4))

    def rows(self) -> list[dict[str, Any]]:
        """Read until there is nothing, or the end."""
        rows: list[dict[str, Any]] = []
        while True:
            found = self.reader.read()
            if not isinstance(found, pa.RecordBatch):
                return rows
            rows += found.to_pylist()

    def numbers(self) -> list[int]:
        return [row["n"] for row in self.rows()]


def test_a_job_reads_all_streams_to_their_ends(redis: RedisServer) -> None:
    fill(redis, 10)
    fill(redis, 5, 100, "t")
    job, out = ms.Job("j"), ms.memory_sink()
    source = ms.redis_source(redis.url, ["s", "t", "none"], schema={"n": int}, entry_id="id", bounded=True)
    job.read(source).write(out)
    job.run()
    assert sorted(row["n"] for row in out.rows()) == [*range(10), *range(100, 105)]
    assert all("-" in row["id"] for row in out.rows())


def test_from_each_position_what_follows_comes_once(redis: RedisServer) -> None:
    fill(redis, 10)
    first = Reading(redis)
    places, read = [first.reader.position()], [0]
    while isinstance(found := first.reader.read(), pa.RecordBatch):
        places.append(first.reader.position())
        read.append(read[-1] + found.num_rows)
    assert read == [0, 4, 8, 10]
    for place, count in zip(places, read, strict=True):
        assert Reading(redis, place).numbers() == list(range(count, 10))


def test_bounded_ends_where_the_stream_ended_at_the_start_also_after_a_restart(redis: RedisServer) -> None:
    fill(redis, 6)
    reading = Reading(redis, bounded=True)
    reading.reader.read()
    place = reading.reader.position()
    fill(redis, 6, 6)
    again = Reading(redis, place, bounded=True)
    assert again.numbers() == [4, 5]
    assert again.reader.read() is SplitEnd.FINISHED


def test_latest_begins_behind_what_is_there(redis: RedisServer) -> None:
    fill(redis, 3)
    place = Reading(redis, start="latest").reader.position()
    fill(redis, 2, 3)
    assert Reading(redis, place, start="latest").numbers() == [3, 4]


def test_json_in_one_field(redis: RedisServer) -> None:
    redis.client.xadd("s", {"data": b'{"n": 1, "text": "a"}'})
    redis.client.xadd("s", {"data": b'{"n": '})
    redis.client.xadd("s", {"other": b"x"})
    reading = Reading(redis, json="data", on_error="dead_letter")
    assert reading.rows() == [{"n": 1, "text": "a"}]
    assert [letter.error for letter in reading.letters][1] == "there is no field 'data'"
    assert reading.letters[0].raw == b'data={"n": '


def test_an_entry_that_does_not_fit_stops_the_job_or_is_put_aside(redis: RedisServer) -> None:
    ids = fill(redis, 2)
    redis.client.xadd("s", {"n": "many", "text": b"\xff"})
    fill(redis, 1, 3)
    redis.client.xadd("s", {"text": "no n"})
    with pytest.raises(DataError, match=r"stream 's', entry .*: field 'text'.*on_error='dead_letter'"):
        Reading(redis).rows()
    reading = Reading(redis, on_error="dead_letter")
    assert reading.numbers() == [0, 1, 3, None]
    assert len(reading.letters) == 1
    assert ids[0] not in reading.letters[0].position


# -- what was removed --------------------------------------------------------------------------------------------


def test_entries_trimmed_before_they_were_read_are_counted(redis: RedisServer) -> None:
    ids = fill(redis, 10)
    reading = Reading(redis)
    reading.reader.read()
    place = reading.reader.position()
    redis.client.xtrim("s", maxlen=3, approximate=False)
    with pytest.raises(DataError, match=f"3 entries after {ids[3]} and before {ids[7]} were removed"):
        Reading(redis, place).rows()
    going_on = Reading(redis, place, on_lost="earliest")
    assert going_on.numbers() == [7, 8, 9]
    (letter,) = going_on.letters
    assert letter.position == f"3 entries after {ids[3]} and before {ids[7]}"
    fill(redis, 1, 10)
    assert Reading(redis, going_on.reader.position()).numbers() == [10]


def test_all_trimmed_is_noticed_too_and_what_was_read_is_no_loss(redis: RedisServer) -> None:
    ids = fill(redis, 4)
    place = Reading(redis).reader.position()
    reading = Reading(redis)
    reading.rows()
    redis.client.xtrim("s", maxlen=0)
    assert Reading(redis, reading.reader.position()).rows() == []
    with pytest.raises(DataError, match=f"4 entries after 0-0 and up to {ids[-1]}"):
        Reading(redis, place).rows()


def test_entries_deleted_by_hand_are_passed_over_and_are_no_loss_later(redis: RedisServer) -> None:
    ids = fill(redis, 8)
    reading = Reading(redis)
    reading.reader.read()
    redis.client.xdel("s", ids[5])
    assert reading.numbers() == [4, 6, 7]
    redis.client.xtrim("s", maxlen=0)
    fill(redis, 1, 8)
    assert Reading(redis, reading.reader.position()).numbers() == [8]


def test_a_stream_that_was_made_anew_is_refused(redis: RedisServer) -> None:
    fill(redis, 4)
    reading = Reading(redis)
    reading.rows()
    redis.client.delete("s")
    with pytest.raises(DataError, match="has gone"):
        Reading(redis, reading.reader.position()).rows()
    redis.client.xadd("s", {"n": 1}, id="1-1")
    with pytest.raises(DataError, match="ends at 1-1, before"):
        Reading(redis, reading.reader.position()).rows()


def test_trim_removes_what_is_committed_and_nothing_else(redis: RedisServer) -> None:
    ids = fill(redis, 10)
    reading = Reading(redis, trim=True)
    reading.reader.read()
    place = reading.reader.position()
    reading.reader.read()
    reading.reader.committed(place)
    assert [id_.decode() for id_, _ in redis.client.xrange("s")] == ids[3:]
    assert Reading(redis, place, trim=True).numbers() == list(range(4, 10))
    kept = Reading(redis)
    kept.reader.committed(place)
    assert redis.client.xlen("s") == 7


def test_arguments_are_checked(redis: RedisServer) -> None:
    for options, error in (
        ({"start": "soon"}, "start is 'earliest' or 'latest'"),
        ({"on_error": "drop"}, "on_error is"),
        ({"schema": {"n": pa.list_(pa.int64())}}, "cannot be read from the text of a field"),
    ):
        with pytest.raises(JobError, match=error):
            ms.redis_source(redis.url, "s", **{"schema": {"n": int}, **options})  # type: ignore[arg-type]
    with pytest.raises(JobError, match="different keys"):
        ms.redis_source(redis.url, ["a", "a"], schema={"n": int})
    redis.client.set("s", "text")
    with pytest.raises(JobError, match="WRONGTYPE"):
        Reading(redis)
    assert "secret" not in ms.redis_source("redis://me:secret@db/0", "s", schema={"n": int}).identity()


def read_until_rows(reading: Reading) -> pa.RecordBatch:
    while True:
        found = reading.reader.read()
        if isinstance(found, pa.RecordBatch):
            return found


# -- killed ------------------------------------------------------------------------------------------------------


def test_a_server_that_is_away_for_a_while_is_waited_for(redis: RedisServer) -> None:
    fill(redis, 4)
    patient, hasty = Reading(redis), Reading(redis, patience="1us")
    redis.kill()
    assert patient.reader.read() is SplitEnd.PENDING
    with pytest.raises(ExternalError, match="does not answer"):
        read_until_rows(hasty)
    redis.start()
    assert read_until_rows(patient)["n"].to_pylist() == [0, 1, 2, 3]


JOB = """
import millstream as ms

job = ms.Job("shop")
rows = job.read(ms.redis_source({url!r}, ["s", "t"], schema={{"n": int}}, bounded=True, trim={trim}))
rows.write(ms.duckdb_sink("out.duckdb", "t"))
"""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


@pytest.mark.parametrize("trim", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("point", ["store.before_commit@1", "store.after_commit@1", "source.committed@1"])
def test_a_job_killed_anywhere_has_read_each_entry_once(
    point: str, trim: bool, redis: RedisServer, tmp_path: Path, nursery: Nursery
) -> None:
    import duckdb

    fill(redis, 20_000)
    fill(redis, 20_000, 20_000, "t")
    (tmp_path / "job.py").write_text(JOB.format(url=redis.url, trim=trim))
    name, _, hits = point.partition("@")
    assert nursery.run(Start(str(tmp_path), failpoint=f"{name}=kill@{hits}")).killed
    end = nursery.run(Start(str(tmp_path)))
    assert end.outcome in ("finished", "already finished"), end.log
    with duckdb.connect(str(tmp_path / "out.duckdb"), read_only=True) as file:
        assert file.execute("select count(*), count(distinct n), min(n), max(n) from t").fetchall() == [
            (40_000, 40_000, 0, 39_999)
        ]
