"""Jobs that write to PostgreSQL, killed; and the server killed, and connections cut, under them."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import millstream as ms
import psycopg
import pyarrow as pa
import pytest
from millstream.engine.errors import ExternalError
from millstream.engine.sink import SinkContext
from nursery import Nursery, Start
from servers.postgres import PostgresServer, dsn, running_server
from servers.proxy import Proxy

__all__ = ["dsn"]

COUNT = 48
JOB = """
import millstream as ms

job = ms.Job("shop")
rows = job.read(ms.files("input/*.jsonl", name="rows"))
rows.with_columns(v=ms.col("n") * 10).write(ms.postgres_sink({dsn!r}, "appended", create=True))
rows.group_by("k").agg(n=ms.sum("n")).write(ms.postgres_sink({dsn!r}, "totals", key="k", create=True))
"""
SLOW = ["sink.prepared@3", "store.before_commit@2", "sink.commit@3", "postgres.begun@3", "sink.committed@3"]
POINTS = [
    "store.after_commit@2", "postgres.begun@4", "postgres.written@3", "postgres.written@4", "postgres.visible@3",
    *(pytest.param(point, marks=pytest.mark.slow) for point in SLOW),
]  # fmt: skip


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


def make(folder: Path, dsn: str) -> None:
    (folder / "input").mkdir()
    for part in range(4):
        lines = "".join(json.dumps({"n": n, "k": n % 5}) + "\n" for n in range(part, COUNT, 4))
        (folder / "input" / f"{part}.jsonl").write_text(lines)
    (folder / "job.py").write_text(JOB.format(dsn=dsn))


def run(dsn: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else []


def check(dsn: str) -> None:
    """All is there, once."""
    assert run(dsn, "select n, v from appended order by n") == [(n, 10 * n) for n in range(COUNT)]
    expected = [(k, sum(range(k, COUNT, 5))) for k in range(5)]
    assert run(dsn, "select k, n from totals order by k") == expected


@pytest.mark.parametrize("point", POINTS)
def test_a_job_killed_anywhere_has_written_each_row_once(
    point: str, dsn: str, tmp_path: Path, nursery: Nursery
) -> None:
    make(tmp_path, dsn)
    name, _, hits = point.partition("@")
    end = nursery.run(Start(str(tmp_path), failpoint=f"{name}=kill@{hits}"))
    assert end.killed, end
    seen = [n for (n,) in run(dsn, "select n from appended")]
    assert len(seen) == len(set(seen)), "rows are there twice"
    assert nursery.run(Start(str(tmp_path), parallelism=1)).outcome == "finished"
    check(dsn)


def test_a_recovery_killed_at_each_of_its_steps_writes_each_row_once(
    dsn: str, tmp_path: Path, nursery: Nursery
) -> None:
    make(tmp_path, dsn)
    for point in ("store.after_commit@2", "postgres.begun", "postgres.written", "postgres.visible@2", "recovery.done"):
        name, _, hits = point.partition("@")
        end = nursery.run(Start(str(tmp_path), failpoint=f"{name}=kill@{hits or 1}"))
        assert end.killed, (point, end)
    assert nursery.run(Start(str(tmp_path))).outcome == "finished"
    check(dsn)


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of a test's own."""
    running_server()
    own = PostgresServer()
    own.start()
    yield own
    own.stop()


def test_a_server_killed_again_and_again_under_a_job(server: PostgresServer, tmp_path: Path, nursery: Nursery) -> None:
    make(tmp_path, server.dsn())
    over, kills = threading.Event(), 0

    def disturb() -> None:
        nonlocal kills
        chance = random.Random(7)
        while not over.is_set():
            time.sleep(chance.uniform(0.05, 0.3))
            server.kill()
            server.start()
            kills += 1

    disturber = threading.Thread(target=disturb)
    disturber.start()
    end = nursery.run(Start(str(tmp_path), every=0.05))
    over.set()
    disturber.join()
    assert end.outcome == "finished", end
    assert kills > 0
    check(server.dsn())


ROWS = pa.record_batch({"n": pa.array(range(10))})


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_connection_cut_in_commit_is_made_anew_and_the_outcome_found_out(where: str, nth: int, dsn: str) -> None:
    commits = 0

    def cut(data: bytes) -> str:
        nonlocal commits
        if b"Q\0\0\0\x0bCOMMIT\0" not in data:
            return "pass"
        commits += 1
        return where if commits == nth else "pass"

    server = running_server()
    with Proxy(server.port, cut) as proxy:
        sink = ms.postgres_sink(dsn.replace(str(server.port), str(proxy.port)), "t", create=True)
        context = SinkContext("shop", "j1", "s1", 1, 0, 1)
        committer, writer = sink.committer(ROWS.schema, context), sink.writer(ROWS.schema, context)
        for epoch in (1, 2, 3):
            writer.write(ROWS)
            committer.commit(epoch, writer.prepare(epoch, False))
            assert run(dsn, "select count(*) from t") == [(10 * epoch,)]
        committer.close()
    assert commits == 5, "the start of the job, three epochs, and one of these again"


def test_a_server_that_stays_away_fails_the_start_so_that_the_job_may_be_restarted(server: PostgresServer) -> None:
    sink = ms.postgres_sink(server.dsn(), "t", create=True, patience="100ms")
    context = SinkContext("shop", "j1", "s1", 1, 0, 1)
    committer, writer = sink.committer(ROWS.schema, context), sink.writer(ROWS.schema, context)
    writer.write(ROWS)
    rows = writer.prepare(1, False)
    server.kill()
    with pytest.raises(ExternalError, match=r"writing epoch 1 to public.t failed"):
        committer.commit(1, rows)
    server.start()
    committer.commit(1, rows)
    committer.commit(1, rows)
    committer.close()
    assert run(server.dsn(), "select count(*) from t") == [(10,)]
