"""Jobs with asynchronous functions, killed by a real SIGKILL while rows are in hand: each result is there once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nursery import Nursery, Start

JOB = """
import asyncio
import millstream as ms
import numpy as np
import pyarrow as pa

NUMBERS = pa.schema({"n": pa.int64(), "at": pa.timestamp("us")})

def numbers(start, stop):
    n = np.arange(start, stop)
    return pa.RecordBatch.from_arrays([pa.array(n), pa.array(n * 1_000_000).cast(pa.timestamp("us"))], schema=NUMBERS)

async def look_up(row):
    await asyncio.sleep(row["n"] * 7919 % 13 / 1000)
    with open("called.txt", "a") as called:
        called.write(f"{row['n']}\\n")
    return {**row, "squared": row["n"] ** 2}

job = ms.Job("look-ups")
source = ms.generator(numbers, schema=NUMBERS, rows=600, batch_rows=20, splits=2, name="numbers")
found = job.read(source, event_time="at", max_delay="11m").map_async(
    look_up, schema={"n": "int64", "at": "timestamp[us]", "squared": "int64"}, concurrency=15, ordered=ORDERED
)
found.select("n", "squared").write(ms.jsonl("output", hold_bytes=0))
minutes = found.window(ms.tumbling("1m")).agg(rows=ms.count())
minutes.write(ms.jsonl("minutes", hold_bytes=0))
minutes.late.select("n").write(ms.jsonl("late", hold_bytes=0))
"""


def read(folder: Path) -> list[dict[str, int]]:
    return [json.loads(line) for file in sorted(folder.rglob("*.jsonl")) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("point", ["store.after_commit=kill@3", "store.before_commit=kill@4", "sink.prepared=kill@8"])
def test_a_process_killed_again_and_again(point: str, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB.replace("ORDERED", str("after" in point)))
    with Nursery() as nursery:
        for parallelism in (2, 1, 3):
            assert nursery.run(Start(str(tmp_path), parallelism=parallelism, failpoint=point)).killed
            shown = [row["n"] for row in read(tmp_path / "output")]
            assert len(set(shown)) == len(shown), "a result came twice"
        end = nursery.run(Start(str(tmp_path)))
    assert end.outcome == "finished", end.log
    assert end.restored_from > 0
    assert sorted(row["n"] for row in read(tmp_path / "output")) == list(range(600))
    assert all(row["squared"] == row["n"] ** 2 for row in read(tmp_path / "output"))
    assert [row["rows"] for row in read(tmp_path / "minutes")] == [60] * 10
    assert read(tmp_path / "late") == []
    called = (tmp_path / "called.txt").read_text().split()
    assert set(map(int, called)) == set(range(600))
    assert len(called) > 600, "no row was in hand when it was killed: the test proves nothing"
