"""What waits for its time or number, in a process that is killed: groups, slow rows, counted ones, sessions, state."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from nursery import Nursery, Start

ROWS, BLOCK, USERS = 3_000, 100, 10
SIZE, SLIDE = 40, 15
JOB = f"""
import millstream as ms
import numpy as np
import pyarrow as pa

CLICKS = pa.schema({{"user": pa.string(), "n": pa.int64(), "slot": pa.int64(), "at": pa.timestamp("us")}})

def clicks(start, stop):
    # Users take turns, a hundred seconds each, and come again after a thousand.
    n = np.arange(start, stop)
    users = np.char.add("u", (n // {BLOCK} % {USERS}).astype(str))
    # Three rows of ten in the second half of a block take the place of those fifty seconds before.
    slots = np.where((n % {BLOCK} >= 50) & (n % 10 < 3), n - 50, n)
    columns = [pa.array(users), pa.array(n), pa.array(slots), pa.array(n * 1_000_000).cast("timestamp[us]")]
    return pa.record_batch(columns, schema=CLICKS)

class Tokens(ms.Process):
    schema = {{"n": int}}
    token = ms.value_state(int)

    def on_row(self, row, ctx):
        if self.token is not None:
            yield {{"n": row["n"]}}
        if row["n"] % 10 == 0:
            ctx.put("token", row["n"], ttl="7s")

job = ms.Job("clicks")
read = job.read(ms.generator(clicks, schema=CLICKS, rows={ROWS}, batch_rows=50, name="clicks"), event_time="at")
users = read.group_by("user")
visits = users.agg(ttl="150s", clicks=ms.count(), first=ms.min("n"))
visits.changes().write(ms.jsonl("visits", hold_bytes=0))
read.rate_limit(3_000).select("n").write(ms.jsonl("slowly", hold_bytes=0))
users.window(ms.count_window({SIZE}, slide={SLIDE})).agg(rows=ms.count(), first=ms.min("n"), all=ms.sum("n")).write(
    ms.jsonl("counted", hold_bytes=0)
)
users.window(ms.sliding("40s", "20s")).top(1, by="n").select("user", "n", end=ms.col("window_end").cast("int64")).write(
    ms.jsonl("best", hold_bytes=0)
)
last = read.deduplicate("slot", keep="last").window(ms.session("4s"), lateness="2m")
last.agg(rows=ms.count(), first=ms.min("n")).select("rows", "first").write(ms.jsonl("sessions", hold_bytes=0))
users.process(Tokens).write(ms.jsonl("tokens", hold_bytes=0))
"""


def lines(folder: Path) -> list[dict[str, Any]]:
    """What a reader of the folder sees."""
    return [json.loads(line) for file in folder.rglob("*.jsonl") for line in file.read_text().splitlines()]


def check_visits(rows: list[dict[str, Any]]) -> None:
    changes: Counter[Any] = Counter()
    for row in rows:
        changes[row["user"], row["clicks"], row["first"]] += row["weight"]
    # Each visit began anew, and of all but the last two nothing is left.
    last = [(f"u{USERS - back}", BLOCK, ROWS - back * BLOCK) for back in (2, 1)]
    assert {visit: weight for visit, weight in changes.items() if weight} == dict.fromkeys(last, 1)
    come = {(row["user"], row["first"]) for row in rows if row["clicks"] == BLOCK and row["weight"] == 1}
    assert come == {(f"u{first // BLOCK % USERS}", first) for first in range(0, ROWS, BLOCK)}


def check_counted(rows: list[dict[str, Any]]) -> None:
    expected = []
    for user in range(USERS):
        own = [n for n in range(ROWS) if n // BLOCK % USERS == user]
        for end in range(SLIDE, len(own) + 1, SLIDE):
            held = own[max(0, end - SIZE) : end]
            expected.append((f"u{user}", len(held), held[0], sum(held)))
    assert sorted((row["user"], row["rows"], row["first"], row["all"]) for row in rows) == sorted(expected)


def check_best(rows: list[dict[str, Any]]) -> None:
    best: dict[Any, int] = {}
    for n in range(ROWS):
        for end in (n // 20 * 20 + 20, n // 20 * 20 + 40):
            best[f"u{n // BLOCK % USERS}", end * 1_000_000] = n
    assert sorted((row["user"], row["end"], row["n"]) for row in rows) == sorted((*key, n) for key, n in best.items())


def check_sessions(rows: list[dict[str, Any]]) -> None:
    parts = [(3, 7), (13, 7), (23, 7), (33, 7), (43, 57)]
    expected = [(block + first, count) for block in range(0, ROWS, BLOCK) for first, count in parts]
    assert sorted((row["first"], row["rows"]) for row in rows) == expected


@pytest.mark.parametrize(
    "point", ["store.before_commit=kill@6", pytest.param("subtask.snapshot=kill@25", marks=pytest.mark.slow)]
)
def test_a_process_killed_again_and_again(point: str, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    with Nursery() as nursery:
        for parallelism in (2, 1, 3):
            assert nursery.run(Start(str(tmp_path), parallelism=parallelism, failpoint=point)).killed
        end = nursery.run(Start(str(tmp_path)))
    assert end.outcome == "finished", end.log
    assert end.restored_from > 0
    assert sorted(row["n"] for row in lines(tmp_path / "slowly")) == list(range(ROWS))
    check_visits(lines(tmp_path / "visits"))
    check_counted(lines(tmp_path / "counted"))
    check_best(lines(tmp_path / "best"))
    check_sessions(lines(tmp_path / "sessions"))
    assert sorted(row["n"] for row in lines(tmp_path / "tokens")) == [n for n in range(ROWS) if 1 <= n % 10 <= 6]
