"""``millstream run --supervise`` seen from the output: killed, stopped, given up, resumed, each row is there once."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
from pathlib import Path

import duckdb
import pytest
from cli_kit import Process, logged, running
from millstream.engine.failpoints import ENVIRONMENT

JOB = """
from pathlib import Path

import millstream as ms

schema = {"n": "int64", "button": "int64", "at": "timestamp[us]"}
source = ms.files("clicks/*.jsonl", schema=schema, follow=not Path("all").exists(), name="clicks")
job = ms.Job("clicks")
(
    job.read(source, event_time="at", max_delay="2s")
    .group_by("button")
    .window(ms.tumbling("1s"))
    .agg(clicks=ms.count(), total=ms.sum("n"))
    .write(ms.jsonl("output", hold_bytes=0))
)
"""
"""Follows its folder, and so does not end before the test has said ``all``, however slow the test is."""

OPTIONS = ("run", "job.py", "--every", "20ms", "--parallelism", "2")

EXPECTED = duckdb.sql(
    "select n % 7 as button, n // 100 as second, count(*) as clicks, sum(n)::bigint as total from range(4000) as r(n) "
    "group by all order by all"
).fetchall()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "clicks").mkdir()
    return tmp_path


def feed(folder: Path, first: int, last: int) -> None:
    """Let the job have the clicks ``first``..``last - 1``, a file for every hundred."""
    start = dt.datetime(2026, 1, 1)
    for begin in range(first, last, 100):
        clicks = ((n, n % 7, start + dt.timedelta(milliseconds=10 * n)) for n in range(begin, begin + 100))
        lines = [json.dumps({"n": n, "button": button, "at": at.isoformat()}) for n, button, at in clicks]
        hidden = folder / "clicks" / f".{begin:04}"
        hidden.write_text("\n".join(lines) + "\n")
        hidden.rename(folder / "clicks" / f"{begin:04}.jsonl")


def feed_the_rest(folder: Path, first: int) -> None:
    """Let the job have all other clicks; the next start ends with them."""
    feed(folder, first, 4_000)
    (folder / "all").touch()


def seen(folder: Path) -> list[tuple[int, int, int, int]]:
    """The rows that a reader of the output sees."""
    files = (folder / "output").rglob("*.jsonl")
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return sorted((r["button"], int(r["window_start"][17:19]), r["clicks"], r["total"]) for r in rows)


def child(folder: Path, job: Process) -> int:
    """The process that runs the job: it has signed the lock."""
    pid = int((folder / "clicks.duckdb.lock").read_text())
    assert pid != job.process.pid
    return pid


def test_killed_three_times_and_every_row_is_there_once(folder: Path) -> None:
    with running(folder, *OPTIONS, "--supervise") as job:
        for first in (0, 1_000, 2_000):
            before = len(seen(folder))
            feed(folder, first, first + 1_000)
            job.until(lambda before=before: len(seen(folder)) > before or None)
            if first == 2_000:
                feed_the_rest(folder, 3_000)
            os.kill(child(folder, job), signal.SIGKILL)
        assert job.code() == 0
    assert seen(folder) == EXPECTED
    killed = [line for line in logged(job.err) if "killed" in line["event"]]
    assert [line["after_seconds"] for line in killed] == [0.1, 0.2, 0.4]

    with running(folder, *OPTIONS, "--supervise") as again:
        assert again.code() == 0
    assert logged(again.err)[-1]["event"] == "already finished"
    assert seen(folder) == EXPECTED


def test_given_up_after_too_many_kills_and_resumed_by_hand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "store.before_commit=kill@3")
    feed(folder, 0, 3_000)
    with running(folder, *OPTIONS, "--supervise", "--restarts", "2") as job:
        assert job.code() == 128 + signal.SIGKILL
    events = [line for line in logged(job.err) if "killed" in line["event"]]
    assert [line.get("after_seconds") for line in events] == [0.1, 0.2, None]
    assert events[-1]["event"] == "killed too often"
    assert seen(folder) != EXPECTED

    monkeypatch.delenv(ENVIRONMENT)
    feed_the_rest(folder, 3_000)
    with running(folder, *OPTIONS) as again:
        assert again.code() == 0
    assert logged(again.err)[-1]["restored_from"] >= 6, "each of the three starts has committed two epochs"
    assert seen(folder) == EXPECTED


def test_sigterm_reaches_the_job_which_takes_a_last_checkpoint(folder: Path) -> None:
    feed(folder, 0, 3_000)
    with running(folder, *OPTIONS, "--supervise") as job:
        job.until(lambda: seen(folder) or None)
        job.send(signal.SIGTERM)
        assert job.code() == 0
    stopped = logged(job.err)[-1]
    assert stopped["event"] == "stopped"
    first = seen(folder)
    assert first != EXPECTED

    feed_the_rest(folder, 3_000)
    with running(folder, *OPTIONS, "--supervise") as again:
        assert again.code() == 0
    finished = logged(again.err)[-1]
    assert (finished["event"], finished["restored_from"]) == ("finished", stopped["epoch"])
    assert stopped["rows_read"]["clicks"] + finished["rows_read"]["clicks"] == 4_000, "a row was read twice"
    assert seen(folder) == EXPECTED


def test_a_second_sigint_stops_at_once_although_the_checkpoint_hangs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, "store.begin=hang@2")
    feed(folder, 0, 1_000)
    with running(folder, *OPTIONS, "--supervise") as job:
        job.until(lambda: (folder / "clicks.duckdb.witness").exists() or None)  # one epoch is committed
        pid = child(folder, job)
        job.send(signal.SIGINT)
        job.until(lambda: job.event("stopping after a last checkpoint"))
        job.send(signal.SIGINT)
        assert job.code() == 130
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert "job was killed, starting it again" not in job.err

    monkeypatch.delenv(ENVIRONMENT)
    feed_the_rest(folder, 1_000)
    with running(folder, *OPTIONS) as again:
        assert again.code() == 0
    assert seen(folder) == EXPECTED
