"""A real process, killed while windows that show changing results, of the clock and of so many rows are open."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from nursery import Nursery, Start

JOB = """
import millstream as ms
import numpy as np
import pyarrow as pa

CLICKS = pa.schema({"user": pa.string(), "n": pa.int64(), "at": pa.timestamp("us")})

def clicks(start, stop):
    n = np.arange(start, stop)
    users = np.char.add("u", (n * n % 13).astype(str))
    at = pa.array(1000 * (n ^ 33), pa.timestamp("us"))
    return pa.RecordBatch.from_arrays([pa.array(users), pa.array(n), at], schema=CLICKS)

job = ms.Job("clicks")
source = ms.generator(clicks, schema=CLICKS, rows=6_000, batch_rows=50, splits=2, name="clicks")
users = job.read(source, event_time="at", max_delay="1s").group_by("user")
windows = users.window(ms.tumbling("2s"), early="50ms", late="correct", lateness="2s")
counts = windows.agg(n=ms.count(), most=ms.max("n"))
counts.changes().select("user", "window_start", "n", "most", "weight").write(ms.jsonl("counts", hold_bytes=0))
users.window(ms.tumbling("40ms", time="processing")).agg(n=ms.count()).write(ms.jsonl("now", hold_bytes=0))
users.window(ms.count_window(7)).agg(all=ms.collect("n")).write(ms.jsonl("sevens", hold_bytes=0))
"""


def lines(folder: Path) -> list[dict[str, Any]]:
    """What a reader of the folder sees."""
    return [json.loads(line) for file in folder.rglob("*.jsonl") for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    "points", ["store.before_commit=kill@3", pytest.param("store.after_commit=kill@2", marks=pytest.mark.slow)]
)
def test_a_process_killed_again_and_again(points: str, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    with Nursery() as nursery:
        for parallelism in (2, 1, 3):
            assert nursery.run(Start(str(tmp_path), parallelism=parallelism, failpoint=points)).killed
        end = nursery.run(Start(str(tmp_path)))
    assert end.outcome == "finished", end.log
    assert end.restored_from > 0

    users: Counter[str] = Counter()
    windows: dict[tuple[str, int], list[int]] = {}
    for n in range(6_000):
        user = f"u{n * n % 13}"
        users[user] += 1
        windows.setdefault((user, (n ^ 33) // 2_000), []).append(n)
    changes: Counter[Any] = Counter()
    for row in lines(tmp_path / "counts"):
        changes[row["user"], row["window_start"], row["n"], row["most"]] += row["weight"]
    held = [row for row, weight in changes.items() for _ in range(weight)]
    assert all(weight in {0, 1} for weight in changes.values())
    assert Counter((user, n, most) for user, _, n, most in held) == Counter(
        (user, len(seen), max(seen)) for (user, _), seen in windows.items()
    )
    counted: Counter[str] = Counter()
    for row in lines(tmp_path / "now"):
        counted[row["user"]] += row["n"]
    assert counted == users

    sevens = lines(tmp_path / "sevens")
    assert sorted(n for row in sevens for n in row["all"]) == list(range(6_000))
    assert all(n * n % 13 == int(row["user"][1:]) for row in sevens for n in row["all"])
    parts = Counter(row["user"] for row in sevens if len(row["all"]) < 7)
    assert parts == Counter(user for user, count in users.items() if count % 7)
