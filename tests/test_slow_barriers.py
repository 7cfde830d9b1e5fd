"""Barriers in front of slow functions: they wait for no call, and what they let past them stays bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream import col
from millstream.engine.element import Barrier, Epoch, Watermark
from millstream.engine.runtime.channel import Channel
from millstream.engine.runtime.coordinator import CheckpointSettings
from millstream.engine.runtime.run import Control, RunSettings, run_job
from millstream.engine.runtime.scheduler import SimulatedScheduler
from millstream.testing import ManualClock

ROWS = 40_000
N = {"n": "int64"}


def behind_one_exchange(numbers: ms.Stream) -> ms.Stream:
    return numbers.deduplicate("n")


def behind_two_exchanges(numbers: ms.Stream) -> ms.Stream:
    return numbers.deduplicate("n").with_columns(k=col("n") % 7).deduplicate("k", "n").select("n")


def behind_what_grows(numbers: ms.Stream) -> ms.Stream:
    """Of one batch taken in come more rows than anybody would have let in."""
    return numbers.deduplicate("n").flat_map(lambda row: [{"n": 10 * row["n"] + k} for k in range(10)], schema=N)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("before", [behind_one_exchange, behind_two_exchanges, behind_what_grows])
def test_no_call_has_to_return_for_a_checkpoint(
    before: Callable[[ms.Stream], ms.Stream], seed: int, tmp_path: Path
) -> None:
    control, read, called = Control(), list[int](), set[int]()

    async def never(row: dict[str, Any]) -> dict[str, Any]:
        called.add(row["n"])
        await asyncio.Event().wait()
        return row

    job = ms.Job("never")
    batches = [pa.record_batch({"n": range(n, n + 100)}) for n in range(0, ROWS, 100)]
    numbers = job.read(ms.memory_source(batches, splits=2, name="numbers"))
    before(numbers).map_async(never, schema=N, concurrency=10, timeout=None).write(ms.memory_sink())

    def look(status: Any) -> None:
        if status.checkpoints.committed == len(read):
            return
        read.append(status.rows_read["numbers"])
        if len(read) == 30:
            control.stop()

    clock = ManualClock()
    settings = RunSettings(
        tmp_path / "job.duckdb",
        CheckpointSettings(every=0.5, timeout=20.0),
        restarts=0,
        on_status=look,
        status_every=0.0,
    )
    scheduler = SimulatedScheduler(seed, clock)
    result = run_job(job.plan(2), settings, control=control, clock=clock, scheduler=lambda _: scheduler)
    assert result.outcome == "stopped"
    assert len(called) == 20
    assert read[-1] == read[15], "at each barrier more rows got past it"
    assert read[-1] < ROWS / 2


def test_what_is_owed_counts_until_it_is_settled() -> None:
    channel, woken = Channel(8, rows=5), list[str]()
    channel.connect(lambda: woken.append("producer"), lambda: None)
    for element in (pa.record_batch({"n": [1, 2, 3]}), Watermark(1), pa.record_batch({"n": [4, 5]})):
        assert not channel.full
        channel.put(element)
    assert channel.full
    channel.put(Barrier(Epoch(1)))
    assert channel.holds_barrier
    while channel.holds_barrier:
        channel.take(owed=True)
    assert len(channel) == 0
    assert channel.full
    assert woken == []
    channel.settle()
    channel.settle()
    assert not channel.full
    assert woken == ["producer"]


def test_where_rows_are_not_counted_elements_are() -> None:
    channel = Channel(2)
    channel.put(pa.record_batch({"n": range(100_000)}))
    assert not channel.full
    channel.put(Watermark(1))
    assert channel.full
    assert channel.take() is not None
    assert not channel.full
