"""Columns of maps in the state of operators: they come back as they were."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import millstream as ms
import pyarrow as pa
import pytest
from millstream.testing import simulate

Shape: TypeAlias = Callable[[ms.Job], ms.Stream]

SCHEMA = pa.schema({"k": pa.string(), "n": pa.int64(), "m": pa.map_(pa.string(), pa.int64()), "at": pa.timestamp("us")})
MAPS = [None, [], [("a", 1)], [("b", None), ("a", 2)]]
ROWS = [
    {"k": f"k{n % 3}", "n": n, "m": MAPS[n % 4], "at": dt.datetime(2026, 1, 1) + dt.timedelta(seconds=n)}
    for n in range(60)
]
BATCHES = [pa.RecordBatch.from_pylist(ROWS[n : n + 6], schema=SCHEMA) for n in range(0, 60, 6)]


def read(job: ms.Job, name: str = "rows") -> ms.Stream:
    return job.read(ms.memory_source(BATCHES, name=name), event_time="at")


SHAPES: dict[str, Shape] = {
    "last of a session": lambda job: read(job).group_by("k").window(ms.session("10s")).agg(x=ms.last("m")),
    "collected": lambda job: read(job).group_by("k").window(ms.tumbling("10s")).agg(x=ms.collect("m")),
    "ranked": lambda job: read(job).group_by("k").window(ms.tumbling("10s")).top(2, by="n"),
    "joined": lambda job: read(job).join(read(job, "others"), on="n", between=("0s", "2s")),
    "lagged": lambda job: read(job).group_by("k").over(x=ms.lag("m", 1)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_maps_survive_crashes(shape: str, tmp_path: Path) -> None:
    out = ms.memory_sink()

    def make() -> ms.Job:
        job = ms.Job("maps")
        SHAPES[shape](job).write(out)
        return job

    make().run()
    expected = sorted(map(repr, out.rows()))
    assert "('b', None)" in "".join(expected)
    out = ms.memory_sink()
    assert simulate(make, tmp_path / "s.duckdb", 1).crashes > 0
    assert sorted(map(repr, out.rows())) == expected
