"""A reader takes files away as soon as it sees them, and the job is killed wherever that could be mistaken for loss."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from nursery import Nursery, Start

ROWS = 4_800

JOB = """
import millstream as ms
import numpy as np
import pyarrow as pa

SCHEMA = pa.schema([("n", pa.int64()), ("shop", pa.int64())])

def rows(start, stop):
    n = np.arange(start, stop)
    return pa.RecordBatch.from_arrays([pa.array(n), pa.array(n % 3)], schema=SCHEMA)

job = ms.Job("orders")
source = ms.generator(rows, schema=SCHEMA, rows=4_800, batch_rows=100, splits=2, name="orders")
job.read(source).write(ms.jsonl("output", hold_bytes=0, OPTIONS))
"""

LAYOUTS = {
    "one file": (1, ""),
    "a folder of files": (2, ""),
    "a folder of partitions": (2, "partition_by=['shop']"),
    "one after the other": (2, "partition_by=['shop'], atomic_epochs=False"),
}
"""How an epoch appears: at which parallelism, with which options."""

POINTS = (
    "sink.commit=kill@2",
    "files.publishing=kill@2",
    "files.visible=kill",  # while the epoch of the kill before is made visible in recovery
    "files.visible=kill",  # and again, after the reader took all of it
    "files.rename=kill@4",
    "files.publishing=kill",
    "recovery.discard=kill",
    "files.visible=kill@2",
    "recovery.commit_again=kill",
    "sink.committed=kill@2",
)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


def take_all(output: Path, taken: Counter[int]) -> None:
    """Move away everything that can be seen, folders included."""
    for path in sorted(output.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        else:
            taken.update(json.loads(line)["n"] for line in path.read_text().splitlines())
            path.unlink()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_taken_away_and_killed(layout: str, nursery: Nursery, tmp_path: Path) -> None:
    parallelism, options = LAYOUTS[layout]
    (tmp_path / "job.py").write_text(JOB.replace("OPTIONS", options))
    gathered = () if layout in ("one file", "one after the other") else ("files.gathered=kill@2",)
    taken: Counter[int] = Counter()
    for point in (*POINTS, *gathered):
        end = nursery.run(Start(str(tmp_path), parallelism=parallelism, failpoint=point, batches=3 - parallelism))
        assert end.killed, f"{point} was not reached: {end.log}"
        take_all(tmp_path / "output", taken)
        assert max(taken.values()) <= 1, f"taken twice after {point}"
    end = nursery.run(Start(str(tmp_path), parallelism=parallelism, batches=9))
    assert end.outcome == "finished", end.log
    take_all(tmp_path / "output", taken)
    assert taken == Counter(range(ROWS))
    assert [path.name for path in (tmp_path / ".millstream").rglob("part-*")] == []
