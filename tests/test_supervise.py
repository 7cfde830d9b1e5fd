"""``millstream run --supervise`` seen from the output: killed, stopped, given up, resumed, each row is there once."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import duckdb
import pytest
from cli_kit import Process, logged, running
from millstream.engine.failpoints import ENVIRONMENT

JOB = """
import millstream as ms
import numpy as np
import pyarrow as pa

CLICKS = pa.schema({"n": pa.int64(), "button": pa.int64(), "at": pa.timestamp("us")})

def clicks(start, stop):
    n = np.arange(start, stop)
    columns = [pa.array(n), pa.array(n % 7), pa.array(n * 10_000).cast(pa.timestamp("us"))]
    return pa.RecordBatch.from_arrays(columns, schema=CLICKS)

job = ms.Job("clicks")
source = ms.generator(clicks, schema=CLICKS, rows=4_000, rate=4_000, batch_rows=100, splits=2, name="clicks")
(
    job.read(source, event_time="at", max_delay="2s")
    .group_by("button")
    .window(ms.tumbling("1s"))
    .agg(clicks=ms.count(), total=ms.sum("n"))
    .write(ms.jsonl("output", hold_bytes=0))
)
"""
"""About a second's work."""

OPTIONS = ("run", "job.py", "--every", "20ms", "--parallelism", "2")

EXPECTED = duckdb.sql(
    "select n % 7 as button, n // 100 as second, count(*) as clicks, sum(n)::bigint as total from range(4000) as r(n) "
    "group by all order by all"
).fetchall()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job.py").write_text(JOB)
    return tmp_path


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
        for _ in range(3):
            before = len(seen(folder))
            job.until(lambda before=before: len(seen(folder)) > before or None)
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
    with running(folder, *OPTIONS, "--supervise", "--restarts", "2") as job:
        assert job.code() == 128 + signal.SIGKILL
    events = [line for line in logged(job.err) if "killed" in line["event"]]
    assert [line.get("after_seconds") for line in events] == [0.1, 0.2, None]
    assert events[-1]["event"] == "killed too often"
    assert seen(folder) != EXPECTED

    monkeypatch.delenv(ENVIRONMENT)
    with running(folder, *OPTIONS) as again:
        assert again.code() == 0
    assert logged(again.err)[-1]["restored_from"] >= 6, "each of the three starts has committed two epochs"
    assert seen(folder) == EXPECTED


def test_sigterm_reaches_the_job_which_takes_a_last_checkpoint(folder: Path) -> None:
    with running(folder, *OPTIONS, "--supervise") as job:
        job.until(lambda: seen(folder) or None)
        job.send(signal.SIGTERM)
        assert job.code() == 0
    stopped = logged(job.err)[-1]
    assert stopped["event"] == "stopped"
    first = seen(folder)
    assert first != EXPECTED

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
    with running(folder, *OPTIONS) as again:
        assert again.code() == 0
    assert seen(folder) == EXPECTED
