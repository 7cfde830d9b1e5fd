"""What waits for its time or its number, in a process that is killed: groups with a ttl, slow rows, counted ones."""

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

CLICKS = pa.schema({{"user": pa.string(), "n": pa.int64(), "at": pa.timestamp("us")}})

def clicks(start, stop):
    # Users take turns, a hundred seconds each, and come again after a thousand.
    n = np.arange(start, stop)
    users = np.char.add("u", (n // {BLOCK} % {USERS}).astype(str))
    return pa.record_batch([pa.array(users), pa.array(n), pa.array(n * 1_000_000).cast("timestamp[us]")], schema=CLICKS)

job = ms.Job("clicks")
read = job.read(ms.generator(clicks, schema=CLICKS, rows={ROWS}, batch_rows=50, name="clicks"), event_time="at")
users = read.group_by("user")
visits = users.agg(ttl="150s", clicks=ms.count(), first=ms.min("n"))
visits.changes().write(ms.jsonl("visits", hold_bytes=0))
read.rate_limit(3_000).select("n").write(ms.jsonl("slowly", hold_bytes=0))
users.window(ms.count_window({SIZE}, slide={SLIDE})).agg(rows=ms.count(), first=ms.min("n"), all=ms.sum("n")).write(
    ms.jsonl("counted", hold_bytes=0)
)
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


@pytest.mark.parametrize("point", ["store.before_commit=kill@6", "subtask.snapshot=kill@40"])
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
